"""What the compiler plans for value and gradient: bytes, and messages between devices."""

import jax
import jax.numpy as jnp
import pytest
from jax.sharding import NamedSharding, PartitionSpec

from marvel_jax.losses.contrastive import info_nce
from marvel_jax.parallel.collectives import executed_collectives
from marvel_jax.parallel.mesh import DATA_AXES, MeshConfig, make_mesh

WIDTH, KNOWN, TILE = 64, 8, 128


def temporaries(implementation, *, batch, hard=0, devices=8, symmetric=False):
    """(bytes of temporaries on each device, text of the program)."""
    mesh = make_mesh(MeshConfig(), devices=jax.devices()[:devices])
    count = batch * (1 + hard)

    def array(shape, dtype):
        split = NamedSharding(mesh, PartitionSpec(DATA_AXES))
        return jax.ShapeDtypeStruct(shape, dtype, sharding=split)

    labels = {
        "own_positive": array((batch, 1), jnp.int32),
        "candidate_id": array((count, 2), jnp.uint32),
        "candidate_query": array((count,), jnp.int32),
        "positive_ids": array((batch, KNOWN, 2), jnp.uint32),
        "positive_valid": array((batch, KNOWN), bool),
        "query_valid": array((batch,), bool),
        "candidate_valid": array((count,), bool),
    }

    def loss(q, c, tau, labels):
        options = {"implementation": implementation, "mesh": mesh, "tile": TILE}
        return info_nce(q, c, temperature=tau, symmetric=symmetric, **options, **labels).loss

    vectors = array((batch, WIDTH), jnp.float32), array((count, WIDTH), jnp.float32)
    tau = jax.ShapeDtypeStruct((), jnp.float32)
    lowered = jax.jit(jax.value_and_grad(loss, argnums=(0, 1, 2))).lower(*vectors, tau, labels)
    compiled = lowered.compile()
    return compiled.memory_analysis().temp_size_in_bytes, compiled.as_text()


def test_the_ring_holds_a_visiting_block_its_gradient_and_a_few_tiles():
    batch = 8 * 512
    block = batch // 8 * WIDTH * 4
    labels = batch // 8 * (KNOWN * 9 + 24)
    tile = TILE * TILE * 4
    found, _ = temporaries("ring", batch=batch)
    assert found <= 2 * block + 2 * labels + 8 * tile

    with_hard, _ = temporaries("ring", batch=batch, hard=3)
    assert with_hard <= 1.1 * found
    both_ways, _ = temporaries("ring", batch=batch, symmetric=True)
    assert both_ways <= 1.1 * found + 2 * tile


def test_the_ring_is_flat_in_devices_and_far_below_the_others():
    batch = 8 * 512
    ring, program = temporaries("ring", batch=batch)
    quarter, small_program = temporaries("ring", batch=batch // 4, devices=2)
    assert ring <= 1.1 * quarter
    # A scan over hops: the program is as long for two devices as for eight.
    assert len(program.splitlines()) <= 1.05 * len(small_program.splitlines())
    gather, _ = temporaries("gather", batch=batch)
    dense, _ = temporaries("dense", batch=batch)
    assert 10 * ring <= gather <= 0.7 * dense


@pytest.mark.parametrize("symmetric", [False, True])
def test_a_tile_takes_five_messages_for_each_hop_and_nothing_else_is_sent_but_sums(symmetric):
    """Forward its vectors and what goes beside them; backward its gradient too."""
    devices, tiles = 8, 3
    batch = devices * tiles * TILE
    _, program = temporaries("ring", batch=batch, hard=1, symmetric=symmetric)
    found = executed_collectives(program)
    permutes = found.pop("collective-permute")
    assert 0 < permutes <= (2 + 3) * devices * tiles
    # The sums of the loss, and the gradient of the temperature.
    assert found.pop("all-reduce") <= 2
    assert not any(found.values())
