"""The first results in the reranker's order; what it cannot read keeps its place."""

import threading
from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING

from marvel_jax.data.images import ImageError, load_image
from marvel_jax.data.items import Item
from marvel_jax.errors import MarvelError
from marvel_jax.serving.entries import Shown
from marvel_jax.serving.pictures import fitted

if TYPE_CHECKING:  # what computes is loaded by who hands it in
    from marvel_jax.retrieval.rerank import Reranker

PAIRS = 8  # that the reranker reads in one call


class Reranking:
    """One reranker on a device that it shares."""

    def __init__(
        self, reranker: "Reranker", *, device: threading.Lock, say: Callable[[str], None]
    ) -> None:
        """`say` is told of pictures that cannot be read."""
        self._reranker, self._device, self._say = reranker, device, say
        self.geometry = reranker.processor.geometry

    def chances(self, query: Item, shown: Sequence[Shown]) -> list[float | None]:
        """P(Yes) of each entry; None where its picture has gone or cannot be decoded.

        Raises:
          MarvelError: the query's own picture cannot be read.
        """
        places = [place for place, one in enumerate(shown) if not one.gone]
        try:
            found = self._score(query, [shown[place].entry.item for place in places])
        except ImageError:  # it does not say which; few collections ever need to know
            places = [place for place in places if self._is_readable(shown[place].entry.item)]
            found = self._score(query, [shown[place].entry.item for place in places])
        chances: list[float | None] = [None] * len(shown)
        for place, chance in zip(places, found, strict=True):
            chances[place] = chance
        return chances

    def _score(self, query: Item, candidates: Sequence[Item]) -> list[float]:
        if not candidates:
            return []
        with self._device:
            pairs = [(query, one) for one in candidates]
            return [float(one) for one in self._reranker.score(pairs, steady=PAIRS).p_yes]

    def _is_readable(self, item: Item) -> bool:
        try:
            for image in item.images:
                fitted(load_image(image, item_id=item.id), self.geometry)
        except MarvelError as error:
            self._say(str(error))
            return False
        return True


def reordered(chances: Sequence[float | None]) -> list[int]:
    """Places, the likeliest first; those without a chance stay where they are."""
    read = [(place, chance) for place, chance in enumerate(chances) if chance is not None]
    order = list(range(len(chances)))
    best = sorted(read, key=lambda one: (-one[1], one[0]))
    for (place, _), (mover, _) in zip(read, best, strict=True):
        order[place] = mover
    return order
