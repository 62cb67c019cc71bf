"""The built-in corpus: every emoji as pictures, names and compositions, in the M-BEIR layout."""

import time
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from importlib import metadata
from pathlib import Path
from typing import Any

import numpy as np
from PIL import features

from marvel_jax.data import mbeir_write, tfds_builders, tokenizer
from marvel_jax.data.chat import format_text
from marvel_jax.data.emoji_fonts import FontFiles, Painter, find_fonts
from marvel_jax.data.emoji_gallery import Progress, draw, drawing_path, picture_path
from marvel_jax.data.emoji_heldout import HeldOut, held_out_sets, union_pool
from marvel_jax.data.emoji_lexicon import LANGUAGES, Emoji, load_lexicon
from marvel_jax.data.emoji_split import hold_out
from marvel_jax.data.emoji_tasks import (
    DATASET,
    DATASET_NAME,
    DEFAULT_SIZES,
    INSTRUCTIONS,
    CandidateRow,
    Corpus,
    QueryRow,
    Sizes,
    training_candidates,
    training_queries,
)
from marvel_jax.errors import MarvelError
from marvel_jax.files import atomic_folder, read_json, write_json

MANIFEST = "manifest.json"
TOKENIZER_FOLDER = "tokenizer"
_FORMAT = "marvel-jax emoji corpus"
_FORMAT_VERSION = 1
_FILE_NAME = DATASET_NAME.lower()
# Test queries count from here, so that the number of training queries does not move their ids.
_FIRST_TEST_QUERY = 400_000
_FREQUENT = 300


@dataclass(frozen=True)
class Built:
    """A corpus on disk: its folder, its manifest and the wall seconds of each stage."""

    folder: Path
    manifest: Mapping[str, Any]
    seconds: Mapping[str, float]


@dataclass
class _Stopwatch:
    seconds: dict[str, float] = field(default_factory=dict)

    @contextmanager
    def stage(self, name: str) -> Iterator[None]:
        start = time.perf_counter()
        yield
        self.seconds[name] = round(time.perf_counter() - start, 2)


def build(
    out: Path | str,
    *,
    seed: int = 0,
    limit: int | None = None,
    sizes: Sizes = DEFAULT_SIZES,
    vocabulary: int = tokenizer.VOCABULARY,
    progress: Progress | None = None,
) -> Built:
    """Draws, splits and writes the corpus; `out` is whole afterwards or does not exist.

    The folder holds the M-BEIR layout (query/, cand_pool/, qrels/, instructions/, mbeir_images/),
    tokenizer/, tfds/ (ArrayRecord) and manifest.json. The same seed, fonts and versions give the
    same files. `limit` keeps about so many emoji, whole families of tones, for trials and tests.

    Raises:
      MarvelError: a font is missing, Pillow has no Raqm, or `out` exists already.
    """
    if seed < 0:
        raise MarvelError(f"seed {seed} is negative: give 0 or more.")
    report: Progress = progress or (lambda stage, done, total: None)
    watch = _Stopwatch()
    with atomic_folder(out) as folder:
        fonts = find_fonts()
        with watch.stage("draw"):
            corpus = _draw_and_split(fonts, seed=seed, limit=limit, sizes=sizes, report=report)
        with watch.stage("queries"):
            training = list(training_queries(corpus))
            tests = list(held_out_sets(corpus))
        with watch.stage("tokenizer"):
            report("tokenizer", 0, 1)
            words = tokenizer.train(_training_texts(corpus), vocabulary=vocabulary)
            tokenizer.save(words, folder / TOKENIZER_FOLDER)
        with watch.stage("layout"):
            report("layout", 0, 1)
            _write_layout(folder, corpus, training, tests)
        manifest = _manifest(corpus, fonts, training, tests)
        manifest["tokenizer"] = {
            "vocabulary": words.get_vocab_size(),
            "mean_tokens_of_a_name": _mean_tokens(corpus, words),
        }
        with watch.stage("tfds"):
            report("tfds", 0, 1)
            tfds_builders.write(folder, folder / tfds_builders.FOLDER)
        write_json(folder / MANIFEST, manifest)
    return Built(folder=Path(out), manifest=manifest, seconds=watch.seconds)


def read_manifest(folder: Path | str) -> dict[str, Any]:
    """The manifest of a corpus that `build` wrote.

    Raises:
      MarvelError: the folder holds none, or one of another format or version.
    """
    path = Path(folder) / MANIFEST
    if not path.is_file():
        raise MarvelError(
            f"{folder} is not an emoji corpus (no {MANIFEST}): "
            f"`marvel data emoji --out {folder}` builds one."
        )
    manifest: dict[str, Any] = read_json(path)
    found = (manifest.get("format"), manifest.get("version"))
    if found != (_FORMAT, _FORMAT_VERSION):
        raise MarvelError(
            f"{path}: expected format {_FORMAT!r}, version {_FORMAT_VERSION}, found {found[0]!r}, "
            f"version {found[1]}. Remove the folder and build it again."
        )
    return manifest


def make_corpus(*, seed: int = 0, limit: int | None = None, sizes: Sizes = DEFAULT_SIZES) -> Corpus:
    """The corpus in memory: drawn and split, nothing written.

    Raises:
      MarvelError: a font is missing, or Pillow has no Raqm.
    """
    return _draw_and_split(
        find_fonts(), seed=seed, limit=limit, sizes=sizes, report=lambda stage, done, total: None
    )


def _draw_and_split(
    fonts: FontFiles, *, seed: int, limit: int | None, sizes: Sizes, report: Progress
) -> Corpus:
    lexicon = load_lexicon()
    listed = lexicon.emoji if limit is None else _some(lexicon.emoji, limit)
    gallery = draw(listed, Painter(fonts), progress=report)
    drawn = tuple(one for one in listed if one.number in gallery.pictures)
    split = hold_out(lexicon, drawn, gallery, seed=seed)
    return Corpus(lexicon, drawn, gallery, split, seed, sizes)


