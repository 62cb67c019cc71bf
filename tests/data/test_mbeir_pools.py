"""Where a split's queries are judged: one union pool, and every candidate that it lacks once."""

import json

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from marvel_jax.data import mbeir_write
from marvel_jax.data.mbeir import MbeirFolder, MbeirSource
from marvel_jax.errors import MarvelError


def candidates(ids):
    return [mbeir_write.candidate_record(f"9:{one}", text=f"t{one}", image=None) for one in ids]


def write(root, *, test, val, local, split_local=None, answers):
    """One data set with queries for validation and test, and pools of these ids."""
    records = [
        mbeir_write.query_record(
            f"9:{number}", task=1, text="q", image=None, positives=[f"9:{one}"]
        )
        for number, one in enumerate(answers, start=1)
    ]
    for split in ("val", "test"):
        mbeir_write.write_queries(root, "toy", task=1, split=split, records=records)
    for split, ids in (("test", test), ("val", val)):
        if ids is not None:
            mbeir_write.write_union_pool(root, split=split, records=candidates(ids))
    mbeir_write.write_local_pool(root, "toy", task=1, records=candidates(local))
    if split_local is not None:
        mbeir_write.write_local_pool(
            root, "toy", task=1, split="val", records=candidates(split_local)
        )
    mbeir_write.write_instructions(
        root, dataset=9, name="Toy", instructions={("text", "text"): ["Find."]}
    )
    return MbeirFolder(root)


def ids(records):
    return [int(one.id.partition(":")[2]) for one in records]


some = st.lists(st.integers(0, 30), unique=True, max_size=12)


@given(test=some, val=some, local=some, own=some)
@settings(max_examples=25, deadline=None)
def test_nothing_is_missing_and_nothing_twice(tmp_path_factory, test, val, local, own):
    answer = 40
    layout = write(
        tmp_path_factory.mktemp("pools"),
        test=[*test, answer],
        val=val,
        local=[*local, answer],
        split_local=[*own, answer],
        answers=[answer],
    )
    pool = layout.judged_pool("val")
    assert ids(pool.union) == [*test, answer]
    # Validation's own local pool, and not the other; its order, then the union's.
    assert ids(pool.beside) == [
        one for one in dict.fromkeys([*own, *val]) if one not in {*test, answer}
    ]
    assert ids(pool.all) == ids(pool.union) + ids(pool.beside)
    source = layout.judged_source("val")
    assert [source.candidate_index(f"9:{one}") for one in ids(pool.all)] == list(
        range(len(pool.all))
    )
    assert ids(layout.judged_pool("test").all) == [*test, answer]


def test_validation_is_judged_among_all_of_test_and_its_queries_are_those_with_judgements(tmp_path):
    layout = write(tmp_path, test=[1, 2, 3, 4], val=[2], local=[1, 2, 3], answers=[2, 3])
    union = tmp_path / "query" / "union_val" / "mbeir_union_val.jsonl"
    union.parent.mkdir()
    first = (tmp_path / "query/val/mbeir_toy_task1_val.jsonl").read_text().splitlines()[0]
    union.write_text(first + "\n")
    assert [q.id for q in layout.source("val").queries] == ["9:1"]
    source = layout.judged_source("val")
    assert [q.id for q in source.queries] == ["9:1", "9:2"] and ids(source.candidates) == [
        1,
        2,
        3,
        4,
    ]
    (judged,) = layout.test_sets("val")
    assert set(judged.qrels) == {query.id for query in source.queries}


def test_which_candidates_are_taken_counts_for_the_content(tmp_path):
    layout = write(tmp_path, test=[1, 2, 3], val=None, local=[1, 2, 3, 4], answers=[3])
    source = layout.judged_source("val")
    assert MbeirFolder(tmp_path).judged_source("val").fingerprint == source.fingerprint
    found = {
        MbeirSource(source.queries, source.candidates.choose(places), {}).fingerprint
        for places in ([0, 2], [1, 2], [0, 1, 2])
    }
    assert len(found) == 3
    pool = tmp_path / "cand_pool/local/mbeir_toy_task1_cand_pool.jsonl"
    pool.write_text(pool.read_text() + json.dumps(candidates([7])[0]) + "\n")
    assert MbeirFolder(tmp_path).judged_source("val").fingerprint != source.fingerprint


def test_without_a_test_split_validation_has_its_own_union_pool(tmp_path):
    layout = write(tmp_path, test=None, val=[2, 3], local=[1, 2], answers=[2])
    assert ids(layout.judged_pool("val").all) == [2, 3, 1]
    with pytest.raises(MarvelError, match=r"mbeir_union_test_cand_pool\.jsonl does not exist"):
        layout.judged_pool("test")


def test_an_answer_that_no_pool_has_is_refused(tmp_path):
    layout = write(tmp_path, test=[1], val=[2], local=[1], answers=[5])
    with pytest.raises(MarvelError, match="9:5, which is in none of the pools"):
        layout.judged_source("val")


def test_joined_records_are_one_after_the_other_however_they_were_chosen(tmp_path):
    layout = write(tmp_path, test=[1, 2, 3], val=[4, 5], local=[6, 7], answers=[1])
    test, val = layout.pool("test"), layout.pool("val")
    few = val.choose([1])
    for parts, wanted in (
        ((test, val), [1, 2, 3, 4, 5]),
        ((test, few), [1, 2, 3, 5]),
        ((test.choose([0, 2]), few), [1, 3, 5]),
        ((few, test), [5, 1, 2, 3]),
    ):
        both = parts[0].joined(parts[1])
        assert ids(both) == wanted == [one % 1_000_000_000 for one in both.ids("did").tolist()]
        assert ids(both.joined(few.joined(few))) == [*wanted, 5, 5]
