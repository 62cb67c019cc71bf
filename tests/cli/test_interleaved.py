"""Texts, pictures and videos of an item in any order, from a jsonl to a store and a search."""

import json

import numpy as np
import pytest

from marvel_jax.data.items import Image, Item, Video
from marvel_jax.retrieval.embedder import Embedder
from marvel_jax.retrieval.item_content import content_key, first_copies
from marvel_jax.retrieval.store import VectorStore
from marvel_jax.settings import EmbeddingSettings
from marvel_jax.video_geometry import VideoGeometry
from tests import tiny


@pytest.fixture(scope="module")
def pool(tmp_path_factory):
    """A jsonl, and the same items in Python."""
    folder = tmp_path_factory.mktemp("pool")
    for number in range(4):
        (folder / f"{number}.png").write_bytes(tiny.picture(number))
    first, second, *frames = (Image(folder / f"{number}.png") for number in range(4))
    shown = {"image": "0.png"}, {"image": "1.png"}, {"video": ["2.png", "3.png"]}
    film = Video(frames)
    rows = {
        "pt": ([shown[0], "red cat"], (first, "red cat")),
        "tp": (["red cat", shown[0]], ("red cat", first)),
        "ptp": ([shown[0], {"text": "but"}, shown[1]], (first, "but", second)),
        "ptp2": ([shown[1], "but", shown[0]], (second, "but", first)),
        "ptpv": (
            [shown[0], "but", shown[1], "then", shown[2]],
            (first, "but", second, "then", film),
        ),
        "vt": ([shown[2], "a dog"], (film, "a dog")),
        "tv": (["a dog", shown[2]], ("a dog", film)),
        "v2": (
            [{"video": ["3.png", "2.png"]}, "a dog"],
            (Video(frames[::-1]), "a dog"),
        ),
    }
    lines = [json.dumps({"id": id, "parts": parts}) for id, (parts, _) in rows.items()]
    lines.append(json.dumps({"id": "plain", "text": "a dog", "video": {"video": ["2.png"]}}))
    (folder / "pool.jsonl").write_text("\n".join(lines))
    items = {id: Item(parts=parts, id=id) for id, (_, parts) in rows.items()}
    return folder, items | {"plain": Item(parts=(Video([frames[0]]), "a dog"))}


@pytest.fixture(scope="module")
def model(tmp_path_factory, tiny_model):
    """The tiny model with videos as small as its pictures."""
    import shutil

    folder = tmp_path_factory.mktemp("model") / "tiny"
    shutil.copytree(tiny_model, folder)
    settings = EmbeddingSettings.read(
        folder, video=VideoGeometry(min_pixels=14 * 14, max_pixels=28 * 28)
    )
    (folder / "marvel.json").write_text(json.dumps(settings.to_dict()))
    return folder


def test_from_jsonl_to_a_search_the_order_counts(marvel, model, pool, tmp_path):
    folder, items = pool
    ran = marvel(
        "encode", model, "--pool", folder / "pool.jsonl", "--out", tmp_path / "store", "--json"
    )
    assert ran.code == 0 and ran.json["count"] == len(items), ran
    store = VectorStore.open(tmp_path / "store")
    assert list(store.ids) == list(items)
    expected = Embedder.from_pretrained(model).encode(list(items.values()))
    np.testing.assert_allclose(store.vectors(), expected, atol=1e-5)
    apart = np.abs(expected[:, None] - expected[None]).max(axis=-1)
    assert apart[~np.eye(len(items), dtype=bool)].min() > 3e-5
    # The query is one of the items, in a file of its own.
    line = (folder / "pool.jsonl").read_text().splitlines()[4]
    (folder / "query.json").write_text(line)
    found = marvel(
        "search",
        model,
        "--store",
        tmp_path / "store",
        "--parts",
        folder / "query.json",
        *("--k", 3, "--json"),
    )
    assert found.code == 0, found
    assert found.json["hits"][0]["id"] == "ptpv" and found.json["hits"][0]["score"] > 1 - 1e-5


def test_a_query_is_either_parts_or_the_rest(failing, model, tmp_path):
    asked = ("search", model, "--store", tmp_path / "store")
    assert "or --parts alone" in failing(*asked)
    assert "or --parts alone" in failing(*asked, "--text", "x", "--parts", tmp_path / "a.json")


def test_a_broken_video_is_listed_and_the_others_go_on(marvel, model, tmp_path):
    pytest.importorskip("av", reason="reading video files needs PyAV")
    (tmp_path / "bad.mp4").write_bytes(b"no video")
    rows = [{"id": "v", "text": "x", "video": "bad.mp4"}, {"id": "t", "text": "a dog"}]
    (tmp_path / "pool.jsonl").write_text("\n".join(map(json.dumps, rows)))
    ran = marvel(
        *("encode", model, "--pool", tmp_path / "pool.jsonl", "--out", tmp_path / "store"),
        *("--tolerate", 1, "--json"),
    )
    assert ran.code == 0 and ran.json["failures"] == 1, ran
    (failure,) = map(json.loads, (tmp_path / "store.failures.jsonl").read_text().splitlines())
    assert failure["id"] == "v" and failure["file"].endswith("bad.mp4")


def test_videos_are_copies_only_with_the_same_frames(pool):
    folder, _ = pool
    first, second = (Image(folder / f"{number}.png") for number in (0, 1))
    items = [
        Item.of(video=Video(frames, num_frames=number))
        for frames, number in (
            ([first, second], None),
            ([first, second], None),
            ([second, first], None),
            ([first, second], 1),
            ([first], None),
        )
    ]
    items.append(Item.of(image=first))
    assert first_copies([content_key(item) for item in items]).tolist() == [0, 0, 2, 3, 4, 5]
