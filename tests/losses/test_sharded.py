"""`gather` and `ring` are the same mathematics as the oracle, on every mesh."""

from functools import cache, partial

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from jax.sharding import NamedSharding, PartitionSpec

from marvel_jax.errors import MarvelError
from marvel_jax.losses.contrastive import info_nce
from marvel_jax.parallel.mesh import MeshConfig, make_mesh
from tests.losses.oracle import (
    Case,
    assert_as_close_as_dense,
    assert_not_worse,
    errors,
    form_gradients,
    make_case,
    softmax_oracle,
)

MESHES = {
    "1": (1, 1, 1),
    "2": (2, 1, 1),
    "4": (4, 1, 1),
    "6": (6, 1, 1),
    "8": (8, 1, 1),
    "2x4": (2, 4, 1),
    "2x2, tensor 2": (2, 2, 2),
}
SEEDS = range(12)


def mesh_of(name):
    sizes = MESHES[name]
    return make_mesh(MeshConfig(*sizes), devices=jax.devices()[: int(np.prod(sizes))])


def value_and_gradients(**options):
    def loss(q, c, tau, labels):
        return info_nce(q, c, temperature=tau, **labels, **options).loss

    step = jax.jit(jax.value_and_grad(loss, argnums=(0, 1, 2)))

    def run(case: Case):
        tau = jnp.float32(case.temperature)
        value, grads = step(case.queries, case.candidates, tau, case.labels)
        return (value, *grads)

    return run


def results(case: Case, **options):
    """All that `info_nce` returns."""

    def loss(q, c, labels):
        return info_nce(q, c, temperature=jnp.float32(case.temperature), **labels, **options)

    return jax.jit(loss)(case.queries, case.candidates, case.labels)


def case_of(seed: int, trained: float, temperature: float | None = None) -> Case:
    """Two labels, a hard negative, ragged masks; the blocks of two shards wholly masked."""
    case = make_case(
        seed,
        batch=48,
        labels=2,
        hard=1,
        width=32,
        trained=trained,
        temperature=float(np.float32(temperature or (0.02 if trained else 0.05))),
    )
    case.labels["query_valid"][6:12] = False  # the queries of shard 1 of 8
    case.labels["candidate_valid"][36:54] = False  # the candidates of shard 2 of 8
    case.labels["candidate_valid"][48:54] = trained > 0
    return case


def exact(case: Case, **options: bool) -> tuple:
    oracle = softmax_oracle(case, **options)
    return (oracle.loss, *oracle.gradients)


# (how well trained, temperature): as usual there, and at the lowest that training allows.
POINTS = ((0.0, 0.05), (2.0, 0.02), (0.0, 0.01), (1.0, 0.01), (3.0, 0.01))
DRAWS = range(32)
FLOOR = (1e-6, 1e-6, 1e-6, 3e-7)


class Draws:
    """Cases at a point, and how far `dense` is from float64 there.

    The slope of the temperature is a sum over pairs that pull both ways. Its errors are taken over
    the sum of their pulls, where a lower floor goes with it: the pulls may cancel to anything, and
    errors over what is left would be those of one or two draws.
    """

    def __init__(self, trained: float, temperature: float, *, symmetric: bool) -> None:
        self.cases = [case_of(seed, trained, temperature) for seed in DRAWS]
        exact = [softmax_oracle(case, symmetric=symmetric) for case in self.cases]
        self.wanted = [(one.loss, *one.gradients) for one in exact]
        self.sizes = [
            [*(np.abs(want).max() for want in wants[:3]), one.temperature_pull]
            for wants, one in zip(self.wanted, exact, strict=True)
        ]
        self.of_dense = self.errors(dense_step(symmetric))

    def errors(self, run) -> np.ndarray:
        return errors(run, self.cases, self.wanted, sizes=self.sizes)


@cache
def drawn(trained: float, temperature: float, symmetric: bool) -> Draws:
    return Draws(trained, temperature, symmetric=symmetric)


@cache
def dense_step(symmetric: bool):
    return value_and_gradients(symmetric=symmetric)


SYMMETRIC = {"ring": ("1", "6", "2x2, tensor 2"), "gather": ("6",)}
WAYS = [(i, mesh, way) for i in SYMMETRIC for mesh in MESHES for way in ("one way", "symmetric")]


