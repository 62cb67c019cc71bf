"""`marvel data check | download`: what they say, write and exit with."""

import collections
import json
import shutil

import pytest

from marvel_jax.data import doctor, download
from marvel_jax.data.doctor_problems import Kind
from marvel_jax.data.download import Listing, RemoteFile
from marvel_jax.recipes import downloading


@pytest.fixture
def corpus(tiny_corpus, tmp_path):
    return shutil.copytree(tiny_corpus, tmp_path / "corpus")


def test_a_clean_corpus_is_zero_and_an_error_is_one(marvel, corpus, tmp_path):
    out = tmp_path / "problems.json"
    ran = marvel("data", "check", corpus, "--jobs", 1, "--json")
    assert ran.code == 0 and ran.json["errors"] == ran.json["notes"] == 0
    (corpus / "mbeir_images/3.png").unlink()
    (corpus / "mbeir_images/4.png").write_bytes(b"no picture")
    ran = marvel("data", "check", corpus, "--jobs", 1, "--out", out, "--json")
    assert ran.code == 1 and ran.json["complete"]
    assert ran.json["kinds"] == {"image_missing": 1, "image_undecodable": 1}
    place = (
        "cand_pool/global/mbeir_union_test_cand_pool.jsonl, line 4: 90:3 names mbeir_images/3.png"
    )
    assert place in ran.out and "2 errors, 0 notes" in ran.out
    written = json.loads(out.read_text("utf-8"))
    assert set(written["kinds"]) == set(Kind)
    assert [(one["kind"], one["line"]) for one in written["problems"]] == [
        ("image_missing", 4),
        ("image_undecodable", 5),
    ]
    assert {one["severity"] for one in written["problems"]} == {"error"}


def test_notes_alone_are_zero(marvel, corpus):
    table = corpus / "instructions/query_instructions.tsv"
    table.write_text(table.read_text() + "text\ttext\tother\t7\tfind\n")
    ran = marvel("data", "check", corpus, "--jobs", 1, "--json")
    assert ran.code == 0 and ran.json["kinds"] == {"unused_instruction": 1}


def test_an_interrupted_check_tells_and_writes_what_it_found(marvel, corpus, tmp_path, monkeypatch):
    def interrupt(task):
        raise KeyboardInterrupt

    pool = corpus / "cand_pool/global/mbeir_union_train_cand_pool.jsonl"
    pool.write_text(pool.read_text() + "{\n")
    monkeypatch.setattr(doctor, "look", interrupt)
    out = tmp_path / "problems.json"
    ran = marvel("data", "check", corpus, "--jobs", 1, "--out", out)
    assert ran.code == 130
    assert "interrupted while reading pictures" in ran.out and "not_json: 1" in ran.out
    written = json.loads(out.read_text("utf-8"))
    assert not written["complete"] and written["interrupted_at"] == "pictures"
    assert [one["kind"] for one in written["problems"]] == ["not_json"]


def test_what_cannot_be_checked_is_one_message(failing, corpus, tmp_path):
    assert "not a folder in the M-BEIR layout" in failing("data", "check", tmp_path / "none")
    assert "jobs is 0" in failing("data", "check", corpus, "--jobs", 0)
    said = failing("data", "check", corpus, "--out", tmp_path / "none" / "out.json")
    assert "--out" in said
    (corpus / "manifest.json").write_text('{"format": "marvel-synthetic-mbeir"}')
    assert "--counts none" in failing("data", "check", corpus)


@pytest.fixture
def published(monkeypatch):
    """Listings without a Hub; what is fetched is written as zeros."""
    files = (
        RemoteFile("mbeir_images.tar.gz.part-00", 3000, None),
        RemoteFile("qrels/test/mbeir_nights_task4_test_qrels.txt", 50, None),
    )
    nli = (RemoteFile(download.NLI_FILE, 700, None), RemoteFile("senteval.tar", 9_000, None))

    def list_files(repo):
        return Listing(repo, "0" * 40, files if repo == download.MBEIR_REPO else nli)

    def fetch(listing, chosen, folder, *, progress=None):
        for file in chosen:
            (folder / file.name).parent.mkdir(parents=True, exist_ok=True)
            (folder / file.name).write_bytes(bytes(file.size))

    monkeypatch.setattr(download, "list_files", list_files)
    monkeypatch.setattr(download, "fetch", fetch)


def test_a_download_says_what_it_needs_first_and_what_to_do_next(marvel, published, tmp_path):
    folder = tmp_path / "mbeir"
    ran = marvel("data", "download", "mbeir", "--dir", folder, "--json")
    assert ran.code == 0
    assert "2 files, 3.0 kB; 3.0 kB to fetch" in " ".join(ran.err.split())
    assert ran.json["bytes"] == ran.json["bytes_needed"] == 3050 and not ran.json["unpacked"]
    assert f"marvel data download mbeir --dir {folder} --only images --unpack" in ran.out
    assert f"marvel data check {folder}" in ran.out
    ran = marvel("data", "download", "nli", "--dir", tmp_path / "nli", "--json")
    assert ran.json["files"] == 1 and ran.json["bytes"] == 700
    assert [path.name for path in (tmp_path / "nli").iterdir()] == [download.NLI_FILE]


@pytest.mark.parametrize(("free", "unpack"), [(3049, False), (6049, True)])
def test_a_disk_that_is_too_small_is_told_before_anything_is_fetched(
    failing, published, tmp_path, monkeypatch, free, unpack
):
    usage = collections.namedtuple("usage", "total used free")
    monkeypatch.setattr(downloading.shutil, "disk_usage", lambda _: usage(10**9, 0, free))
    folder = tmp_path / "mbeir"
    flags = ("--unpack",) if unpack else ()
    said = failing("data", "download", "mbeir", "--dir", folder, *flags)
    assert "free" in said and "--only" in said and "are needed" in said
    assert not folder.exists()


def test_an_interrupted_unpacking_needs_room_for_the_rest_alone(
    failing, published, tmp_path, monkeypatch
):
    usage = collections.namedtuple("usage", "total used free")
    monkeypatch.setattr(downloading.shutil, "disk_usage", lambda _: usage(10**9, 0, 5000))
    folder = tmp_path / "mbeir"
    asked = ("data", "download", "mbeir", "--dir", folder, "--unpack")
    assert "3.0 kB to unpack" in failing(*asked)
    (folder / "mbeir_images").mkdir(parents=True)
    (folder / "mbeir_images" / "1.jpg").write_bytes(bytes(500))
    assert "2.5 kB to unpack" in failing(*asked)


def test_flags_that_do_not_fit_are_told(failing, published, tmp_path):
    asked = ("data", "download", "nli", "--dir", tmp_path, "--only", "test")
    assert "for mbeir" in failing(*asked)
    asked = ("data", "download", "mbeir", "--dir", tmp_path, "--only", "qrels", "--unpack")
    assert "add images to --only" in failing(*asked)
