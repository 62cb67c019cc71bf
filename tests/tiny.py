"""A tiny tokenizer, architecture and source, made on the spot, for tests that need a whole run."""

import functools
import io
from collections.abc import Sequence
from dataclasses import dataclass, field

import numpy as np
import PIL.Image
import tokenizers
from tokenizers import models, pre_tokenizers, trainers

from marvel_jax.data.batch import RowShape
from marvel_jax.data.chat import ChatTokenizer
from marvel_jax.data.images import ImageGeometry
from marvel_jax.data.items import TASKS, Candidate, Image, Item, Query
from marvel_jax.data.processor import Processor
from marvel_jax.errors import MarvelError
from marvel_jax.models.config import Qwen2VLConfig, TextConfig, VisionConfig

SPECIAL = (
    "<|endoftext|>",
    "<|im_start|>",
    "<|im_end|>",
    "<|vision_start|>",
    "<|vision_end|>",
    "<|vision_pad|>",
    "<|image_pad|>",
    "<|video_pad|>",
)
WORDS = ("red", "green", "blue", "dark", "light", "big", "small", "cat", "dog", "fish", "bird")
ROW = RowShape(tokens=64, patches=64, items=4)


@functools.cache
def tokenizer() -> tokenizers.Tokenizer:
    """A byte-level BPE of 300 tokens with Qwen2-VL's special ones."""
    built = tokenizers.Tokenizer(models.BPE())
    built.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    trainer = trainers.BpeTrainer(
        vocab_size=300,
        special_tokens=[],
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
        show_progress=False,
    )
    built.train_from_iterator([" ".join(WORDS)] * 4, trainer)
    built.add_special_tokens(list(SPECIAL))
    return built


def architecture(**text: object) -> Qwen2VLConfig:
    """Two layers a tower, grouped queries, 7-pixel patches."""
    chat = ChatTokenizer.from_tokenizer(tokenizer())
    options = {
        "vocab_size": chat.size,
        "hidden_size": 32,
        "intermediate_size": 48,
        "num_hidden_layers": 2,
        "num_attention_heads": 4,
        "num_key_value_heads": 2,
        "mrope_section": (2, 1, 1),
        "initializer_range": 0.1,
    }
    return Qwen2VLConfig(
        vision=VisionConfig(
            depth=2, embed_dim=16, num_heads=2, patch_size=7, initializer_range=0.1
        ),
        text=TextConfig(**(options | text)),
        tie_word_embeddings=True,
        image_token_id=chat.special("<|image_pad|>"),
        video_token_id=chat.special("<|video_pad|>"),
        vision_start_token_id=chat.special("<|vision_start|>"),
        vision_end_token_id=chat.special("<|vision_end|>"),
    )


def processor(**options: object) -> Processor:
    """Our template on pictures of at most 28 x 28 pixels."""
    geometry = ImageGeometry(patch_size=7, min_pixels=14 * 14, max_pixels=28 * 28)
    return Processor(ChatTokenizer.from_tokenizer(tokenizer()), geometry, **options)


def picture(seed: int, *, size: tuple[int, int] = (28, 28)) -> bytes:
    """A random PNG, height and width in pixels."""
    pixels = np.random.default_rng(seed).integers(0, 256, (*size, 3), np.uint8)
    stream = io.BytesIO()
    PIL.Image.fromarray(pixels).save(stream, "png")
    return stream.getvalue()


def hard_negatives(number: int) -> tuple[int, ...]:
    """How far behind a query's own answer its hard negatives stand: three, one or none."""
    return {0: (), 1: (2,)}.get(number % 4, (1, 2, 3))


@dataclass
class TinySource:
    """Words that name random pictures (t->i), and pictures that ask for words (i->t).

    Most queries name three hard negatives, some one or none. With `positives` = 2 every other
    query has a second answer.
    """

    size: int = 48
    positives: int = 1
    fingerprint: str = "tiny"
    queries: Sequence[Query] = field(init=False)
    candidates: Sequence[Candidate] = field(init=False)

    def __post_init__(self) -> None:
        if self.positives > 1:
            self.fingerprint += f" {self.positives}"
        rng = np.random.default_rng(0)
        names = [" ".join(rng.choice(WORDS, 3)) + f" {number}" for number in range(self.size)]
        images = [Image(picture(number), name=f"picture {number}") for number in range(self.size)]
        self.candidates = [
            Candidate(f"90:{number}", Item.of(image=image), "image")
            for number, image in enumerate(images)
        ] + [
            Candidate(f"90:{self.size + number}", Item.of(text=name), "text")
            for number, name in enumerate(names)
        ]
        self.queries = [
            self._query(number, Item.of(text=name), task=0) for number, name in enumerate(names)
        ] + [
            self._query(self.size + number, Item.of(image=image), task=3)
            for number, image in enumerate(images)
        ]
        self.instructions = {
            (90, "text", "image"): ("find the picture", "the picture"),
            (90, "image", "text"): ("name it",),
        }

    def _query(self, number: int, item: Item, *, task: int) -> Query:
        positives = (number, *self._beside(number, (5,) if number % 2 else ()))
        negatives = self._beside(number, hard_negatives(number))
        return Query(
            f"90:{number}",
            item,
            TASKS[task],
            tuple(f"90:{one}" for one in positives[: self.positives]),
            tuple(f"90:{one}" for one in negatives),
            dataset=90,
        )

    def _beside(self, number: int, distances: Sequence[int]) -> tuple[int, ...]:
        """The candidates so far behind a number, of the same modality."""
        start = number // self.size * self.size
        return tuple(start + (number + distance) % self.size for distance in distances)

    def candidate_index(self, id: str) -> int:
        number = int(id.split(":")[1])
        if number >= len(self.candidates):
            raise MarvelError(f"{id} is unknown")
        return number
