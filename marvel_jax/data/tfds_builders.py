"""The emoji corpus as a TFDS data set in ArrayRecord files, written and read without TensorFlow."""

import contextlib
import io
import tempfile
from collections.abc import Iterator
from functools import cached_property
from pathlib import Path
from typing import Any, ClassVar

import numpy as np
import tensorflow_datasets as tfds

from marvel_jax.data.mbeir import MbeirFolder
from marvel_jax.files import read_jsonl

FOLDER = "tfds"
"""Where `emoji.build` keeps the data set, inside the corpus's folder."""

NAME = "emoji_retrieval"
VERSION = "1.0.0"
NO_PICTURE = -1
_SPLITS = ("train", "test")


class EmojiRetrieval(tfds.core.GeneratorBasedBuilder):
    """Three configurations that refer to each other, so that each picture is stored once.

    - `pictures` (split `pictures`): path, and the PNG as it is in the layout.
    - `candidates` (splits `train`, `test`): id, text, and the picture's row (-1 for none).
    - `queries` (splits `train`, `test`): the same, the task, and the positives' ids.

    `corpus` is a folder that `emoji.build` wrote; the rows keep its order.
    """

    VERSION = tfds.core.Version(VERSION)
    BUILDER_CONFIGS: ClassVar = [
        tfds.core.BuilderConfig(name="pictures", description="Each picture once."),
        tfds.core.BuilderConfig(name="candidates", description="What can be retrieved."),
        tfds.core.BuilderConfig(name="queries", description="What asks, and what answers it."),
    ]
    name = NAME
    # TFDS looks beside a builder's code for checksums of downloads. There are none here, and the
    # search needs importlib_resources, which TFDS does not declare.
    code_path = None

    def __init__(self, *, corpus: Path | str, **kwargs: Any) -> None:
        self._corpus = Path(corpus)
        super().__init__(**kwargs)

    def _info(self) -> tfds.core.DatasetInfo:
        text, integer = tfds.features.Text(), tfds.features.Scalar(np.int32)
        record = {"id": text, "text": text, "picture": integer}
        features = {
            "pictures": {
                "path": text,
                "image": tfds.features.Image(shape=(128, 128, 3), encoding_format="png"),
            },
            "candidates": record,
            # Positives are one text, ids between blanks: a Sequence doubles the time of a row.
            "queries": {**record, "task": integer, "positives": text},
        }[self.builder_config.name]
        return tfds.core.DatasetInfo(
            builder=self,
            description="Emoji pictures, names and compositions for universal retrieval.",
            features=tfds.features.FeaturesDict(features),
            disable_shuffling=True,
            metadata=tfds.core.MetadataDict(self._metadata()),
        )

    def _split_generators(self, dl_manager: tfds.download.DownloadManager) -> dict[str, Any]:
        if self.builder_config.name == "pictures":
            return {"pictures": self._pictures()}
        rows = self._queries if self.builder_config.name == "queries" else self._candidates
        return {split: rows(split) for split in _SPLITS}

    def _generate_examples(self) -> Iterator[tuple[int, dict[str, Any]]]:
        raise NotImplementedError("each split has its own generator")

    def _metadata(self) -> dict[str, Any]:
        """What a reader needs besides rows: fingerprints and instructions (queries only)."""
        if self.builder_config.name != "queries":
            return {}
        layout = MbeirFolder(self._corpus)
        sources = {split: layout.source(split, verify=False) for split in _SPLITS}
        return {
            "fingerprints": {split: source.fingerprint for split, source in sources.items()},
            "instructions": [[*key, *prompts] for key, prompts in layout.instructions.items()],
        }

    @cached_property
    def _picture_rows(self) -> dict[str, int]:
        paths = sorted((self._corpus / "mbeir_images").rglob("*.png"))
        return {path.relative_to(self._corpus).as_posix(): row for row, path in enumerate(paths)}

    def _pictures(self) -> Iterator[tuple[int, dict[str, Any]]]:
        for path, row in self._picture_rows.items():
            # A file object is stored as it is; an array would be encoded, which needs TensorFlow.
            yield row, {"path": path, "image": io.BytesIO((self._corpus / path).read_bytes())}

    def _candidates(self, split: str) -> Iterator[tuple[int, dict[str, Any]]]:
        path = self._corpus / "cand_pool" / "global" / f"mbeir_union_{split}_cand_pool.jsonl"
        for row, (_, record) in enumerate(read_jsonl(path)):
            yield row, self._row(record["did"], record["txt"], record["img_path"])

    def _queries(self, split: str) -> Iterator[tuple[int, dict[str, Any]]]:
        row = 0
        for path in sorted((self._corpus / "query" / split).glob("*.jsonl")):
            for _, record in read_jsonl(path):
                yield (
                    row,
                    {
                        **self._row(record["qid"], record["query_txt"], record["query_img_path"]),
                        "task": record["task_id"],
                        "positives": " ".join(record["pos_cand_list"]),
                    },
                )
                row += 1

    def _row(self, id: str, text: str | None, path: str | None) -> dict[str, Any]:
        picture = NO_PICTURE if path is None else self._picture_rows[path]
        return {"id": id, "text": text or "", "picture": picture}


def write(corpus: Path | str, data_dir: Path | str) -> None:
    """Writes all three configurations of `EmojiRetrieval` from a corpus in the M-BEIR layout.

    Raises:
      MarvelError: the corpus is not such a folder, or a file of it is broken.
    """
    for config in EmojiRetrieval.BUILDER_CONFIGS:
        builder = EmojiRetrieval(
            corpus=corpus,
            config=config.name,
            data_dir=str(data_dir),
            file_format="array_record",
        )
        with tempfile.TemporaryDirectory() as downloads, _quiet():
            builder.download_and_prepare(
                download_dir=downloads,
                download_config=tfds.download.DownloadConfig(try_download_gcs=False),
            )


@contextlib.contextmanager
def _quiet() -> Iterator[None]:
    """TFDS announces on standard output what it does; ours is kept for results."""
    tfds.disable_progress_bar()
    with contextlib.redirect_stdout(io.StringIO()):
        yield
