"""Logits of a few tokens: transformers' numbers, packed or alone, branching or not."""

import functools
from typing import Any

import jax
import numpy as np
import pytest

from marvel_jax.errors import MarvelError
from marvel_jax.models import attention, names
from marvel_jax.models.kernels import Kernel
from marvel_jax.models.kernels.xla import BRANCH
from marvel_jax.models.qwen2_vl import (
    answer_logits,
    head_rows,
    hidden_states,
    yes_no_logits,
)
from tests.models import parity, record_answers, samples
from tests.models.samples import build_rows

TOLERANCE = 1e-5


def compiled(function: Any, *arguments: Any) -> Any:
    """Its result, without the last stage's optimisations: they take half of the time."""
    lowered = jax.jit(function).lower(*arguments)
    return lowered.compile(compiler_options={"xla_backend_optimization_level": 0})(*arguments)


def recorded(name: str) -> dict[str, np.ndarray]:
    with np.load(record_answers.PATH) as file:
        return {item: file[f"{name}/{item}"] for item in parity.golden(name).samples}


@pytest.mark.parametrize("name", parity.CHECKPOINTS)
def test_packed_rows_give_the_recorded_logits_of_transformers(name):
    golden, expected = parity.golden(name), recorded(name)
    rows = parity.packed_rows(name, "mrope")
    places = np.tile(np.arange(rows.tokens.shape[1]), (2, 1))
    first, second, _ = record_answers.ANSWERS

    def run(params: Any, rows: Any) -> Any:
        ask = functools.partial(answer_logits, params, rows, golden.config, places=places)
        yes_no = yes_no_logits(params, rows, golden.config, places=places, yes_no=(second, first))
        return ask(answers=record_answers.ANSWERS), yes_no

    found, yes_no = map(np.asarray, compiled(run, golden.params, rows))
    assert found.dtype == np.float32
    scale = max(np.abs(one).max() for one in expected.values())
    assert scale > 1e-2  # else nothing was compared
    np.testing.assert_allclose(yes_no / scale, found[..., [1, 0]] / scale, rtol=0, atol=1e-6)
    for r, row in enumerate(parity._PLACEMENT):
        start = 0
        for item in row:
            stop = start + len(expected[item])
            np.testing.assert_allclose(
                found[r, start:stop] / scale, expected[item] / scale, rtol=0, atol=TOLERANCE
            )
            start = stop


@pytest.mark.peer
@pytest.mark.parametrize("name", parity.CHECKPOINTS)
def test_the_recorded_logits_are_those_of_transformers(name):
    pytest.importorskip("torch")
    from tests.models import torch_reference

    model = torch_reference.load(parity.GOLDEN / name)
    for item, expected in recorded(name).items():
        found = record_answers.answer_logits(model, parity.golden(name).samples[item])
        scale = np.abs(expected).max()
        np.testing.assert_allclose(found / scale, expected / scale, rtol=0, atol=TOLERANCE)


def test_an_untied_model_without_its_head_is_refused():
    golden = parity.golden("untied")
    headless = {tower: leaf for tower, leaf in golden.params.items() if tower != "lm_head"}
    with pytest.raises(MarvelError, match="lm_head"):
        head_rows(headless, golden.config)


# --- branches ----------------------------------------------------------------------------------


def test_a_branch_reads_as_if_the_trunk_and_it_stood_alone():
    """One trunk with a picture, three branches, beside another item, against four plain rows."""
    config, params = parity.golden("tied").config, parity.golden("tied").params
    trunk = samples.make_sample("trunk", [4, (4, 4), 3], config, seed=0)
    tails = [samples.make_sample(str(k), [3 + k], config, seed=1 + k) for k in range(3)]
    other = samples.make_sample("other", [6], config, seed=9)
    whole = [
        samples.Sample(
            tail.name,
            np.concatenate([trunk.tokens, tail.tokens]),
            np.concatenate([trunk.pooled, tail.pooled]),
            trunk.grids,
            trunk.patches,
            trunk.image_token,
        )
        for tail in tails
    ]
    alone = build_rows([[one] for one in [*whole, other]])
    causal = functools.partial(hidden_states, config=config, attention="causal")
    expected = np.asarray(compiled(causal, params, alone))
    start = len(trunk.tokens)
    long = samples.Sample(
        "long",
        np.concatenate([trunk.tokens, *(tail.tokens for tail in tails)]),
        np.ones(start + sum(len(tail.tokens) for tail in tails), bool),
        trunk.grids,
        trunk.patches,
        trunk.image_token,
    )
    rows = build_rows([[other, long]])
    place = len(other.tokens) + start
    spans = []
    for number, (tail, one) in enumerate(zip(tails, whole, strict=True), start=1):
        span = slice(place, place + len(tail.tokens))
        rows.segments[0, span] += BRANCH * number
        rows.positions[0, span] = one.positions("mrope")[start:]
        spans.append(span)
        place = span.stop
    branching = functools.partial(hidden_states, config=config, attention="branching")
    found = np.asarray(compiled(branching, params, rows))[0]
    for number, (span, tail) in enumerate(zip(spans, tails, strict=True)):
        own = expected[number, start : start + len(tail.tokens)]
        np.testing.assert_allclose(found[span], own, rtol=0, atol=1e-5)
    np.testing.assert_allclose(
        found[: len(other.tokens)], expected[3, : len(other.tokens)], rtol=0, atol=1e-5
    )


@pytest.mark.parametrize("length", [40, 300])
def test_branches_are_masked_alike_in_one_piece_and_in_chunks(length):
    """Against a mask that is written out; 300 tokens are more than one chunk of queries."""
    random = np.random.default_rng(length)
    segments = np.sort(random.integers(0, 3, length)).astype(np.int32)
    branches = np.zeros(length, np.int32)
    for segment in (1, 2):
        own = np.flatnonzero(segments == segment)
        branches[own] = np.sort(random.integers(0, 4, len(own)))
    query, key, value = random.normal(size=(3, 1, length, 2, 8)).astype(np.float32)
    found = attention.attend(
        query,
        key,
        value,
        segments=(segments + BRANCH * branches)[None],
        causal=True,
        branching=True,
    )
    same = segments[:, None] == segments[None]
    seen = same & ((branches[None] == 0) | (branches[:, None] == branches[None]))
    seen &= np.tri(length, dtype=bool)
    logits = np.einsum("she,the->hst", query[0], key[0]) / np.sqrt(8)
    weights = np.where(seen, np.exp(logits - logits.max(axis=-1, keepdims=True)), 0.0)
    weights /= weights.sum(axis=-1, keepdims=True)
    np.testing.assert_allclose(
        found[0], np.einsum("hst,the->she", weights, value[0]), rtol=0, atol=1e-5
    )


def test_only_xla_can_branch():
    x = np.zeros((1, 4, 2, 8), np.float32)
    with pytest.raises(MarvelError, match="'splash' cannot do segments that branch"):
        attention.attend(
            x,
            x,
            x,
            segments=np.ones((1, 4), np.int32),
            causal=True,
            branching=True,
            kernel=Kernel("splash"),
        )


def test_the_head_is_among_the_names_of_an_untied_model_only():
    heads = [
        [row.path for row in names.table(parity.golden(name).config) if "lm_head" in row.path]
        for name in ("untied", "tied")
    ]
    assert heads == [["lm_head/kernel"], []]
