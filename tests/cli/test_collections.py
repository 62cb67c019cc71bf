"""`marvel index FOLDER --model` and `marvel search COLLECTION`, with a real model."""

import json

from tests import tiny


def test_index_and_search_a_collection(marvel, failing, made, tiny_model, tmp_path):
    source = tmp_path / "source"
    source.mkdir()
    for number in range(3):
        (source / f"{number}.png").write_bytes(tiny.picture(number))
    (source / "a.txt").write_text("red \x1b[31mcat")
    (source / "bad.png").write_bytes(b"no")
    asked = ("index", source, "--out", tmp_path / "out", "--model", tiny_model)
    ran = marvel(*asked, "--json")
    assert ran.code == 1 and ran.json["failures"] == 1 and ran.json["count"] == 4
    assert "bad.png: it is not an image" in ran.out
    ran = marvel(*asked, "--tolerate", 1, "--json")
    assert ran.code == 0 and not ran.json["new"] and ran.json["encoded"] == 0
    search = ("search", tmp_path / "out")
    ran = marvel(*search, "--text", "red cat", "--k", 9, "--sheet", tmp_path / "s.png", "--json")
    assert ran.code == 0 and len(ran.json["hits"]) == 4 and (tmp_path / "s.png").is_file()
    assert "\x1b" not in ran.out
    ran = marvel(*search, "--image", source / "1.png", "--kind", "image", "--json")
    assert {hit["kind"] for hit in ran.json["hits"]} == {"image"}
    assert "picture" in ran.json["instruction"]
    ran = marvel(*search, "--like", "2.png", "--k", 1, "--json")
    assert len(ran.json["hits"]) == 1 and ran.json["hits"][0]["id"] != "2.png"
    labelled = tmp_path / "labelled.jsonl"
    labelled.write_text(json.dumps({"image": "source/1.png", "relevant": ["1.png"]}))
    ran = marvel(*search, "--judge", labelled, "--json")
    assert ran.json["groups"][0]["hits"]["10"]["mean"] == 1
    assert "give --text, --image or both" in failing(*search)
    assert "--video is for a vector store" in failing(*search, "--video", "a.mp4")
    assert "--like is for a search in a collection" in failing(
        "search", tiny_model, "--store", made / "store", "--text", "a", "--like", "b"
    )
    assert "is not a collection" in failing("search", tiny_model, "--text", "a")
    assert "add --model" in failing("index", source, "--out", tmp_path / "x")
    assert "--leaves is for" in failing(*asked, "--leaves", 3)
    assert "--captions is for" in failing("index", made / "store", "--out", "x", "--captions")
    said = failing("index", made / "store", "--out", tmp_path / "x", "--model", tiny_model)
    assert "leave --model out" in said
