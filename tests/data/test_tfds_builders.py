"""The TFDS data set: says what the layout says, in any folder, without TensorFlow."""

import pickle
import shutil
import subprocess
import sys

import pytest
import tensorflow_datasets as tfds

from marvel_jax.data.mbeir import MbeirFolder
from marvel_jax.data.tfds_source import TfdsSource
from marvel_jax.errors import MarvelError
from tests.data.emoji_corpora import built, folder  # noqa: F401


def content(item):
    """An item's parts with pictures as their files' bytes."""
    return [
        part if isinstance(part, str)
        else part.source if isinstance(part.source, bytes) else part.source.read_bytes()
        for part in item.parts
    ]  # fmt: skip


@pytest.mark.parametrize("split", ["train", "test"])
def test_it_agrees_with_the_layout(folder, split):  # noqa: F811
    ours, theirs = TfdsSource.open(folder, split), MbeirFolder(folder).source(split)
    assert ours.fingerprint == theirs.fingerprint
    assert ours.instructions == theirs.instructions
    assert len(ours.queries) == len(theirs.queries) > 400
    for one, other in zip(ours.queries, theirs.queries, strict=True):
        assert (one.id, one.task, one.positives, one.dataset) == (
            other.id,
            other.task,
            other.positives,
            other.dataset,
        )
        assert one.item.id == other.item.id and content(one.item) == content(other.item)
    for one, other in zip(ours.candidates, theirs.candidates, strict=True):
        assert (one.id, one.modality) == (other.id, other.modality)
        assert content(one.item) == content(other.item)
    for index in range(0, len(ours.candidates), 97):
        id = ours.candidates[index].id
        assert ours.candidate_index(id) == theirs.candidate_index(id) == index


def test_rows_are_read_in_any_order(folder):  # noqa: F811
    queries = TfdsSource.open(folder).queries
    everything = list(queries)
    fresh = TfdsSource.open(folder).queries
    for index in (len(queries) - 1, 0, 1000, 129, 128, 127, -1):
        assert fresh[index].id == everything[index].id
    assert [query.id for query in fresh[125:131]] == [q.id for q in everything[125:131]]
    for index in (len(queries), -len(queries) - 1):
        with pytest.raises(IndexError):
            fresh[index]


def test_each_picture_is_stored_once(folder):  # noqa: F811
    source = tfds.builder_from_directory(
        str(folder / "tfds/mbeir_retrieval/pictures/2.0.0")
    ).as_data_source("pictures", decoders={"image": tfds.decode.SkipDecoding()})
    stored = {row["path"].decode(): row["image"] for row in source}
    files = {
        path.relative_to(folder).as_posix(): path.read_bytes()
        for path in (folder / "mbeir_images").rglob("*.png")
    }
    assert len(source) == len(stored) and stored == files


def test_a_moved_corpus_and_a_pickled_source_still_read(folder, tmp_path):  # noqa: F811
    shutil.copytree(folder / "tfds", tmp_path / "elsewhere" / "tfds")
    moved = TfdsSource.open(tmp_path / "elsewhere")
    sent = pickle.loads(pickle.dumps(moved))
    original = TfdsSource.open(folder)
    assert sent.queries[700] == moved.queries[700] == original.queries[700]


def test_what_is_not_there_is_named(folder, tmp_path):  # noqa: F811
    with pytest.raises(MarvelError, match="marvel data emoji --out"):
        TfdsSource.open(tmp_path)
    with pytest.raises(MarvelError, match="train, test, but not 'val'"):
        TfdsSource.open(folder, "val")
    with pytest.raises(MarvelError, match="10:99999999"):
        TfdsSource.open(folder).candidate_index("10:99999999")


def test_tensorflow_jax_and_torch_are_never_imported(tmp_path):
    program = f"""
import sys
from marvel_jax.data import emoji, tfds_source
emoji.build({str(tmp_path / "out")!r}, limit=20, vocabulary=400)
source = tfds_source.TfdsSource.open({str(tmp_path / "out")!r})
assert len(list(source.queries)) > 100 and len(list(source.candidates)) > 50
print([name for name in ("tensorflow", "jax", "torch") if name in sys.modules])
"""
    done = subprocess.run(
        [sys.executable, "-c", program], capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, done.stderr
    # Standard output is kept for results: TFDS's own announcements are not on it.
    assert done.stdout == "[]\n"
