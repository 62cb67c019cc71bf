"""From an item to chat tokens, with the instruction's span known by construction."""

import functools
import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import tokenizers

from marvel_jax import files
from marvel_jax.data.items import Image, Item, Video, Visual
from marvel_jax.errors import MarvelError

TEMPLATES = ("marvel", "umarvel_released", "gme")
MARKERS = ("<emb>", "<instruction_start>", "<instruction_end>")
"""Tokens that the released U-MARVEL adds behind the tokenizer's own, in this order."""

INSTRUCTIONS = ("masked", "pooled", "none")
PROMPTS = ("none", "one_word")

_SYSTEM = "You are a helpful assistant."
_SHORT = 128  # characters up to which an encoded text is remembered


class ChatTokenizer:
    """A `tokenizer.json` whose special tokens only the template can write.

    Text is encoded by a copy without any added token, so a text that spells `<|im_end|>` stays
    text. Ids are those of the original.
    """

    def __init__(self, definition: dict[str, Any], *, name: str = "tokenizer.json") -> None:
        self._name = name
        added = {entry["content"]: entry["id"] for entry in definition.get("added_tokens", ())}
        plain = {**definition, "added_tokens": [], "post_processor": None}
        try:
            self._text = tokenizers.Tokenizer.from_str(json.dumps(plain, ensure_ascii=False))
        except Exception as error:  # the library raises a bare Exception
            raise MarvelError(f"{name} is not a tokenizer definition: {error}.") from error
        self._text.no_truncation()
        self._text.no_padding()
        ids = set(self._text.get_vocab(with_added_tokens=False).values()) | set(added.values())
        # Ids may have gaps: what a table needs is a row for the largest.
        self.size = max(ids, default=-1) + 1
        self._added = added
        for marker in MARKERS:
            self._added.setdefault(marker, max(ids, default=-1) + 1)
            ids.add(self._added[marker])
        self.fingerprint = files.hash_json(definition)
        # Short texts come again and again: the template's, instructions, names in several tasks.
        self._remembered = functools.lru_cache(maxsize=1 << 16)(self._encode)

    @classmethod
    def from_folder(cls, folder: Path | str) -> "ChatTokenizer":
        """Reads `tokenizer.json` of a Hugging Face folder."""
        path = Path(folder) / "tokenizer.json"
        if not path.is_file():
            raise MarvelError(
                f"{path} does not exist: a fast tokenizer's tokenizer.json is needed. transformers "
                "writes one with AutoTokenizer.from_pretrained(...).save_pretrained(...)."
            )
        return cls(files.read_json(path), name=str(path))

    @classmethod
    def from_tokenizer(cls, tokenizer: tokenizers.Tokenizer) -> "ChatTokenizer":
        """Wraps a tokenizer of the `tokenizers` library."""
        return cls(json.loads(tokenizer.to_str()))

    def encode(self, text: str) -> tuple[int, ...]:
        """Token ids of plain text; nothing in it can become a special token."""
        return self._remembered(text) if len(text) <= _SHORT else self._encode(text)

    def _encode(self, text: str) -> tuple[int, ...]:
        return tuple(self._text.encode(text, add_special_tokens=False).ids)

    def prefix(self, text: str, tokens: int) -> str:
        """The text as far as `tokens` tokens go, cut between two characters."""
        found = self._text.encode(text, add_special_tokens=False)
        if len(found.ids) <= tokens:
            return text
        text = text[: found.offsets[tokens - 1][1]] if tokens > 0 else ""
        # A character may take several tokens, of which the last was not to be had.
        while text and len(self.encode(text)) > tokens:
            text = text[:-1]
        return text

    def special(self, token: str) -> int:
        """The id of a special token; MarvelError if the tokenizer has none of that name."""
        try:
            return self._added[token]
        except KeyError:
            raise MarvelError(
                f"{self._name} has no token {token!r}: it is not a Qwen2-VL tokenizer."
            ) from None


class ChatTokens(NamedTuple):
    """One item as tokens: ids [L], which of them are pooled [L], visual tokens as (start, end)."""

    tokens: np.ndarray
    pooled: np.ndarray
    image_spans: tuple[tuple[int, int], ...]


