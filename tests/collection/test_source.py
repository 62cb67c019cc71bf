"""Whatever a file or a line holds, it is read or it is listed, and never stops the others."""

import hashlib
import json
import os
import threading
import tracemalloc

from hypothesis import given
from hypothesis import strategies as st

from marvel_jax.collection.contents import MOST_PICTURE_BYTES, content_hash
from marvel_jax.collection.source import Failure, Read, find_source
from tests import tiny


def test_a_pipe_a_device_or_a_huge_file_does_not_stop_it(tmp_path):
    (tmp_path / "a.txt").write_text("a")
    os.mkfifo(tmp_path / "pipe.txt")
    os.mkfifo(tmp_path / "pipe.png")
    (tmp_path / "loop.png").symlink_to(tmp_path / "loop.png")
    with (tmp_path / "huge.tif").open("wb") as stream:
        stream.truncate(MOST_PICTURE_BYTES + 1)
    found: dict[str, Read | Failure] = {}

    def read() -> None:
        source = find_source(tmp_path)
        found.update((piece.id, source.read(piece)) for piece in source.pieces())

    # Who reads the pipes waits until these are closed.
    held = [os.open(tmp_path / name, os.O_RDWR) for name in ("pipe.txt", "pipe.png")]
    thread = threading.Thread(target=read, daemon=True)
    thread.start()
    thread.join(60)
    waits = thread.is_alive()
    for one in held:
        os.close(one)
    assert not waits
    assert isinstance(found.pop("a.txt"), Read)
    told = {id: one.error for id, one in found.items() if isinstance(one, Failure)}
    assert set(told) == {"pipe.txt", "pipe.png", "loop.png", "huge.tif"}
    assert "pipe" in told["pipe.txt"] and "pipe" in told["pipe.png"]
    assert "are the most of a picture" in told["huge.tif"]


def test_a_file_is_read_in_blocks_and_has_the_hash_of_its_content(tmp_path):
    content = tiny.picture(0) * 40_000  # of several blocks
    (tmp_path / "a.png").write_bytes(content)
    digest = hashlib.blake2b("text 5 caf\u00e9".encode(), digest_size=16)
    digest.update(f"image {len(content)} ".encode() + content)
    tracemalloc.start()
    assert content_hash(("caf\u00e9", tmp_path / "a.png")) == digest.hexdigest()
    assert tracemalloc.get_traced_memory()[1] < 4 << 20 < len(content)
    tracemalloc.stop()


FIELDS = st.sampled_from(["id", "did", "text", "txt", "image", "img_path", "parts", "video", "fps"])
JSON = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=8),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(FIELDS, inner, max_size=3),
    max_leaves=6,
)


@given(st.lists(st.dictionaries(FIELDS, JSON, max_size=4), max_size=5), st.booleans())
def test_no_line_stops_the_reading(tmp_path_factory, rows, pool):
    """Whatever the lines hold, each is read or is a failure."""
    path = tmp_path_factory.mktemp("lines") / "items.jsonl"
    first = {"did": "0:0", "txt": "x"} if pool else {"id": "first", "text": "x"}
    path.write_text("\n".join(json.dumps(row) for row in [first, *rows]))
    source = find_source(path)
    found = [source.read(piece) for piece in source.pieces()]
    assert len(found) == 1 + len(rows) and isinstance(found[0], Read)
    for one in found:
        json.dumps(one._asdict() if isinstance(one, Failure) else one.id).encode()


def test_lines_that_break_the_reader(tmp_path):
    lines = [
        '{"id": "ok", "text": "x"}',
        '{"id": "nul", "image": "a\\u0000b.png"}',
        "[" * 200_000,
        '{"id": "deep", "parts": ' + "[" * 200_000,
        '{"id": "long", "n": ' + "1" * 5000 + "}",
        '{"id": "text", "text": "\\ud800"}',
        '{"id": "path", "image": "\\ud800.png"}',
        '{"id": "\\ud800", "text": "x"}',
        '{"id": "name", "image": "' + "a" * 5000 + '.png"}',
    ]
    (tmp_path / "items.jsonl").write_text("\n".join(lines))
    source = find_source(tmp_path / "items.jsonl")
    first, *failed = (source.read(piece) for piece in source.pieces())
    assert isinstance(first, Read) and first.id == "ok" and len(failed) == 8
    told = [one.error for one in failed if isinstance(one, Failure)]
    assert "null" in told[0] and "too deep" in told[1] and "too deep" in told[2]
    assert all("surrogate" in error for error in told[4:7])
    assert "its id" in told[6] and "its id" not in told[4] and "rename" not in "".join(told)
