"""Small tokenizers, pictures and sources for the tests of data/."""

import functools
import io
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field

import numpy as np
import PIL.Image
import tokenizers
from tokenizers import decoders, models, normalizers, pre_tokenizers, trainers

from marvel_jax import files
from marvel_jax.data.chat import ChatTokenizer
from marvel_jax.data.images import ImageGeometry
from marvel_jax.data.items import TASKS, Candidate, Image, Item, Query
from marvel_jax.data.processor import Processor
from marvel_jax.errors import MarvelError

SPECIALS = (
    "<|endoftext|>",
    "<|im_start|>",
    "<|im_end|>",
    "<|object_ref_start|>",
    "<|object_ref_end|>",
    "<|box_start|>",
    "<|box_end|>",
    "<|quad_start|>",
    "<|quad_end|>",
    "<|vision_start|>",
    "<|vision_end|>",
    "<|vision_pad|>",
    "<|image_pad|>",
    "<|video_pad|>",
)
QWEN2_WORDS = (
    r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}| ?[^\s\p{L}\p{N}]+[\r\n]*"
    r"|\s*[\r\n]+|\s+(?!\S)|\s+"
)
SMALL = ImageGeometry(patch_size=4, merge_size=2, min_pixels=64, max_pixels=1024)


@functools.cache
def raw_tokenizer() -> tokenizers.Tokenizer:
    """A byte-level BPE shaped like Qwen2-VL's, trained on a few sentences."""
    tokenizer = tokenizers.Tokenizer(models.BPE())
    tokenizer.normalizer = normalizers.NFC()
    tokenizer.pre_tokenizer = pre_tokenizers.Sequence(
        [
            pre_tokenizers.Split(tokenizers.Regex(QWEN2_WORDS), behavior="isolated"),
            pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False),
        ]
    )
    tokenizer.decoder = decoders.ByteLevel()
    corpus = [
        "Find the picture that shows the given name.",
        "Find an image caption describing the following everyday image.",
        "You are a helpful assistant. system user assistant",
        "the red apple, a green pear; smiling face with open mouth and dark skin tone",
        "im_start im_end user <|im_end|>\n\n. ? !",
    ]
    tokenizer.train_from_iterator(
        corpus,
        trainers.BpeTrainer(
            vocab_size=400,
            show_progress=False,
            initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
        ),
    )
    tokenizer.add_special_tokens(list(SPECIALS))
    return tokenizer


@functools.cache
def chat_tokenizer() -> ChatTokenizer:
    return ChatTokenizer.from_tokenizer(raw_tokenizer())


def processor(**changes: object) -> Processor:
    return Processor(chat_tokenizer(), **{"geometry": SMALL, **changes})  # type: ignore[arg-type]


def picture(height: int, width: int, *, seed: int = 0) -> PIL.Image.Image:
    """Noise over a gradient: every pixel matters to a resize."""
    noise = np.random.default_rng(seed).integers(0, 200, (height, width, 3))
    slope = np.linspace(0, 55, width, dtype=np.int64)[None, :, None]
    return PIL.Image.fromarray((noise + slope).astype(np.uint8))


def png(height: int, width: int, *, seed: int = 0) -> bytes:
    buffer = io.BytesIO()
    picture(height, width, seed=seed).save(buffer, "PNG")
    return buffer.getvalue()


@dataclass
class ListSource:
    """A retrieval source held in memory."""

    queries: Sequence[Query]
    candidates: Sequence[Candidate]
    instructions: Mapping[tuple[int, str, str], tuple[str, ...]] = field(default_factory=dict)

    @property
    def fingerprint(self) -> str:
        return files.hash_bytes(repr((self.queries, self.candidates, self.instructions)).encode())

    def candidate_index(self, id: str) -> int:
        for number, candidate in enumerate(self.candidates):
            if candidate.id == id:
                return number
        raise MarvelError(f"no candidate {id}")


def source(*, texts: int = 60, images: int = 40, seed: int = 0) -> ListSource:
    """Text queries for pictures (task 0), and picture queries for texts (task 3).

    Text i names picture i modulo the number of pictures; a picture's names are its positives.
    """
    rng = np.random.default_rng(seed)
    names = [
        "name " + " ".join(["apple"] * int(rng.integers(0, 12))) + str(number)
        for number in range(texts)
    ]
    shown = [
        Image(png(*map(int, rng.integers(8, 48, 2)), seed=number), name=f"p{number}.png")
        for number in range(images)
    ]
    asked = [
        Query(f"10:{i}", Item.of(text=name), TASKS[0], (f"10:i{i % images}",), dataset=10)
        for i, name in enumerate(names)
    ]
    asked += [
        Query(
            f"10:{texts + i}",
            Item.of(image=image),
            TASKS[3],
            tuple(f"10:t{j}" for j in range(i, texts, images)),
            dataset=10,
        )
        for i, image in enumerate(shown)
        if i < texts
    ]
    pool = [
        Candidate(f"10:i{i}", Item.of(image=image), "image") for i, image in enumerate(shown)
    ] + [Candidate(f"10:t{i}", Item.of(text=name), "text") for i, name in enumerate(names)]
    prompts = {
        (10, "text", "image"): ("find the picture.", "which image shows the given name?"),
        (10, "image", "text"): ("name it.",),
    }
    return ListSource(asked, pool, prompts)
