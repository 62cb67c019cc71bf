"""Collectives are counted by kind, and in a loop as often as it goes round."""

import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import NamedSharding

from marvel_jax.parallel.collectives import KINDS, count_collectives, executed_collectives
from marvel_jax.parallel.mesh import MeshConfig, make_mesh


def text(body, x, specs) -> str:
    mesh = make_mesh(MeshConfig(8))
    mapped = jax.shard_map(body, mesh=mesh, in_specs=specs, out_specs=specs)
    placed = jax.device_put(x, NamedSharding(mesh, specs))
    return jax.jit(mapped).lower(placed).compile().as_text()


def counts(**found: int) -> dict[str, int]:
    return {kind: found.get(kind.replace("-", "_"), 0) for kind in KINDS}


def test_each_kind_is_found():
    def body(x):
        total = jax.lax.psum(x.sum(), "data")
        whole = jax.lax.all_gather(x, "data", tiled=True)
        part = jax.lax.psum_scatter(whole * total, "data", tiled=True)
        moved = jax.lax.ppermute(part, "data", [(i, (i + 1) % 8) for i in range(8)])
        return jax.lax.all_to_all(moved, "data", 0, 0, tiled=True)

    program = text(body, np.arange(64, dtype=np.float32), jax.P("data"))
    expected = counts(
        all_gather=1, all_reduce=1, reduce_scatter=1, collective_permute=1, all_to_all=1
    )
    assert count_collectives(program) == executed_collectives(program) == expected


def test_a_loop_counts_as_often_as_it_goes_round():
    ring = [(i, (i + 1) % 8) for i in range(8)]

    def body(x):
        def inner(x, _):
            return jnp.sin(jax.lax.ppermute(x, "data", ring)), None

        def outer(x, _):
            x, _ = jax.lax.scan(inner, x, length=3)
            return jnp.cos(x) * jax.lax.psum(x, "data"), None

        return jax.lax.scan(outer, x, length=5)[0]

    program = text(body, np.ones(8, np.float32), jax.P("data"))
    assert count_collectives(program) == counts(collective_permute=1, all_reduce=1)
    assert executed_collectives(program) == counts(collective_permute=15, all_reduce=5)
