"""The loss over nested widths against float64 numpy, and its way through a train step."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from marvel_jax.errors import MarvelError
from marvel_jax.losses.contrastive import info_nce
from marvel_jax.losses.matryoshka import nested_loss
from marvel_jax.parallel.mesh import MeshConfig, make_mesh
from tests.losses.oracle import make_case, softmax_oracle

CHOICES = [
    ((4, 10), (), {4: 1.0, 10: 1.0, 16: 1.0}),
    ((4, 10), (0.5, 2.0), {4: 0.5, 10: 2.0, 16: 1.0}),
    ((4, 16), (1.0, 3.0), {4: 1.0, 16: 3.0}),  # the whole width with a weight of its own
    ((16,), (), {16: 1.0}),
    ((), (), {16: 1.0}),
]


def oracle(case, weights, **options):
    """The weighted mean of the oracle's losses of vectors cut and normalised in float64."""
    total = 0.0
    for width, weight in weights.items():
        cut = [np.float64(x)[:, :width] for x in (case.queries, case.candidates)]
        queries, candidates = (x / np.linalg.norm(x, axis=1, keepdims=True) for x in cut)
        part = case._replace(queries=queries, candidates=candidates)
        total += weight * softmax_oracle(part, **options).loss
    return total / sum(weights.values())


@pytest.mark.parametrize("symmetric", [False, True])
@pytest.mark.parametrize(("widths", "weights", "expected"), CHOICES)
def test_equals_the_float64_oracle(widths, weights, expected, symmetric):
    case = make_case(5, batch=8, hard=1, trained=1.0, temperature=0.5)
    loss = functools.partial(
        info_nce, temperature=jnp.float32(0.5), symmetric=symmetric, **case.labels
    )
    nested = functools.partial(nested_loss, loss, widths=widths, weights=weights)
    found = jax.jit(nested)(case.queries, case.candidates)
    wanted = oracle(case, expected, symmetric=symmetric)
    assert found.loss == pytest.approx(wanted, rel=1e-6, abs=1e-6)
    whole = jax.jit(loss)(case.queries, case.candidates)
    assert found.accuracy == whole.accuracy
    assert found.positive_similarity == whole.positive_similarity


def test_gradients_are_those_of_the_oracle():
    case = make_case(6, batch=8, trained=1.0, temperature=0.5)
    weights = {4: 0.5, 16: 1.0}

    def ours(queries):
        loss = functools.partial(info_nce, temperature=jnp.float32(0.5), **case.labels)
        return nested_loss(loss, queries, case.candidates, widths=(4,), weights=(0.5,)).loss

    gradient = np.asarray(jax.jit(jax.grad(ours))(jnp.asarray(case.queries)))
    rng, step = np.random.default_rng(0), 1e-5
    for _ in range(5):
        direction = rng.normal(size=case.queries.shape)
        # Only along the sphere, to which the oracle normalises the whole width again.
        queries = np.float64(case.queries)
        queries /= np.linalg.norm(queries, axis=1, keepdims=True)
        direction -= (direction * queries).sum(axis=1, keepdims=True) * queries
        ahead, behind = (
            oracle(case._replace(queries=queries + sign * step * direction), weights)
            for sign in (1, -1)
        )
        slope = (ahead - behind) / (2 * step)
        assert (gradient * direction).sum() == pytest.approx(slope, rel=1e-4, abs=1e-6)


@pytest.mark.parametrize("implementation", ["gather", "ring"])
def test_the_mesh_does_not_change_it(implementation):
    case = make_case(7, batch=8, hard=1, temperature=0.5)
    mesh = make_mesh(MeshConfig(2, 2), devices=jax.devices()[:4])
    loss = functools.partial(info_nce, temperature=jnp.float32(0.5), **case.labels)
    sharded = functools.partial(loss, implementation=implementation, mesh=mesh, tile=2)
    one, other = (
        jax.jit(functools.partial(nested_loss, form, widths=(8,)))(
            case.queries, case.candidates
        ).loss
        for form in (loss, sharded)
    )
    assert float(one) == pytest.approx(float(other), rel=1e-6, abs=1e-6)


def test_padding_gives_no_nan():
    case = make_case(8, batch=8)
    case.labels["query_valid"][2] = False
    queries = np.where(case.labels["query_valid"][:, None], case.queries, 0).astype(np.float32)

    def loss(queries):
        return nested_loss(
            functools.partial(info_nce, temperature=jnp.float32(0.5), **case.labels),
            queries,
            case.candidates,
            widths=(4,),
        ).loss

    assert np.isfinite(jax.jit(jax.grad(loss))(jnp.asarray(queries))).all()


def test_a_width_beyond_the_models_is_refused():
    case = make_case(9, batch=8)
    with pytest.raises(MarvelError, match=r"have 16 numbers, so there are no first 32"):
        nested_loss(info_nce, case.queries, case.candidates, widths=(8, 32))
