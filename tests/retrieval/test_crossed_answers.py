"""OVEN and InfoSeek answer for each other: right in the global pool, not there in the local one."""

import numpy as np
import pytest
from vector_stores import unit, write_store

from marvel_jax.data import mbeir_synthetic
from marvel_jax.data.mbeir import MbeirFolder
from marvel_jax.data.mbeir_synthetic import Size
from marvel_jax.retrieval import evaluation_folder, report_scores
from marvel_jax.retrieval.protocols import RetrievalSet, evaluate

NAMES = ("oven_task6", "infoseek_task6", "oven_task8", "infoseek_task8")


def test_from_the_folder_to_the_report_each_pool_has_its_own_answers(tmp_path):
    mbeir_synthetic.build(
        tmp_path / "mbeir", size=Size(train=32, test=96, distractors=1, short_side=16, text=0.25)
    )
    layout = MbeirFolder(tmp_path / "mbeir")
    tests = {one.name: one for one in layout.test_sets()}
    ids = [candidate.id for candidate in layout.pool("test")]
    rng = np.random.default_rng(0)
    corpus = unit(rng.normal(size=(len(ids), 16)).astype(np.float32))
    store = write_store(tmp_path / "store", corpus, ids)
    place = {id: row for row, id in enumerate(ids)}
    sets = [RetrievalSet.of(tests[name]) for name in tests]
    vectors, crossed = {}, {}
    for one in sets:
        pool = set(one.pool)
        outside = [sorted(set(right) - pool) for right in one.relevant]
        crossed[one.name] = [number for number, some in enumerate(outside) if some]
        aims = [(some or right)[0] for some, right in zip(outside, one.relevant, strict=True)]
        noise = 0.02 * rng.normal(size=(len(aims), 16))
        vectors[one.name] = unit(corpus[[place[aim] for aim in aims]] + noise)
    assert all(crossed[name] for name in NAMES) and sum(map(bool, crossed.values())) == 4
    found = evaluate(sets, vectors, store, instruction_choice="none")
    for one in sets:
        evaluation_folder.write_rankings(
            tmp_path,
            one.name,
            k=one.k,
            query_ids=one.query_ids,
            retrieved=found.rankings[one.name],
            relevant=found.rows[one.name].relevant,
            relevant_local=found.rows[one.name].relevant_local,
            origin="x",
        )
    about = {"sets": [one.name for one in sets], "seed": 0}
    evaluation_folder.write(tmp_path, scores=found.to_dict(), about=about)
    folder = evaluation_folder.read(tmp_path)
    judged = report_scores.judged_sets(
        folder, report_scores.read_scores(folder.scores, where=tmp_path)
    )
    for scores, one, again in zip(found.sets, sets, judged, strict=True):
        local, union = again.hits()
        cosines = vectors[one.name] @ corpus.T
        own = [place[id] for id in one.pool]
        for hits, rows, mean in (
            (local, own, scores.local_pool.hit[one.k].mean),
            (union, range(len(ids)), scores.global_pool.hit[one.k].mean),
        ):
            rows = np.array(rows)
            best = rows[np.argsort(-cosines[:, rows], axis=1)[:, : one.k]]
            plain = [
                any(ids[row] in set(right) for row in line)
                for line, right in zip(best, one.relevant, strict=True)
            ]
            np.testing.assert_array_equal(hits, plain)
            assert mean == pytest.approx(np.mean(plain))
        assert union[crossed[one.name]].all()
        for number, right in enumerate(one.relevant):
            inside = {place[id] for id in right} & set(own)
            assert set(again.answers("local")[number].tolist()) == inside
            assert {ids[row] for row in again.answers("global")[number]} == set(right)
    lost = [again.hits()[0][crossed[again.name]].mean() for again in judged if crossed[again.name]]
    assert np.mean(lost) < 0.9  # the nearest answer is not in the local pool
