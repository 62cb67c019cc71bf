"""The contrastive loss in plain float64 numpy, from its definition: value and gradients."""

from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from marvel_jax.losses.forms import FORMS, Rows


class Case(NamedTuple):
    """One global batch: float32 vectors, temperature, and `info_nce`'s label arrays by name."""

    queries: np.ndarray
    candidates: np.ndarray
    temperature: float
    labels: dict[str, np.ndarray]


class Oracle(NamedTuple):
    """The mean loss and its gradients, float64."""

    loss: float
    d_queries: np.ndarray
    d_candidates: np.ndarray
    d_temperature: float
    temperature_pull: float  # the sum of what each pair adds to it, by magnitude

    @property
    def gradients(self) -> tuple[np.ndarray, np.ndarray, float]:
        return self.d_queries, self.d_candidates, self.d_temperature


def make_case(
    seed: int,
    *,
    batch: int = 24,
    labels: int = 1,
    hard: int = 0,
    width: int = 16,
    known: int = 3,
    trained: float = 0.0,
    temperature: float = 0.05,
    ids: int | None = None,
    valid: float = 0.85,
) -> Case:
    """Random unit vectors in the layout of a Batch: each query's labels, then its hard negatives.

    `trained` pulls each label towards its query: 0 is near-random, 3 is well-trained. Ids are drawn
    from few, so that copies of positives occur all over the batch; a part of everything is invalid.
    """
    rng = np.random.default_rng(seed)
    each = labels + hard
    count = batch * each
    queries = rng.normal(size=(batch, width))
    candidates = rng.normal(size=(batch, each, width))
    candidates[:, :labels] += trained * queries[:, None]
    candidates = candidates.reshape(count, width)
    unit = [x / np.linalg.norm(x, axis=1, keepdims=True) for x in (queries, candidates)]

    names = rng.integers(0, ids or 2 * count, count)
    own = np.arange(batch)[:, None] * each + np.arange(labels)
    candidate_valid = rng.random(count) < valid
    candidate_valid[own[:, 0]] = True
    positive_ids = rng.integers(0, ids or 2 * count, (batch, known))
    positive_ids[:, : min(labels, known)] = names[own][:, :known]
    own[:, 1:][rng.random((batch, labels - 1)) < 0.3] = -1
    positive_valid = rng.random((batch, known)) < 0.8
    positive_valid[:, 0] = True
    return Case(
        unit[0].astype(np.float32),
        unit[1].astype(np.float32),
        temperature,
        {
            "own_positive": own.astype(np.int32),
            "candidate_id": np.stack([names, names // 3], axis=-1).astype(np.uint32),
            "candidate_query": np.repeat(np.arange(batch), each).astype(np.int32),
            "positive_ids": np.stack([positive_ids, positive_ids // 3], axis=-1).astype(np.uint32),
            "positive_valid": positive_valid,
            "query_valid": rng.random(batch) < valid,
            "candidate_valid": candidate_valid,
        },
    )


def masks(case: Case, *, in_batch: bool = True) -> tuple[list[list[int]], np.ndarray]:
    """(the labels of each query, [B, C] bool of its negatives), by sets and loops."""
    given = case.labels
    names = [tuple(pair) for pair in given["candidate_id"].tolist()]
    own = [
        [c for c in row.tolist() if c >= 0 and given["candidate_valid"][c]]
        for row in given["own_positive"]
    ]
    negative = np.zeros((len(case.queries), len(case.candidates)), bool)
    for b, row in enumerate(given["positive_ids"].tolist()):
        ok = given["positive_valid"][b]
        known = {tuple(pair) for pair, valid in zip(row, ok, strict=True) if valid}
        mine = set(given["own_positive"][b].tolist())
        for c, name in enumerate(names):
            negative[b, c] = (
                given["candidate_valid"][c]
                and c not in mine
                and name not in known
                and (in_batch or given["candidate_query"][c] == b)
            )
    return own, negative


def softmax_oracle(case: Case, *, symmetric: bool = False, in_batch: bool = True) -> Oracle:
    """The mean of -log p over labels and valid queries, and its analytic gradients."""
    q, c = np.float64(case.queries), np.float64(case.candidates)
    cosines = q @ c.T
    logits = cosines / case.temperature
    own, negative = masks(case, in_batch=in_batch)
    valid = case.labels["query_valid"]
    counted = [b for b in range(len(q)) if valid[b] and own[b]]
    loss, d_logits = 0.0, np.zeros_like(logits)
    for b in counted:
        for label in own[b]:
            weight = 1.0 / (len(own[b]) * len(counted))
            columns = [label, *np.flatnonzero(negative[b])]
            value, slope = cross_entropy(logits[b, columns])
            loss += weight * value
            d_logits[b, columns] += weight * slope
            if symmetric:
                rows = [b, *np.flatnonzero(negative[:, label] & valid)]
                value, slope = cross_entropy(logits[rows, label])
                loss += weight * value
                d_logits[rows, label] += weight * slope
    tau = case.temperature
    slopes = -d_logits * cosines / tau**2
    return Oracle(
        loss, d_logits @ c / tau, d_logits.T @ q / tau, slopes.sum(), np.abs(slopes).sum()
    )


def cross_entropy(logits: np.ndarray) -> tuple[float, np.ndarray]:
    """-log softmax of the first, and its gradient; exact for a probability close to one."""
    others = np.exp(logits[1:] - logits[0])
    slope = np.concatenate([[0.0], others / (1 + others.sum())])
    slope[0] = -slope.sum()
    return float(np.log1p(others.sum())), slope


def form_oracle(
    case: Case,
    form: str,
    *,
    bias: float = 0.0,
    in_batch: bool = True,
    weights_of: Case | None = None,
) -> float:
    """The mean loss of any form, label by label as the specification writes it.

    LLaVE's weights carry no gradient: `weights_of` holds the vectors at which they are taken.
    """
    s = np.float64(case.queries) @ np.float64(case.candidates).T
    fixed = weights_of or case
    hardness = np.float64(fixed.queries) @ np.float64(fixed.candidates).T
    tau = case.temperature
    own, negative = masks(case, in_batch=in_batch)
    losses = []
    for b in np.flatnonzero(case.labels["query_valid"]):
        if not own[b]:
            continue
        n, p = s[b, negative[b]], s[b, own[b]]
        weight = 1.0
        theta, phi = n / tau, p / tau
        label_weight = 1.0
        if form == "sigmoid":
            no = np.log1p(np.exp(n / tau + bias)).sum()
            losses.append(no + np.log1p(np.exp(-(p / tau + bias))).sum())
            continue
        if form == "llave":
            weight = np.exp(9 * hardness[b, negative[b]])
        elif form == "focal":
            theta, phi = n * (n + 0.2) / tau, p * p / tau
        elif form == "focal_abs":
            theta, phi = n * (abs(n) + 0.3) / tau, p * abs(p) / tau
        elif form == "diht":
            weight = len(n) * np.exp(0.1 * n) / np.exp(0.1 * n).sum()
            label_weight = 0.95
        total = (weight * np.exp(theta)).sum()
        losses.append(np.mean(np.log(total + label_weight * np.exp(phi)) - phi))
    return float(np.mean(losses)) if losses else 0.0


def form_gradients(
    case: Case, form: str, *, bias: float = 0.0, symmetric: bool = False
) -> tuple[float, np.ndarray, np.ndarray, float]:
    """The mean loss of any form and its gradients, float64, of queries, candidates, temperature.

    The form's own function, which `form_oracle` vouches for, at float64; masks are `masks`.
    """
    _, negative = masks(case)
    own, valid = case.labels["own_positive"], case.labels["query_valid"]
    has_label = (own >= 0) & case.labels["candidate_valid"][own]
    count = max(1, (has_label.any(axis=1) & valid).sum())
    share = valid / (np.maximum(has_label.sum(axis=1), 1) * count)

    def loss(q: jax.Array, c: jax.Array, tau: jax.Array) -> jax.Array:
        s = q @ c.T
        rows = Rows(s, negative, jnp.take_along_axis(s, own, axis=1), has_label)
        total = (FORMS[form](rows, temperature=tau, bias=bias) * valid / count).sum()
        for p in range(own.shape[1] if symmetric else 0):
            back = negative[:, own[:, p]].T & valid
            mine = jnp.take_along_axis(s, own[:, p, None], axis=1)
            rows = Rows(s[:, own[:, p]].T, back, mine, has_label[:, p, None])
            total += (FORMS[form](rows, temperature=tau, bias=bias) * share).sum()
        return total

    with jax.enable_x64(True):
        at = [jnp.asarray(x, jnp.float64) for x in (case.queries, case.candidates)]
        step = jax.value_and_grad(loss, argnums=(0, 1, 2))
        value, grads = step(*at, jnp.float64(case.temperature))
        return (float(value), *(np.asarray(grad) for grad in grads))


def errors(
    function: Callable[[Case], Sequence],
    cases: Sequence[Case],
    wanted: Sequence[Sequence],
    *,
    sizes: Sequence[Sequence] | None = None,
) -> np.ndarray:
    """[cases, results] the largest error of each result over its size, its largest magnitude."""
    sizes = sizes or [[np.abs(want).max() for want in wants] for wants in wanted]
    found = [
        [
            np.abs(np.float64(got) - want).max()
            for got, want in zip(function(case), wants, strict=True)
        ]
        for case, wants in zip(cases, wanted, strict=True)
    ]
    return np.array(found) / np.maximum(sizes, 1e-6)


def assert_not_worse(
    found: np.ndarray, dense: np.ndarray, *, times: float = 4.0, floor: Any = 1e-6
) -> None:
    """Root mean squares of `errors` over the draws: at most max(floor, `times` dense's).

    Both are of the same draws, and of many: where a loss is small, rounding in one outweighs that
    of ten others.
    """
    ours, theirs = (np.sqrt(np.mean(np.square(one), axis=0)) for one in (found, dense))
    bound = np.maximum(floor, times * theirs)
    assert (ours <= bound).all(), (ours, bound)


def assert_as_close_as_dense(
    run: Callable[[Case], Sequence],
    dense: Callable[[Case], Sequence],
    exact: Callable[[Case], Sequence],
    cases: Sequence[Case],
) -> None:
    """Loss and gradients are within 1e-6 of `exact`, or within four times `dense`'s own error."""
    wanted = [exact(case) for case in cases]
    assert_not_worse(errors(run, cases, wanted), errors(dense, cases, wanted))
