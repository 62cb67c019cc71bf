"""What is asked of whom, in which words and in which order, as the sets' papers have it."""

import pickle
import zipfile

import pytest

from marvel_jax.data.items import Image, Item
from marvel_jax.data.protocols import reading, registry, videos
from marvel_jax.data.protocols.protocol import Answers, Metric, SetData, Test
from marvel_jax.errors import MarvelError
from tests.protocol_folders import FIXTURES, put_lines

EVERYDAY = "Find me an everyday image that matches the given caption."
CAPTION = "Find an image caption describing the following everyday image."
CHANGED = "I'm looking for a similar everyday image with the described changes."
SHORT_CAPTION = "Find an image caption describing the following image."

# By set and test: the instruction of who asks, and of what is sought.
INSTRUCTIONS = {
    "flickr30k": {"t2i": (EVERYDAY, None), "i2t": (None, None)},
    "coco": {"t2i": (None, None), "i2t": (None, None)},
    "sharegpt4v": {"t2i": (EVERYDAY, None), "i2t": (None, None)},
    "urban1k": {"t2i": (None, CAPTION), "i2t": (CAPTION, None)},
    "circo": {"val": (CHANGED, None), "test": (CHANGED, None)},
    "visdial": {"val": ("Find me an everyday image that matches the given dialog.", None)},
    "ccneg": {"test": (None, None)},
    "sugarcrepe": {"add_att": (SHORT_CAPTION, None), "swap_obj": (None, None)},
    "mmeb": {name: (f"Ask {name}.", None) for name in ("VOC2007", "N24News", "OVEN")},
    "beir": {"test": (None, None)},
}


def load(name, folder):
    FIXTURES[name].write(folder)
    return registry.find(name).load(folder)


@pytest.mark.parametrize("name", INSTRUCTIONS)
def test_the_words_of_the_specification_on_the_side_it_says(name, tmp_path):
    data = load(name, tmp_path).data
    found = {}
    for test in data.tests:
        sides = (data.collections[test.asks], data.collections[test.seeks])
        found[test.name] = tuple({item.instruction for item in side} for side in sides)
    wanted = {test: tuple({one} for one in sides) for test, sides in INSTRUCTIONS[name].items()}
    assert found == wanted


def told(item: Item) -> list[str]:
    """Its parts in order: texts, and the names of pictures."""
    return [part if isinstance(part, str) else part.source.stem for part in item.parts]


def test_interleaved_queries_keep_their_order(tmp_path):
    stories = load("vist", tmp_path / "vist").data.collections["stories"]
    # The file has the second picture first.
    assert told(stories[0]) == ["cyan", "p1", "green", "p2", " ".join(["blue"] * 9)]
    assert stories[0].instruction.startswith("I will provide you with a series of images")
    turns = load("multiturn_fashioniq", tmp_path / "turns").data.collections["queries"]
    assert told(turns[1]) == ["a", "more and green", "b", "so"]
    (dialog, _) = load("visdial", tmp_path / "visdial").data.collections["dialogs"]
    assert told(dialog) == ["Q: is it red? A: yes, red."]


def test_focus_and_change_are_asked_in_different_words(tmp_path):
    data = load("genecis", tmp_path).data
    focus, change = (data.collections[test.asks][0].instruction for test in data.tests)
    assert "same attributes" in focus and "described changes" in change


def test_videos_are_asked_for_frames_as_their_protocol_says(tmp_path, monkeypatch):
    asked = {}

    def note(path, *, id, **sampling):
        asked[path.name] = sampling
        return Item((Image(path),), id=id)

    monkeypatch.setattr(videos, "video", note)
    load("msvd", tmp_path / "msvd")
    load("msrvtt", tmp_path / "msrvtt")
    assert asked["one_0_5.avi"] == {"num_frames": 12} and asked["video7.mp4"] == {}


def test_a_large_corpus_is_read_as_it_is_asked_for(tmp_path):
    corpus = load("beir", tmp_path).data.collections["corpus"]
    assert not isinstance(corpus, list)
    assert [told(item) for item in corpus[1:3]] == [["red green"], ["blue"]]


def test_pictures_count_by_their_paths_below_the_folder(tmp_path):
    hashes = [load("circo", tmp_path / name).hashes for name in ("here", "there")]
    assert hashes[0] == hashes[1]
    text = (tmp_path / "there" / "annotations" / "val.json").read_text()
    (tmp_path / "there" / "annotations" / "val.json").write_text(text.replace("green", "gray"))
    changed = registry.find("circo").load(tmp_path / "there").hashes
    assert {name for name in changed if changed[name] != hashes[0][name]} == {"val queries"}


def test_a_pickle_that_could_run_code_is_refused(tmp_path):
    class Runs:
        def __reduce__(self):
            return print, ("run",)

    plain, zipped = tmp_path / "plain.pkl", tmp_path / "zipped.pt"
    plain.write_bytes(pickle.dumps(Runs()))
    with zipfile.ZipFile(zipped, "w") as archive:
        archive.writestr("archive/data.pkl", pickle.dumps({"a": Runs()}))
    for path in (plain, zipped):
        with pytest.raises(MarvelError, match=f"{path.name}: it holds builtins.print"):
            reading.read_plain_pickle(path)
    plain.write_bytes(b"nothing")
    with pytest.raises(MarvelError, match="is not a pickle of plain data"):
        reading.read_plain_pickle(plain)


def test_what_tests_and_metrics_cannot_be():
    items = [Item.of(text="a", id="0")]
    collections = {"queries": items, "candidates": items}

    def made(answers, *, asks="queries", tests=1):
        one = Test("one", asks, "candidates", answers)
        return SetData(collections, (one,) * tests)

    with pytest.raises(MarvelError, match="no collection 'asked', only queries, candidates"):
        made([Answers(("0",))], asks="asked")
    with pytest.raises(MarvelError, match="1 queries, answers for 2"):
        made([Answers(("0",))] * 2)
    with pytest.raises(MarvelError, match="tests of different names"):
        made([Answers(("0",))], tests=2)
    with pytest.raises(MarvelError, match="query '0' has no right answer in its gallery"):
        made([Answers(("0",), gallery=("1",))]).check(None)
    with pytest.raises(MarvelError, match=r"main=3 must be one of cuts=\(1, 5\)"):
        Metric(cuts=(1, 5), main=3)


def test_mmeb_has_the_36_sets_of_its_paper():
    groups = registry.find("mmeb").groups
    sizes = {name: len(sets) for name, sets in groups.items()}
    assert sizes == {
        "classification": 10,
        "vqa": 10,
        "retrieval": 12,
        "grounding": 4,
        "in distribution": 20,
        "out of distribution": 16,
        "mean": 36,
    }
    parts = [groups[name] for name in ("in distribution", "out of distribution")]
    assert sorted(parts[0] + parts[1]) == sorted(groups["mean"])


def test_a_query_of_one_candidate_chooses_nothing(tmp_path):
    FIXTURES["mmeb"].write(tmp_path)
    query = {"qid": "1:0", "query_txt": "red", "query_img_path": None, "candidates": ["1:0"]}
    put_lines(tmp_path / "N24News" / "N24News_query.jsonl", [query])
    with pytest.raises(MarvelError, match=r"N24News_query\.jsonl, line 1: candidates names 1"):
        registry.find("mmeb").load(tmp_path)
