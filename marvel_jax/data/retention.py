"""Texts for the next-token loss: a JSON lines file, a few of its lines at every step.

A line is a conversation, {"messages": [{"role": "user", "content": "..."}, {"role": "assistant",
"content": "..."}]}, of which the assistant's replies are to be predicted, or {"text": "..."}, of
which everything is.
"""

from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from marvel_jax.data.batch import Rows, RowShape, build_rows, item_key
from marvel_jax.data.chat import ChatTokenizer
from marvel_jax.data.json_lines import JsonLines
from marvel_jax.data.keyed_lines import Offenders
from marvel_jax.data.plan_order import random_stream
from marvel_jax.data.processor import EncodedItem, mrope_positions
from marvel_jax.errors import MarvelError
from marvel_jax.files import hash_files

_ROLES = ("system", "user", "assistant")
_SYSTEM = "You are a helpful assistant."
_DRAWS = 21  # what the random stream is for


class TextRows(NamedTuple):
    """Rows of one text each; those behind the last text are empty."""

    rows: Rows  # `rows.pooled` marks the tokens that are to be predicted
    item_key: Any  # [R, 1, 2] uint32


@dataclass(frozen=True)
class TextStream:
    """`per_step` different lines of the file at each step, from (seed, step) alone.

    What is longer than `max_tokens` is cut at its end. A shard's rows are a multiple of `chunk`,
    or fewer than `chunk`.

    Raises:
      MarvelError: the file is missing or has too few lines, or lines are of no known form: all are
        counted, the first few named.
    """

    path: Path
    tokenizer: ChatTokenizer
    per_step: int
    max_tokens: int
    seed: int
    chunk: int | None = None
    _lines: JsonLines = field(init=False, repr=False, compare=False)

    def __post_init__(self) -> None:
        lines = JsonLines(self.path)
        object.__setattr__(self, "_lines", lines)
        offenders = Offenders()
        for number, line in enumerate(lines):
            if (fault := _fault(line)) is not None:
                offenders.add(fault, f"line {lines.line_number(number)}")
        offenders.refuse(
            str(self.path),
            advice='Write {"text": ...} or {"messages": [{"role", "content"}, ...]}.',
        )
        if len(lines) < self.per_step:
            raise MarvelError(
                f"{self.path} has {len(lines)} texts, but a step takes {self.per_step}: lower "
                "retention.texts."
            )

    @property
    def fingerprint(self) -> str:
        """A hash of the file."""
        return hash_files(self.path)

    def require_shards(self, num_shards: int) -> None:
        """Whether the texts of a step can be dealt to so many shards.

        Raises:
          MarvelError: they do not divide among them.
        """
        each, rest = divmod(self.per_step, num_shards)
        if rest:
            raise MarvelError(
                f"retention.texts={self.per_step} does not divide among {num_shards} data shards: "
                f"use {(each + 1) * num_shards}."
            )

    def rows(self, step: int, shards: range, *, num_shards: int) -> TextRows:
        """The rows of some shards; the texts of a step are dealt to the shards in order.

        Raises:
          MarvelError: `per_step` does not divide among the shards.
        """
        self.require_shards(num_shards)
        each = self.per_step // num_shards
        stream = random_stream(self.seed, _DRAWS, step)
        drawn = stream.choice(len(self._lines), self.per_step, replace=False)
        size = text_rows(each, chunk=self.chunk)
        shape = RowShape(tokens=self.max_tokens, patches=0, items=1)
        parts, keys = [], np.zeros((len(shards), size, 1, 2), np.uint32)
        for place, shard in enumerate(shards):
            members = drawn[shard * each : (shard + 1) * each].tolist()
            encoded = [self.encode(member) for member in members]
            placed = [[number] for number in range(each)]
            parts.append(build_rows(encoded, placed, shape, num_rows=size)[0])
            for row, member in enumerate(members):
                keys[place, row, 0] = item_key("text", str(member))
        rows = Rows(*map(np.concatenate, zip(*parts, strict=True)))
        return TextRows(rows, keys.reshape(-1, 1, 2))

    def encode(self, index: int) -> EncodedItem:
        """One text; `pooled` marks the tokens that are to be predicted."""
        tokens, supervised = _render(self._lines[index], self.tokenizer)
        length = min(len(tokens), self.max_tokens)
        return EncodedItem(
            tokens=np.array(tokens[:length], np.int32),
            positions=mrope_positions(length, [], []),
            pooled=np.array(supervised[:length], bool),
            patches=np.zeros((0, 0), np.uint8),
            patch_hw=np.zeros((0, 2), np.int32),
            patch_image=np.zeros(0, np.int32),
            vision_index=np.full(length, -1, np.int32),
        )


def text_rows(texts: int, *, chunk: int | None) -> int:
    """The rows that so many texts take: a multiple of `chunk`, or fewer than `chunk`."""
    return texts if chunk is None or texts <= chunk else -(-texts // chunk) * chunk


def _render(line: Mapping[str, Any], tokenizer: ChatTokenizer) -> tuple[list[int], list[bool]]:
    """Token ids, and which of them are to be predicted."""
    if "text" in line:
        ids = [*tokenizer.encode(line["text"]), tokenizer.special("<|endoftext|>")]
        return ids, [True] * len(ids)
    messages = line["messages"]
    if messages[0]["role"] != "system":
        messages = [{"role": "system", "content": _SYSTEM}, *messages]
    tokens: list[int] = []
    supervised: list[bool] = []
    start, end = tokenizer.special("<|im_start|>"), tokenizer.special("<|im_end|>")
    for message in messages:
        head = [start, *tokenizer.encode(f"{message['role']}\n")]
        body = [*tokenizer.encode(message["content"]), end]
        line_break = tokenizer.encode("\n")
        tokens += [*head, *body, *line_break]
        answer = message["role"] == "assistant"
        supervised += [False] * len(head) + [answer] * len(body) + [False] * len(line_break)
    return tokens, supervised


def _fault(line: Mapping[str, Any]) -> str | None:
    """What is wrong with a line."""
    if ("text" in line) == ("messages" in line):
        return "lines with not exactly one of text and messages"
    if "text" in line:
        text = line["text"]
        return None if isinstance(text, str) and text.strip() else "lines whose text is empty"
    messages = line["messages"]
    if not isinstance(messages, list) or not all(isinstance(one, Mapping) for one in messages):
        return "lines whose messages are no list of objects"
    for one in messages:
        if one.get("role") not in _ROLES or not isinstance(one.get("content"), str):
            return f"lines with a message without a role of {', '.join(_ROLES)} or without text"
    if not any(one["role"] == "assistant" for one in messages):
        return "lines without a message of the assistant"
    return None
