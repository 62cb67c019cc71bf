"""Items of JSON lines: any number of texts, pictures and videos, in the order written."""

from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from marvel_jax.data.item_json import item_from_json
from marvel_jax.data.items import Image, Item, Video
from marvel_jax.errors import MarvelError

ROOT = Path("data")
PARTS = st.one_of(
    st.sampled_from(["a cat", "but red"]).map(lambda text: (text, text)),
    st.sampled_from(["x", "y z"]).map(lambda text: ({"text": text}, text)),
    st.sampled_from(["a.png", "b/c.jpg"]).map(lambda path: ({"image": path}, Image(ROOT / path))),
    st.sampled_from(["a.mp4"]).map(lambda path: ({"video": path}, Video(ROOT / path))),
    st.just(
        (
            {"video": ["1.png", "2.png"], "num_frames": 2},
            Video((Image(ROOT / "1.png"), Image(ROOT / "2.png")), num_frames=2),
        )
    ),
    st.just(({"video": "b.mp4", "fps": 0.5}, Video(ROOT / "b.mp4", fps=0.5))),
)


@given(st.lists(PARTS, min_size=1, max_size=6))
def test_parts_keep_their_order(parts):
    found = item_from_json({"parts": [written for written, _ in parts]}, root=ROOT, where="x")
    assert found == Item(parts=tuple(expected for _, expected in parts))


def test_fields_stand_in_the_fields_order():
    fields = {"text": "a cat", "video": "v.mp4", "image": ["a.png", "b.png"], "id": "7", "more": 1}
    assert item_from_json(fields, root=ROOT, where="x", id="7") == Item(
        parts=(Image(ROOT / "a.png"), Image(ROOT / "b.png"), Video(ROOT / "v.mp4"), "a cat"),
        id="7",
    )


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        ({}, "line 3: an item has neither text nor image nor video"),
        ({"parts": []}, "an item has neither"),
        ({"parts": [" "]}, "an item has neither"),
        ({"parts": "a cat"}, "expected parts as a list"),
        ({"parts": ["a"], "text": "b"}, "parts and text are both given"),
        ({"parts": ["a", 3]}, "line 3: part 2: expected a text, or an object of one"),
        ({"parts": [{"text": "a", "image": "b"}]}, "part 1: expected a text, or an object of one"),
        ({"parts": [{"image": "b", "size": 3}]}, "part 1: unknown field 'size'"),
        ({"parts": [{"image": ""}]}, "part 1: expected image as a path"),
        ({"parts": [{"text": 3}]}, "part 1: expected text as a text"),
        ({"parts": [{"video": "a", "num_frames": 2.5}]}, "num_frames as a whole number"),
        ({"parts": [{"video": "a", "num_frames": 2, "fps": 1}]}, "part 1: data/a: give num_frames"),
        ({"video": {"path": "a"}}, "unknown field 'path'"),
        ({"image": [3]}, "expected image as a path or paths"),
        ({"text": 3}, "expected text as a text, found 3"),
    ],
)
def test_anything_else_is_refused(fields, message):
    with pytest.raises(MarvelError, match=message):
        item_from_json(fields, root=ROOT, where="line 3")