def _some(emoji: Sequence[Emoji], limit: int) -> tuple[Emoji, ...]:
    """About `limit` emoji, spread over all of them, whole families of skin tones together."""
    families: dict[str, list[Emoji]] = {}
    for one in emoji:
        families.setdefault(one.base, []).append(one)
    step = max(1, round(len(emoji) / limit))
    kept = [one for family in list(families.values())[::step] for one in family]
    return tuple(sorted(kept, key=lambda one: one.number))


def _training_texts(corpus: Corpus) -> Iterator[str]:
    """What the tokenizer learns from: texts as templates show them, held-out names excepted."""
    # These stand in thousands of queries each, so their words deserve to be whole tokens.
    for _ in range(_FREQUENT):
        yield from tokenizer.TEMPLATE_TEXTS
        for prompts in INSTRUCTIONS.values():
            yield from prompts
        for text in (*LANGUAGES.values(), *corpus.lexicon.tone_phrases.values()):
            yield format_text(text)
    for number in corpus.trained_carriers:
        yield format_text(corpus.texts[number].text)


def _write_layout(
    folder: Path, corpus: Corpus, training: Sequence[QueryRow], tests: Sequence[HeldOut]
) -> None:
    for one in corpus.emoji:
        for path, drawn in (
            (picture_path(one), corpus.gallery.pictures),
            (drawing_path(one), corpus.gallery.drawings),
        ):
            if one.number in drawn:
                (folder / path).parent.mkdir(parents=True, exist_ok=True)
                (folder / path).write_bytes(drawn[one.number])
    mbeir_write.write_instructions(
        folder, dataset=DATASET, name=DATASET_NAME, instructions=INSTRUCTIONS
    )
    by_task: dict[int, list[dict[str, Any]]] = {}
    for number, row in enumerate(training):
        by_task.setdefault(row.task, []).append(_query_record(number, row))
    for task, records in by_task.items():
        mbeir_write.write_queries(folder, _FILE_NAME, task=task, split="train", records=records)
    mbeir_write.write_union_pool(
        folder, split="train", records=map(_candidate_record, training_candidates(corpus))
    )
    number = _FIRST_TEST_QUERY
    for one_set in tests:
        records = [_query_record(number + i, row) for i, row in enumerate(one_set.queries)]
        number += len(records)
        mbeir_write.write_queries(
            folder, _FILE_NAME, task=one_set.task, split="test", records=records
        )
        mbeir_write.write_local_pool(
            folder, _FILE_NAME, task=one_set.task, records=map(_candidate_record, one_set.pool)
        )
    mbeir_write.write_union_pool(
        folder, split="test", records=map(_candidate_record, union_pool(tests))
    )


def _query_record(number: int, row: QueryRow) -> dict[str, Any]:
    return mbeir_write.query_record(
        f"{DATASET}:{number}",
        task=row.task,
        text=row.text,
        image=row.image,
        positives=row.positives,
        source=None if row.kind == "train" else {"held_out": row.kind},
    )


def _candidate_record(row: CandidateRow) -> dict[str, Any]:
    return mbeir_write.candidate_record(
        row.id, text=row.text, image=row.image, source={"emoji": row.sequence}
    )


def _manifest(
    corpus: Corpus, fonts: FontFiles, training: Sequence[QueryRow], tests: Sequence[HeldOut]
) -> dict[str, Any]:
    gallery, split = corpus.gallery, corpus.split
    groups = {twins for twins in gallery.twins.values() if len(twins) > 1}
    return {
        "format": _FORMAT,
        "version": _FORMAT_VERSION,
        "seed": corpus.seed,
        "languages": list(LANGUAGES),
        "emoji": {
            "listed": len(corpus.emoji) + sum(map(len, gallery.undrawn.values())),
            "drawn": len(corpus.emoji),
            "without_glyph": len(gallery.undrawn["missing"]),
            "falling_apart": len(gallery.undrawn["apart"]),
            "line_drawings": len(gallery.drawings),
            "groups_with_equal_pixels": len(groups),
        },
        "undrawn": {reason: list(names) for reason, names in gallery.undrawn.items()},
        "held_out": {
            "tones": len(split.pictures),
            "cells": len(split.cells),
            "cells_of_all": round(len(split.cells) / (len(corpus.trained) * len(LANGUAGES)), 4),
            "drawings": len(split.drawings),
        },
        "training_queries": _counts(row.task for row in training),
        "tests": {
            str(one.task): {
                "queries": len(one.queries),
                "pool": len(one.pool),
                "held_out": _counts(row.kind for row in one.queries),
                "mean_relevant": round(
                    float(np.mean([len(row.positives) for row in one.queries] or [0])), 2
                ),
            }
            for one in tests
        },
        "fonts": fonts.hashes(),
        "versions": {
            "emoji": metadata.version("emoji"),
            "pillow": metadata.version("pillow"),
            "freetype": features.version("freetype2"),
            "raqm": features.version("raqm"),
            "tokenizers": metadata.version("tokenizers"),
        },
    }


def _counts(values: Iterator[Any]) -> dict[str, int]:
    return {str(value): count for value, count in sorted(Counter(values).items())}


def _mean_tokens(corpus: Corpus, words: Any) -> dict[str, float]:
    """Tokens of a name as a template shows it, by language, over all drawn emoji."""
    means = {}
    for language in LANGUAGES:
        names = [format_text(one.names[language]) for one in corpus.emoji]
        counts = [len(encoding.ids) for encoding in words.encode_batch(names)]
        means[language] = round(float(np.mean(counts)), 2)
    return means
