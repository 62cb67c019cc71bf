"""How an item becomes a vector, kept beside the weights so that inference cannot differ."""

import dataclasses
from collections.abc import Callable
from pathlib import Path
from typing import Any, Literal, Self, get_args

from marvel_jax import preprocessor
from marvel_jax.errors import MarvelError
from marvel_jax.files import read_json_object
from marvel_jax.video_geometry import VideoGeometry

SETTINGS_FILE = "marvel.json"
RERANKER = "reranker"  # "model" in the file of a model that scores pairs and does not embed

Attention = Literal["bidirectional", "causal"]
Pooling = Literal["mean", "last"]
Positions = Literal["mrope", "sequential"]
Template = Literal["marvel", "umarvel_released", "gme"]
Instruction = Literal["masked", "pooled", "none"]
Prompt = Literal["none", "one_word"]


@dataclasses.dataclass(frozen=True)
class EmbeddingSettings:
    """Every setting that changes a vector, besides the weights.

    `min_pixels` and `max_pixels` bound an image's area after resizing; `max_text_tokens` cuts the
    item's own text only. `instruction` is read but not pooled ("masked"), pooled like the rest, or
    left out ("none"); `prompt` "one_word" asks behind every item to summarize it in one word: both
    are for ablations. `video` says which frames of a video are read.
    """

    attention: Attention = "bidirectional"
    pooling: Pooling = "mean"
    positions: Positions = "mrope"
    template: Template = "marvel"
    min_pixels: int = 4 * 28 * 28
    max_pixels: int = 300 * 28 * 28
    max_text_tokens: int = 480
    instruction: Instruction = "masked"
    prompt: Prompt = "none"
    video: VideoGeometry = dataclasses.field(default_factory=VideoGeometry)

    def __post_init__(self) -> None:
        choices = (
            ("attention", Attention),
            ("pooling", Pooling),
            ("positions", Positions),
            ("template", Template),
            ("instruction", Instruction),
            ("prompt", Prompt),
        )
        for name, kind in choices:
            value = getattr(self, name)
            if value not in get_args(kind):
                raise MarvelError(f"{name}={value!r}: choose one of {', '.join(get_args(kind))}.")
        for name in ("min_pixels", "max_pixels", "max_text_tokens"):
            value = getattr(self, name)
            if type(value) is not int:
                raise MarvelError(f"{name}={value!r}: expected a whole number.")
        if not 0 < self.min_pixels <= self.max_pixels:
            raise MarvelError(
                f"min_pixels={self.min_pixels} must be positive and at most "
                f"max_pixels={self.max_pixels}."
            )
        if self.max_text_tokens < 1:
            raise MarvelError(
                f"max_text_tokens={self.max_text_tokens} must be positive, for example 480."
            )
        if self.template == "gme" and self.prompt != "none":
            raise MarvelError(
                f"prompt={self.prompt!r} with template='gme', which has none: leave it 'none'."
            )

    def to_dict(self) -> dict[str, Any]:
        """The content of `marvel.json`."""
        content = dataclasses.asdict(self)
        if self.video == VideoGeometry():  # as in files from before there was video
            del content["video"]
        return content

    @classmethod
    def read(cls, folder: Path, **given: Any) -> Self:
        """What a model folder's `marvel.json` says, `given` values (not None) before it.

        A folder without the file, one that others wrote, has the defaults; its pixel limits then
        are those of its image processor.

        Raises:
          MarvelError: the file is broken or names an unknown field.
        """
        path = folder / SETTINGS_FILE
        if path.is_file():
            found = read_json_object(path)
            if found.get("model") == RERANKER:
                raise MarvelError(
                    f"{folder} is a reranker, not an embedder ({path.name} says so): score pairs "
                    "with retrieval.rerank.Reranker, or name a model that embeds."
                )
        else:
            pixels = preprocessor.read(folder)
            found = {
                "min_pixels": pixels.get("min_pixels", preprocessor.MIN_PIXELS),
                "max_pixels": pixels.get("max_pixels", preprocessor.MAX_PIXELS),
            }
        known = [field.name for field in dataclasses.fields(cls)]
        unknown = sorted(set(found) - set(known))
        if unknown:
            raise MarvelError(
                f"{path}: unknown field {unknown[0]!r}; this version knows {', '.join(known)}."
            )
        if "video" in found:
            found["video"] = VideoGeometry.from_dict(found["video"], name=str(path))
        found |= {name: value for name, value in given.items() if value is not None}
        return cls(**found)


def check_tokenizer(
    special: Callable[[str], int], *, image_token_id: int, vocab_size: int, name: str
) -> None:
    """Holds a tokenizer, by the id it gives a special token, against a model's config.

    Raises:
      MarvelError: they do not belong together; unnoticed, wrong rows of the table would be read.
    """
    found = special("<|image_pad|>")
    if found != image_token_id or found >= vocab_size:
        raise MarvelError(
            f"{name}: the tokenizer's <|image_pad|> is {found}, but config.json says "
            f"image_token_id={image_token_id} of vocab_size={vocab_size}. The tokenizer is another "
            "model's: put this model's own beside its weights."
        )
