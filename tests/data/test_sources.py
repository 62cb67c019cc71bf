"""Sources by their description, and the training config that names them."""

import collections
import dataclasses

import pytest

from marvel_jax.data import mbeir_synthetic, sources, tfds_builders
from marvel_jax.data.batch import RowShape
from marvel_jax.data.items import TASKS
from marvel_jax.data.mbeir import MbeirFolder
from marvel_jax.data.mbeir_synthetic import CAPTIONS_FILE, NLI_FILE, Size
from marvel_jax.data.mixture import Mixture
from marvel_jax.data.plan_groups import PartShare
from marvel_jax.data.sources import SourceConfig, open_source
from marvel_jax.data.tfds_source import TfdsSource
from marvel_jax.errors import MarvelError
from marvel_jax.settings import EmbeddingSettings
from marvel_jax.training import inputs
from marvel_jax.training.config import DataConfig, ModelConfig, TrainConfig
from marvel_jax.training.prepare import make_plan
from tests import tiny


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    out = tmp_path_factory.mktemp("sources") / "mbeir"
    size = Size(train=160, test=64, short_side=28, text=0.1)
    mbeir_synthetic.build(out, size=size, with_pairs=True)
    return out


def test_a_whole_layout_becomes_array_records(folder):
    tfds_builders.write(folder)
    for split in ("train", "val", "test"):
        ours = open_source(SourceConfig(path=str(folder), reader="tfds", split=split))
        theirs = open_source(SourceConfig(path=str(folder), split=split))
        assert isinstance(ours, TfdsSource)
        assert ours.fingerprint == theirs.fingerprint and ours.instructions == theirs.instructions
        for one, other in zip(ours.queries, theirs.queries, strict=True):
            assert (one.id, one.task, one.positives, one.negatives, one.dataset) == (
                other.id,
                other.task,
                other.positives,
                other.negatives,
                other.dataset,
            )
        for one, other in zip(ours.candidates, theirs.candidates, strict=True):
            assert (one.id, one.modality) == (other.id, other.modality)
            shown = [image.source.read_bytes() for image in other.item.images]
            assert [image.source for image in one.item.images] == shown
    assert any(query.negatives for query in TfdsSource.open(folder).queries)


def test_what_cannot_become_array_records_is_named(folder, tmp_path):
    (tmp_path / "query").mkdir()
    with pytest.raises(MarvelError, match="has no split with both query/SPLIT/"):
        tfds_builders.write(tmp_path)
    for name in ("query", "cand_pool", "instructions"):
        (tmp_path / name).rmdir() if (tmp_path / name).exists() else None
        (tmp_path / name).symlink_to(folder / name)
    with pytest.raises(MarvelError, match=r"\.jpg cannot be read"):
        tfds_builders.write(tmp_path, splits=["test"])


def test_a_mixture_is_opened_part_by_part(folder):
    config = DataConfig(
        mixture=(
            SourceConfig(path=str(folder), exclude=("nights",), weight=3.0),
            SourceConfig(path=str(folder / NLI_FILE), reader="nli", weight=1.0),
            SourceConfig(path=str(folder / CAPTIONS_FILE), reader="captions", weight=1.0),
        )
    )
    mixture = inputs.open_source(config)
    assert isinstance(mixture, Mixture)
    assert [part.name for part in mixture.parts] == ["mbeir", "nli", "captions"]
    assert [len(part.source.queries) for part in mixture.parts][1:] == [80, 80]
    whole = len(MbeirFolder(folder).source("train").queries)
    assert 0 < len(mixture.parts[0].source.queries) < whole
    assert mixture.queries[-1].task == TASKS[0]
    assert [part.share.weight for part in config.sources] == [3.0, 1.0, 1.0]
    assert config.sources[0].share == PartShare(3.0)


