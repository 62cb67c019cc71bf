"""Emoji, a model of random weights and an evaluation with everything; not to be changed.

What is tested is that all parts fit together, go on where they stopped and refuse what cannot be.
"""

import json
from pathlib import Path

import pytest

from marvel_jax.data import emoji
from marvel_jax.data.emoji_tasks import Sizes
from marvel_jax.recipes.stage_runs import run_stage
from marvel_jax.recipes.stages import Base
from tests import tiny
from tests.recipes.evaluate_command.asked import WHOLE, evaluate

FEW = Sizes(
    train_tone=40,
    train_tone_card=40,
    test_picture=8,
    test_translation=8,
    test_card=8,
    test_named=8,
    test_tone=8,
    test_tone_card=8,
)


@pytest.fixture(scope="session")
def corpus(tmp_path_factory) -> Path:
    """Emoji with a validation split: of each test set every other query."""
    folder = tmp_path_factory.mktemp("corpora") / "emoji"
    emoji.build(folder, seed=3, limit=60, sizes=FEW, vocabulary=1000)
    (folder / "query" / "val").mkdir()
    (folder / "qrels" / "val").mkdir()
    for file in sorted((folder / "query" / "test").iterdir()):
        lines = file.read_text().splitlines(keepends=True)[:8]
        qrels = folder / "qrels" / "test" / file.name.replace(".jsonl", "_qrels.txt")
        judged = qrels.read_text().splitlines(keepends=True)
        for split, part in (("val", lines[::2]), ("test", lines[1::2])):
            ids = {json.loads(line)["qid"] for line in part}
            kept = [line for line in judged if line.split()[0] in ids]
            name = file.name.replace("_test", f"_{split}")
            (folder / "query" / split / name).write_text("".join(part))
            path = folder / "qrels" / split / name.replace(".jsonl", "_qrels.txt")
            path.write_text("".join(kept))
    return folder


@pytest.fixture(scope="session")
def model(corpus, tmp_path_factory) -> Path:
    """A Qwen2-VL of random weights, which serves as embedder and as reranker."""
    folder = tmp_path_factory.mktemp("models")
    stage = Base("base", data=str(corpus), architecture=tiny.architecture(), max_pixels=28 * 28)
    run_stage(stage, folder, print)
    return folder / "model"


@pytest.fixture(scope="session")
def ran(model, corpus, tmp_path_factory):
    """(folder, outcome) of a run with everything."""
    workdir = tmp_path_factory.mktemp("runs") / "whole"
    return workdir, evaluate(model, corpus, workdir, scann=True, reranker=model, **WHOLE)
