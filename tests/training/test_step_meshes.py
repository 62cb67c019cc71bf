"""Ten steps are the same mathematics on any mesh, in any chunks, and send no more than they did.

With several labels, hard negatives and packing; of the whole model, and of adapters with dropout;
with the gathered loss and with the ring's.
"""

from functools import cache

import jax
import numpy as np
import pytest

from marvel_jax.parallel.collectives import KINDS, executed_collectives
from marvel_jax.parallel.mesh import MeshConfig
from marvel_jax.training.config import LossConfig
from tests.training import tiny_steps
from tests.training.crossing import between_groups
from tests.training.tiny_steps import ONE, Run, config_for

STEPS = 10

MESHES = {
    "one": ONE,
    "data8": MeshConfig(8),
    "fsdp8": MeshConfig(1, 8),
    "tensor2": MeshConfig(1, 1, 2),
    "tensor4": MeshConfig(1, 1, 4),
    "data2-fsdp2-tensor2": MeshConfig(2, 2, 2),
    "2 groups of fsdp4": MeshConfig(2, 4, groups=2),
}

# How many collectives one step carries out, each counted as often as its loop goes round: the
# larger count of jax 0.10.2 and 0.12.0 on the CPU, whose compiler makes no reduce-scatter by
# itself (an all-reduce stands for it). Two layers a tower, two rows of a device in a chunk. More
# of them is a change to be understood; fewer is a bound to be lowered.
MAXIMA = {
    # (trained, mesh, chunk_rows, loss): all-gather, all-reduce, reduce-scatter, permute, all-to-all
    ("everything", "data8", None, "gather"): (4, 6, 1, 0, 0),
    ("everything", "data8", 2, "gather"): (4, 2, 1, 0, 0),
    ("everything", "fsdp8", None, "gather"): (52, 10, 1, 0, 0),
    ("everything", "fsdp8", 2, "gather"): (144, 13, 1, 0, 0),
    ("everything", "tensor2", 2, "dense"): (0, 272, 0, 0, 0),
    ("everything", "data2-fsdp2-tensor2", None, "gather"): (52, 46, 1, 2, 0),
    ("everything", "data2-fsdp2-tensor2", 2, "gather"): (284, 141, 1, 6, 0),
    ("everything", "2 groups of fsdp4", 2, "gather"): (148, 15, 1, 0, 0),
    ("adapters", "data8", None, "gather"): (4, 4, 1, 0, 0),
    ("adapters", "data8", 2, "gather"): (4, 2, 1, 0, 0),
    ("adapters", "fsdp8", None, "gather"): (100, 5, 1, 0, 0),
    ("adapters", "fsdp8", 2, "gather"): (296, 7, 1, 0, 0),
    ("adapters", "data2-fsdp2-tensor2", None, "gather"): (100, 29, 1, 43, 0),
    ("adapters", "data2-fsdp2-tensor2", 2, "gather"): (580, 107, 1, 226, 0),
    ("everything", "data8", None, "ring"): (0, 6, 0, 40, 0),
    ("everything", "2 groups of fsdp4", 2, "ring"): (144, 15, 0, 40, 0),
    ("adapters", "2 groups of fsdp4", None, "ring"): (96, 8, 0, 40, 0),
}

# Those of them that leave a group: gradients, sums and what the loss needs of the others, once a
# step whatever the chunks, and never a weight.
LEAVING = {
    ("everything", "2 groups of fsdp4", 2, "gather"): (4, 3, 1, 0, 0),
    ("everything", "2 groups of fsdp4", 2, "ring"): (0, 3, 0, 40, 0),
    ("adapters", "2 groups of fsdp4", None, "ring"): (0, 4, 0, 40, 0),
}


@cache
def ran(trained: str, mesh: str, chunk_rows: int | None, loss: str) -> Run:
    config = config_for(
        MESHES[mesh],
        adapters=trained == "adapters",
        chunk_rows=chunk_rows,
        # A shard's six candidates are two tiles.
        loss=LossConfig(implementation=loss, tile=4),
    )
    return tiny_steps.run(config, num_steps=STEPS)


def on_one_device(trained: str) -> Run:
    return ran(trained, "one", None, "dense")


# Four devices share the two heads of the vision tower.
CASES = [*MAXIMA, ("everything", "tensor4", 2, "dense"), ("adapters", "one", 2, "dense")]


@pytest.mark.parametrize(("trained", "mesh", "chunk_rows", "loss"), CASES)
def test_any_mesh_and_any_chunks_give_the_same_losses_and_weights(trained, mesh, chunk_rows, loss):
    expected = on_one_device(trained)
    found = ran(trained, mesh, chunk_rows, loss)
    for one, other in zip(found.history, expected.history, strict=True):
        for name, value in other.items():
            # Norms are not of the size of one.
            tolerance = 1e-5 * abs(value) if name == "gradient_norm" else 1e-5
            assert abs(one[name] - value) <= tolerance, (name, one[name], value)
    # So that agreement means something: the loss moves, and every step did happen.
    assert expected.history[0]["loss"] > expected.history[-1]["loss"] + 1
    assert all(row["finite"] for row in expected.history)
    jax.tree.map(
        lambda one, other: np.testing.assert_allclose(one, other, rtol=0, atol=1e-5),
        found.params,
        expected.params,
    )


@pytest.mark.parametrize(("trained", "mesh", "chunk_rows", "loss"), MAXIMA)
def test_a_step_sends_no_more_than_it_did(trained, mesh, chunk_rows, loss):
    case = trained, mesh, chunk_rows, loss
    assert_at_most(executed_collectives(ran(*case).program.as_text()), MAXIMA[case])


def assert_at_most(found: dict[str, int], maxima: tuple[int, ...]) -> None:
    allowed = dict(zip(KINDS, maxima, strict=True))
    assert all(found[kind] <= allowed[kind] for kind in KINDS), (found, allowed)


@pytest.mark.parametrize(("trained", "mesh", "chunk_rows", "loss"), LEAVING)
def test_between_groups_only_gradients_sums_and_embeddings_travel(trained, mesh, chunk_rows, loss):
    case = trained, mesh, chunk_rows, loss
    leaving = between_groups(ran(*case).program.as_text(), each=4)
    assert_at_most(executed_collectives(leaving), LEAVING[case])
    assert executed_collectives(leaving)["all-reduce"] > 0


def test_zero_initialised_adapters_start_at_the_loss_of_the_base():
    first, base = (on_one_device(trained).history[0] for trained in ("adapters", "everything"))
    assert first["loss"] == base["loss"]
