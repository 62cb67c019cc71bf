"""Every test set from its folder to its score, which is known by hand; and what goes wrong."""

import json
from pathlib import Path

import pytest

from marvel_jax.data.items import Item
from marvel_jax.data.protocols import reading, registry, videos
from marvel_jax.errors import MarvelError
from marvel_jax.recipes.protocol_command import evaluate_on
from marvel_jax.recipes.protocol_entry import find_protocol
from marvel_jax.recipes.protocol_evaluation import evaluate_protocol
from tests.protocol_folders import FIXTURES, ColourEmbedder, paint

NAMES = list(FIXTURES)


@pytest.fixture(autouse=True)
def _videos_are_pictures(monkeypatch):
    """A video's colour is that of its first frame: decoding is tested elsewhere."""

    def first_frame(path: Path, *, id: str, **sampling: object) -> Item:
        return reading.picture(path, id=id)

    monkeypatch.setattr(videos, "video", first_frame)


def write(name: str, folder: Path) -> Path:
    folder.mkdir(parents=True, exist_ok=True)
    FIXTURES[name].write(folder)
    return folder


def run(name: str, folder: Path, workdir: Path, embedder=None, **options):
    loaded = registry.find(name).load(folder)
    made = embedder or ColourEmbedder()
    return evaluate_protocol(made, loaded, workdir=workdir, **options).scores


def test_every_set_has_a_fixture():
    assert set(NAMES) == set(registry.PROTOCOLS)


@pytest.mark.parametrize("name", NAMES)
def test_it_scores_what_it_should(name, tmp_path):
    scores = run(name, write(name, tmp_path / "data"), tmp_path / "run")
    found = {
        one.name: {label: interval.mean for label, interval in one.scores.items()}
        for one in scores.tests
    }
    wanted = FIXTURES[name].scores
    assert found.keys() == wanted.keys()
    for test, values in wanted.items():
        assert found[test] == pytest.approx(values, abs=1e-6), test
    written = json.loads((tmp_path / "run" / "scores.json").read_text())
    assert [one["name"] for one in written["tests"]] == list(found)
    for one in scores.tests:
        lines = (tmp_path / "run" / "rankings" / f"{one.name}.jsonl").read_text().splitlines()
        assert len(lines) == one.num_queries
        main = one.scores[one.main]
        assert main.low <= main.mean <= main.high


@pytest.mark.parametrize("name", NAMES)
def test_a_malformed_folder_is_one_clear_error(name, tmp_path):
    folder = write(name, tmp_path)
    FIXTURES[name].spoil(folder)
    with pytest.raises(MarvelError, match=FIXTURES[name].refusal):
        registry.find(name).load(folder)


def test_means_are_over_the_tests_that_are_there(tmp_path):
    scores = run("mmeb", write("mmeb", tmp_path / "mmeb"), tmp_path / "run")
    means = {one.name: (one.score.mean, len(one.tests), one.of) for one in scores.groups}
    assert means == {
        "classification": (0.75, 2, 10),
        "retrieval": (0.0, 1, 12),
        "in distribution": (0.75, 2, 20),
        "out of distribution": (0.0, 1, 16),
        "mean": (0.5, 3, 36),
    }
    assert "1 of 12" in "\n".join(scores.lines())
    genecis = run("genecis", write("genecis", tmp_path / "genecis"), tmp_path / "other")
    assert [one.score.mean for one in genecis.groups] == [0.75]


def test_a_split_without_answers_becomes_a_submission(tmp_path):
    scores = run("circo", write("circo", tmp_path / "data"), tmp_path / "run")
    (path,) = scores.submissions
    assert json.loads(Path(path).read_text()) == {"7": [1, 2, 3, 4]}


def test_what_was_encoded_is_not_encoded_again_and_other_content_is_refused(tmp_path):
    embedder = ColourEmbedder()
    folder = write("coco", tmp_path / "data")
    first = run("coco", folder, tmp_path / "run", embedder)
    assert embedder.encoded == 12  # both directions share their collections
    assert run("coco", folder, tmp_path / "run", embedder) == first
    assert embedder.encoded == 12
    FIXTURES["flickr30k"].write(folder)
    (folder / "coco_text.json").write_text((folder / "flickr_text.json").read_text())
    with pytest.raises(MarvelError, match="captions: this vector store has source_hash"):
        run("coco", folder, tmp_path / "run", embedder)


def test_smaller_stores_are_asked_with_whole_queries(tmp_path):
    folder = write("coco", tmp_path / "data")
    scores = run("coco", folder, tmp_path / "run", dtype="int8", dimension=2)
    assert [one.scores["R@10"].mean for one in scores.tests] == [1, 1]
    assert sorted(path.name for path in (tmp_path / "run" / "queries").iterdir()) == [
        "captions",
        "images",
    ]


def test_a_picture_that_cannot_be_read_is_refused_or_tolerated_and_counted(tmp_path):
    folder = write("coco", tmp_path / "data")
    (folder / "coco_images" / "1.png").write_bytes(b"no picture")
    with pytest.raises(MarvelError, match=r"1 of 2 items have pictures .*1\.png"):
        run("coco", folder, tmp_path / "run")
    scores = run("coco", folder, tmp_path / "run", tolerate=1)
    to_image, to_text = scores.tests
    assert to_image.missing == to_text.missing == 1
    assert to_image.scores["R@10"].mean == 0.5  # the captions of the picture that is lacking
    assert to_text.scores["R@10"].mean == 0.5  # a query without a vector finds nothing
    paint(folder / "coco_images" / "1.png", "green")


@pytest.mark.parametrize(
    ("protocol", "message"),
    [
        ("flicker", "no protocol 'flicker': choose one of flickr30k"),
        ("nothing.py", "nothing.py does not exist"),
    ],
)
def test_unknown_protocols(protocol, message):
    with pytest.raises(MarvelError, match=message):
        find_protocol(protocol)


def test_flags_of_mbeir_are_refused_and_so_is_a_folder_that_is_not_there(tmp_path):
    asked = {"protocol": "coco", "data": tmp_path / "none", "workdir": tmp_path / "run"}
    with pytest.raises(MarvelError, match="--exact-only with --protocol"):
        evaluate_on("model", **asked, unused=["--exact-only"])
    with pytest.raises(MarvelError, match=r"none is not a folder: COCO 5K is expected as coco_im"):
        evaluate_on("model", **asked)
