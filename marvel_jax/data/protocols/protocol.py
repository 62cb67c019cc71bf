"""What a test set is: collections of items, who asks whom, what is right, and how that is scored.

A set on disk is read into named collections of items, each of which is encoded once, and tests
between them: the items of one collection ask, those of another are sought. So both directions of
image-caption retrieval are two tests over the same two collections.
"""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Literal, NamedTuple

from marvel_jax.data.items import Item
from marvel_jax.errors import MarvelError
from marvel_jax.files import hash_bytes

Checked = Literal["by specification", "annotations checked", "checked on real files"]
"""Whether its reader has met published files: none, those without the pictures, or all."""

_NAMED = 3  # unknown ids in an error


class Answers(NamedTuple):
    """What one query may find, by the ids of the items that are sought.

    right: its right answers; none where they are kept from us (a test split).
    gallery: the candidates that it ranks; None ranks the whole collection.
    shown: candidates that are left out, as they are part of the query.
    grades: how relevant each of `right` is, for nDCG; () where all are alike.
    """

    right: tuple[str, ...]
    gallery: tuple[str, ...] | None = None
    shown: tuple[str, ...] = ()
    grades: tuple[int, ...] = ()


@dataclass(frozen=True)
class Test:
    """The items of the collection `asks` look for those of `seeks`; `answers` are in their order.

    A test whose queries have no right answers is not scored: what it finds is written as a
    submission.
    """

    __test__ = False  # pytest would collect it for its name

    name: str
    asks: str
    seeks: str
    answers: Sequence[Answers]

    @property
    def is_submission(self) -> bool:
        """Whether its right answers are kept from us."""
        return not any(one.right for one in self.answers)


@dataclass(frozen=True)
class SetData:
    """A set as it was read: collections by name, with ids that differ within each, and tests.

    Raises:
      MarvelError: a test names no collection or answers another number of queries, or there is
        none.
    """

    collections: Mapping[str, Sequence[Item]]
    tests: tuple[Test, ...]

    def __post_init__(self) -> None:
        names = [one.name for one in self.tests]
        if not names or len(set(names)) < len(names):
            raise MarvelError(f"A set needs tests of different names, found {names or 'none'}.")
        for test in self.tests:
            for name in (test.asks, test.seeks):
                if name not in self.collections:
                    known = ", ".join(self.collections)
                    raise MarvelError(f"{test.name}: no collection {name!r}, only {known}.")
            asked = len(self.collections[test.asks])
            if len(test.answers) != asked or not asked:
                raise MarvelError(
                    f"{test.name}: {asked} queries, answers for {len(test.answers)} of them: "
                    "expected at least one query, and answers for each."
                )

    def check(self, root: Path) -> dict[str, str]:
        """A content hash of each collection; pictures count by their paths below `root`.

        Reads every item once.

        Raises:
          MarvelError: an answer, or a candidate of a gallery, is not in the collection sought; a
            query has no right answer in its gallery; or an item has no id.
        """
        wanted: dict[str, dict[str, str]] = {name: {} for name in self.collections}
        for test in self.tests:
            queries, kept_from_us = self.collections[test.asks], test.is_submission
            for place, one in enumerate(test.answers):
                named = (*one.right, *(one.gallery or ()), *one.shown)
                wanted[test.seeks] |= dict.fromkeys(named, test.name)
                there = one.right if one.gallery is None else {*one.right} & {*one.gallery}
                if not there and not kept_from_us:
                    where = "" if one.gallery is None else " in its gallery"
                    raise MarvelError(
                        f"{test.name}: query {queries[place].id!r} has no right answer{where}."
                    )
        hashes = {}
        for name, items in self.collections.items():
            digest = ""
            for item in items:
                if not item.id:
                    raise MarvelError(f"An item of {name} has no id; give each one of its own.")
                wanted[name].pop(item.id, None)
                digest = hash_bytes(digest.encode(), *_content(item, root))
            hashes[name] = digest
        for name, absent in wanted.items():
            if absent:
                some = ", ".join(repr(id) for id in list(absent)[:_NAMED])
                test_name = next(iter(absent.values()))
                raise MarvelError(
                    f"{test_name}: {len(absent)} candidates that it names are not among the "
                    f"{len(self.collections[name])} {name}: {some}. Complete the files."
                )
        return hashes


@dataclass(frozen=True)
class Metric:
    """How a test is scored, at each of `cuts`; `main` is the cut by which models are compared.

    kind: "hit" is 1 where a right answer is among the first k; "average_precision" sums the
      precision at each right answer among the first k and divides by how many could be there, the
      smaller of k and all right answers (CIRCO's mAP@k); "ndcg" has the grades as gains, each over
      the logarithm of its rank (trec_eval's).
    word: what readers call it: "R", "accuracy", "hit", "mAP", "nDCG".
    """

    kind: Literal["hit", "average_precision", "ndcg"] = "hit"
    cuts: tuple[int, ...] = (1, 5, 10)
    main: int = 1
    word: str = "R"

    def __post_init__(self) -> None:
        if self.main not in self.cuts or min(self.cuts) < 1:
            raise MarvelError(
                f"Metric: main={self.main} must be one of cuts={self.cuts}, all at least 1."
            )

    def label(self, cut: int) -> str:
        """`R@5`, or `accuracy` where there is but one answer to give."""
        return self.word if self.word == "accuracy" else f"{self.word}@{cut}"


@dataclass(frozen=True)
class Size:
    """How large a published test is: its queries, and its pool or each query's gallery."""

    queries: int
    pool: int | None = None


@dataclass(frozen=True)
class Protocol:
    """A test set's entry.

    read: makes `SetData` of the set's folder.
    layout: its files as a person would look for them, for documents and for who lacks one.
    sizes: published sizes by test. groups: means over tests, by name ("mean" over all of them).
    own_galleries: each query ranks its own candidates.
    """

    name: str
    title: str
    read: Callable[[Path], SetData]
    metric: Metric
    source: str
    layout: tuple[str, ...]
    sizes: Mapping[str, Size] = field(default_factory=dict)
    groups: Mapping[str, tuple[str, ...]] = field(default_factory=dict)
    own_galleries: bool = False
    checked: Checked = "by specification"

    def load(self, root: Path | str) -> "LoadedSet":
        """Reads a set's folder and checks its answers.

        Raises:
          MarvelError: the folder is missing, or what `read` or `SetData.check` refuses.
        """
        root = Path(root)
        if not root.is_dir():
            raise MarvelError(
                f"{root} is not a folder: {self.title} is expected as {', '.join(self.layout)} "
                f"({self.source})."
            )
        data = self.read(root)
        return LoadedSet(self, root, data, data.check(root))


class LoadedSet(NamedTuple):
    """A set of a folder, whole and consistent; `hashes` are of its collections' content."""

    protocol: Protocol
    root: Path
    data: SetData
    hashes: dict[str, str]


def _content(item: Item, root: Path) -> list[bytes]:
    found = [str(item.id).encode(), repr(item.instruction).encode()]
    for part in item.parts:
        if isinstance(part, str):
            found.append(f"text {part}".encode())
            continue
        source = part.source
        if isinstance(source, Path) and source.is_relative_to(root):
            source = source.relative_to(root)
        kept = source if isinstance(source, bytes) else str(source).encode()
        # How a video's frames are drawn decides what it is.
        drawn = (getattr(part, "num_frames", None), getattr(part, "fps", None))
        found += [f"{type(part).__name__} {drawn}".encode(), kept]
    return found
