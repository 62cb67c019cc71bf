"""What the emoji corpus is about: every emoji, its names in 14 languages, its skin tones."""

from collections.abc import Mapping
from dataclasses import dataclass
from functools import cached_property

import emoji

from marvel_jax.errors import MarvelError

LANGUAGES: dict[str, str] = {
    "en": "English",
    "es": "Español",
    "ja": "日本語",
    "ko": "한국어",
    "pt": "Português",
    "it": "Italiano",
    "fr": "Français",
    "de": "Deutsch",
    "fa": "فارسی",
    "id": "Bahasa Indonesia",
    "zh": "中文",
    "ru": "Русский",
    "tr": "Türkçe",
    "ar": "العربية",
}
"""The language codes of the `emoji` package, each with the language's name for itself."""

TONES: tuple[str, ...] = ("\U0001f3fb", "\U0001f3fc", "\U0001f3fd", "\U0001f3fe", "\U0001f3ff")
"""Unicode's five skin-tone modifiers, light to dark."""

_FULLY_QUALIFIED = 2
_VARIATION = "\ufe0f"


@dataclass(frozen=True)
class Emoji:
    """One fully qualified emoji.

    Attributes:
      number: its place in code-point order; ids of the corpus come from it.
      sequence: its code points.
      base: the sequence without skin tones and variation selectors, shared by a family of tones.
      tones: the modifiers it carries, as numbers 0 to 4, in order; () for none.
      names: its plain name in each language.
    """

    number: int
    sequence: str
    base: str
    tones: tuple[int, ...]
    names: Mapping[str, str]

    @property
    def code(self) -> str:
        """The code points in hexadecimal, joined by hyphens: a portable file name."""
        return "-".join(f"{ord(character):x}" for character in self.sequence)


@dataclass(frozen=True)
class Text:
    """One name as a text candidate; `number` is stable whatever the font can draw."""

    number: int
    text: str


@dataclass(frozen=True)
class Lexicon:
    """Every fully qualified emoji in code-point order, and the tones' own names by language."""

    emoji: tuple[Emoji, ...]
    tone_phrases: Mapping[tuple[int, str], str]

    @cached_property
    def texts(self) -> Mapping[str, Text]:
        """The distinct names by `text_key`, the first spelling met (English first) standing."""
        texts: dict[str, Text] = {}
        for one in self.emoji:
            for language in LANGUAGES:
                name = one.names[language]
                texts.setdefault(text_key(name), Text(len(texts), name))
        return texts

    def text(self, one: Emoji, language: str) -> Text:
        """The text candidate that is this emoji's name in this language."""
        return self.texts[text_key(one.names[language])]


def text_key(name: str) -> str:
    """Names with the same key are one text: chat templates capitalise, so case cannot tell."""
    return name.casefold()


def load_lexicon() -> Lexicon:
    """Reads the `emoji` package.

    Raises:
      MarvelError: the installed `emoji` package lacks a language or a name.
    """
    emoji.config.load_language(list(LANGUAGES))
    sequences = sorted(
        sequence
        for sequence, data in emoji.EMOJI_DATA.items()
        if data["status"] == _FULLY_QUALIFIED
    )
    return Lexicon(
        emoji=tuple(
            Emoji(
                number=number,
                sequence=sequence,
                base="".join(c for c in sequence if c not in TONES and c != _VARIATION),
                tones=tuple(TONES.index(c) for c in sequence if c in TONES),
                names={language: _name(sequence, language) for language in LANGUAGES},
            )
            for number, sequence in enumerate(sequences)
        ),
        tone_phrases={
            (tone, language): _name(modifier, language)
            for tone, modifier in enumerate(TONES)
            for language in LANGUAGES
        },
    )


def _name(sequence: str, language: str) -> str:
    """`:thumbs_up:` as `thumbs up`. Nothing else is touched: scripts and directions differ."""
    raw = emoji.EMOJI_DATA[sequence].get(language, "")
    name = raw.strip(":").replace("_", " ").strip()
    if not name:
        code = "-".join(f"{ord(character):x}" for character in sequence)
        raise MarvelError(
            f"The emoji package {emoji.__version__} has no name for {code} in {language!r}: "
            f"install the version that the constraints file pins."
        )
    return name
