"""The shape of a Qwen2-VL model, read from and written to Hugging Face's `config.json`."""

import dataclasses
import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any, Self

from marvel_jax import preprocessor
from marvel_jax.errors import MarvelError
from marvel_jax.files import read_json_object


@dataclasses.dataclass(frozen=True)
class VisionConfig:
    """The vision tower. Field names are those of `vision_config` in `config.json`."""

    depth: int
    embed_dim: int
    num_heads: int
    mlp_ratio: int = 4
    patch_size: int = 14
    spatial_merge_size: int = 2
    temporal_patch_size: int = 2
    in_channels: int = 3
    rope_theta: float = 10_000.0
    initializer_range: float = 0.02
    image_mean: tuple[float, ...] = preprocessor.CLIP_MEAN
    image_std: tuple[float, ...] = preprocessor.CLIP_STD

    def __post_init__(self) -> None:
        _positive(self, "vision_config", "depth", "embed_dim", "num_heads", "mlp_ratio")
        _positive(self, "vision_config", "patch_size", "spatial_merge_size", "temporal_patch_size")
        _positive(self, "vision_config", "in_channels")
        _divides("vision_config.num_heads", self.num_heads, "embed_dim", self.embed_dim)
        if self.head_dim % 4:
            raise MarvelError(
                f"vision_config.embed_dim / num_heads is {self.head_dim}: the 2-D rotary needs a "
                f"multiple of 4. num_heads = {max(1, self.embed_dim // 16)} would give 16."
            )
        for name in ("image_mean", "image_std"):
            if len(getattr(self, name)) != self.in_channels:
                raise MarvelError(
                    f"{name} has {len(getattr(self, name))} values, but vision_config.in_channels "
                    f"is {self.in_channels}: give one value a channel."
                )
        if min(self.image_std) <= 0:
            raise MarvelError(f"image_std must be positive, found {self.image_std}.")

    @property
    def head_dim(self) -> int:
        return self.embed_dim // self.num_heads

    @property
    def mlp_size(self) -> int:
        return self.embed_dim * self.mlp_ratio

    @property
    def merged_size(self) -> int:
        """Width of the neighbouring patches that make one token, side by side."""
        return self.embed_dim * self.spatial_merge_size**2

    @property
    def still_values(self) -> int:
        """Numbers in one patch of a still image."""
        return self.in_channels * self.patch_size**2

    @property
    def patch_values(self) -> int:
        """Numbers in one patch of `temporal_patch_size` frames."""
        return self.still_values * self.temporal_patch_size


@dataclasses.dataclass(frozen=True)
class TextConfig:
    """The language model. Field names are those of `text_config` in `config.json`."""

    vocab_size: int
    hidden_size: int
    intermediate_size: int
    num_hidden_layers: int
    num_attention_heads: int
    num_key_value_heads: int
    mrope_section: tuple[int, int, int]
    rms_norm_eps: float = 1e-6
    rope_theta: float = 1_000_000.0
    max_position_embeddings: int = 32_768
    initializer_range: float = 0.02
    is_causal: bool = True

    def __post_init__(self) -> None:
        _positive(self, "text_config", "vocab_size", "hidden_size", "intermediate_size")
        _positive(self, "text_config", "num_hidden_layers", "num_attention_heads")
        _positive(self, "text_config", "num_key_value_heads")
        heads, groups = self.num_attention_heads, self.num_key_value_heads
        _divides("text_config.num_attention_heads", heads, "hidden_size", self.hidden_size)
        _divides("text_config.num_key_value_heads", groups, "num_attention_heads", heads)
        if len(self.mrope_section) != 3 or 2 * sum(self.mrope_section) != self.head_dim:
            height = 3 * self.head_dim // 16
            time = self.head_dim // 2 - 2 * height
            raise MarvelError(
                f"text_config.mrope_section is {list(self.mrope_section)}: it needs three numbers "
                f"that sum to half the head size {self.head_dim}, for example "
                f"{[time, height, height]}."
            )

    @property
    def head_dim(self) -> int:
        return self.hidden_size // self.num_attention_heads

    @property
    def query_size(self) -> int:
        return self.num_attention_heads * self.head_dim

    @property
    def kv_size(self) -> int:
        return self.num_key_value_heads * self.head_dim


