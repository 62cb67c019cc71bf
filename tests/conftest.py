"""Every test runs on the CPU with eight fake devices and JAX's persistent compilation cache."""

import os
from pathlib import Path

import hypothesis
import pytest

os.environ["JAX_PLATFORMS"] = "cpu"
_flags = os.environ.get("XLA_FLAGS", "")
if "xla_force_host_platform_device_count" not in _flags:
    os.environ["XLA_FLAGS"] = f"{_flags} --xla_force_host_platform_device_count=8".strip()
os.environ.setdefault(
    "JAX_COMPILATION_CACHE_DIR", str(Path(__file__).parents[1] / ".cache" / "jax")
)
os.environ.setdefault("JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS", "0.3")
os.environ.setdefault("HF_HUB_OFFLINE", "1")
os.environ.setdefault("TOKENIZERS_PARALLELISM", "false")

# No deadline: the first example may compile. In CI the same examples every time.
hypothesis.settings.register_profile(
    "marvel", deadline=None, max_examples=50, derandomize="CI" in os.environ
)
hypothesis.settings.load_profile("marvel")


# The fixtures import what they need themselves: jax must not be loaded before the lines above.
@pytest.fixture(scope="session")
def tiny_corpus(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A tiny M-BEIR folder; not to be changed."""
    from tests import tiny_corpus

    return tiny_corpus.write(tmp_path_factory.mktemp("corpora") / "tiny")


@pytest.fixture(scope="session")
def tiny_config(tmp_path_factory: pytest.TempPathFactory, tiny_corpus: Path) -> Path:
    """The config file of a run of eight steps on it."""
    from tests import tiny_corpus as corpora

    return corpora.write_config(tmp_path_factory.mktemp("configs") / "config.py", tiny_corpus)


@pytest.fixture(scope="session")
def tiny_run(tmp_path_factory: pytest.TempPathFactory, tiny_config: Path) -> Path:
    """The folder of that run, trained to its end without an interruption; not to be changed."""
    from marvel_jax.recipes.config_file import load_config
    from marvel_jax.training.loop import train

    workdir = tmp_path_factory.mktemp("runs") / "whole"
    train(load_config(tiny_config), workdir)
    return workdir


@pytest.fixture(scope="session")
def tiny_model(tmp_path_factory: pytest.TempPathFactory, tiny_run: Path) -> Path:
    """The model that it made, as a Hugging Face folder; not to be changed."""
    from marvel_jax.training.export import export_checkpoint

    folder = tmp_path_factory.mktemp("models") / "tiny"
    export_checkpoint(tiny_run, folder)
    return folder
