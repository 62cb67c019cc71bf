"""`marvel evaluate --protocol` and `marvel data check --format`, with a real model."""

import json
import shutil

import numpy as np
import pytest

from marvel_jax.data.protocols import registry
from marvel_jax.files import write_json
from marvel_jax.reranker_settings import RerankerSettings
from marvel_jax.retrieval.embedder import Embedder
from marvel_jax.retrieval.rerank import Reranker
from tests.protocol_folders import FIXTURES


def test_a_set_of_several_pictures_a_query_is_checked_and_scored_and_goes_on(
    marvel, tiny_model, tmp_path, monkeypatch
):
    FIXTURES["multiturn_fashioniq"].write(tmp_path / "data")
    checked = marvel(
        *("data", "check", tmp_path / "data", "--format", "multiturn_fashioniq", "--counts", "none")
    )
    assert checked.code == 0 and "7 pictures by header" in checked.out
    asked = ("evaluate", tiny_model, "--protocol", "multiturn_fashioniq")
    asked += ("--data", tmp_path / "data", "--workdir", tmp_path / "run", "--json")
    first = marvel(*asked)
    assert first.code == 0 and "Multi-turn FashionIQ, annotations checked" in first.out
    (test,) = first.json["tests"]
    assert test["scores"]["R@8"]["mean"] == 1 and test["num_queries"] == 2 and test["pool"] == 7
    written = json.loads((tmp_path / "run" / "scores.json").read_text())
    assert written["tests"] == [test] and written["about"]["model"] == str(tiny_model)

    def encode(*args, **options):
        raise AssertionError("all of it was encoded before")

    monkeypatch.setattr(Embedder, "encode", encode)
    assert marvel(*asked).json == first.json


def test_several_pictures_a_query_are_reranked_and_nothing_is_scored_twice(
    marvel, tiny_model, tmp_path, monkeypatch
):
    FIXTURES["multiturn_fashioniq"].write(tmp_path / "data")
    shutil.copytree(tiny_model, tmp_path / "reranker")
    settings = RerankerSettings(min_pixels=14 * 14, max_pixels=28 * 28)
    write_json(tmp_path / "reranker" / "marvel.json", settings.to_dict())
    asked = ("evaluate", tiny_model, "--protocol", "multiturn_fashioniq", "--json")
    asked += ("--data", tmp_path / "data", "--workdir", tmp_path / "run")
    asked += ("--reranker", tmp_path / "reranker", "--top", "3", "--weights", "0.9")
    first = marvel(*asked)
    assert first.code == 0 and "reranker: 6 pairs in" in first.out
    (test,) = first.json["reranked"]["tests"]
    assert test["pairs"] == 6 and test["top"] == 3 and test["weight"] == 0.9
    data = registry.find("multiturn_fashioniq").load(tmp_path / "data").data
    images = {item.id: item for item in data.collections["images"]}
    reranker = Reranker.from_pretrained(tmp_path / "reranker")
    lines = (tmp_path / "run" / "rankings" / "val.jsonl").read_text().splitlines()
    for query, line in zip(data.collections["queries"], map(json.loads, lines), strict=True):
        said = line["reranked"]
        wanted = reranker.score([(query, images[id]) for id in said["found"][:3]]).p_yes
        np.testing.assert_allclose(said["scores"][:3], wanted, atol=1e-5)
        cosines = dict(zip(line["found"], line["scores"], strict=True))
        p_yes = dict(zip(said["found"][:3], said["scores"][:3], strict=True))
        wanted = [0.9 * cosines[id] + 0.1 * p_yes[id] for id in line["fused"]["found"][:3]]
        assert line["fused"]["scores"][:3] == pytest.approx(wanted, abs=1e-5)

    def score(*args, **options):
        raise AssertionError("all of it was scored before")

    monkeypatch.setattr(Reranker, "score", score)
    assert marvel(*asked).json == first.json


def test_what_cannot_be_is_told_before_a_model_is_read(marvel, tmp_path):
    asked = ("evaluate", "no-model", "--data", tmp_path, "--workdir", tmp_path / "run", "--json")
    unknown = marvel(*asked, "--protocol", "cirko")
    assert unknown.code == 1 and "choose one of flickr30k, coco" in unknown.json["error"]
    flags = marvel(*asked, "--protocol", "circo", "--held-out", "oven", "--exact-only")
    assert "--exact-only, --held-out with --protocol" in flags.json["error"]
    fitted = marvel(*asked, "--protocol", "circo", "--reranker", "none", "--fit-split", "val")
    assert "--fit-split with --protocol" in fitted.json["error"]
    alone = marvel(*asked, "--protocol", "circo", "--weights", "0.7")
    assert "--weights without --reranker" in alone.json["error"]
    FIXTURES["msrvtt"].write(tmp_path / "videos")
    asked_of_videos = ("--protocol", "msrvtt", "--reranker", "none")
    videos = marvel(*asked[:3], tmp_path / "videos", *asked[4:], *asked_of_videos)
    assert "is a video, and a reranker reads none" in videos.json["error"]
    empty = marvel(*asked, "--protocol", "circo")
    assert "image_info_unlabeled2017.json does not exist" in empty.json["error"]
    assert marvel("data", "check", tmp_path, "--format", "circo").code == 1
