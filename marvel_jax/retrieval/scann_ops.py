"""The door to the scann package: built shard by shard, loaded, searched, and quiet."""

import contextlib
import functools
import os
import sys
import tempfile
from collections.abc import Iterator
from pathlib import Path
from types import ModuleType
from typing import Any, NamedTuple

import numpy as np

from marvel_jax.errors import MarvelError
from marvel_jax.retrieval import scann_processor
from marvel_jax.retrieval.prefetch import cores
from marvel_jax.retrieval.scann_config import ScannConfig, training_sample

# Vectors of a leaf that ScaNN is to keep. Its default is 50, and the leaves of the rule hold 100 on
# average at most, up to a million rows: 79 of 100,000, many of them fewer.
_SMALLEST_LEAF = 10

_BATCH = 1024  # queries of a thread's share at most: 4% faster than ScaNN's own 256


class ScannUnavailableError(MarvelError):
    """ScaNN has no build for this platform; exact search does the work."""


class Candidates(NamedTuple):
    """What ScaNN found, best first; -1 and -inf where the leaves looked at hold fewer.

    rows: int32 [Q, n]. scores: float32 [Q, n], as ScaNN sees them.
    """

    rows: np.ndarray
    scores: np.ndarray


def require() -> ModuleType:
    """The scann package, with the kernels of this processor.

    Raises:
      ScannUnavailableError: it cannot be loaded here.
      MarvelError: as `scann_processor.enable`.
    """
    try:
        from scann import scann_ops_pybind
    except ImportError as error:
        raise ScannUnavailableError(
            f"ScaNN cannot be loaded ({error}). It has wheels for Linux only (x86-64 and aarch64): "
            "there `pip install scann`; elsewhere use exact search."
        ) from error
    _enable()
    return scann_ops_pybind


def added_kernels() -> tuple[str, ...]:
    """The kernels that ScaNN uses here and would not as it is installed: see `scann_processor`.

    Raises:
      ScannUnavailableError, MarvelError: as `require`.
    """
    require()
    return _enable()


@functools.cache
def _enable() -> tuple[str, ...]:
    from scann.scann_ops.py.scann_ops_pybind import scann_pybind

    return scann_processor.enable(Path(scann_pybind.__file__))


def build(vectors: np.ndarray, config: ScannConfig) -> Any:
    """A ScaNN searcher over float32 unit vectors [n, D]; `config` is resolved."""
    builder = require().builder(vectors, 10, "dot_product")
    if config.kind == "brute_force":
        builder = builder.score_brute_force()
    else:
        builder = builder.tree(
            num_leaves=min(config.leaves or 1, len(vectors)),
            num_leaves_to_search=config.search_leaves,
            training_sample_size=training_sample(len(vectors)),
            min_partition_size=_SMALLEST_LEAF,
            spherical=True,  # for unit vectors: at recall 0.95 twice as fast as without
        )
        builder = builder.score_ah(
            config.dimensions_per_block, anisotropic_quantization_threshold=0.2
        )
        if config.vectors == "index":
            builder = builder.reorder(config.reorder)
    with _quiet():
        return builder.build()


def save(searcher: Any, folder: Path) -> None:
    """Writes a searcher into an empty folder, which may be renamed and moved afterwards."""
    try:
        with _quiet():
            searcher.serialize(str(folder), relative_path=True)
    except RuntimeError as error:  # of ScaNN, whatever the system said
        raise MarvelError(
            f"{folder} could not be written by ScaNN: {error}. Is there room on the disk? What is "
            "whole stays: run the same command again to go on."
        ) from error


def load(folder: Path) -> Any:
    """The searcher that `save` wrote.

    The caller has checked every file: ScaNN would unpickle one that it does not write here.
    """
    with _quiet():
        return require().load_searcher(str(folder), assets_backcompat_shim=False)


def search(
    searcher: Any, queries: np.ndarray, count: int, *, reorder: int | None, leaves: int | None
) -> Candidates:
    """The `count` best rows of one searcher; both settings are None for brute force.

    queries: float32 [Q, D]. reorder: candidates that ScaNN scores again with its own vectors.
    """
    settings = (count,) if leaves is None else (count, max(reorder or count, count), leaves)
    if len(queries) == 1:
        one = searcher.search(queries[0], *settings)
        indices, scores = one[0][None], one[1][None]
    else:
        # A thread takes whole batches: by the default, 512 queries keep two cores of many busy.
        share = min(_BATCH, -(-len(queries) // cores()))
        indices, scores = searcher.search_batched_parallel(
            queries,
            final_num_neighbors=count,
            pre_reorder_num_neighbors=settings[1] if len(settings) > 1 else None,
            leaves_to_search=leaves,
            batch_size=share,
        )
    # Where ScaNN has no `count` results it returns fewer, or fills with row 0 and NaN.
    missing = count - indices.shape[1]
    if missing > 0:
        indices = np.pad(indices, ((0, 0), (0, missing)))
        scores = np.pad(scores, ((0, 0), (0, missing)), constant_values=np.nan)
    there = np.isfinite(scores)
    return Candidates(
        np.where(there, indices.astype(np.int32), np.int32(-1)),
        np.where(there, scores, np.float32(-np.inf)),
    )


@contextlib.contextmanager
def _quiet() -> Iterator[None]:
    """Keeps ScaNN's log lines off the terminal (they tear a progress display) unless it fails."""
    sys.stderr.flush()
    kept = os.dup(2)
    with tempfile.TemporaryFile() as log:
        os.dup2(log.fileno(), 2)
        try:
            yield
        except BaseException:
            log.seek(0)
            os.write(kept, log.read())
            raise
        finally:
            os.dup2(kept, 2)
            os.close(kept)
