"""The other forms of the loss against their definitions in float64, value and gradient."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from marvel_jax.losses.contrastive import info_nce
from tests.losses.oracle import form_oracle, make_case

FORMS = ["softmax", "sigmoid", "llave", "focal", "focal_abs", "diht"]
BIAS = -3.0


def loss_of(form, case, in_batch):
    bias = jnp.float32(BIAS) if form == "sigmoid" else None

    def loss(q, c, tau):
        return info_nce(
            q,
            c,
            temperature=tau,
            form=form,
            bias=bias,
            in_batch_negatives=in_batch,
            **case.labels,
        ).loss

    return loss


@pytest.mark.parametrize("in_batch", [True, False])
@pytest.mark.parametrize("form", FORMS)
def test_value_and_gradient_are_those_of_the_definition(form, in_batch):
    temperature = float(np.float32(0.07))
    case = make_case(2, batch=10, labels=2, hard=3, trained=1.0, temperature=temperature)
    oracle = {"form": form, "bias": BIAS, "in_batch": in_batch}
    step = jax.jit(jax.value_and_grad(loss_of(form, case, in_batch), argnums=(0, 1, 2)))
    value, grads = step(case.queries, case.candidates, jnp.float32(temperature))
    assert value == pytest.approx(form_oracle(case, **oracle), rel=1e-6, abs=1e-6)

    rng = np.random.default_rng(0)
    given = [np.float64(case.queries), np.float64(case.candidates), np.float64(temperature)]
    for index, grad in enumerate(grads):
        direction = rng.normal(size=given[index].shape)
        # Along unit vectors' neighbours; the temperature's slope is steep, so its step is short.
        step_size = 1e-6

        def moved(sign, index=index, direction=direction, step_size=step_size):
            at = list(given)
            at[index] = at[index] + sign * step_size * direction
            there = case._replace(queries=at[0], candidates=at[1], temperature=float(at[2]))
            return form_oracle(there, **oracle, weights_of=case)

        slope = (moved(1) - moved(-1)) / (2 * step_size)
        # The temperature's is taken with respect to 1 / tau, where float32's error is even.
        unit = temperature**2 if index == 2 else 1.0
        found = unit * np.float64(grad) * direction
        size = max(np.abs(found).sum(), 1.0)
        assert found.sum() == pytest.approx(unit * slope, abs=1e-6 * size)


def test_the_bias_of_the_sigmoid_form_learns():
    case = make_case(3, batch=8, temperature=0.1)

    def loss(bias):
        options = {"temperature": jnp.float32(0.1), "form": "sigmoid", "bias": bias}
        return info_nce(case.queries, case.candidates, **options, **case.labels).loss

    low, here, high = (form_oracle(case, "sigmoid", bias=b) for b in (-2.001, -2.0, -1.999))
    value, slope = jax.value_and_grad(loss)(jnp.float32(-2.0))
    assert value == pytest.approx(here, rel=1e-6)
    assert slope == pytest.approx((high - low) / 0.002, rel=1e-5)


@pytest.mark.parametrize("form", ["llave", "focal", "focal_abs", "diht"])
def test_both_directions_are_the_same_function_of_the_transpose(form):
    """Without labels in common, labels against queries are queries against labels, swapped."""
    case = make_case(6, batch=8, valid=1.0, ids=10_000)
    labels = case.labels | {"positive_valid": np.zeros_like(case.labels["positive_valid"])}

    def loss(q, c, **options):
        options |= {"temperature": jnp.float32(0.1), "form": form}
        return float(info_nce(q, c, **labels, **options).loss)

    both = loss(case.queries, case.candidates, symmetric=True)
    there = loss(case.queries, case.candidates)
    back = loss(case.candidates, case.queries)
    assert both == pytest.approx(there + back, rel=1e-6)
