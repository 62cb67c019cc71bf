"""A tiny M-BEIR folder on disk, and a configuration that trains on it in seconds."""

import textwrap
from pathlib import Path
from typing import Any

import numpy as np

from marvel_jax.data import mbeir_write, tokenizer
from tests import tiny

DATASET, NAME = 90, "tiny"
PAIRS, TESTS = 48, 12
PROMPTS = {
    ("text", "image"): ("find the picture", "which picture is it"),
    ("image", "text"): ("name it",),
    ("image,text", "image"): ("find it with this change", "change it"),
}


def write(root: Path) -> Path:
    """Names for pictures (task 0), pictures for names (3), picture and word for picture (7)."""
    rng = np.random.default_rng(0)
    names = [f"{' '.join(rng.choice(tiny.WORDS, 3))} {number}" for number in range(PAIRS)]
    images = [f"mbeir_images/{number}.png" for number in range(PAIRS)]
    for number, path in enumerate(images):
        (root / path).parent.mkdir(parents=True, exist_ok=True)
        (root / path).write_bytes(tiny.picture(number))
    pictures = [_candidate(i, image=path) for i, path in enumerate(images)]
    texts = [_candidate(PAIRS + i, text=name) for i, name in enumerate(names)]
    asked: dict[int, list[tuple[str | None, str | None, int]]] = {
        0: [(name, None, i) for i, name in enumerate(names)],
        3: [(None, path, PAIRS + i) for i, path in enumerate(images)],
        7: [("the next", path, (i + 1) % PAIRS) for i, path in enumerate(images)],
    }
    for task, queries in asked.items():
        for split, chosen, first in (
            ("train", queries, 1000 * task),
            ("test", queries[:TESTS], 1000 * task + 500),
        ):
            records = [
                mbeir_write.query_record(
                    f"{DATASET}:{first + number}",
                    task=task,
                    text=text,
                    image=image,
                    positives=[f"{DATASET}:{answer}"],
                )
                | {"neg_cand_list": _hard_negatives(answer)}
                for number, (text, image, answer) in enumerate(chosen)
            ]
            mbeir_write.write_queries(root, NAME, task=task, split=split, records=records)
        pool = texts if task == 3 else pictures
        mbeir_write.write_local_pool(root, NAME, task=task, records=pool)
    for split in ("train", "test"):
        mbeir_write.write_union_pool(root, split=split, records=pictures + texts)
    mbeir_write.write_instructions(root, dataset=DATASET, name=NAME, instructions=PROMPTS)
    tokenizer.save(tokenizer.train(names, vocabulary=300), root / "tokenizer")
    return root


def _hard_negatives(answer: int) -> list[str]:
    """Others of the answer's modality, by their ids; some queries have none."""
    start = answer // PAIRS * PAIRS
    return [
        f"{DATASET}:{start + (answer + distance) % PAIRS}"
        for distance in tiny.hard_negatives(answer)
    ]


def _candidate(number: int, **content: str) -> dict[str, Any]:
    return mbeir_write.candidate_record(
        f"{DATASET}:{number}", **{"text": None, "image": None, **content}
    )


def write_config(path: Path, corpus: Path) -> Path:
    """A config file as a person would write it."""
    path.write_text(
        textwrap.dedent(f"""\
        from marvel_jax.data.batch import RowShape
        from marvel_jax.models.config import Qwen2VLConfig, TextConfig, VisionConfig
        from marvel_jax.settings import EmbeddingSettings
        from marvel_jax.training.config import (
            CheckpointConfig, DataConfig, ModelConfig, OptimizerConfig, TrainConfig,
        )

        architecture = Qwen2VLConfig(
            vision=VisionConfig(depth=2, embed_dim=16, num_heads=2, patch_size=7),
            text=TextConfig(
                vocab_size=300,
                hidden_size=32,
                intermediate_size=48,
                num_hidden_layers=2,
                num_attention_heads=4,
                num_key_value_heads=2,
                mrope_section=(2, 1, 1),
            ),
            tie_word_embeddings=True,
        )
        config = TrainConfig(
            data=DataConfig(
                path={str(corpus)!r},
                global_batch=16,
                row=RowShape(tokens=64, patches=64, items=4),
            ),
            model=ModelConfig(scratch=architecture),
            embedding=EmbeddingSettings(min_pixels=196, max_pixels=784, max_text_tokens=32),
            # A large epsilon: Adam would blow up rounding in gradients near zero to whole steps.
            optimizer=OptimizerConfig(learning_rate=1e-3, eps=1e-3),
            steps=8,
            checkpoint=CheckpointConfig(every=3),
        )
        """),
        encoding="utf-8",
    )
    return path
