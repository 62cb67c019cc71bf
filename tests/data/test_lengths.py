import dataclasses

import numpy as np
import pytest

from marvel_jax.data import lengths
from marvel_jax.data.items import TASKS, Image, Item, Query
from marvel_jax.errors import MarvelError
from tests.data import samples


def test_lengths_are_those_of_the_encoded_items_under_the_longest_instruction() -> None:
    source = samples.source(texts=20, images=10)
    for template in ("marvel", "umarvel_released", "gme"):
        processor = samples.processor(template=template)
        index = lengths.index(source, processor, cache=None)
        for number, query in enumerate(source.queries):
            prompts = source.instructions[query.instruction_key]
            assert index.prompts[number] == len(prompts)
            longest = [
                max(sizes)
                for sizes in zip(
                    *(
                        (len(one.tokens), len(one.patches))
                        for one in (processor(query.item.with_instruction(p)) for p in prompts)
                    ),
                    strict=True,
                )
            ]
            assert index.queries[number].tolist() == longest
        for number, candidate in enumerate(source.candidates):
            encoded = processor(candidate.item)
            found = index.candidates[number].tolist()
            assert found == [len(encoded.tokens), len(encoded.patches)]


def test_positives_ids_and_tasks_are_the_sources() -> None:
    source = samples.source(texts=20, images=7)
    index = lengths.index(source, samples.processor(), cache=None)
    for number, query in enumerate(source.queries):
        found = index.positives[index.offsets[number] : index.offsets[number + 1]]
        assert tuple(source.candidates[one].id for one in found) == query.positives
        assert index.tasks[number] == query.task.id
        assert index.query_ids[number].decode() == query.id
    assert [one.decode() for one in index.candidate_ids] == [one.id for one in source.candidates]


class Unreadable(samples.ListSource):
    """Fails when it is counted again."""

    @property
    def fingerprint(self) -> str:
        return "fixed"


def test_a_cached_index_is_read_back_and_a_damaged_one_counted_again(tmp_path) -> None:
    source = samples.source(texts=12, images=6)
    known = Unreadable(source.queries, source.candidates, source.instructions)
    first = lengths.index(known, samples.processor(), cache=tmp_path)
    again = lengths.index(
        Unreadable([], [], source.instructions), samples.processor(), cache=tmp_path
    )
    for ours, theirs in zip(first, again, strict=True):
        np.testing.assert_array_equal(ours, theirs)
        assert ours.dtype == theirs.dtype
    (path,) = tmp_path.iterdir()
    path.write_bytes(path.read_bytes()[:200])
    repaired = lengths.index(known, samples.processor(), cache=tmp_path)
    np.testing.assert_array_equal(repaired.queries, first.queries)


def test_another_processor_or_source_has_its_own_cache(tmp_path) -> None:
    source = samples.source(texts=12, images=6)
    marvel = lengths.index(source, samples.processor(), cache=tmp_path)
    released = lengths.index(source, samples.processor(template="umarvel_released"), cache=tmp_path)
    assert (released.queries[:, 0] > marvel.queries[:, 0]).all()
    lengths.index(samples.source(texts=13, images=6), samples.processor(), cache=tmp_path)
    assert len(list(tmp_path.iterdir())) == 3


def changed(source: samples.ListSource, **changes: object) -> samples.ListSource:
    broken = dataclasses.replace(source.queries[3], **changes)
    queries = [*source.queries[:3], broken, *source.queries[4:]]
    return dataclasses.replace(source, queries=queries)


def test_bad_sources_are_told() -> None:
    source = samples.source(texts=8, images=6)

    def message(broken: samples.ListSource) -> str:
        with pytest.raises(MarvelError) as error:
            lengths.index(broken, samples.processor(), cache=None)
        return str(error.value)

    assert "10:3 has no positive" in message(changed(source, positives=()))
    assert "10:3: positive 10:x" in message(changed(source, positives=("10:x",)))
    assert "10:3" in message(changed(source, dataset=4)) and "data set 4" in message(
        changed(source, dataset=4)
    )
    unread = Item.of(image=Image(b"no image", name="pear.png"))
    assert "10:3: image pear.png" in message(changed(source, item=unread))


def test_a_source_without_instructions_has_none_to_choose() -> None:
    source = dataclasses.replace(samples.source(texts=8, images=6), instructions={})
    index = lengths.index(source, samples.processor(), cache=None)
    assert (index.prompts == 0).all()
    bare = samples.processor().lengths(source.queries[0].item)
    assert tuple(index.queries[0]) == bare


def test_a_positive_named_twice_counts_once() -> None:
    source = samples.source(texts=8, images=6)
    twice = Query("10:99", Item.of(text="pear"), TASKS[0], ("10:i1", "10:i1"), dataset=10)
    index = lengths.index(
        dataclasses.replace(source, queries=[twice]), samples.processor(), cache=None
    )
    assert index.positives.tolist() == [1]


def with_negatives(*negatives: str) -> samples.ListSource:
    """Query 3, whose positive is 10:i3, names these hard negatives."""
    return changed(samples.source(texts=8, images=6), negatives=negatives)


def test_hard_negatives_are_the_sources_without_what_is_also_a_positive() -> None:
    source = with_negatives("10:i1", "10:t2", "10:i3", "10:i1")
    index = lengths.index(source, samples.processor(), cache=None, hard_negatives=True)
    counts = np.diff(index.negative_offsets)
    assert counts[3] == 2 and counts.sum() == 2
    assert [source.candidates[one].id for one in index.negatives] == ["10:i1", "10:t2"]
    assert index.refused_negatives == 1


def test_hard_negatives_are_read_only_where_they_are_asked_for(tmp_path) -> None:
    unknown = with_negatives("10:x")
    bare = lengths.index(unknown, samples.processor(), cache=tmp_path)
    assert len(bare.negative_offsets) == len(bare.negatives) == 0
    with pytest.raises(MarvelError, match="Query 10:3: hard negative 10:x"):
        lengths.index(unknown, samples.processor(), cache=tmp_path, hard_negatives=True)


def test_progress_counts_up_to_all_items() -> None:
    source = samples.source(texts=8, images=6)
    told: list[tuple[int, int]] = []
    lengths.index(
        source,
        samples.processor(),
        cache=None,
        progress=lambda done, total: told.append((done, total)),
    )
    everything = len(source.queries) + len(source.candidates)
    assert told[-1] == (everything, everything)
    assert [done for done, _ in told] == sorted(done for done, _ in told)
