"""`--set` changes what it names and nothing else, and a typo is an error."""

import dataclasses

import pytest
from hypothesis import given
from hypothesis import strategies as st

from marvel_jax.errors import MarvelError
from marvel_jax.models.config import Qwen2VLConfig
from marvel_jax.models.lora import LoraConfig
from marvel_jax.recipes.overrides import override
from marvel_jax.training.config import DataConfig, ModelConfig, TrainConfig
from tests import tiny

CONFIG = TrainConfig(data=DataConfig(path="corpus"), model=ModelConfig(scratch=tiny.architecture()))


def value(config: TrainConfig, path: str) -> object:
    for name in path.split("."):
        config = getattr(config, name)
    return config


@pytest.mark.parametrize(
    ("setting", "expected"),
    [
        ("steps=7", 7),
        ("data.global_batch=32", 32),
        ("data.path=a folder/7", "a folder/7"),
        ("data.path=7", "7"),
        ("data.path=a=b", "a=b"),
        ("data.reader=tfds", "tfds"),
        ("data.row.tokens=128", 128),
        ("data.task_weights={0: 2, 3: 0.5}", {0: 2.0, 3: 0.5}),
        ("data.task_weights=None", None),
        ("optimizer.learning_rate=1e-5", 1e-5),
        ("optimizer.learning_rate=1", 1.0),
        ("optimizer.learn_temperature=False", False),
        ("optimizer.temperature_learning_rate=0.1", 0.1),
        ("model.dtype=bfloat16", "bfloat16"),
        ("model.scratch.text.intermediate_size=40", 40),
        ("model.scratch.text.mrope_section=[2, 1, 1]", (2, 1, 1)),
        ("sharding.layers=fsdp", "fsdp"),
        ("embedding.template=gme", "gme"),
    ],
)
def test_a_setting_changes_its_field_and_nothing_else(setting, expected):
    path = setting.partition("=")[0]
    found = override(CONFIG, [setting])
    assert value(found, path) == expected and type(value(found, path)) is type(expected)
    assert override(found, [f"{path}={value(CONFIG, path)!r}"]) == CONFIG


def test_names_may_be_written_with_dashes():
    assert override(CONFIG, ["data.global-batch=32"]) == override(CONFIG, ["data.global_batch=32"])


def test_settings_are_applied_together():
    # Each alone would be refused: a model has a source or an architecture.
    found = override(CONFIG, ["model.source=owner/name", "model.scratch=None"])
    assert found.model == ModelConfig(source="owner/name")


def test_a_part_that_is_left_out_is_asked_for_by_its_fields():
    assert CONFIG.model.adapters is None
    found = override(CONFIG, ["model.adapters.rank=8", "model.adapters.alpha=16"])
    assert found.model.adapters == LoraConfig(rank=8, alpha=16.0)


@given(rate=st.floats(1e-9, 1e9), steps=st.integers(1, 10**9), path=st.text(min_size=1))
def test_what_python_writes_is_read_back(rate, steps, path):
    settings = [f"optimizer.learning_rate={rate!r}", f"steps={steps!r}", f"data.path={path!r}"]
    found = override(CONFIG, settings)
    assert (found.optimizer.learning_rate, found.steps, found.data.path) == (rate, steps, path)


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        (["stepz=3"], "--set stepz: no such field; there are data, model, embedding"),
        (["data.batch=3"], r"--set data\.batch: no such field; there are path, reader"),
        (["steps"], "--set steps: expected NAME=VALUE, as in steps=100"),
        (["=3"], "--set =3: expected NAME=VALUE"),
        (["steps=many"], "--set steps=many: expected int"),
        (["steps=1.5"], r"--set steps=1\.5: expected int"),
        (["steps=True"], "--set steps=True: expected int"),
        (["optimizer.clip_norm=True"], "expected float"),
        (["optimizer.temperature=warm"], "expected float | None"),
        (["optimizer.learn_temperature=0"], "expected bool"),
        (["model.dtype=float16"], "expected one of float32, bfloat16"),
        (["data.task_weights={0: 'much'}"], "--set data.task_weights=.*expected dict"),
        (["model.scratch.text.mrope_section=[2, 1]"], "mrope_section=.*expected tuple"),
        (["data=here"], r"expected its fields one by one \(path, reader"),
        (["steps.more=3"], r"--set steps\.more: steps is 1000"),
        (["model.source.name=3"], r"--set model\.source\.name: model\.source is None"),
        (["steps=3", "steps=4"], "--set steps=4: steps is set twice"),
        (["model.scratch=None", "model.scratch.text.vocab_size=3"], "scratch is set as a whole"),
        (["steps=0"], "steps=0 must be positive"),
        (["model.source=a/b"], "exactly one of model.source"),
    ],
)
def test_what_does_not_fit_is_refused(settings, message):
    with pytest.raises(MarvelError, match=message):
        override(CONFIG, settings)


def test_every_field_of_a_training_run_can_be_set():
    """Each field's value, as Python writes it, is a value for it: no type is left out."""

    def walk(config: object, prefix: str) -> list[str]:
        found = []
        for field in dataclasses.fields(config):
            current = getattr(config, field.name)
            if dataclasses.is_dataclass(current):
                found += walk(current, f"{prefix}{field.name}.")
            else:
                found.append(f"{prefix}{field.name}={current!r}")
        return found

    settings = walk(CONFIG, "")
    assert len(settings) > 60 and isinstance(CONFIG.model.scratch, Qwen2VLConfig)
    assert override(CONFIG, settings) == CONFIG
