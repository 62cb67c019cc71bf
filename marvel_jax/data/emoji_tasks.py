"""The emoji corpus as retrieval: candidates, and the queries of all eight M-BEIR tasks.

Rules that hold for every task: pictures with equal pixels are relevant to each other's queries; a
text is relevant to every emoji that carries it in any language; training sees only what
`Split` leaves to it.
"""

from collections import defaultdict
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import NamedTuple

from marvel_jax.data.emoji_gallery import Gallery, drawing_path, picture_path
from marvel_jax.data.emoji_lexicon import LANGUAGES, Emoji, Lexicon, Text
from marvel_jax.data.emoji_split import Split, generator

DATASET = 10
DATASET_NAME = "Emoji"
# Candidate numbers: pictures from 0, cards from 10,000, texts from 20,000.
_CARDS, _TEXTS = 10_000, 20_000

INSTRUCTIONS: dict[tuple[str, str], tuple[str, ...]] = {
    ("text", "image"): (
        "Find the emoji picture.",
        "Show the emoji with this name.",
        "Which picture is this?",
        "Find a picture of this.",
    ),
    ("text", "text"): (
        "Find this name in another language.",
        "Find the same name translated.",
        "How do others call this?",
        "Find another name for this.",
    ),
    ("text", "image,text"): (
        "Find the card for this name.",
        "Find its picture and name.",
        "Which card shows this?",
        "Find the card of this.",
    ),
    ("image", "text"): (
        "Find a name for this.",
        "What is this called?",
        "Name this emoji picture.",
        "Find the name of this.",
    ),
    ("image", "image"): (
        "Find the same emoji in colour.",
        "Find this drawing in colour.",
        "Which picture shows this drawing?",
        "Find the picture of this drawing.",
    ),
    ("image,text", "text"): (
        "Find its name in this language.",
        "Name this in the given language.",
        "What is its name in this?",
        "Say this in the given language.",
    ),
    ("image,text", "image"): (
        "Find the same with this skin.",
        "Change the skin tone to this.",
        "Find this picture so changed.",
        "Show it with the given tone.",
    ),
    ("image,text", "image,text"): (
        "Find the card so changed.",
        "Find its card with this skin.",
        "Which card has this tone?",
        "Show its card with this tone.",
    ),
}
"""Four short paraphrases for each (query modality, candidate modality)."""


@dataclass(frozen=True)
class Sizes:
    """How many queries are drawn where all would be too many."""

    train_tone: int = 40_000
    train_tone_card: int = 10_000
    test_picture: int = 1_500
    test_translation: int = 600
    test_card: int = 400
    test_named: int = 600
    test_tone: int = 1_000
    test_tone_card: int = 400


DEFAULT_SIZES = Sizes()


class QueryRow(NamedTuple):
    """A query without its id; `kind` says of a test query what was held out."""

    task: int
    text: str | None
    image: str | None
    positives: tuple[str, ...]
    kind: str = "train"


class CandidateRow(NamedTuple):
    """A candidate: its id, what it shows, and the first emoji it belongs to."""

    id: str
    text: str | None
    image: str | None
    sequence: str


@dataclass(frozen=True)
class Corpus:
    """Everything that is drawn, split and named; the tasks below are views of it."""

    lexicon: Lexicon
    emoji: tuple[Emoji, ...]
    gallery: Gallery
    split: Split
    seed: int
    sizes: Sizes = DEFAULT_SIZES

    @cached_property
    def by_number(self) -> dict[int, Emoji]:
        return {one.number: one for one in self.emoji}

    @cached_property
    def trained(self) -> tuple[Emoji, ...]:
        """The emoji that training may show."""
        return tuple(one for one in self.emoji if one.number not in self.split.pictures)

    @cached_property
    def carriers(self) -> dict[int, list[int]]:
        """The emoji that carry a text in any language, by the text's number."""
        return self._carriers(self.emoji, training=False)

    @cached_property
    def trained_carriers(self) -> dict[int, list[int]]:
        """The same, by names that training may show."""
        return self._carriers(self.trained, training=True)

    @cached_property
    def texts(self) -> dict[int, Text]:
        """Every text of a drawn emoji by its number."""
        return {
            text.number: text
            for one in self.emoji
            for text in (self.lexicon.text(one, language) for language in LANGUAGES)
        }

    @cached_property
    def single_tones(self) -> dict[str, list[Emoji]]:
        """The single-tone variants of each base and, where there is one, its untoned emoji."""
        families: dict[str, list[Emoji]] = defaultdict(list)
        for one in self.emoji:
            if len(one.tones) <= 1:
                families[one.base].append(one)
        return {
            base: family
            for base, family in families.items()
            if len(family) > 1 and any(one.tones for one in family)
        }

    @cached_property
    def test_texts(self) -> frozenset[int]:
        """The text pool of the tests: every held-out name and every English name."""
        return frozenset(
            self.lexicon.text(one, language).number
            for one in self.emoji
            for language in LANGUAGES
            if language == "en" or not self.split.trains_cell(one.number, language)
        )

    def text_numbers(self, one: Emoji, *, training: bool) -> list[int]:
        """The distinct texts of an emoji, in the languages' order."""
        return list(
            dict.fromkeys(
                self.lexicon.text(one, language).number
                for language in LANGUAGES
                if not training or self.split.trains_cell(one.number, language)
            )
        )

    def card_text(self, number: int) -> Text:
        return self.lexicon.text(self.by_number[number], self.split.cards[number])

    def twins(self, numbers: Iterable[int], *, training: bool) -> list[int]:
        """These emoji and all with equal pixels, in order; in training without the held-out."""
        held = self.split.pictures if training else ()
        found = {twin for number in numbers for twin in self.gallery.twins[number]}
        return sorted(number for number in found if number not in held)

    def _carriers(self, emoji: Sequence[Emoji], *, training: bool) -> dict[int, list[int]]:
        carriers: dict[int, list[int]] = defaultdict(list)
        for one in emoji:
            for number in self.text_numbers(one, training=training):
                carriers[number].append(one.number)
        return dict(carriers)


