"""A collection, opened: its entries by row and by id, and the search over them.

Reading is safe among threads. What is open stays readable while a new version takes its place.
"""

import time
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Literal, NamedTuple

import jax
import numpy as np

from marvel_jax.collection import versions, write
from marvel_jax.collection.collapse import Group, Shown, fold_copies, shown_of
from marvel_jax.collection.entry import KINDS, Entry, Kind, check_kind, entry_of
from marvel_jax.collection.instructions import presets
from marvel_jax.collection.manifest import CollectionManifest
from marvel_jax.data.json_lines import JsonLines
from marvel_jax.errors import MarvelError
from marvel_jax.retrieval.embedder import Embedder
from marvel_jax.retrieval.exact import TopK, top_k
from marvel_jax.retrieval.scann_index import ScannIndex, ScannUnavailableError
from marvel_jax.retrieval.scann_measure import recall_against_exact
from marvel_jax.retrieval.store import Progress, VectorStore

METHODS = ("exact", "scann")
_SPARE = 16  # hits beyond k, so that copies folded together leave k
_WIDER = 4  # times as many are asked for where copies, or the wrong kind, left too few
_FEW = 1024  # that an index is asked for in any case
_BLOCK = 1024  # hits whose vectors are looked at together
_PAGE = 8192  # rows of an exact search, which holds the vectors of all that it finds


class Hit(NamedTuple):
    """A result: its row and cosine, and the rows of its near-duplicates folded under it."""

    row: int
    score: float
    copies: tuple[int, ...]


class Found(NamedTuple):
    """The answer to one query.

    hits: best first, equal scores by id; fewer than k where the collection has no more.
    search_ms: milliseconds that the search of all queries given together took.
    recall: the share of the k exact results that an approximate search found, for this very query;
      None for exact search, or where it was not asked for.
    """

    hits: tuple[Hit, ...]
    search_ms: float
    recall: float | None


