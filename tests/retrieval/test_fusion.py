"""Fusion against plain loops: scores, the fitted weight, paired intervals, and never on test."""

import dataclasses
import json

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from marvel_jax.data.items import TASKS, Item, Query
from marvel_jax.data.keyed_lines import pool_hash, queries_hash
from marvel_jax.data.teacher import read_teacher, teacher_line, teacher_writer
from marvel_jax.errors import MarvelError
from marvel_jax.retrieval.fusion import (
    GRIDS,
    FusionWeights,
    Reranked,
    fit,
    fuse,
    query_key,
    reorder,
)
from marvel_jax.retrieval.fusion_report import compare
from tests import tiny


def lists(name="a", *, queries=40, width=8, k=2, seed=0, first=0, good=0.5) -> Reranked:
    """Random lists, recall in descending order; the reranker knows a right answer by `good`."""
    rng = np.random.default_rng(seed)
    candidates = np.array([rng.permutation(1000)[:width] for _ in range(queries)])
    recall = np.sort(rng.uniform(0.2, 0.9, (queries, width)))[:, ::-1].astype(np.float32)
    answer = rng.integers(0, width, queries)
    p_yes = rng.random((queries, width))
    p_yes[np.arange(queries), answer] += good
    return Reranked(
        name=name,
        k=k,
        query_ids=[f"q{first + number}" for number in range(queries)],
        candidates=candidates,
        recall=recall,
        p_yes=np.clip(p_yes, 0, 1),
        relevant=[candidates[row, [place]] for row, place in enumerate(answer)],
    )


def hit_rate(one, weight, form):
    """By the definition, in plain Python."""
    hits = 0
    for row in range(len(one.query_ids)):
        scored = []
        for place in range(one.candidates.shape[1]):
            s, p = float(one.recall[row, place]), float(one.p_yes[row, place])
            score = s + weight * p if form == "add" else weight * s + (1 - weight) * p
            if one.candidates[row, place] >= 0:
                scored.append((-score, place))
        first = [one.candidates[row, place] for _, place in sorted(scored)[: one.k]]
        hits += bool(set(first) & set(one.relevant[row].tolist()))
    return hits / len(one.query_ids)


@settings(max_examples=15)
@given(seed=st.integers(0, 10_000), form=st.sampled_from(["add", "alpha"]))
def test_the_fitted_weight_is_the_best_of_the_grid_and_trusts_recall_most(seed, form):
    sets = [lists("a", seed=seed), lists("b", seed=seed + 1, queries=25, good=0.0)]
    grid = GRIDS[form][::5]
    rates = {one.name: [hit_rate(one, w, form) for w in grid] for one in sets}
    recall_alone = 0.0 if form == "add" else 1.0

    def best(values):
        ties = [w for w, value in zip(grid, values, strict=True) if value == max(values)]
        return min(ties, key=lambda w: abs(w - recall_alone))

    found = fit(sets, form=form, grid=grid)
    assert found.weights == {name: best(values) for name, values in rates.items()}
    for name, values in rates.items():
        assert found.score[name] == pytest.approx(max(values))
    joint = fit(sets, form=form, scope="global", grid=grid)
    assert set(joint.weights.values()) == {best(np.mean(list(rates.values()), axis=0).tolist())}


@pytest.mark.parametrize("scope", ["task", "global"])
def test_a_gain_that_may_be_luck_is_not_taken(scope):
    useless = [lists("a", seed=3, queries=60, good=0.0)]
    lucky = fit(useless, scope=scope)
    assert lucky.weights["a"] > 0  # the best of forty-one weights, of noise
    assert fit(useless, scope=scope, sure=True).weights == {"a": 0.0}
    helpful = [lists("a", seed=3, queries=60, good=3.0)]
    assert fit(helpful, scope=scope, sure=True).weights == fit(helpful, scope=scope).weights
    assert fit(helpful, scope=scope, sure=True).weights["a"] > 0
    with pytest.raises(MarvelError, match="put 0 into the grid"):
        fit(helpful, scope=scope, sure=True, grid=(0.5, 1.0))


