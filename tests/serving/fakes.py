"""A collection, an embedder and a reranker of a few lines, for what is not about the model."""

import io
import threading
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import PIL.Image

from marvel_jax.collection.collection import Found, Hit
from marvel_jax.collection.entry import Entry
from marvel_jax.data.images import ImageError, ImageGeometry, load_image
from marvel_jax.data.items import Item
from marvel_jax.errors import MarvelError

WIDTH = 16


def until(condition: Callable[[], object], *, seconds: float = 60) -> None:
    """Waits for what comes soon, however busy the machine; what never comes fails."""
    end = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < end, "it did not come"
        time.sleep(0.005)


def picture(colour: tuple[int, int, int], *, size: tuple[int, int] = (40, 30)) -> bytes:
    """A PNG of one colour."""
    stream = io.BytesIO()
    PIL.Image.new("RGB", size, colour).save(stream, "png")
    return stream.getvalue()


def vector_of(text: str, colour: Sequence[float] | None) -> np.ndarray:
    """Words are letters' counts, a picture its colour: what is alike is near."""
    vector = np.full(WIDTH, 1e-3)
    for letter in text.lower():
        vector[3 + ord(letter) % (WIDTH - 3)] += 0.2
    if colour is not None:
        vector[:3] += np.asarray(colour) / 255
    return np.asarray(vector / np.linalg.norm(vector), np.float32)


class FakeEmbedder:
    """Knows each query it was given; can be slow, and can fail on a word."""

    def __init__(self, *, seconds: float = 0.0, max_pixels: int = 4 * 28 * 28) -> None:
        self.processor = SimpleNamespace(geometry=ImageGeometry(max_pixels=max_pixels))
        self.batches: list[list[Item]] = []
        self.seconds = seconds
        self.entered = threading.Event()
        self.may_go = threading.Event()
        self.may_go.set()

    def encode(self, items, *, on_failure=None, **options):
        self.batches.append(list(items))
        self.entered.set()
        assert self.may_go.wait(30)
        time.sleep(self.seconds)
        vectors = []
        for place, item in enumerate(items):
            words = " ".join(part for part in item.parts if isinstance(part, str))
            if "broken" in words:
                on_failure(place, ImageError("Image x cannot be cut.", file="x", reason="thin"))
            colour = None
            if item.images:
                colour = np.asarray(
                    item.images[0].source.resize((1, 1))
                    if not isinstance(item.images[0].source, np.ndarray)
                    else item.images[0].source[:1, :1]
                )[0, 0]
            vectors.append(vector_of(words, colour))
        return np.asarray(vectors, np.float32)


class FakeReranker:
    """Likes what comes last, and reads pictures."""

    def __init__(self, *, max_pixels: int = 4 * 28 * 28) -> None:
        self.processor = SimpleNamespace(geometry=ImageGeometry(max_pixels=max_pixels))
        self.queries: list[Item] = []

    def score(self, pairs, *, steady):
        self.queries += [query for query, _ in pairs]
        for _, candidate in pairs:
            for image in candidate.images:
                load_image(image)
        assert all(candidate.instruction is None for _, candidate in pairs)
        return SimpleNamespace(p_yes=np.linspace(0.1, 0.9, len(pairs)))


class FakeCollection:
    """Exact search by the vectors above over what it is given: (id, text, colour)."""

    def __init__(self, folder: Path, rows: Sequence[tuple[str, str | None, tuple | None]]) -> None:
        self.folder = folder / "fruit"
        self.folder.mkdir(exist_ok=True)
        self.entries = []
        for id, text, colour in rows:
            path = None
            if colour is not None:
                path = self.folder / f"{len(self.entries)}.png"
                path.write_bytes(picture(colour))
            kind = "image,text" if text and colour else "image" if colour else "text"
            parts = tuple(part for part in (path, text) if part is not None)
            self.entries.append(Entry(id, kind, text, path, f"name of {id}", False, id, parts))
        self.vectors = np.stack([vector_of(text or "", colour) for _, text, colour in rows])
        self.dimensions, self.methods = (WIDTH, 8), ("exact", "scann")
        kinds = [entry.kind for entry in self.entries]
        self.manifest = SimpleNamespace(
            model="/secret/place/of/model",
            counts={kind: kinds.count(kind) for kind in sorted(set(kinds))},
            built="2026-01-01T00:00:00Z",
        )

    def __len__(self):
        return len(self.entries)

    def row_of(self, id):
        for row, entry in enumerate(self.entries):
            if entry.id == id:
                return row
        raise MarvelError(f"{self.folder} has no entry {id!r}.")

    def entry(self, row):
        return self.entries[row]

    def vector(self, row):
        return self.vectors[row]

    def presets(self, query, target):
        return (f"From {query} find {target}.", f"Another {target} for {query}.")

    def search(
        self,
        queries,
        *,
        k,
        kind=None,
        method="exact",
        dimension=None,
        collapse=True,
        compare=True,
    ):
        assert method in self.methods and (dimension is None or dimension in self.dimensions)
        rows = [row for row, one in enumerate(self.entries) if kind in (None, one.kind)]
        found = []
        for query in queries:
            cosines = self.vectors @ query
            rows.sort(key=lambda row: (-cosines[row], self.entries[row].id))
            groups: list[list[int]] = []
            for row in rows:
                same = [g for g in groups if np.array_equal(self.vectors[g[0]], self.vectors[row])]
                if collapse and same:
                    same[0].append(row)
                else:
                    groups.append([row])
            hits = tuple(Hit(g[0], float(cosines[g[0]]), tuple(g[1:])) for g in groups[:k])
            found.append(Found(hits, 1.5, 0.9 if compare and method == "scann" else None))
        return found


FRUIT = [
    ("a/apple.png", None, (200, 30, 30)),
    ("a/apple again.png", None, (200, 30, 30)),
    ("a/lime.png", None, (40, 200, 40)),
    ("b/sea.png", "the sea at night", (20, 30, 180)),
    ("text/1", "a red apple", None),
    ("text/2", "a green lime", None),
    ("text/3", "<script>window.harmed = true</script><img src=x onerror=alert(1)>", None),
    ("text/4", "תפוח אדום", None),
    ("text/5", "blue water", None),
]


def fruit_service(folder: Path):
    """Fruit with a reranker, and limits that no test of a page or a schema meets."""
    from marvel_jax.serving.limits import Limits
    from marvel_jax.serving.service import SearchService

    return SearchService(
        FakeCollection(folder, FRUIT),
        FakeEmbedder(),
        reranker=FakeReranker(),
        limits=Limits(rate=1e6, burst=1e6),
    )