@pytest.mark.parametrize(
    ("implementation", "mesh", "way"),
    [(i, mesh, way) for i, mesh, way in WAYS if way == "one way" or mesh in SYMMETRIC[i]],
)
def test_as_close_to_float64_as_dense_is(implementation, mesh, way):
    """Loss and gradients of queries, candidates, temperature; near-random and well-trained."""
    symmetric = way == "symmetric"
    run = value_and_gradients(
        implementation=implementation, mesh=mesh_of(mesh), symmetric=symmetric, tile=5
    )
    # `gather` takes the same sums as `dense`, in tiles.
    times = 2.0 if implementation == "gather" else 4.0
    for point in POINTS:
        draws = drawn(*point, symmetric)
        assert_not_worse(draws.errors(run), draws.of_dense, times=times, floor=FLOOR)


@pytest.mark.parametrize("mesh", ["1", "8"])
def test_a_loss_taken_in_tiles_is_rounded_as_finely_as_in_one_piece(mesh):
    """Its products must not be taken with a transposed copy of the candidates."""
    run = value_and_gradients(implementation="gather", mesh=mesh_of(mesh), tile=5)
    for point in POINTS[-2:]:
        draws = drawn(*point, False)
        assert_not_worse(draws.errors(run)[:, :1], draws.of_dense[:, :1], times=1.3)


@pytest.mark.parametrize("implementation", ["gather", "ring"])
@pytest.mark.parametrize("trained", [0.3, 2.0])
def test_what_is_watched_is_the_same(implementation, trained):
    case = case_of(3, trained)
    options = {"implementation": implementation, "mesh": mesh_of("2x4"), "tile": 4}
    found = results(case, **options)
    dense = results(case)
    assert dense.accuracy > 0 and 0 < abs(dense.positive_similarity) < 1
    np.testing.assert_allclose(found, dense, rtol=1e-6, atol=1e-6)


@pytest.mark.parametrize("tile", [3, 1024])  # of 5 queries and 10 candidates a shard: ragged, one
def test_any_masked_blocks_in_any_tiles(tile):
    run = value_and_gradients(implementation="ring", mesh=mesh_of("4"), symmetric=True, tile=tile)
    dense = value_and_gradients(symmetric=True)
    shards = st.sets(st.integers(0, 3))

    @settings(max_examples=15)
    @given(seed=st.integers(0, 10_000), masked=shards, hidden=shards)
    def check(seed, masked, hidden):
        case = make_case(seed, batch=20, hard=1, width=8, known=2, ids=25)
        for shard in masked:
            case.labels["query_valid"][5 * shard : 5 * shard + 5] = False
        for shard in hidden:
            case.labels["candidate_valid"][10 * shard : 10 * shard + 10] = False
        case = case._replace(temperature=float(np.float32(0.05)))
        assert_as_close_as_dense(run, dense, partial(exact, symmetric=True), [case])

    check()


def test_gradients_of_vectors_made_in_the_same_program():
    """As in a train step: the vectors come out of an encoder, sharded, and go back into it."""
    case = case_of(1, 2.0)
    mesh = mesh_of("2x2, tensor 2")
    split = NamedSharding(mesh, PartitionSpec(("data", "fsdp")))
    inputs = jax.device_put((case.queries * 3, case.candidates * 2), split)
    labels = jax.device_put(case.labels, split)

    def loss(weight, inputs, labels, **options):
        q, c = (x @ weight for x in inputs)
        q, c = (x / jnp.linalg.norm(x, axis=1, keepdims=True) for x in (q, c))
        return info_nce(q, c, temperature=jnp.float32(0.05), **labels, **options).loss

    weight = jnp.eye(case.queries.shape[1]) + 0.1
    whole = (case.queries, case.candidates)
    alone = jax.jit(jax.value_and_grad(loss))(weight, whole, case.labels)
    for implementation in ("gather", "ring"):
        options = {"implementation": implementation, "mesh": mesh, "tile": 8}
        step = jax.jit(
            lambda w, x, y, options=options: jax.value_and_grad(loss)(w, x, y, **options)
        )
        value, grad = step(weight, inputs, labels)
        assert value == pytest.approx(float(alone[0]), rel=1e-5)
        np.testing.assert_allclose(grad, alone[1], atol=1e-5 * np.abs(alone[1]).max(), rtol=0)