@dataclasses.dataclass(frozen=True)
class Qwen2VLConfig:
    """One Qwen2-VL model: two towers, whether the head is tied, and the special tokens' ids."""

    vision: VisionConfig
    text: TextConfig
    tie_word_embeddings: bool = False
    image_token_id: int = 151_655
    video_token_id: int = 151_656
    vision_start_token_id: int = 151_652
    vision_end_token_id: int = 151_653
    bos_token_id: int | None = 151_643
    eos_token_id: int | None = 151_645

    @classmethod
    def from_folder(cls, folder: Path | str) -> Self:
        """Reads `config.json`, and the pixel mean and deviation of the image processor.

        Raises:
          MarvelError: a file is missing or broken, or describes a model that this is not.
        """
        folder = Path(folder)
        path = folder / "config.json"
        pixels = preprocessor.read(folder)
        try:
            return cls.from_dict(read_json_object(path), pixels=pixels)
        except MarvelError as error:
            if str(error).startswith(str(path)):
                raise
            raise MarvelError(f"{path}: {error}") from error

    @classmethod
    def from_dict(
        cls, values: Mapping[str, Any], *, pixels: Mapping[str, Any] | None = None
    ) -> Self:
        """Reads the flat layout of the hub's published files or the nested one of transformers 5.

        Raises:
          MarvelError: a field is missing, or asks for something that is not implemented.
        """
        _expect(values, "model_type", ("qwen2_vl",))
        flat = "text_config" not in values
        fields = values if flat else values["text_config"]
        text = _text_config(fields, "" if flat else "text_config.")
        tower = values.get("vision_config")
        if not isinstance(tower, Mapping):
            raise MarvelError("field vision_config is missing: this is not a Qwen2-VL config.")
        vision = _vision_config(tower, text, pixels or {})
        # transformers 4 wrote it in text_config, and then at the top with the default.
        tied = values.get("tie_word_embeddings") or fields.get("tie_word_embeddings")
        tokens = {field: values.get(field, fields.get(field)) for field in _TOKENS}
        return cls(
            vision=vision,
            text=text,
            tie_word_embeddings=bool(tied),
            **{field: value for field, value in tokens.items() if isinstance(value, int)},
        )

    def to_dict(self) -> dict[str, Any]:
        """The nested layout that transformers 5 reads and writes, JSON-able."""
        text = dataclasses.asdict(self.text)
        rope = {"rope_type": "default", "rope_theta": text.pop("rope_theta")}
        rope["mrope_section"] = list(text.pop("mrope_section"))
        text |= {"model_type": "qwen2_vl_text", "hidden_act": "silu", "rope_parameters": rope}
        text |= {"use_sliding_window": False, "attention_dropout": 0.0}
        text |= {"bos_token_id": self.bos_token_id, "eos_token_id": self.eos_token_id}
        vision = dataclasses.asdict(self.vision)
        vision.pop("image_mean")
        vision.pop("image_std")
        rope = {"rope_type": "axial", "rope_theta": vision.pop("rope_theta")}
        vision |= {"model_type": "qwen2_vl_vision", "hidden_act": "quick_gelu"}
        vision |= {"hidden_size": self.text.hidden_size, "rope_parameters": rope}
        return {
            "architectures": ["Qwen2VLForConditionalGeneration"],
            "model_type": "qwen2_vl",
            "tie_word_embeddings": self.tie_word_embeddings,
            **{field: getattr(self, field) for field in _TOKENS},
            "text_config": text,
            "vision_config": vision,
        }


_TOKENS = tuple(f.name for f in dataclasses.fields(Qwen2VLConfig) if f.name.endswith("_token_id"))


