"""Rows stay with their devices: weights are fetched, activations are not summed."""

import flax.linen as nn
import jax
import numpy as np
from jax.sharding import NamedSharding

from marvel_jax.parallel.activations import gathered, rows_in_place
from marvel_jax.parallel.collectives import count_collectives
from marvel_jax.parallel.mesh import MeshConfig, make_mesh
from marvel_jax.parallel.sharding import ShardingRules, batch_sharding


class Tower(nn.Module):
    @nn.compact
    def __call__(self, x):
        for _ in range(3):
            x = nn.Dense(16)(nn.gelu(nn.Dense(64)(x)))
        return x


def test_a_split_model_still_computes_each_row_once():
    mesh = make_mesh(MeshConfig(1, 8))
    x = np.random.default_rng(0).normal(size=(16, 4, 16)).astype(np.float32)
    params = Tower().init(jax.random.key(0), x)
    # As "fsdp" splits them: the model dimension of each kernel.
    by_fsdp = {True: jax.P("fsdp"), False: jax.P(None, "fsdp")}
    shardings = jax.tree.map(
        lambda leaf: NamedSharding(
            mesh, by_fsdp[leaf.shape[0] == 16] if leaf.ndim == 2 else jax.P()
        ),
        params,
    )

    def apply(params, x):
        with rows_in_place(mesh, num_rows=len(x)):
            return Tower().apply(params, x)

    jitted = jax.jit(apply, in_shardings=(shardings, batch_sharding(mesh)))
    program = jitted.lower(params, x).compile()
    found = count_collectives(program.as_text())
    assert found["all-gather"] == 6 and sum(found.values()) == 6
    out = jitted(params, x)
    assert out.sharding.shard_shape(out.shape) == (2, 4, 16)
    np.testing.assert_allclose(out, Tower().apply(params, x), rtol=1e-5, atol=1e-6)


def test_a_table_is_fetched_over_the_data_axes_only():
    mesh = make_mesh(MeshConfig(2, 2, 2))
    rules = ShardingRules()
    table = np.zeros((12, 8), np.float32)
    axes = ("vocab", "embed")
    split = NamedSharding(mesh, rules.spec(axes, table.shape, mesh))
    fetch = jax.jit(lambda table: gathered(table, axes, mesh, rules=rules), in_shardings=split)
    assert fetch(table).sharding.shard_shape(table.shape) == (6, 8)
