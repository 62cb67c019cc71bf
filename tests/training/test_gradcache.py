"""GradCache changes the memory, never the value, the gradient or the order of the rows."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from marvel_jax.errors import MarvelError
from marvel_jax.parallel.collectives import executed_collectives
from marvel_jax.parallel.mesh import MeshConfig, data_shards, make_mesh
from marvel_jax.parallel.sharding import batch_sharding, replicated
from marvel_jax.training.gradcache import encode_in_chunks

MESHES = [MeshConfig(1), MeshConfig(4), MeshConfig(1, 4), MeshConfig(2, 2), MeshConfig(2, 2, 2)]


def encode(values, rows, axes):
    """Rows [r, 3] and numbers [r] to vectors [r, 2, 4], each from its own row only."""
    x, number = rows
    hidden = jnp.tanh(x @ values["kernel"]) * number[:, None] + values["bias"]
    return jnp.stack([hidden, hidden**2], axis=1)


def loss(values, rows, chunk_rows, mesh):
    """A loss in which every row meets every other one."""
    vectors = encode_in_chunks(encode, values, rows, chunk_rows=chunk_rows, mesh=mesh)
    flat = vectors.reshape(-1, 4)
    logits = flat @ flat.T + jnp.arange(len(flat)) / len(flat)
    return jax.nn.logsumexp(logits, axis=1).mean(), vectors


def compiled(mesh, chunk_rows):
    gradient = jax.value_and_grad(loss, has_aux=True)
    return jax.jit(
        lambda values, rows: gradient(values, rows, chunk_rows, mesh),
        in_shardings=(replicated(mesh), batch_sharding(mesh)),
    )


def inputs(rows):
    rng = np.random.default_rng(0)
    values = {"kernel": rng.normal(size=(3, 4)), "bias": rng.normal(size=4)}
    x = rng.normal(size=(rows, 3))
    return jax.tree.map(np.float32, (values, (x, np.arange(rows) / rows)))


@settings(max_examples=12)
@given(
    sizes=st.sampled_from(MESHES), chunk_rows=st.integers(1, 3), chunks=st.sampled_from([1, 2, 3])
)
def test_chunks_change_neither_value_nor_gradient_nor_order(sizes, chunk_rows, chunks):
    mesh = make_mesh(sizes, devices=jax.devices()[: sizes.data * sizes.fsdp * sizes.tensor])
    values, rows = inputs(data_shards(mesh) * chunk_rows * chunks)
    whole = make_mesh(MeshConfig(1), devices=jax.devices()[:1])
    expected = compiled(whole, None)(values, rows)
    found = compiled(mesh, chunk_rows)(values, rows)
    for one, other in zip(jax.tree.leaves(found), jax.tree.leaves(expected), strict=True):
        np.testing.assert_allclose(one, other, rtol=1e-5, atol=1e-6)


def test_over_the_data_axis_gradients_are_summed_once_whatever_the_chunks():
    mesh = make_mesh(MeshConfig(8))
    values, rows = inputs(8 * 12)

    def counts(chunk_rows):
        program = compiled(mesh, chunk_rows).lower(values, rows).compile()
        return executed_collectives(program.as_text())

    assert counts(3) == counts(1)


def test_rows_that_do_not_divide_are_refused():
    mesh = make_mesh(MeshConfig(2), devices=jax.devices()[:2])
    with pytest.raises(MarvelError, match="chunk_rows=4 does not divide the 6 rows of a data sh"):
        encode_in_chunks(encode, *inputs(12), chunk_rows=4, mesh=mesh)