def _text_config(values: Mapping[str, Any], where: str) -> TextConfig:
    _expect(values, "hidden_act", ("silu",), where)
    _expect(values, "use_sliding_window", (False, None), where)
    rope = values.get("rope_parameters") or values.get("rope_scaling") or {}
    kind = rope.get("rope_type", rope.get("type", "default"))
    if kind not in ("default", "mrope"):
        raise MarvelError(
            f"field {where}rope_parameters asks for rotary type {kind!r}: only Qwen2-VL's own "
            "'default' (also written 'mrope') is implemented."
        )
    if "mrope_section" not in rope:
        raise MarvelError(
            f"field {where}rope_scaling.mrope_section (or rope_parameters.mrope_section) is "
            "missing: expected three numbers, for example [16, 24, 24]."
        )
    if "rms_norm_eps" not in values:  # Guessing it is how parity is lost: 1e-5 for 1e-6 is 4e-3.
        raise MarvelError(f"field {where}rms_norm_eps is missing: Qwen2-VL's own is 1e-06.")
    read = _read(values, TextConfig, where, skip=("mrope_section", "rope_theta"))
    theta = rope.get("rope_theta", values.get("rope_theta", 1_000_000.0))
    section = tuple(rope["mrope_section"])
    return TextConfig(mrope_section=section, rope_theta=float(theta), **read)


def _vision_config(
    values: Mapping[str, Any], text: TextConfig, pixels: Mapping[str, Any]
) -> VisionConfig:
    _expect(values, "hidden_act", ("quick_gelu",), "vision_config.")
    width = values.get("hidden_size", text.hidden_size)
    if width != text.hidden_size:
        raise MarvelError(
            f"field vision_config.hidden_size is {width}, but the language model's hidden_size is "
            f"{text.hidden_size}: the tower's output must be as wide as a token."
        )
    # The hub's first files call the number of channels in_chans.
    values = {"in_channels": values.get("in_chans", 3), **values}
    read = _read(values, VisionConfig, "vision_config.", skip=("image_mean", "image_std"))
    rope = values.get("rope_parameters") or {}
    read["rope_theta"] = float(rope.get("rope_theta", 10_000.0))
    for field in ("image_mean", "image_std"):
        if field in pixels:
            read[field] = tuple(float(value) for value in pixels[field])
    return VisionConfig(**read)


def _read(
    values: Mapping[str, Any], kind: type, where: str, *, skip: tuple[str, ...]
) -> dict[str, Any]:
    """The fields of `kind` found in `values`; those without a default must be there."""
    found, missing = {}, []
    for field in dataclasses.fields(kind):
        if field.name in skip:
            continue
        if values.get(field.name) is not None:
            found[field.name] = values[field.name]
        elif field.default is dataclasses.MISSING:
            missing.append(where + field.name)
    if missing:
        raise MarvelError(f"missing field(s): {', '.join(missing)}.")
    return found


def _expect(
    values: Mapping[str, Any], field: str, allowed: tuple[Any, ...], where: str = ""
) -> None:
    found = values.get(field, allowed[0])
    if found not in allowed:
        raise MarvelError(
            f"field {where}{field} is {json.dumps(found)}: only {json.dumps(allowed[0])} is "
            "implemented (Qwen2-VL; Qwen2.5-VL and Qwen3-VL are other architectures)."
        )


def _positive(config: Any, where: str, *fields: str) -> None:
    for field in fields:
        value = getattr(config, field)
        if not isinstance(value, int) or isinstance(value, bool) or value < 1:
            raise MarvelError(f"{where}.{field} must be a positive integer, found {value!r}.")


def _divides(name: str, divisor: int, of: str, value: int) -> None:
    if value % divisor:
        works = max(n for n in range(1, divisor) if value % n == 0)
        raise MarvelError(
            f"{name} is {divisor}, which does not divide {of} {value}: {works} would work."
        )