def test_a_run_plans_what_its_config_says(folder):
    config = TrainConfig(
        data=DataConfig(
            mixture=(
                SourceConfig(path=str(folder), weight=1.0, task_weights={0: 1.0, 6: 1.0}),
                SourceConfig(path=str(folder / NLI_FILE), reader="nli", weight=2.0),
            ),
            tokenizer=str(folder / "tokenizer"),
            global_batch=12,
            batches="interleaved",
            sub_batch=4,
            duplicates="avoid",
            hard_negatives=1,
            row=RowShape(tokens=512, patches=256, items=16),
        ),
        embedding=EmbeddingSettings(min_pixels=196, max_pixels=784, prompt="one_word"),
        model=ModelConfig(scratch=tiny.architecture()),
    )
    opened = inputs.open_inputs(config)
    plan = make_plan(config, opened, shards=2, cache=None)
    tasks = collections.Counter()
    for number in range(12):
        step = plan.step(number)
        found = collections.Counter(plan.index.tasks[step.queries].tolist())
        assert all(count % 4 == 0 for count in found.values())
        assert (step.candidates[plan.index.tasks[step.queries] == 1, 1] >= 0).all()
        tasks += found
    assert set(tasks) == {0, 1, 6} and tasks[1] == 2 * (tasks[0] + tasks[6]) == 96
    assert plan.config.duplicates == "avoid" and opened.processor.prompt == "one_word"
    lost = dataclasses.replace(config, data=dataclasses.replace(config.data, tokenizer=None))
    with pytest.raises(MarvelError, match=r"name it in data\.tokenizer"):
        inputs.open_inputs(lost)


def test_mined_negatives_are_joined_to_their_part(folder, monkeypatch):
    joined = []
    monkeypatch.setattr(
        sources, "with_negatives", lambda source, path, **_: joined.append((source, path)) or source
    )
    part = SourceConfig(path=str(folder), include=("nights",), mined="mined.jsonl")
    mixture = inputs.open_source(DataConfig(mixture=(part,), hard_negatives=5))
    ((source, path),) = joined
    assert path == "mined.jsonl" and mixture.parts[0].source is source
    inputs.open_source(DataConfig(path=str(folder), mined="other.jsonl", hard_negatives=1))
    assert joined[1][1] == "other.jsonl"


def test_one_source_is_not_renamed(folder):
    single = inputs.open_source(DataConfig(path=str(folder / NLI_FILE), reader="nli"))
    assert single.queries[3].id == "0:3"


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        ({}, "exactly one of data.path .* data.mixture"),
        ({"path": "x", "mixture": (SourceConfig(path="y"),)}, "exactly one of data.path"),
        (
            {"mixture": (SourceConfig(path="x"), SourceConfig(path="y"))},
            r"same name \(mbeir, mbeir\)",
        ),
        (
            {"mixture": (SourceConfig(path="x"),), "task_weights": {0: 1.0}},
            "beside data.mixture, give task_weights",
        ),
        ({"path": "x", "batches": "interleaved"}, "data.sub_batch=None: sub_batch goes"),
        ({"path": "x", "batches": "interleaved", "sub_batch": 7}, "data.sub_batch=7 does not div"),
        (
            {"path": "x", "teacher": ("a", "b"), "teacher_shares": (1.0,)},
            r"teacher_shares=\[1.0\] with 2 files",
        ),
        ({"path": "x", "images": "y"}, "images='y' with reader='mbeir'"),
        ({"path": "x", "reader": "nli", "include": ("nights",)}, "only 'mbeir' has sets"),
        ({"path": "x", "include": "nights"}, r"include='nights' is one text: write \('nights',\)"),
    ],
)
def test_a_config_that_contradicts_itself_is_refused(fields, message):
    with pytest.raises(MarvelError, match=message):
        DataConfig(**fields)


def test_what_is_missing_is_named_with_its_field(tmp_path):
    missing = str(tmp_path / "none.csv")
    with pytest.raises(MarvelError, match=r"data \(reader='nli'\): .*none.csv does not exist"):
        inputs.open_source(DataConfig(path=missing, reader="nli"))
    mixture = (SourceConfig(path=missing, reader="webdataset"),)
    with pytest.raises(MarvelError, match=r"data.mixture\[0\] \(reader='webdataset'\): .*no shard"):
        inputs.open_source(DataConfig(mixture=mixture))
    mixture = (SourceConfig(path=missing),)
    with pytest.raises(MarvelError, match=r"data.mixture\[0\].path=.* does not exist"):
        inputs.open_source(DataConfig(mixture=mixture))
