"""The held-out queries of the emoji corpus and the pools that they are asked of."""

from collections.abc import Iterator, Sequence
from typing import NamedTuple, TypeVar

from marvel_jax.data.emoji_gallery import drawing_path, picture_path
from marvel_jax.data.emoji_lexicon import LANGUAGES, Emoji
from marvel_jax.data.emoji_split import Cell, generator
from marvel_jax.data.emoji_tasks import (
    CandidateRow,
    Corpus,
    QueryRow,
    card_id,
    cards,
    picture_id,
    pictures,
    text_id,
    texts,
    tone_changes,
    tone_query,
)

CELL, TONE, DRAWING = "cell", "tone", "drawing"
"""What was held out: one name of a trained emoji, a toned emoji altogether, or a drawing."""

_Option = TypeVar("_Option")


class HeldOut(NamedTuple):
    """One task's held-out queries and its local pool."""

    task: int
    queries: tuple[QueryRow, ...]
    pool: tuple[CandidateRow, ...]


def held_out_sets(corpus: Corpus) -> Iterator[HeldOut]:
    """The eight tests, by task. Pools: every picture (tasks 0, 4, 7), every card (2, 8), every
    held-out and every English name (1, 3, 6).

    Task 1's pool lacks the texts of its own queries, which would only find themselves.
    """
    all_pictures = tuple(pictures(corpus.emoji))
    all_cards = tuple(cards(corpus, corpus.emoji))
    all_texts = tuple(texts(corpus, corpus.test_texts))
    sizes = corpus.sizes
    yield HeldOut(0, tuple(_names_to_pictures(corpus, sizes.test_picture)), all_pictures)
    yield _translations(corpus, sizes.test_translation)
    yield HeldOut(2, tuple(_names_to_cards(corpus, sizes.test_card)), all_cards)
    yield HeldOut(3, tuple(_pictures_to_names(corpus)), all_texts)
    yield HeldOut(4, tuple(_drawings_to_pictures(corpus)), all_pictures)
    yield HeldOut(6, tuple(_names_by_language(corpus, sizes.test_named)), all_texts)
    yield HeldOut(7, tuple(_tone_queries(corpus, 7, sizes.test_tone)), all_pictures)
    yield HeldOut(8, tuple(_tone_queries(corpus, 8, sizes.test_tone_card)), all_cards)


def union_pool(sets: Sequence[HeldOut]) -> list[CandidateRow]:
    """Every candidate of every local pool once, in the order of first appearance."""
    return list({row.id: row for one in sets for row in one.pool}.values())


def _sample(
    corpus: Corpus, options: Sequence[_Option], size: int, *, purpose: int
) -> list[_Option]:
    """At most `size` of the options, drawn by seed, in their own order."""
    chosen = generator(corpus.seed, purpose).permutation(len(options))[:size]
    return [options[index] for index in sorted(chosen)]


def _held_out_cells(corpus: Corpus, kind: str) -> list[tuple[Emoji, str]]:
    """The names (emoji, language) of one kind whose text training shows nowhere.

    Without that condition a name held out here might be another emoji's trained name.
    """
    cells: list[Cell] = (
        sorted(corpus.split.cells)
        if kind == CELL
        else [(n, language) for n in sorted(corpus.split.pictures) for language in LANGUAGES]
    )
    pairs = [(corpus.by_number[number], language) for number, language in cells]
    return [
        (one, language)
        for one, language in pairs
        if corpus.lexicon.text(one, language).number not in corpus.trained_carriers
    ]


def _held_out_texts(corpus: Corpus, kind: str) -> list[int]:
    """The distinct texts of the held-out cells of one kind."""
    return sorted(
        {
            corpus.lexicon.text(one, language).number
            for one, language in _held_out_cells(corpus, kind)
        }
    )