@pytest.mark.parametrize("implementation", ["gather", "ring"])
def test_without_in_batch_negatives_nothing_travels_and_nothing_changes(implementation):
    case = case_of(2, 0.0)
    mesh = mesh_of("8")
    options = {"implementation": implementation, "mesh": mesh, "tile": 4}
    run = value_and_gradients(in_batch_negatives=False, **options)
    dense = value_and_gradients(in_batch_negatives=False)
    wanted = partial(exact, in_batch=False)
    assert_as_close_as_dense(run, dense, wanted, [case_of(seed, 0.0) for seed in SEEDS])

    def loss(q, c):
        options["in_batch_negatives"] = False
        return info_nce(q, c, temperature=jnp.float32(0.05), **case.labels, **options).loss

    split = NamedSharding(mesh, PartitionSpec("data"))
    inputs = jax.device_put((case.queries, case.candidates), split)
    text = jax.jit(jax.grad(loss)).lower(*inputs).compile().as_text()
    assert "all-gather" not in text and "collective-permute" not in text


@pytest.mark.parametrize(
    ("form", "symmetric"),
    [("sigmoid", False), ("llave", False), ("focal", False), ("focal_abs", False), ("diht", True)],
)
def test_other_forms_gathered(form, symmetric):
    bias = jnp.float32(-5.0) if form == "sigmoid" else None
    options = {"form": form, "bias": bias, "symmetric": symmetric}
    gather = {"implementation": "gather", "mesh": mesh_of("2x4"), "tile": 4}
    run, dense = value_and_gradients(**options, **gather), value_and_gradients(**options)
    wanted = partial(form_gradients, form=form, bias=-5.0, symmetric=symmetric)
    assert_as_close_as_dense(run, dense, wanted, [case_of(seed, 0.0) for seed in range(4)])


APART = [("ring", True), ("ring", False), ("gather", False)]


@pytest.mark.parametrize(("implementation", "in_batch"), APART)
def test_a_label_on_another_shard_is_not_passed_over(implementation, in_batch):
    case = case_of(5, 0.0)
    own = case.labels["own_positive"].copy()
    own[0, 0] = 100
    labels = case.labels | {"own_positive": own, "query_valid": np.ones(48, bool)}
    options = {"implementation": implementation, "mesh": mesh_of("8")}
    far = results(case._replace(labels=labels), in_batch_negatives=in_batch, **options)
    assert np.isnan(far.loss)
    # A query that is not counted loses nothing.
    labels["query_valid"] = np.arange(48) > 0
    far = results(case._replace(labels=labels), in_batch_negatives=in_batch, **options)
    assert np.isfinite(far.loss)


def test_gather_finds_a_label_on_another_shard():
    case = case_of(5, 0.0)
    own = case.labels["own_positive"].copy()
    own[0, 0] = 100
    case = case._replace(labels=case.labels | {"own_positive": own, "query_valid": own[:, 0] >= 0})
    for symmetric in (False, True):
        options = {"implementation": "gather", "mesh": mesh_of("8"), "symmetric": symmetric}
        found = results(case, **options)
        wanted = softmax_oracle(case, symmetric=symmetric).loss
        assert found.loss == pytest.approx(wanted, rel=1e-6)


@pytest.mark.parametrize("implementation", ["gather", "ring"])
def test_a_hard_negative_away_from_its_query_is_not_passed_over(implementation):
    case = case_of(5, 0.0)
    query = case.labels["candidate_query"].copy()
    query[2] = 40  # on shard 0, brought by a query of shard 6
    case = case._replace(labels=case.labels | {"candidate_query": query})
    options = {"implementation": implementation, "mesh": mesh_of("8")}
    for valid in (True, False):
        case.labels["candidate_valid"] = case.labels["candidate_valid"].copy()
        case.labels["candidate_valid"][2] = valid
        found = results(case, in_batch_negatives=False, **options)
        assert np.isnan(found.loss) == valid


@pytest.mark.parametrize("implementation", ["gather", "ring"])
def test_batches_that_do_not_split_are_refused(implementation):
    case = make_case(0, batch=6)
    options = {"temperature": jnp.float32(0.05), "implementation": implementation}
    with pytest.raises(MarvelError, match=r"6 queries and 6 candidates do not split .* 8 shards"):
        info_nce(case.queries, case.candidates, mesh=mesh_of("8"), **case.labels, **options)
    with pytest.raises(MarvelError, match="the mesh has the axes"):
        info_nce(
            case.queries,
            case.candidates,
            mesh=mesh_of("2"),
            axes=("batch",),
            **case.labels,
            **options,
        )
