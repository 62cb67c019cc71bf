"""The figures of a trial are those of what ran, and searching again agrees with the evaluation."""

import dataclasses

import hypothesis
import numpy as np
import pytest
from hypothesis import strategies as st

from marvel_jax.data import pipeline
from marvel_jax.errors import MarvelError
from marvel_jax.files import read_json, read_jsonl
from marvel_jax.recipes.config_file import load_config
from marvel_jax.recipes.recipe import Recipe
from marvel_jax.recipes.searched_again import with_answers
from marvel_jax.recipes.stages import Evaluate, Search, Train
from marvel_jax.retrieval.exact import top_k
from marvel_jax.studies.axes import Axis
from marvel_jax.studies.run import run_study
from marvel_jax.studies.study import Metric, Study
from marvel_jax.studies.trial import Trial, read_trials
from marvel_jax.training.inputs import open_inputs
from marvel_jax.training.prepare import make_plan
from tests.retrieval.vector_stores import exact_reference, random_unit, write_store

STEPS = 3
WHOLE = 96  # candidates of the tiny corpus


@pytest.fixture(scope="module")
def config(tiny_config):
    return dataclasses.replace(load_config(tiny_config), steps=STEPS)


@pytest.fixture(scope="module")
def trials(config, tiny_corpus, tmp_path_factory) -> dict[str, Trial]:
    """One training and evaluation, and its vectors searched in several ways."""
    ways = {
        "whole": f"search.pool={WHOLE}",
        "few": "search.pool=5",
        "plain": "search.dtype=float32",
        "half": "search.dimension=16",
        "signs": "search.dtype=binary",
        "many": f"search.pool={WHOLE + 1}",
    }
    study = Study(
        base=Recipe(
            (
                Train("train", config),
                Evaluate("evaluate", "train.model", str(tiny_corpus)),
                Search("search", "evaluate.scores", "evaluate.vectors"),
            )
        ),
        axes=(Axis("way", lambda value: (ways[str(value)],), tuple(ways)),),
        seeded=("train.config.seed",),
        metrics=(Metric("mean global"),),
    )
    workdir = tmp_path_factory.mktemp("studies")
    outcome = run_study(study, workdir, name="ways")
    assert [one["number"] for one in outcome.facts["failed"]] == [6]
    folder = workdir / "ways"
    found = {str(one.point["way"]): one for one in read_trials(folder)}
    place = folder / found["few"].folder
    scores = read_json(place / "evaluate" / "scores.json")
    rows = [row for _, row in read_jsonl(place / "train" / "metrics.jsonl")]
    metrics = {"mean global": scores["mean_global"]["mean"], "rows": rows}
    found["evaluation"] = Trial("", {}, 0, "done", metrics=metrics)
    return found


def test_work_is_that_of_the_batches(trials, config):
    inputs = open_inputs(config)
    plan = make_plan(config, inputs, shards=8, cache=None)
    read = pipeline.batches(inputs.source, inputs.processor, plan, start_step=0, num_steps=STEPS)
    tokens = sum(int((batch.rows.segments > 0).sum()) for _, batch in read)
    found = trials["few"].metrics
    assert found["pairs"] == 16 * STEPS and found["steps"] == STEPS
    assert found["tokens"] == tokens
    assert found["flops"] == sum(row["flops"] for row in trials["evaluation"].metrics["rows"]) > 0


def test_the_whole_pool_scores_as_the_evaluation(trials):
    evaluated = trials["evaluation"].metrics["mean global"]
    for way in ("whole", "plain"):
        assert trials[way].metrics["mean global"] == pytest.approx(evaluated, rel=1e-12)
    assert trials["plain"].metrics["recall"] == 1
    assert trials["few"].metrics["mean global"] > evaluated
    assert "recall" not in trials["few"].metrics


def test_smaller_stores_take_fewer_bytes(trials):
    size = {name: trials[name].metrics["bytes per vector"] for name in ("plain", "half", "signs")}
    assert size == {"plain": 128, "half": 64, "signs": 4}
    assert trials["half"].metrics["recall"] < 1


def test_a_pool_larger_than_the_store_is_a_failed_trial(trials):
    failed = trials["many"]
    assert failed.status == "failed" and f"has {WHOLE} candidates" in failed.error


@hypothesis.settings(max_examples=25)
@hypothesis.given(
    seed=st.integers(0, 99), pool=st.integers(1, 12), k=st.integers(1, 6), copies=st.booleans()
)
def test_answers_join_a_pool_as_a_search_of_both_finds(tmp_path_factory, seed, pool, k, copies):
    rng = np.random.default_rng(seed)
    vectors = random_unit(12, 4, seed=seed)
    if copies:  # equal scores, which are told apart by id
        vectors[6:] = vectors[:6]
    ids = [f"c:{number:02}" for number in rng.permutation(12)]
    store = write_store(tmp_path_factory.mktemp("stores") / "store", vectors, ids)
    queries = random_unit(5, 4, seed=seed + 1)
    drawn = rng.permutation(12)[:pool]
    # One behind the last row is an answer without a vector.
    answers = [np.unique(rng.integers(0, 13, size=2)) for _ in queries]
    found = top_k(queries, store, min(k, pool), subset=drawn)
    joined = with_answers(found, queries, store, answers, k=k)
    for number, query in enumerate(queries):
        rows = np.union1d(drawn, answers[number][answers[number] < 12])
        width = min(k, len(rows))
        names = [ids[row] for row in rows]
        _, order = exact_reference(query[None], vectors[rows], names, width)
        # What is looked for is whether an answer is among the first: these must be the same.
        right = np.isin(rows[order[0]], answers[number])
        got = joined.indices[number]
        assert np.isin(got[got >= 0], answers[number]).any() == right.any()
        if pool >= k:
            np.testing.assert_array_equal(got[:width], rows[order[0]])


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        ({"scann": True, "dtype": "binary"}, "vector of signs"),
        ({"scann": True, "pool": 3}, "holds the whole pool"),
        ({"leaves": 3}, "leaves=3 are ScaNN's"),
        ({"pool": 0}, "pool=0"),
        ({"dtype": "int4"}, "int4"),
    ],
)
def test_searches_that_cannot_be_are_refused(fields, message):
    with pytest.raises(MarvelError, match=message):
        Search("search", "evaluate.scores", "evaluate.vectors", **fields)