def _names_to_pictures(corpus: Corpus, size: int) -> Iterator[QueryRow]:
    for kind, purpose in ((CELL, 20), (TONE, 21)):
        options = _held_out_texts(corpus, kind)
        for number in _sample(corpus, options, size // 2, purpose=purpose):
            twins = corpus.twins(corpus.carriers[number], training=False)
            found = tuple(picture_id(twin) for twin in twins)
            yield QueryRow(0, corpus.texts[number].text, None, found, kind)


def _translations(corpus: Corpus, size: int) -> HeldOut:
    """One query an emoji at most, so that its text can leave the pool and the answers stay."""
    names = {one.number: corpus.text_numbers(one, training=False) for one in corpus.emoji}
    asked: dict[int, str] = {}
    for kind, purpose in ((CELL, 22), (TONE, 23)):
        by_emoji: dict[int, int] = {}
        cells = _held_out_cells(corpus, kind)
        for one, language in _sample(corpus, cells, len(cells), purpose=purpose):
            by_emoji.setdefault(one.number, corpus.lexicon.text(one, language).number)
        options = sorted(set(by_emoji.values()) - set(asked))
        asked.update(dict.fromkeys(_sample(corpus, options, size // 2, purpose=purpose), kind))
    pool = corpus.test_texts - set(asked)
    queries = []
    for number, kind in asked.items():
        others = dict.fromkeys(
            other for owner in corpus.carriers[number] for other in names[owner] if other in pool
        )
        if others:
            found = tuple(text_id(other) for other in others)
            queries.append(QueryRow(1, corpus.texts[number].text, None, found, kind))
    return HeldOut(1, tuple(queries), tuple(texts(corpus, pool)))


def _names_to_cards(corpus: Corpus, size: int) -> Iterator[QueryRow]:
    for kind, purpose in ((CELL, 24), (TONE, 25)):
        options = []
        for number in _held_out_texts(corpus, kind):
            owners = corpus.carriers[number]
            # A card that shows the query's own text could be found by reading alone.
            if all(corpus.card_text(owner).number != number for owner in owners):
                options.append((number, owners))
        for number, owners in _sample(corpus, options, size // 2, purpose=purpose):
            found = tuple(card_id(owner) for owner in owners)
            yield QueryRow(2, corpus.texts[number].text, None, found, kind)


def _pictures_to_names(corpus: Corpus) -> Iterator[QueryRow]:
    for number in sorted(corpus.split.pictures):
        one = corpus.by_number[number]
        numbers = dict.fromkeys(
            text
            for twin in corpus.twins([number], training=False)
            for text in corpus.text_numbers(corpus.by_number[twin], training=False)
            if text in corpus.test_texts
        )
        found = tuple(text_id(text) for text in numbers)
        yield QueryRow(3, None, picture_path(one), found, TONE)


def _drawings_to_pictures(corpus: Corpus) -> Iterator[QueryRow]:
    for number in sorted(corpus.split.drawings):
        found = tuple(picture_id(twin) for twin in corpus.twins([number], training=False))
        yield QueryRow(4, None, drawing_path(corpus.by_number[number]), found, DRAWING)


def _names_by_language(corpus: Corpus, size: int) -> Iterator[QueryRow]:
    for kind, purpose in ((CELL, 26), (TONE, 27)):
        options = _held_out_cells(corpus, kind)
        for one, language in _sample(corpus, options, size // 2, purpose=purpose):
            numbers = dict.fromkeys(
                corpus.lexicon.text(corpus.by_number[twin], language).number
                for twin in corpus.twins([one.number], training=False)
            )
            found = tuple(text_id(text) for text in numbers if text in corpus.test_texts)
            yield QueryRow(6, LANGUAGES[language], picture_path(one), found, kind)


def _tone_queries(corpus: Corpus, task: int, size: int) -> Iterator[QueryRow]:
    changes = list(tone_changes(corpus, held_out=True))
    for change in _sample(corpus, changes, size, purpose=28 + task):
        yield tone_query(corpus, change, task, TONE)
