"""`marvel bench depth` compiles the same step at every depth, each time anew."""

import jax
import pytest
from jax.experimental.compilation_cache import compilation_cache

from marvel_jax.bench.depth import DepthOptions, run
from marvel_jax.errors import MarvelError
from marvel_jax.parallel.mesh import MeshConfig
from tests.training.tiny_steps import config_for


@pytest.fixture
def in_haste(monkeypatch):
    """Without the compiler's last stage, which takes half of the time."""
    compile_fully = jax.stages.Lowered.compile
    options = {"xla_backend_optimization_level": 0}
    monkeypatch.setattr(
        jax.stages.Lowered, "compile", lambda self: compile_fully(self, compiler_options=options)
    )


@pytest.fixture
def stored(tmp_path):
    """Where JAX keeps what it has compiled."""
    before = jax.config.jax_compilation_cache_dir
    jax.config.update("jax_compilation_cache_dir", str(tmp_path))
    compilation_cache.reset_cache()
    yield tmp_path
    jax.config.update("jax_compilation_cache_dir", before)
    compilation_cache.reset_cache()


def test_a_row_for_every_depth(in_haste, stored):
    config = config_for(MeshConfig())
    found = run(DepthOptions(config=config, layers=(1, 2), repeats=1))
    # What is compiled to be timed is neither kept nor fetched; afterwards all is as it was.
    assert not list(stored.glob("jit_step*")) and jax.config.jax_enable_compilation_cache
    assert [row["layers"] for row in found["rows"]] == [1, 2]
    shallow, deep = found["rows"]
    assert min(*shallow.values(), *deep.values()) > 0
    assert deep["program_kib"] <= 1.05 * shallow["program_kib"]
    assert "2 layers / 1" in found["notes"][0]


def test_options_that_mean_nothing_are_refused():
    with pytest.raises(MarvelError, match=r"layers=\(0,\)"):
        DepthOptions(config=config_for(), layers=(0,))
