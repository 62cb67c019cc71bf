"""A train step with a Pallas kernel is the step with array code, on a mesh and in chunks."""

import dataclasses
from functools import cache
from unittest import mock

import jax
import numpy as np
import pytest

from marvel_jax.errors import MarvelError
from marvel_jax.models.kernels import Kernel, Kernels
from marvel_jax.models.kernels.choice import Chosen
from marvel_jax.parallel.mesh import DATA_AXES, MeshConfig, make_mesh
from marvel_jax.training import step
from tests.training import tiny_steps

STEPS = 2


def config_for(mesh, *, adapters, **options):
    config = tiny_steps.config_for(mesh, adapters=adapters, chunk_rows=options.pop("chunk", None))
    return dataclasses.replace(config, model=dataclasses.replace(config.model, **options))


@cache
def expected(adapters):
    return tiny_steps.run(config_for(tiny_steps.ONE, adapters=adapters), num_steps=STEPS)


def interpreted(name):
    """In the place of the choice, which knows no kernel for a CPU."""

    def choose(config, architecture, mesh):
        kernel = Kernel(name, True, mesh=mesh, row_axes=DATA_AXES, head_axis="tensor")
        return Chosen(Kernels(kernel, kernel), "")

    return mock.patch.object(step, "attention_kernels", choose)


@pytest.mark.parametrize(
    ("name", "adapters", "chunk", "remat"),
    [
        ("pallas_gpu", False, None, "none"),
        # Chunks of rows that "data" splits by hand, and the compiler over the other axes.
        ("pallas_gpu", True, 2, "full"),
    ],
)
def test_on_a_mesh_it_gives_the_same_losses_and_weights(name, adapters, chunk, remat):
    config = config_for(MeshConfig(2, 2, 2), adapters=adapters, chunk=chunk, remat=remat)
    with interpreted(name):
        found = tiny_steps.run(config, num_steps=STEPS)
    for one, other in zip(found.history, expected(adapters).history, strict=True):
        for metric, value in other.items():
            assert one[metric] == pytest.approx(value, abs=1e-5, rel=1e-5), metric
    jax.tree.map(
        lambda one, other: np.testing.assert_allclose(one, other, atol=1e-5),
        found.params,
        expected(adapters).params,
    )


def test_a_kernel_that_cannot_be_is_refused_before_anything_is_compiled():
    config = config_for(tiny_steps.ONE, adapters=False, kernel="pallas")
    with pytest.raises(MarvelError, match=r"model.kernel='pallas' cannot be: .* 'cpu'"):
        tiny_steps.build(config)


def test_left_to_itself_a_cpu_takes_array_code_and_says_so():
    config = config_for(tiny_steps.ONE, adapters=False)
    mesh = make_mesh(config.mesh, devices=jax.devices()[:1])
    chosen = step.attention_kernels(config, tiny_steps.ARCHITECTURE, mesh)
    assert chosen.line == "attention kernel: xla (chosen for cpu)"
