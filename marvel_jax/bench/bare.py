"""What a bare accelerator image lacks, by name."""

import importlib.util

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


def missing() -> list[str]:
    """The optional packages that are not installed."""
    return [name for name in _OPTIONAL if importlib.util.find_spec(name) is None]
