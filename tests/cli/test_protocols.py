"""`marvel evaluate --protocol` and `marvel data check --format`, with a real model."""

import json

from marvel_jax.retrieval.embedder import Embedder
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


def test_what_cannot_be_is_told_before_a_model_is_read(marvel, tmp_path):
    asked = ("evaluate", "no-model", "--data", tmp_path, "--workdir", tmp_path / "run", "--json")
    unknown = marvel(*asked, "--protocol", "cirko")
    assert unknown.code == 1 and "choose one of flickr30k, coco" in unknown.json["error"]
    flags = marvel(*asked, "--protocol", "circo", "--held-out", "oven", "--exact-only")
    assert "--exact-only, --held-out with --protocol" in flags.json["error"]
    empty = marvel(*asked, "--protocol", "circo")
    assert "image_info_unlabeled2017.json does not exist" in empty.json["error"]
    assert marvel("data", "check", tmp_path, "--format", "circo").code == 1
