"""What a Hugging Face folder says of pixels, in any of the files and spellings in use."""

from pathlib import Path
from typing import Any

from marvel_jax.errors import MarvelError
from marvel_jax.files import read_json_object

_FILE = "preprocessor_config.json"
# transformers 5 writes this one, with the image processor inside.
_NESTED_FILE = "processor_config.json"

# The normalisation that OpenAI's CLIP was trained with; Qwen2-VL's processor uses it too.
CLIP_MEAN = (0.48145466, 0.4578275, 0.40821073)
CLIP_STD = (0.26862954, 0.26130258, 0.27577711)

# Where a file gives no limits: what transformers' own processor takes.
MIN_PIXELS = 56 * 56
MAX_PIXELS = 1280 * 28 * 28

# What is done here whatever the file says, so a file that says otherwise is refused.
_FIXED = {
    "do_resize": True,
    "resample": 3,  # bicubic
    "do_rescale": True,
    "do_normalize": True,
}


def find(folder: Path | str) -> Path | None:
    """The file that describes the image processor, or None."""
    paths = (Path(folder) / name for name in (_FILE, _NESTED_FILE))
    return next((path for path in paths if path.is_file()), None)


def read(folder: Path | str) -> dict[str, Any]:
    """The image processor's fields; `min_pixels` and `max_pixels` where any spelling gives them.

    Empty where the folder has no such file.

    Raises:
      MarvelError: the file is broken, or asks for another preparation than ours.
    """
    path = find(folder)
    if path is None:
        return {}
    fields = read_json_object(path)
    if path.name == _NESTED_FILE:
        fields = _object(fields.get("image_processor"), "image_processor", path)
    for name, value in _FIXED.items():
        if fields.get(name, value) != value:
            raise MarvelError(
                f"{path}: {name} is {fields[name]!r}; only {value!r} is implemented, which is what "
                "Qwen2-VL's own processor does."
            )
    factor = fields.get("rescale_factor", 1 / 255)
    if not isinstance(factor, int | float) or abs(factor * 255 - 1) > 1e-6:
        raise MarvelError(f"{path}: rescale_factor is {factor!r}; expected 1/255.")
    size = _object(fields.get("size"), "size", path)
    # Older files carry both spellings; there the flat fields are the ones that were read.
    limits = {
        "min_pixels": fields.get("min_pixels")
        or size.get("shortest_edge")
        or size.get("min_pixels"),
        "max_pixels": fields.get("max_pixels")
        or size.get("longest_edge")
        or size.get("max_pixels"),
    }
    for name, limit in limits.items():
        if limit is not None and (type(limit) is not int or limit < 1):
            raise MarvelError(f"{path}: {name} is {limit!r}; expected a positive whole number.")
    return {**fields, **{name: value for name, value in limits.items() if value is not None}}


def _object(value: Any, name: str, path: Path) -> dict[str, Any]:
    if value is not None and not isinstance(value, dict):
        raise MarvelError(f"{path}: {name} is {value!r}; expected an object.")
    return value or {}
