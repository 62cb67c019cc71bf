"""The worked example of docs/extending.md, run as it stands in the page."""

import re
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.sharding import Mesh

from marvel_jax.losses.contrastive import info_nce
from marvel_jax.losses.forms import FORMS
from marvel_jax.training.loss_config import LossConfig
from tests.losses.oracle import Case, make_case, masks

PAGE = Path(__file__).parents[2] / "docs" / "extending.md"


@pytest.fixture
def margin(monkeypatch) -> float:
    """Runs the page's code for the time of a test; returns its margin."""
    (code,) = re.findall(
        r"```python\n(\"\"\"Additive-margin.*?)```", PAGE.read_text(encoding="utf-8"), re.DOTALL
    )
    assert len(code.splitlines()) <= 25
    monkeypatch.setitem(FORMS, "margin", None)  # what the page adds is taken back
    scope: dict = {}
    exec(compile(code, str(PAGE), "exec"), scope)
    return scope["MARGIN"]


def by_definition(case: Case, margin: float) -> float:
    """float64: -log(e^((p - m) / tau) / (e^((p - m) / tau) + sum e^(n / tau))), over the labels."""
    cosines = np.float64(case.queries) @ np.float64(case.candidates).T
    own, negative = masks(case)
    losses = []
    for row in np.flatnonzero(case.labels["query_valid"]):
        if not own[row]:
            continue
        label = np.exp((cosines[row, own[row]] - margin) / case.temperature)
        others = np.exp(cosines[row, negative[row]] / case.temperature).sum()
        losses.append(np.mean(-np.log(label / (label + others))))
    return float(np.mean(losses))


def test_the_example_is_what_it_says_alone_and_on_a_mesh(margin):
    case = make_case(4, batch=16, labels=2, hard=1, temperature=0.1)

    def loss(queries, **options):
        return info_nce(
            queries,
            case.candidates,
            temperature=jnp.float32(case.temperature),
            form=LossConfig(form="margin").form,
            **case.labels,
            **options,
        ).loss

    wanted = by_definition(case, margin)
    assert wanted != pytest.approx(by_definition(case, 0.0), rel=1e-3)
    value, slope = jax.value_and_grad(loss)(case.queries)
    assert value == pytest.approx(wanted, rel=1e-6)
    assert np.isfinite(slope).all()
    mesh = Mesh(np.array(jax.devices()).reshape(4, 2), ("data", "fsdp"))
    sharded = loss(case.queries, implementation="gather", mesh=mesh, tile=3)
    assert sharded == pytest.approx(wanted, rel=1e-6)