class Collection:
    """Make one with `build.build_collection`, and open it with `Collection.open`."""

    def __init__(
        self,
        folder: Path,
        version: Path,
        manifest: CollectionManifest,
        *,
        stores: dict[int, VectorStore],
        scann: ScannIndex | None,
    ) -> None:
        """Reads what `open` found."""
        self.folder = folder
        self.version = version
        self.manifest = manifest
        self.dimensions = manifest.dimensions
        self.methods = METHODS if scann is not None else METHODS[:1]
        self._stores = stores
        self._store = stores[manifest.dimension]
        self._scann = scann
        self._lines = JsonLines(version / write.ENTRIES)
        kinds = np.load(version / write.KIND_ROWS, allow_pickle=False)
        if not len(self._store) == len(self._lines) == len(kinds) == manifest.count:
            raise MarvelError(
                f"{version} is damaged: {manifest.count} rows, but {len(self._store)} vectors, "
                f"{len(self._lines)} entries and {len(kinds)} kinds. Remove the collection and "
                "index again."
            )
        self._rows_of_kind = {
            kind: np.flatnonzero(kinds == number) for number, kind in enumerate(KINDS)
        }
        roots = [*map(Path, manifest.roots), folder]
        self._roots = tuple(root.resolve() for root in roots)
        self._lines[0]  # opens the file: it stays readable though the version be removed

    @classmethod
    def open(
        cls,
        folder: Path | str,
        *,
        check: Literal["content", "layout"] = "content",
        progress: Progress | None = None,
    ) -> "Collection":
        """Opens the current version of a collection; `check` and `progress` as `VectorStore.open`.

        Raises:
          MarvelError: the folder is no collection, or is damaged; the file is named.
        """
        folder = Path(folder)
        version = versions.current(folder)
        manifest = CollectionManifest.read(version)
        stores = {}
        for dimension in manifest.dimensions:
            whole = dimension == manifest.dimension
            path = version / write.store_name(None if whole else dimension)
            stores[dimension] = VectorStore.open(
                path, check=check, progress=progress if whole else None
            )
        scann = None
        if manifest.has_scann:
            try:
                scann = ScannIndex.open(version / write.SCANN, stores[manifest.dimension])
            except ScannUnavailableError:  # made elsewhere; `methods` says that it is not here
                scann = None
        return cls(folder, version, manifest, stores=stores, scann=scann)

    def __len__(self) -> int:
        return self.manifest.count

    @property
    def labelled(self) -> Path | None:
        """The labelled queries that were kept with it; see `judge`."""
        path = self.version / write.LABELLED
        return path if path.is_file() else None

    @property
    def failures_file(self) -> Path:
        """A jsonl of id, file and error of everything that could not be indexed."""
        return self.version / write.FAILURES

    def entry(self, row: int, *, gone: bool = False) -> Entry:
        """What a row shows; with `gone`, without a picture whose path now leads out of the roots.

        Raises:
          MarvelError: there is no such row, or a picture's path leads out and that is not accepted.
        """
        if not 0 <= row < len(self):
            raise MarvelError(f"{self.folder}: no row {row}: there are {len(self)}, from 0 on.")
        where = f"{self.folder}, row {row}"
        return entry_of(self._lines[row], roots=self._roots, where=where, gone=gone)

    def row_of(self, id: str) -> int:
        """The row of an id.

        Raises:
          MarvelError: there is none.
        """
        row = int(self.rows_of([id])[0])
        if row < 0:
            raise MarvelError(f"{self.folder} has no entry {id!r}.")
        return row

    def rows_of(self, ids: Sequence[str]) -> np.ndarray:
        """int64 [n]: the rows of ids, -1 where there is none."""
        return self._store.ids.rows_of(ids)

    def vector(self, row: int) -> np.ndarray:
        """float32 [D], of unit norm.

        Raises:
          MarvelError: there is no such row.
        """
        if not 0 <= row < len(self):
            raise MarvelError(f"{self.folder}: no row {row}: there are {len(self)}, from 0 on.")
        return self._store.vectors(np.array([row]))[0]

    def presets(self, query: Kind, target: Kind | None) -> tuple[str, ...]:
        """Instructions for a kind of query and of target, the source's own first."""
        return presets(query, target, own=self.manifest.instructions)

    def search(
        self,
        queries: np.ndarray,
        *,
        k: int,
        kind: Kind | None = None,
        method: str = "exact",
        dimension: int | None = None,
        collapse: bool = True,
        compare: bool = True,
    ) -> list[Found]:
        """The best k rows for each of the unit queries [Q, D].

        Args:
          queries: as the model gives them, float32, or one of them, [D].
          k: how many; more than there are is no error.
          kind: what may be found; None: anything.
          method: one of `methods`.
          dimension: how many numbers of the vectors are compared, one of `dimensions`; None: all.
            With fewer the scores are cosines of those, and the answer is approximate.
          collapse: fold near-duplicates under the best of them (see `collapse`).
          compare: search an approximate answer's query exactly, too, for its recall.

        Raises:
          MarvelError: an argument that cannot be.
        """
        queries = np.atleast_2d(queries)
        width = self._check(k=k, kind=kind, method=method, dimension=dimension)
        rows = None if kind is None else self._rows_of_kind[kind]
        size = len(self) if rows is None else len(rows)
        if not size or not len(queries):
            return [Found((), 0.0, None) for _ in queries]
        # A power of two: each number of results is a compilation of the search.
        padded = min(size, 1 << (2 * k + _SPARE - 1 if collapse else k - 1).bit_length())
        asked = min(k, size)
        hits: list[tuple[Hit, ...]] = [()] * len(queries)
        nearest = TopK(
            np.full((len(queries), asked), -np.inf, np.float32),
            np.full((len(queries), asked), -1, np.int32),
        )
        left, most, seconds = list(range(len(queries))), padded, 0.0
        while left:
            started = time.perf_counter()
            if method == "scann":
                top = self._approximate(queries[left], most, rows)
            else:
                top = _exact(queries[left], self._stores[width], most, rows)
            seconds += time.perf_counter() - started
            nearest.scores[left] = top.scores[:, :asked]
            nearest.indices[left] = top.indices[:, :asked]
            for place, found, scores in zip(left, top.indices, top.scores, strict=True):
                hits[place] = self._hits(found, scores, k, fold=collapse)
            # However many copies one picture has, k others are found if there are so many.
            left = [place for place in left if most < size and len(hits[place]) < k]
            most = min(size, _WIDER * most)
        recalls: Sequence[float | None] = [None] * len(queries)
        if compare and (method == "scann" or width != self.manifest.dimension):
            exact = _exact(queries, self._store, padded, rows)
            best = TopK(exact.scores[:, :asked], exact.indices[:, :asked])
            recalls = recall_against_exact(nearest, best).tolist()
        return [
            Found(own, 1e3 * seconds, recall) for own, recall in zip(hits, recalls, strict=True)
        ]

    def _check(self, *, k: int, kind: str | None, method: str, dimension: int | None) -> int:
        """The width that is searched in."""
        if k < 1:
            raise MarvelError(f"k={k}: ask for at least 1 result.")
        if kind is not None:
            check_kind(kind)
        if method not in self.methods:
            hint = " Build one: index again with --scann." if method == "scann" else ""
            raise MarvelError(
                f"method={method!r}: {self.folder} is searched by {', '.join(self.methods)}.{hint}"
            )
        width = self.manifest.dimension if dimension is None else dimension
        if width not in self.dimensions:
            raise MarvelError(
                f"dimension={dimension}: {self.folder} is searched by the first "
                f"{', '.join(map(str, self.dimensions))} numbers."
            )
        if method == "scann" and width != self.manifest.dimension:
            raise MarvelError(
                f"dimension={dimension} with method='scann': the index is of all "
                f"{self.manifest.dimension} numbers. Leave one of the two out."
            )
        return width

    def _approximate(self, queries: np.ndarray, k: int, rows: np.ndarray | None) -> TopK:
        """What the index finds, of these rows only: more is asked until there are enough."""
        assert self._scann is not None
        allowed = np.ones(len(self) + 1, bool)  # the last for "none", -1
        allowed[-1] = False
        asked = k
        if rows is not None:
            allowed[:] = False
            allowed[rows] = True
            asked = -(-2 * k * len(self) // len(rows))
        while True:
            # So many, or so rare a kind, are searched exactly.
            if asked > max(_FEW, len(self) // _WIDER):
                return _exact(queries, self._store, k, rows)
            found = self._scann.search(queries, min(len(self), asked))
            good = allowed[found.indices]
            if rows is None or asked >= len(self) or (good.sum(axis=1) >= k).all():
                break
            asked *= _WIDER
        order = np.argsort(~good, axis=1, kind="stable")[:, :k]
        kept = np.take_along_axis(good, order, 1)
        return TopK(
            np.where(kept, np.take_along_axis(found.scores, order, 1), np.float32(-np.inf)),
            np.where(kept, np.take_along_axis(found.indices, order, 1), np.int32(-1)),
        )

    def _hits(self, rows: np.ndarray, scores: np.ndarray, k: int, *, fold: bool) -> tuple[Hit, ...]:
        there = rows >= 0
        rows, scores = rows[there], scores[there]
        if fold:
            groups = fold_copies(self._shown(rows), most=k)
        else:
            groups = [Group(place, ()) for place in range(len(rows))]
        return tuple(
            Hit(
                row=int(rows[one.first]),
                score=float(scores[one.first]),
                copies=tuple(int(rows[place]) for place in one.copies),
            )
            for one in groups[:k]
        )

    def _shown(self, rows: np.ndarray) -> Iterator[tuple[Shown, np.ndarray]]:
        for start in range(0, len(rows), _BLOCK):
            block = rows[start : start + _BLOCK]
            for row, vector in zip(block, self._store.vectors(block), strict=True):
                yield shown_of(self._lines[int(row)]), vector


def _exact(queries: np.ndarray, store: VectorStore, k: int, rows: np.ndarray | None) -> TopK:
    """`top_k`, in bounded memory however many are asked for: page by page of what is left."""
    if k <= _PAGE:
        return top_k(queries, store, k, subset=rows)
    found = []
    for query in queries[:, None]:
        left = np.arange(len(store)) if rows is None else rows
        pages = []
        for start in range(0, k, _PAGE):
            pages.append(top_k(query, store, min(_PAGE, k - start), subset=left))
            left = np.setdiff1d(left, pages[-1].indices[0], assume_unique=True)
        found.append([np.concatenate(part, axis=1) for part in zip(*pages, strict=True)])
    return TopK(*(np.concatenate(part) for part in zip(*found, strict=True)))


def load_embedder(
    collection: Collection,
    *,
    model: str | Path | None = None,
    kernel: str = "auto",
    devices: Sequence[jax.Device] | None = None,
) -> Embedder:
    """The model that made a collection, as it was when it made it.

    Args:
      collection: whose.
      model: where it lies now, if not where it was.
      kernel: see `Embedder`, as of `devices`.
      devices: those that encode.

    Raises:
      MarvelError: it cannot be had, or it is another one; the field that differs is named.
    """
    manifest = collection.manifest
    name = str(manifest.model if model is None else model)
    embedder = Embedder.from_pretrained(
        name, dtype=manifest.compute, kernel=kernel, devices=devices
    )
    for field, found in embedder.manifest_fields().items():
        if manifest.embedder.get(field) != found:
            raise MarvelError(
                f"{collection.folder} was made with {field}={manifest.embedder.get(field)!r}, but "
                f"{name} has {field}={found!r}. Name the model that made it, or index again with "
                "this one and --again."
            )
    return embedder