def test_both_forms_order_alike_where_they_mean_the_same():
    one = lists()
    np.testing.assert_array_equal(
        reorder(one, weight=1.0, form="add"), reorder(one, weight=0.5, form="alpha")
    )
    np.testing.assert_array_equal(reorder(one, weight=0.0, form="add"), one.candidates)
    np.testing.assert_array_equal(reorder(one, weight=1.0, form="alpha"), one.candidates)
    scores = fuse(one.recall, one.p_yes, weight=0.3, form="alpha")
    assert scores.dtype == np.float64
    np.testing.assert_allclose(scores, 0.3 * one.recall.astype(float) + 0.7 * one.p_yes)


def test_ties_keep_the_order_of_recall_and_missing_candidates_stay_last():
    one = Reranked(
        "t",
        1,
        ["q"],
        np.array([[5, 3, 9, -1]]),
        np.array([[0.5, 0.5, 0.4, 0.0]]),
        np.array([[0.1, 0.1, 0.3, 1.0]]),
        [np.array([9])],
    )
    few = np.random.default_rng(0).choice([0.1, 0.2, 0.3], (1, 99))
    long = Reranked("l", 1, ["q"], np.arange(99)[None], few, np.ones((1, 99)), [np.array([3])])
    expected = sorted(range(99), key=lambda place: (-few[0, place], place))
    assert reorder(long, weight=0.5, form="add").tolist() == [expected]
    assert reorder(one, weight=0.5, form="add").tolist() == [[5, 3, 9, -1]]
    assert reorder(one, weight=2.0, form="add").tolist() == [[9, 5, 3, -1]]


def test_the_report_says_where_reranking_hurts_with_paired_intervals():
    helped, hurt = lists("helped", seed=1, queries=300), lists("hurt", seed=2, queries=300)
    backwards = Reranked(
        "hurt",
        2,
        hurt.query_ids,
        hurt.candidates,
        hurt.recall,
        1.0 - hurt.p_yes,
        [row[:1] for row in hurt.candidates],
    )
    validation = [lists(name, seed=9, first=5000) for name in ("helped", "hurt")]
    weights = fit(validation, grid=[1.0])
    report = compare([helped, backwards], weights, seed=3)
    first, second = report.sets
    assert first.verdict == "helps" and second.verdict == "hurts" and report.hurts == ("hurt",)
    for one, data in ((first, helped), (second, backwards)):
        before, after = hit_rate(data, 0.0, "add"), hit_rate(data, 1.0, "add")
        assert one.recall.mean == pytest.approx(before)
        assert one.fused.mean == pytest.approx(after)
        assert one.change.mean == pytest.approx(after - before)
        # The interval by resampling queries one by one, as the definition has it.
        change = []
        for row in range(300):
            single = Reranked(
                "x",
                2,
                ["q"],
                *(getattr(data, field)[row : row + 1] for field in ("candidates", "recall")),
                data.p_yes[row : row + 1],
                [data.relevant[row]],
            )
            change.append(hit_rate(single, 1.0, "add") - hit_rate(single, 0.0, "add"))
        rng = np.random.default_rng(0)
        means = [np.mean(rng.choice(change, 300)) for _ in range(2000)]
        low, high = np.quantile(means, [0.025, 0.975])
        assert one.change.low == pytest.approx(low, abs=0.015)
        assert one.change.high == pytest.approx(high, abs=0.015)
    assert report.mean_change.mean == pytest.approx((first.change.mean + second.change.mean) / 2)
    text = "\n".join(report.lines())
    assert "hurts" in text and "helped" in text and "[" in text
    same = compare([lists("helped", first=900)], fit(validation, grid=[0.0]))
    assert same.sets[0].verdict == "undecided" and same.sets[0].change.mean == 0


def test_a_weight_is_never_judged_on_the_queries_it_was_fitted_on():
    weights = fit([lists("a")])
    with pytest.raises(MarvelError, match="1 of 40 queries were used to fit"):
        compare([lists("a", first=39)], weights)
    compare([lists("a", first=40)], weights)
    with pytest.raises(MarvelError, match="no fusion weight"):
        compare([lists("b")], weights)
    assert weights.to_dict()["validation_queries"] == 40


