"""An M-BEIR folder as a TFDS data set in ArrayRecord files, made without TensorFlow."""

import contextlib
import io
import tempfile
from collections.abc import Iterator, Sequence
from functools import cached_property
from pathlib import Path
from typing import Any, ClassVar

import numpy as np
import tensorflow_datasets as tfds

from marvel_jax.data.mbeir import MbeirFolder, MbeirSource
from marvel_jax.data.records import Records
from marvel_jax.errors import MarvelError

FOLDER = "tfds"
"""Where the data set is kept, inside the corpus's folder."""

NAME = "mbeir_retrieval"
VERSION = "2.0.0"
NO_PICTURE = -1
SPLITS = ("train", "val", "test")


class MbeirRetrieval(tfds.core.GeneratorBasedBuilder):
    """Three configurations that refer to each other, so that each picture is stored once.

    - `pictures` (split `pictures`): path, and the file as it is in the layout.
    - `candidates` (the layout's splits): id, text, and the picture's row (-1 for none).
    - `queries` (the same splits): the same, the task, and the ids of positives and hard negatives.

    `corpus` is a folder in the M-BEIR layout; rows are those of `MbeirFolder.source(split)`, in its
    order.
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

    def __init__(self, *, corpus: Path | str, splits: Sequence[str], **kwargs: Any) -> None:
        self._corpus = Path(corpus)
        self._layout = MbeirFolder(corpus)
        self._splits = tuple(splits)
        super().__init__(**kwargs)

    @cached_property
    def _sources(self) -> dict[str, MbeirSource]:
        return {split: self._layout.source(split, verify=False) for split in self._splits}

    def _info(self) -> tfds.core.DatasetInfo:
        text, integer = tfds.features.Text(), tfds.features.Scalar(np.int32)
        record = {"id": text, "text": text, "picture": integer}
        features = {
            "pictures": {
                "path": text,
                "image": tfds.features.Image(),
            },
            "candidates": record,
            # Ids are one text with blanks between: a Sequence doubles the time of a row.
            "queries": {**record, "task": integer, "positives": text, "negatives": text},
        }[self.builder_config.name]
        return tfds.core.DatasetInfo(
            builder=self,
            description="Queries, candidates and pictures for universal multimodal retrieval.",
            features=tfds.features.FeaturesDict(features),
            disable_shuffling=True,
            metadata=tfds.core.MetadataDict(self._metadata()),
        )

    def _split_generators(self, dl_manager: tfds.download.DownloadManager) -> dict[str, Any]:
        if self.builder_config.name == "pictures":
            return {"pictures": self._pictures()}
        rows = self._queries if self.builder_config.name == "queries" else self._candidates
        return {split: rows(split) for split in self._splits}

    def _generate_examples(self) -> Iterator[tuple[int, dict[str, Any]]]:
        raise NotImplementedError("each split has its own generator")

    def _metadata(self) -> dict[str, Any]:
        """What a reader needs besides rows: fingerprints and instructions (queries only)."""
        if self.builder_config.name != "queries":
            return {}
        table = self._layout.instructions
        return {
            "fingerprints": {split: source.fingerprint for split, source in self._sources.items()},
            "instructions": [[*key, *prompts] for key, prompts in table.items()],
        }

    @cached_property
    def _picture_rows(self) -> dict[str, int]:
        """Each picture that a record shows, in the order of the paths."""
        shown: set[str] = set()
        for source in self._sources.values():
            for records, field in (
                (source.queries, "query_img_path"),
                (source.candidates, "img_path"),
            ):
                shown.update(record[field] for record in _raw(records) if record.get(field))
        return {path: row for row, path in enumerate(sorted(shown))}

    def _pictures(self) -> Iterator[tuple[int, dict[str, Any]]]:
        for path, row in self._picture_rows.items():
            try:
                content = (self._corpus / path).read_bytes()
            except OSError as error:
                raise MarvelError(f"{self._corpus / path} cannot be read: {error}.") from error
            # A file object is stored as it is; an array would be encoded, which needs TensorFlow.
            yield row, {"path": path, "image": io.BytesIO(content)}

    def _candidates(self, split: str) -> Iterator[tuple[int, dict[str, Any]]]:
        for row, record in enumerate(_raw(self._sources[split].candidates)):
            yield row, self._row(record["did"], record["txt"], record["img_path"])

    def _queries(self, split: str) -> Iterator[tuple[int, dict[str, Any]]]:
        queries = self._sources[split].queries
        for row, (record, query) in enumerate(zip(_raw(queries), queries, strict=True)):
            yield (
                row,
                {
                    **self._row(query.id, record["query_txt"], record["query_img_path"]),
                    "task": query.task.id,
                    "positives": " ".join(query.positives),
                    "negatives": " ".join(query.negatives),
                },
            )

    def _row(self, id: str, text: str | None, path: str | None) -> dict[str, Any]:
        picture = self._picture_rows[path] if path else NO_PICTURE
        return {"id": id, "text": text or "", "picture": picture}


def _raw(records: Records[Any]) -> Iterator[dict[str, Any]]:
    """The lines that the records are made of."""
    for file in records.files:
        yield from file


def found_splits(corpus: Path | str) -> tuple[str, ...]:
    """The splits of an M-BEIR folder that have both queries and a global pool."""
    root = Path(corpus)
    pools = root / "cand_pool" / "global"
    return tuple(
        split
        for split in SPLITS
        if (pools / f"mbeir_union_{split}_cand_pool.jsonl").is_file()
        and any((root / "query" / name).is_dir() for name in (split, f"union_{split}"))
    )


def write(
    corpus: Path | str, data_dir: Path | str | None = None, *, splits: Sequence[str] | None = None
) -> None:
    """Writes all three configurations of `MbeirRetrieval` from a folder in the M-BEIR layout.

    They go to `data_dir` (None: FOLDER inside the corpus, where `TfdsSource.open` looks). `splits`
    None means all that have queries and a global pool.

    Raises:
      MarvelError: the corpus is not such a folder, a file or picture of it is broken or missing,
        or it has no split to write.
    """
    chosen = found_splits(corpus) if splits is None else tuple(splits)
    if not chosen:
        raise MarvelError(
            f"{corpus} has no split with both query/SPLIT/ and "
            "cand_pool/global/mbeir_union_SPLIT_cand_pool.jsonl, SPLIT one of "
            f"{', '.join(SPLITS)}."
        )
    for config in MbeirRetrieval.BUILDER_CONFIGS:
        builder = MbeirRetrieval(
            corpus=corpus,
            splits=chosen,
            config=config.name,
            data_dir=str(Path(corpus) / FOLDER if data_dir is None else data_dir),
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
