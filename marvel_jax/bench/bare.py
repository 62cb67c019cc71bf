"""What a bare accelerator image lacks: named, and stood in for where only a type is wanted."""

import importlib.util
import sys
import types
from typing import Any

# What the package uses beside jax, flax, optax and orbax. None of it is needed to measure.
_OPTIONAL = (
    "transformers",
    "tokenizers",
    "safetensors",
    "torch",
    "PIL",
    "grain",
    "tyro",
    "scann",
    "tensorflow_datasets",
)
_PILLOW = ("PIL", "PIL.Image", "PIL.ImageOps")


class _Absent(types.ModuleType):
    """A module of which every name is a class that cannot be made."""

    def __getattr__(self, name: str) -> Any:
        if name.startswith("__"):
            raise AttributeError(name)

        def refuse(self: object, *_: object) -> None:
            raise ImportError("pillow is not installed: no picture can be read here")

        made = type(name, (), {"__init__": refuse})
        setattr(self, name, made)
        return made


def missing() -> list[str]:
    """The optional packages that are not installed."""
    return [name for name in _OPTIONAL if not _installed(name)]


def do_without_pillow() -> None:
    """Lets `data/` be imported where pillow is not installed: invented items have no pictures.

    Pillow's picture is one of the types that an item may hold, and so is named wherever items are.
    """
    if _installed("PIL"):
        return
    for name in _PILLOW:
        sys.modules[name] = _Absent(name)
    package = sys.modules["PIL"]
    for name in _PILLOW[1:]:
        setattr(package, name.partition(".")[2], sys.modules[name])


def _installed(name: str) -> bool:
    if isinstance(sys.modules.get(name), _Absent):
        return False
    return importlib.util.find_spec(name) is not None
