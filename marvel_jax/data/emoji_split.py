"""What the emoji corpus holds out: tones, cells (emoji, language) and drawings, by seed."""

from collections import defaultdict
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np

from marvel_jax.data.emoji_gallery import Gallery
from marvel_jax.data.emoji_lexicon import LANGUAGES, Emoji, Lexicon

CELL_SHARE = 0.1
DRAWING_SHARE = 0.1

Cell = tuple[int, str]
"""An emoji's number and a language: one name."""


@dataclass(frozen=True)
class Split:
    """Which parts of the corpus no training query, positive or candidate may show.

    Attributes:
      pictures: emoji held out altogether (one tone of each toned base): picture, names, card.
      cells: names held out of emoji that are otherwise trained on.
      drawings: emoji whose line drawing is held out.
      cards: the language of each emoji's card.
    """

    pictures: frozenset[int]
    cells: frozenset[Cell]
    drawings: frozenset[int]
    cards: Mapping[int, str]

    def trains_cell(self, number: int, language: str) -> bool:
        """Whether training may show this emoji under this name."""
        return number not in self.pictures and (number, language) not in self.cells


def generator(seed: int, purpose: int) -> np.random.Generator:
    """An independent stream of random draws for each purpose under one seed."""
    return np.random.default_rng([seed, purpose])


def hold_out(lexicon: Lexicon, emoji: Sequence[Emoji], gallery: Gallery, *, seed: int) -> Split:
    """Draws the split of the emoji that have a picture.

    Every language and every tone keeps training examples, and so does every emoji that is not
    held out altogether. What looks or reads the same goes to the same side: pictures with equal
    pixels, and equal names of one emoji in several languages.
    """
    pictures = _hold_out_tones(emoji, gallery, seed=seed)
    cells = _hold_out_cells(lexicon, emoji, pictures, seed=seed)
    drawn = np.array(sorted(set(gallery.drawings) - pictures), dtype=np.int64)
    chosen = generator(seed, 3).permutation(drawn)[: round(DRAWING_SHARE * len(drawn))]
    return Split(
        pictures=pictures,
        cells=cells,
        drawings=frozenset(int(number) for number in chosen),
        cards=_choose_cards(emoji, pictures, cells, seed=seed),
    )


def _hold_out_tones(emoji: Sequence[Emoji], gallery: Gallery, *, seed: int) -> frozenset[int]:
    families: dict[str, set[int]] = defaultdict(set)
    for one in emoji:
        families[one.base].add(one.number)
    toned: dict[str, list[int]] = defaultdict(list)
    for one in emoji:
        # The snowboarder's face is covered: there a tone changes no pixel and hides nothing.
        if one.tones and not (set(gallery.twins[one.number]) - {one.number}) & families[one.base]:
            toned[one.base].append(one.number)
    draws = generator(seed, 1)
    held: set[int] = set()
    for variants in toned.values():
        choice = variants[int(draws.integers(len(variants)))]
        if len(variants) > 1:
            held.update(gallery.twins[choice])
    return frozenset(held)


def _hold_out_cells(
    lexicon: Lexicon, emoji: Sequence[Emoji], pictures: frozenset[int], *, seed: int
) -> frozenset[Cell]:
    groups: list[list[Cell]] = []
    for one in emoji:
        if one.number in pictures:
            continue
        by_text: dict[int, list[Cell]] = defaultdict(list)
        for language in LANGUAGES:
            number = lexicon.text(one, language).number
            by_text[number].append((one.number, language))
        if len(by_text) > 1:
            groups.extend(by_text.values())
    total = sum(one.number not in pictures for one in emoji) * len(LANGUAGES)
    left = {one.number: len(LANGUAGES) for one in emoji}
    held: set[Cell] = set()
    for index in generator(seed, 2).permutation(len(groups)):
        if len(held) >= CELL_SHARE * total:
            break
        group = groups[index]
        number = group[0][0]
        if left[number] > len(group):
            left[number] -= len(group)
            held.update(group)
    return frozenset(held)


def _choose_cards(
    emoji: Sequence[Emoji], pictures: frozenset[int], cells: frozenset[Cell], *, seed: int
) -> dict[int, str]:
    """A card shows a name that training may see, so that the card itself can be trained on."""
    draws = generator(seed, 4)
    cards = {}
    for one in emoji:
        allowed = [language for language in LANGUAGES if (one.number, language) not in cells]
        cards[one.number] = allowed[int(draws.integers(len(allowed)))]
    return cards