def test_a_query_is_known_by_what_it_is_and_not_by_its_id(tmp_path):
    def query(id, *, text="a bus", image="one/a.jpg", positives=("9:1", "9:2"), task=6):
        item = Item.of(text=text, image=tmp_path / image, id=id)
        return Query(id, item, TASKS[task], positives, (), int(id.split(":")[0]))

    one = query_key(query("9:1"))
    assert one == query_key(query("9:7")) == query_key(query("9:1", image="copy/a.jpg"))
    assert one == query_key(query("9:1", positives=("9:2", "9:1")))
    others = [
        query("9:1", text="a bus."),
        query("9:1", image="one/b.jpg"),
        query("9:1", positives=("9:1",)),
        query("9:1", task=8),
        query("8:1"),
    ]
    assert len({one, *map(query_key, others)}) == 6


def test_ids_that_count_from_one_in_each_split_are_no_leak_and_other_ids_hide_none():
    first, same_ids = lists("a", seed=1), lists("a", seed=2)
    keys = [[f"{split}{number}" for number in range(40)] for split in ("val", "test")]
    fitted = fit([dataclasses.replace(first, keys=keys[0])])
    test = dataclasses.replace(same_ids, keys=keys[1])
    assert compare([test], fitted).sets[0].num_queries == 40
    hidden = dataclasses.replace(lists("a", seed=2, first=500), keys=[*keys[1][:39], keys[0][3]])
    again = FusionWeights.from_dict(json.loads(json.dumps(fitted.to_file())))
    assert again == fitted
    for weights in (fitted, again):
        with pytest.raises(MarvelError, match=r"1 of 40 queries were used to fit.*\(q539\)"):
            compare([hidden], weights)
    with pytest.raises(MarvelError, match="40 queries, but 3 keys"):
        dataclasses.replace(first, keys=["a", "b", "c"])


def test_one_weight_for_all_is_for_sets_too_that_it_was_not_fitted_on():
    fitted = [lists("a", seed=1), lists("b", seed=2)]
    joint = fit(fitted, scope="global")
    (weight,) = set(joint.weights.values())
    assert 0 < weight == joint.of("a") == joint.of("unseen")
    report = compare([lists("unseen", seed=3)], joint)
    assert report.sets[0].weight == weight
    assert report.sets[0].fused.mean == pytest.approx(
        hit_rate(lists("unseen", seed=3), weight, "add")
    )
    # A set of its own does not make its queries others.
    with pytest.raises(MarvelError, match="40 of 40 queries were used"):
        compare([fitted[0]], joint)


def test_a_set_is_read_from_a_rerankers_file(tmp_path):
    source = tiny.TinySource(size=6, positives=2)
    origin = {
        "source_fingerprint": source.fingerprint,
        "queries_hash": queries_hash(source),
        "pool_hash": pool_hash(source),
    }
    writer = teacher_writer(tmp_path / "t.jsonl", origin)
    rng = np.random.default_rng(0)
    rows = []
    for query in source.queries:
        ids = [f"90:{place}" for place in rng.permutation(12)[: rng.integers(3, 6)]]
        numbers = {name: rng.normal(size=len(ids)) for name in ("yes", "no", "recall")}
        rows.append(teacher_line(query.id, ids, **numbers))
    writer.append(rows[::-1])
    writer.finish({})
    lists_ = read_teacher(tmp_path / "t.jsonl", source)
    places = [1, 4, 7]
    found = Reranked.of("some", source, lists_, k=2, places=places)
    for row, place in enumerate(places):
        width = len(rows[place]["did"])
        assert [f"90:{one}" for one in found.candidates[row, :width]] == rows[place]["did"]
        odds = np.subtract(rows[place]["yes"], rows[place]["no"])
        np.testing.assert_allclose(found.p_yes[row, :width], 1 / (1 + np.exp(-odds)), rtol=1e-6)
        answers = {f"90:{one}" for one in found.relevant[row]}
        assert answers == set(source.queries[place].positives)
    assert len(Reranked.of("all", source, lists_, k=2).query_ids) == 12
    assert list(found.query_ids) == ["90:1", "90:4", "90:7"]


@pytest.mark.parametrize(
    ("change", "options"),
    [
        ({}, {"grid": []}),
        ({}, {"grid": [1.5], "form": "alpha"}),
        ({}, {"grid": [-0.1]}),
        ({"k": 9}, {}),
        ({"recall": np.full((40, 8), np.nan)}, {}),
        ({"query_ids": ["q"]}, {}),
    ],
)
def test_what_cannot_be_fused_is_refused(change, options):
    with pytest.raises(MarvelError):
        fit([Reranked(**vars(lists()) | change)], **options)