def format_text(text: str | None) -> str:
    """The M-BEIR rule for texts and instructions (UniIR).

    Carriage returns and outer blanks and double quotes go, the first letter becomes a capital,
    and a full stop ends what ends in none of `.?!`.
    """
    text = _trim(text or "")
    return _end(text[:1].upper() + text[1:]) if text else ""


def _trim(text: str) -> str:
    return text.replace("\r", "").strip().strip('"')


def _end(text: str) -> str:
    return text if text[-1] in ".?!" else f"{text}."


def render(
    item: Item,
    *,
    tokenizer: ChatTokenizer,
    template: str,
    image_tokens: Sequence[int],
    max_text_tokens: int = 480,
    generation_prompt: bool = False,
    instruction: str = "masked",
    prompt: str = "none",
) -> ChatTokens:
    """Writes an item in a chat template.

    `image_tokens` counts the merged tokens of each image or video. Only the item's own text is cut
    at `max_text_tokens`; the instruction, images, videos, prompt and the template are always whole.
    For `instruction` and `prompt` see `settings.EmbeddingSettings`.

    Raises:
      MarvelError: an unknown template or option, a generation prompt or a prompt for a template
        without one, or a tokenizer that lacks one of the template's tokens.
    """
    if template not in _WRITERS:
        raise MarvelError(f"Unknown template {template!r}: choose one of {', '.join(TEMPLATES)}.")
    if generation_prompt and template != "umarvel_released":
        raise MarvelError(f"Template {template!r} has no trailing generation prompt: leave it off.")
    if len(image_tokens) != len(item.visuals):
        raise MarvelError(
            f"Item {item.id or '(no id)'} has {len(item.visuals)} images and videos, but "
            f"{len(image_tokens)} token counts were given."
        )
    if instruction not in INSTRUCTIONS:
        raise MarvelError(
            f"instruction is {instruction!r}: choose one of {', '.join(INSTRUCTIONS)}."
        )
    if prompt not in PROMPTS:
        raise MarvelError(f"prompt is {prompt!r}: choose one of {', '.join(PROMPTS)}.")
    if prompt != "none" and template == "gme":
        raise MarvelError(f"Template 'gme' has no prompt: leave prompt={prompt!r} 'none'.")
    if instruction == "none":
        item = item.with_instruction(None)
    chat = _Chat(
        tokenizer,
        image_tokens,
        max_text_tokens,
        mask=instruction == "masked",
        prompt=_one_word_prompt(item) if prompt == "one_word" else "",
    )
    _WRITERS[template](chat, item)
    if generation_prompt:
        chat.special("<|im_start|>")
        chat.template("assistant\n")
    return chat.finish()


def _one_word_prompt(item: Item) -> str:
    """The released training code's compression prompt (spec/umarvel.md 2.1)."""
    shown = item.modality.replace("text", "sentence").replace(",", " and ")
    return f"\nSummarize above {shown} in one word: "


