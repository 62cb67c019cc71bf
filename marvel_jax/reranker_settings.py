"""How a reranker reads a pair, kept beside its weights so that inference cannot differ."""

import dataclasses
from pathlib import Path
from typing import Any, Self

from marvel_jax import preprocessor
from marvel_jax.errors import MarvelError
from marvel_jax.files import read_json_object
from marvel_jax.settings import RERANKER, SETTINGS_FILE


@dataclasses.dataclass(frozen=True)
class RerankerSettings:
    """Every setting that changes a reranker's logits, besides the weights.

    `prompt` is a name of `data.rerank_prompts.PROMPTS`. `min_pixels` and `max_pixels` bound a
    picture's area after resizing; `max_text_tokens` cuts each item's own text. Attention is causal
    and positions are M-RoPE, as the model was pretrained.
    """

    prompt: str = "marvel"
    min_pixels: int = 4 * 28 * 28
    max_pixels: int = 300 * 28 * 28
    max_text_tokens: int = 256

    def __post_init__(self) -> None:
        if not 0 < self.min_pixels <= self.max_pixels:
            raise MarvelError(
                f"min_pixels={self.min_pixels} must be positive and at most "
                f"max_pixels={self.max_pixels}."
            )
        if self.max_text_tokens < 1:
            raise MarvelError(f"max_text_tokens={self.max_text_tokens} must be positive, e.g. 256.")

    @property
    def attention(self) -> str:
        """As `models.hub.save` takes it."""
        return "causal"

    def to_dict(self) -> dict[str, Any]:
        """The content of `marvel.json`."""
        return {"model": RERANKER, **dataclasses.asdict(self)}

    @classmethod
    def read(cls, folder: Path, **given: Any) -> Self:
        """What a model folder's `marvel.json` says, `given` values (not None) before it.

        A folder without the file, one that others wrote, has the defaults, and no more pixels than
        its image processor allows.

        Raises:
          MarvelError: the folder is an embedder's, or the file is broken or names an unknown field.
        """
        path = folder / SETTINGS_FILE
        if path.is_file():
            found = dict(read_json_object(path))
            if found.pop("model", None) != RERANKER:
                raise MarvelError(
                    f"{folder} is an embedder, not a reranker ({path.name} has no "
                    f'"model": "{RERANKER}"): load it with Embedder, or name a reranker or an '
                    "instruct model."
                )
        else:
            pixels = preprocessor.read(folder)
            most = min(pixels.get("max_pixels", cls.max_pixels), cls.max_pixels)
            found = {
                "min_pixels": min(pixels.get("min_pixels", cls.min_pixels), most),
                "max_pixels": most,
            }
        known = [field.name for field in dataclasses.fields(cls)]
        unknown = sorted(set(found) - set(known))
        if unknown:
            raise MarvelError(
                f"{path}: unknown field {unknown[0]!r}; this version knows {', '.join(known)}."
            )
        found |= {name: value for name, value in given.items() if value is not None}
        return cls(**found)


def is_reranker(folder: Path) -> bool:
    """Whether a model folder's `marvel.json` says that it is a reranker."""
    path = folder / SETTINGS_FILE
    return path.is_file() and read_json_object(path).get("model") == RERANKER