def picture_id(number: int) -> str:
    return f"{DATASET}:{number}"


def card_id(number: int) -> str:
    return f"{DATASET}:{_CARDS + number}"


def text_id(number: int) -> str:
    return f"{DATASET}:{_TEXTS + number}"


def pictures(emoji: Sequence[Emoji]) -> Iterator[CandidateRow]:
    """The picture candidates of some emoji."""
    for one in emoji:
        yield CandidateRow(picture_id(one.number), None, picture_path(one), one.sequence)


def cards(corpus: Corpus, emoji: Sequence[Emoji]) -> Iterator[CandidateRow]:
    """The card of each emoji: its picture and its name in one language."""
    for one in emoji:
        text = corpus.card_text(one.number).text
        yield CandidateRow(card_id(one.number), text, picture_path(one), one.sequence)


def texts(corpus: Corpus, numbers: Iterable[int]) -> Iterator[CandidateRow]:
    """The text candidates with these numbers, in order."""
    for number in sorted(numbers):
        sequence = corpus.by_number[corpus.carriers[number][0]].sequence
        yield CandidateRow(text_id(number), corpus.texts[number].text, None, sequence)


def training_candidates(corpus: Corpus) -> Iterator[CandidateRow]:
    """Everything that training may show: pictures, cards, texts."""
    yield from pictures(corpus.trained)
    yield from cards(corpus, corpus.trained)
    yield from texts(corpus, corpus.trained_carriers)


def training_queries(corpus: Corpus) -> Iterator[QueryRow]:
    """Every query that the split leaves to training, task by task."""
    carriers = corpus.trained_carriers
    for number, owners in carriers.items():
        text = corpus.texts[number].text
        found = tuple(picture_id(twin) for twin in corpus.twins(owners, training=True))
        yield QueryRow(0, text, None, found)
    names = {one.number: corpus.text_numbers(one, training=True) for one in corpus.trained}
    for number, owners in carriers.items():
        others = dict.fromkeys(
            other for owner in owners for other in names[owner] if other != number
        )
        if others:
            found = tuple(text_id(other) for other in others)
            yield QueryRow(1, corpus.texts[number].text, None, found)
    for number, owners in carriers.items():
        found = tuple(
            card_id(owner) for owner in owners if corpus.card_text(owner).number != number
        )
        if found:
            yield QueryRow(2, corpus.texts[number].text, None, found)
    for one in corpus.trained:
        twins = corpus.twins([one.number], training=True)
        numbers = dict.fromkeys(number for twin in twins for number in names[twin])
        yield QueryRow(3, None, picture_path(one), tuple(text_id(n) for n in numbers))
    for one in corpus.trained:
        if one.number in corpus.gallery.drawings and one.number not in corpus.split.drawings:
            found = tuple(picture_id(n) for n in corpus.twins([one.number], training=True))
            yield QueryRow(4, None, drawing_path(one), found)
    for one in corpus.trained:
        for language, own_name in LANGUAGES.items():
            if not corpus.split.trains_cell(one.number, language):
                continue
            found = tuple(
                text_id(corpus.lexicon.text(corpus.by_number[twin], language).number)
                for twin in corpus.twins([one.number], training=True)
                if corpus.split.trains_cell(twin, language)
            )
            yield QueryRow(6, own_name, picture_path(one), tuple(dict.fromkeys(found)))
    changes = list(tone_changes(corpus, held_out=False))
    for task, size, purpose in (
        (7, corpus.sizes.train_tone, 7),
        (8, corpus.sizes.train_tone_card, 8),
    ):
        chosen = generator(corpus.seed, purpose).permutation(len(changes))[:size]
        yield from (tone_query(corpus, changes[i], task, "train") for i in sorted(chosen))


class ToneChange(NamedTuple):
    """Task 7 and 8: the picture of `source`, the tone's name in `language`, then `target`."""

    source: Emoji
    target: Emoji
    language: str


def tone_changes(corpus: Corpus, *, held_out: bool) -> Iterator[ToneChange]:
    """Every visible change of tone from what is trained on to what is (or to what is held out)."""
    for family in corpus.single_tones.values():
        for target in family:
            if not target.tones or (target.number in corpus.split.pictures) != held_out:
                continue
            for source in family:
                if source.number in corpus.split.pictures:
                    continue
                if source.number in corpus.gallery.twins[target.number]:
                    continue  # the same picture, or one with the same pixels
                for language in LANGUAGES:
                    yield ToneChange(source, target, language)


def tone_query(corpus: Corpus, change: ToneChange, task: int, kind: str) -> QueryRow:
    """The query of task 7 (to the picture) or 8 (to the card) for a change of tone."""
    phrase = corpus.lexicon.tone_phrases[change.target.tones[0], change.language]
    target = change.target.number
    if task == 7:
        twins = corpus.twins([target], training=kind == "train")
        found = tuple(picture_id(twin) for twin in twins)
    else:
        found = (card_id(target),)
    return QueryRow(task, phrase, picture_path(change.source), found, kind)
