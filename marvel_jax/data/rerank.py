"""A query and a candidate, or a few, become the one sequence that a reranker reads.

Parts are tokenised by themselves, at cuts that no tokenizer crosses, so a pair has exactly the
tokens of its prompt as one string, and its length is that of its parts and a constant.
"""

import dataclasses
import itertools
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Literal

from marvel_jax import files
from marvel_jax.data import images
from marvel_jax.data.chat import ChatTokenizer, format_text
from marvel_jax.data.images import ImageGeometry, PatchCache
from marvel_jax.data.items import Image, Item, Video
from marvel_jax.data.rerank_prompts import MOST_LISTED, PROMPTS, RerankPrompt
from marvel_jax.data.rerank_sequence import Branched, Part, Piece, Prompted, branch, join
from marvel_jax.errors import MarvelError

Place = Literal["alone", "inner", "last"]
"""Where a candidate stands: it is the only one, or in a list."""

_VERSION = 1  # part of the fingerprint: raise it when the same pair gives other arrays


@dataclass(frozen=True)
class PairProcessor:
    """Tokenizer, image geometry and prompt: all that decides what a reranker reads.

    `max_text_tokens` cuts each item's own text, the instruction counted to the query's; nothing of
    the prompt is ever cut. `whole_reply` has a loss cover the reply's frame too, as the released
    recipe does, and not the answer alone. `cache_bytes` keeps the patches of pictures seen before.

    Raises:
      MarvelError: an unknown prompt, a tokenizer that lacks a token or whose first tokens of the
        two answers are the same.
    """

    tokenizer: ChatTokenizer
    geometry: ImageGeometry = dataclasses.field(default_factory=ImageGeometry)
    prompt: str = "marvel"
    max_text_tokens: int = 256
    whole_reply: bool = False
    cache_bytes: int = 0
    _cache: PatchCache = dataclasses.field(init=False, repr=False, compare=False)

    def __post_init__(self) -> None:
        if self.prompt not in PROMPTS:
            raise MarvelError(f"prompt is {self.prompt!r}: choose one of {', '.join(PROMPTS)}.")
        if self.max_text_tokens < 1:
            raise MarvelError(f"max_text_tokens is {self.max_text_tokens}: give at least 1.")
        object.__setattr__(self, "_cache", PatchCache(self.cache_bytes))
        _ = self.answer_ids, self._image_ids

    @classmethod
    def from_folder(
        cls,
        folder: Path | str,
        *,
        min_pixels: int,
        max_pixels: int,
        prompt: str = "marvel",
        max_text_tokens: int = 256,
        cache_bytes: int = 0,
    ) -> "PairProcessor":
        """Builds it from a Hugging Face folder's tokenizer.json and preprocessor files."""
        geometry = dataclasses.replace(
            ImageGeometry.from_folder(folder), min_pixels=min_pixels, max_pixels=max_pixels
        )
        return cls(
            ChatTokenizer.from_folder(folder),
            geometry,
            prompt=prompt,
            max_text_tokens=max_text_tokens,
            cache_bytes=cache_bytes,
        )

    @property
    def words(self) -> RerankPrompt:
        """The prompt's fixed words."""
        return PROMPTS[self.prompt]

    @cached_property
    def fingerprint(self) -> str:
        """A hash of everything that decides what a pair turns into."""
        return files.hash_json(
            {
                "version": _VERSION,
                "tokenizer": self.tokenizer.fingerprint,
                "geometry": dataclasses.asdict(self.geometry),
                "prompt": dataclasses.asdict(self.words),
                "max_text_tokens": self.max_text_tokens,
                "whole_reply": self.whole_reply,
            }
        )

    @cached_property
    def answer_ids(self) -> tuple[int, int]:
        """The first tokens of "Yes" and "No" (or what the prompt asks for)."""
        first, second = (self.tokenizer.encode(answer)[0] for answer in self.words.answers)
        if first == second:
            raise MarvelError(
                f"The tokenizer begins {' and '.join(self.words.answers)} with the same token "
                f"{first}: a reranker's two answers cannot be told apart by their first token. Use "
                "another prompt or tokenizer."
            )
        return first, second

    @cached_property
    def number_ids(self) -> tuple[int, ...]:
        """The tokens of the numbers 1 to 5, by which a list-wise prompt names its candidates."""
        return tuple(self.tokenizer.encode(str(one + 1))[0] for one in range(MOST_LISTED))

    # --- parts ---------------------------------------------------------------------------------

    def query(self, item: Item, *, listed: bool = False) -> Part:
        """The part from behind "Query" to "Candidate" (or "Candidates", where they are listed).

        The instruction stands before the text.

        Raises:
          MarvelError: a picture cannot be read; the message names the item and the picture.
        """
        return self._part(item, self._query_pieces(item, listed=listed))

    def candidate(self, item: Item, *, place: Place = "alone") -> Part:
        """The part from behind "Candidate", or in a list from behind its number to the next one's.

        Raises:
          MarvelError: a picture cannot be read; the message names the item and the picture.
        """
        return self._part(item, self._candidate_pieces(item, place))

    def query_lengths(self, item: Item, *, listed: bool = False) -> tuple[int, int]:
        """(tokens, patches) of `query`; of pictures only headers are read."""
        return self._lengths(item, self._query_pieces(item, listed=listed))

    def candidate_lengths(self, item: Item, *, listed: bool = False) -> tuple[int, int]:
        """(tokens, patches) of `candidate`, in a list at whatever place it takes most."""
        places: tuple[Place, ...] = ("inner", "last") if listed else ("alone",)
        found = [self._lengths(item, self._candidate_pieces(item, place)) for place in places]
        return max(found)

    def frame_tokens(self, *, answer: bool | None = None) -> int:
        """Tokens of a pair that are neither query nor candidate, its reply among them if given."""
        reply = () if answer is None else self._reply(self.words.answers[0 if answer else 1])[0]
        return self.head_tokens + self.tail_tokens + len(reply)

    def list_frame_tokens(self, candidates: int, *, reply: bool) -> int:
        """Likewise of a list of so many candidates."""
        frame = len(self._head(listed=True)) + len(self._list_label) + len(self._tail)
        answer = self._list_reply(1)[0] if reply else self._before_number
        return frame + candidates + len(answer)

    # --- sequences -----------------------------------------------------------------------------

    def pair(self, query: Part, candidate: Part, *, answer: bool | None = None) -> Prompted:
        """A query and a candidate; with the reply where the answer is given, as in training."""
        body = (self._head(listed=False), query, candidate, self._tail)
        if answer is None:
            return self._prompted(body)
        reply, covered = self._reply(self.words.answers[0 if answer else 1])
        return self._prompted(body, reply=reply, covered=covered)

    def listed(
        self, query: Part, candidates: Sequence[Part], *, answer: int | None = None
    ) -> Prompted:
        """A query and 2 to 5 candidates, of which the answer, if given, is the number from 1.

        Without it the sequence ends before the number, so that one forward pass tells it. The
        parts are made for their places: all but the last "inner".

        Raises:
          MarvelError: fewer or more candidates.
        """
        if not 2 <= len(candidates) <= MOST_LISTED:
            raise MarvelError(
                f"A list-wise prompt takes 2 to {MOST_LISTED} candidates, found {len(candidates)}."
            )
        body: list[Piece] = [self._head(listed=True), query, self._list_label]
        for number, candidate in zip(self.number_ids, candidates, strict=False):
            body += [(number,), candidate]
        body.append(self._tail)
        before = self._before_number
        if answer is None:
            return self._prompted([*body, before])
        reply, covered = self._list_reply(answer)
        return self._prompted(body, reply=reply, covered=covered, lead=len(before))

    def _prompted(
        self,
        body: Sequence[Piece],
        *,
        reply: tuple[int, ...] = (),
        covered: tuple[bool, ...] = (),
        lead: int = 0,
    ) -> Prompted:
        """A prompt and its reply, whose answer comes behind `lead` tokens of it."""
        supervised = self._turn + covered if covered else ()
        item = join([*body, reply], supervised=supervised, values=self.geometry.patch_values)
        return Prompted(item, len(item.tokens) - len(reply) + lead - 1)

    def branched(self, query: Part, candidates: Sequence[Part]) -> Branched:
        """Pairs of one query as one sequence, in which what they have in common stands once."""
        pairs = [self.pair(query, candidate) for candidate in candidates]
        prefix = self.head_tokens + len(query.tokens)
        return branch(pairs, prefix=prefix, merge_area=self.geometry.merge_area)

    @property
    def head_tokens(self) -> int:
        """Tokens before a pair's query; those of query and head are the same in all its pairs."""
        return len(self._head(listed=False))

    @property
    def tail_tokens(self) -> int:
        """Tokens behind a pair's candidate, up to its answer."""
        return len(self._tail)

    @cached_property
    def most_covered(self) -> int:
        """The most tokens of one reply that a loss covers."""
        replies = [self._reply(answer) for answer in self.words.answers]
        replies.append(self._list_reply(1))
        return sum(self._turn) + max(sum(covered) for _, covered in replies)

    # --- pieces of the prompt ------------------------------------------------------------------

    def _head(self, *, listed: bool) -> tuple[int, ...]:
        return self._heads[listed]

    @cached_property
    def _heads(self) -> tuple[tuple[int, ...], tuple[int, ...]]:
        words, special, encode = self.words, self.tokenizer.special, self.tokenizer.encode
        start, end = special("<|im_start|>"), special("<|im_end|>")

        def head(system: str, opening: str) -> tuple[int, ...]:
            turn = (start, *encode(f"system\n{system}"), end, *encode("\n"))
            return (*turn, start, *encode(f"user\n{opening}Query"))

        return (
            head(words.system, words.opening),
            head(words.list_system, words.list_opening),
        )

    @cached_property
    def _tail(self) -> tuple[int, ...]:
        special, encode = self.tokenizer.special, self.tokenizer.encode
        assistant = (special("<|im_start|>"), *encode("assistant\n"))
        return (special("<|im_end|>"), *encode("\n"), *assistant)

    @cached_property
    def _list_label(self) -> tuple[int, ...]:
        return self.tokenizer.encode(f":{self.words.lead}(")

    @cached_property
    def _before_number(self) -> tuple[int, ...]:
        return self.tokenizer.encode("Ans: (")

    @cached_property
    def _image_ids(self) -> tuple[int, int, int]:
        special = self.tokenizer.special
        return special("<|vision_start|>"), special("<|image_pad|>"), special("<|vision_end|>")

    def _reply(self, answer: str) -> tuple[tuple[int, ...], tuple[bool, ...]]:
        """Tokens behind the prompt, and which of them a loss covers."""
        ids = self.tokenizer.encode(answer)
        if not self.whole_reply:
            return ids[:1], (True,)
        ids = (*ids, self.tokenizer.special("<|im_end|>"), *self.tokenizer.encode("\n"))
        return ids, (True,) * len(ids)

    def _list_reply(self, number: int) -> tuple[tuple[int, ...], tuple[bool, ...]]:
        before, answer = self._before_number, self.number_ids[number - 1]
        if not self.whole_reply:
            return (*before, answer), (False,) * len(before) + (True,)
        end = (self.tokenizer.special("<|im_end|>"), *self.tokenizer.encode("\n"))
        ids = (*before, answer, *self.tokenizer.encode(")"), *end)
        return ids, (True,) * len(ids)

    @cached_property
    def _turn(self) -> tuple[bool, ...]:
        """Whether a loss covers the tokens that open the assistant's turn.

        The released recipe's labels begin there (spec/umarvel.md 5.3).
        """
        return (self.whole_reply,) * (1 + len(self.tokenizer.encode("assistant\n")))

    def _query_pieces(self, item: Item, *, listed: bool) -> list[str | Image]:
        words, label = self.words, "Candidates" if listed else "Candidate"
        texts = self._texts(item, format_text(item.instruction))
        return [f":{words.lead}", *texts, f"{words.close}{label}"]

    def _candidate_pieces(self, item: Item, place: Place) -> list[str | Image]:
        texts = self._texts(item, "")
        if place == "alone":
            return [f":{self.words.lead}", *texts]
        return [") ", *texts, f"{self.words.close}(" if place == "inner" else ""]

    def _texts(self, item: Item, instruction: str) -> list[str | Image]:
        """The item's parts in order, texts formatted and cut, the instruction before the first."""
        pieces: list[str | Image] = []
        room = self.max_text_tokens
        # An item of pictures alone still has its instruction to say.
        waiting = instruction if all(isinstance(part, Image) for part in item.parts) else ""
        for part in (*item.parts, waiting):
            if isinstance(part, Video):
                raise MarvelError(
                    f"Item {item.id or '(no id)'} holds a video, and a reranker reads none: give "
                    "its frames as images."
                )
            if isinstance(part, Image):
                pieces.append(part)
                continue
            text = format_text(part if waiting else f"{instruction} {part}")
            kept = self.tokenizer.prefix(text, room)
            room -= len(self.tokenizer.encode(kept))
            pieces.append(kept)
            instruction = ""
        return pieces

    # --- from pieces to arrays -----------------------------------------------------------------

    def _part(self, item: Item, pieces: Sequence[str | Image]) -> Part:
        cut = [self._cache.patches(image, self.geometry, item_id=item.id) for image in item.images]
        merge = self.geometry.merge_size
        grids = tuple((rows // merge, columns // merge) for _, (rows, columns) in cut)
        tokens, spans = self._tokens(pieces, [height * width for height, width in grids])
        return Part(
            tokens=tokens,
            spans=spans,
            grids=grids,
            patches=tuple(patches for patches, _ in cut),
            patch_hw=tuple(
                images.patch_coordinates(rows, columns, merge) for _, (rows, columns) in cut
            ),
        )

    def _lengths(self, item: Item, pieces: Sequence[str | Image]) -> tuple[int, int]:
        patches = []
        for image in item.images:
            rows, columns = images.grid(image, self.geometry, item_id=item.id)
            patches.append(rows * columns)
        tokens, _ = self._tokens(pieces, [count // self.geometry.merge_area for count in patches])
        return len(tokens), sum(patches)

    def _tokens(
        self, pieces: Sequence[str | Image], image_tokens: Sequence[int]
    ) -> tuple[tuple[int, ...], tuple[tuple[int, int], ...]]:
        """Texts between two pictures are encoded together, like the one string that they are."""
        start, pad, end = self._image_ids
        counts = iter(image_tokens)
        tokens: list[int] = []
        spans = []
        for is_image, group in itertools.groupby(pieces, lambda one: isinstance(one, Image)):
            if not is_image:
                tokens += self.tokenizer.encode("".join(str(text) for text in group))
                continue
            for count in itertools.islice(counts, len(list(group))):
                spans.append((len(tokens) + 1, len(tokens) + 1 + count))
                tokens += [start, *(pad,) * count, end]
        return tuple(tokens), tuple(spans)