class _Chat:
    """Tokens so far. Template text waits, so that it is encoded together with a text behind it.

    Joined and separate encodings differ only where the text starts with a line break; joined is
    what transformers gives.
    """

    def __init__(
        self,
        tokenizer: ChatTokenizer,
        image_tokens: Sequence[int],
        budget: int,
        *,
        mask: bool,
        prompt: str,
    ) -> None:
        self._tokenizer = tokenizer
        self._mask = mask
        self._prompt = prompt
        self._image_tokens = iter(image_tokens)
        self._budget = budget
        self._tokens: list[int] = []
        self._unpooled: list[tuple[int, int]] = []
        self._images: list[tuple[int, int]] = []
        self._waiting = ""

    def special(self, token: str) -> None:
        self._flush()
        self._tokens.append(self._tokenizer.special(token))

    def template(self, text: str) -> None:
        self._waiting += text

    def text(self, text: str) -> None:
        if not text:
            return
        written = len(self._tokenizer.encode(self._waiting))
        if self._budget <= 0:
            return
        ids = self._tokenizer.encode(self._waiting + text)
        whole = len(ids) - written <= self._budget
        if whole and self._prompt:
            # It may follow right behind: then they are encoded together, like one string.
            self._waiting += text
            self._budget -= len(ids) - written
            return
        ids = ids[: written + self._budget]
        self._tokens.extend(ids)
        self._budget -= len(ids) - written
        self._waiting = ""

    def prompt(self) -> None:
        """The compression prompt, if there is one, behind the item."""
        self.template(self._prompt)

    def instruction(self, text: str) -> None:
        self._flush()
        start = len(self._tokens)
        self._tokens.extend(self._tokenizer.encode(text))
        self._unpooled.append((start, len(self._tokens)))

    def marked_instruction(self, text: str) -> None:
        self._flush()
        start = len(self._tokens)
        self._tokens.append(self._tokenizer.special("<instruction_start>"))
        self._tokens.extend(self._tokenizer.encode(text))
        self._tokens.append(self._tokenizer.special("<instruction_end>"))
        self._unpooled.append((start, len(self._tokens)))

    def visual(self, part: Visual) -> None:
        self.special("<|vision_start|>")
        start = len(self._tokens)
        count = next(self._image_tokens)
        pad = "<|image_pad|>" if isinstance(part, Image) else "<|video_pad|>"
        self._tokens.extend([self._tokenizer.special(pad)] * count)
        self._images.append((start, start + count))
        self.special("<|vision_end|>")

    def finish(self) -> ChatTokens:
        self._flush()
        pooled = np.ones(len(self._tokens), bool)
        for start, end in self._unpooled if self._mask else ():
            pooled[start:end] = False
        return ChatTokens(np.asarray(self._tokens, np.int32), pooled, tuple(self._images))

    def _flush(self) -> None:
        if self._waiting:
            self._tokens.extend(self._tokenizer.encode(self._waiting))
            self._waiting = ""


def _write_marvel(chat: _Chat, item: Item) -> None:
    """Ours: one user turn and nothing else, the same in training and inference."""
    chat.special("<|im_start|>")
    chat.template("user\n")
    if instruction := format_text(item.instruction):
        chat.instruction(f"{instruction}\n")
    for part in item.parts:
        if isinstance(part, Image | Video):
            chat.visual(part)
        else:
            chat.text(format_text(part))
    chat.prompt()
    chat.special("<|im_end|>")


def _write_umarvel_released(chat: _Chat, item: Item) -> None:
    """The template of the released weights (spec/umarvel.md 1.2, 1.7, 2.1, 2.2)."""
    _system_turn(chat)
    chat.template(_SYSTEM)
    _user_turn(chat)
    instruction = format_text(item.instruction)
    for part in item.parts:
        if isinstance(part, Image | Video):
            chat.visual(part)
        elif instruction:
            chat.marked_instruction(instruction)
            chat.text(_behind_marker(part))
            instruction = ""
        else:
            chat.text(format_text(part))
    if instruction:
        chat.marked_instruction(instruction)
        chat.template(_behind_marker(""))
    chat.prompt()
    _assistant_turn(chat)
    chat.special("<emb>")
    chat.template(".")
    chat.special("<|im_end|>")
    chat.template("\n")


def _behind_marker(text: str) -> str:
    """The format rule where the string already begins with a marker: only its end can change."""
    marker = ">"
    return _end(_trim(f"{marker} {text}"))[len(marker) :]


def _write_gme(chat: _Chat, item: Item) -> None:
    """GME: the instruction is the system prompt; texts raw; the last token is the embedding."""
    instruction = (item.instruction or "").strip()
    _system_turn(chat)
    if instruction:
        chat.instruction(instruction)
    else:
        chat.template(_SYSTEM)
    _user_turn(chat)
    for part in item.parts:
        if isinstance(part, Image | Video):
            chat.visual(part)
        else:
            chat.text(part)
    _assistant_turn(chat)
    chat.special("<|endoftext|>")


def _system_turn(chat: _Chat) -> None:
    chat.special("<|im_start|>")
    chat.template("system\n")


def _user_turn(chat: _Chat) -> None:
    chat.special("<|im_end|>")
    chat.template("\n")
    chat.special("<|im_start|>")
    chat.template("user\n")


def _assistant_turn(chat: _Chat) -> None:
    chat.special("<|im_end|>")
    chat.template("\n")
    chat.special("<|im_start|>")
    chat.template("assistant\n")


_WRITERS = {
    "marvel": _write_marvel,
    "umarvel_released": _write_umarvel_released,
    "gme": _write_gme,
}
