"""Collectives are counted by kind, and in a loop as often as it goes round."""

import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import NamedSharding

from marvel_jax.parallel.collectives import (
    KINDS,
    Collective,
    count_collectives,
    executed_collectives,
    messages,
)
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


def test_bytes_and_partners_of_each_message():
    def body(x):
        whole = jax.lax.all_gather(x, "fsdp", tiled=True)  # 8 floats of each of 4 devices
        part = jax.lax.psum_scatter(whole, "fsdp", tiled=True)
        total = jax.lax.psum(part, "data")
        return jax.lax.ppermute(total, "fsdp", [(i, (i + 1) % 4) for i in range(4)])

    mesh = make_mesh(MeshConfig(2, 4))
    specs = jax.P(("data", "fsdp"))
    mapped = jax.shard_map(body, mesh=mesh, in_specs=specs, out_specs=specs, check_vma=False)
    placed = jax.device_put(np.ones(64, np.float32), NamedSharding(mesh, specs))
    found = messages(jax.jit(mapped).lower(placed).compile().as_text())
    fsdp = ((0, 1, 2, 3), (4, 5, 6, 7))
    data = ((0, 4), (1, 5), (2, 6), (3, 7))
    neighbours = {(i + h, (i + 1) % 4 + h) for i in range(4) for h in (0, 4)}
    sent = {one.kind: one for one in found}
    assert set(found.values()) == {1}
    assert sent["all-gather"] == Collective("all-gather", 4 * 32, fsdp)
    assert sent["reduce-scatter"] == Collective("reduce-scatter", 4 * 32, fsdp)
    assert sent["all-reduce"] == Collective("all-reduce", 4 * 8, data)
    assert sent["collective-permute"].bytes == 4 * 8
    assert set(sent["collective-permute"].groups) == neighbours


# As compilers for other machines write them.
ASYNCHRONOUS = """
ENTRY %main (p: f32[60,3584]) -> f32[] {
  %a = ((f32[60,3584]{1,0}), f32[3840,3584]{1,0}) all-gather-start(%p), replica_groups=[1,64]<=[64]
  %b = ((f32[3840,8]{1,0}), f32[60,8]{1,0}) reduce-scatter-start(%q), replica_groups=[1,64]<=[64]
  %c = ((bf16[100]{0}), bf16[100]{0}) all-reduce-start(%r), replica_groups=mesh['a'=2,'b'=2] {'b'}
  %d = (bf16[8,4]{1,0}, bf16[8,4]{1,0}, u32[], u32[]) collective-permute-start(%s), \
source_target_pairs={{0,1},{1,0}}
  %e = (f32[4]{0}, pred[8]{0}) all-reduce(%t, %u), replica_groups={{0,2},{1,3}}, to_apply=%add
}
"""


def test_messages_of_other_compilers():
    found = messages(ASYNCHRONOUS)
    everyone = (tuple(range(64)),)
    assert set(found) == {
        Collective("all-gather", 3840 * 3584 * 4, everyone),
        Collective("reduce-scatter", 3840 * 8 * 4, everyone),
        Collective("all-reduce", 200, ((0, 1), (2, 3))),
        Collective("collective-permute", 64, ((0, 1), (1, 0))),
        Collective("all-reduce", 24, ((0, 2), (1, 3))),
    }


UNTOLD = """
%body (x: (s32[], f32[8])) -> (s32[], f32[8]) {
  %y = f32[8]{0} all-reduce(%z), replica_groups={}, to_apply=%add
}
%condition (x: (s32[], f32[8])) -> pred[] {
  %n = s32[]{:T(128)} constant(28)
  %i = s32[] get-tuple-element(%x), index=0
  ROOT %lt = pred[]{:T(512)} compare(%i, %n), direction=LT
}
ENTRY %main (p: f32[8]) -> f32[8] {
  %w = (s32[], f32[8]{0}) while(%t), condition=%condition, body=%body
}
"""


def test_a_loop_whose_length_is_not_told_is_read_off_its_condition():
    assert executed_collectives(UNTOLD) == counts(all_reduce=28)
    unsigned = UNTOLD.replace("%n = s32", "%n = u32")
    assert executed_collectives(unsigned) == counts(all_reduce=28)
