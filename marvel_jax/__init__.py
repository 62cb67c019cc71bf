"""Universal multimodal retrieval in JAX: one embedding space for any mix of text and images."""

from typing import TYPE_CHECKING, Any

__version__ = "0.1.0"
__all__ = ["Embedder", "Item", "MarvelError"]

if TYPE_CHECKING:
    from marvel_jax.data.items import Item
    from marvel_jax.errors import MarvelError
    from marvel_jax.retrieval.embedder import Embedder

_HOMES = {
    "Embedder": "marvel_jax.retrieval.embedder",
    "Item": "marvel_jax.data.items",
    "MarvelError": "marvel_jax.errors",
}


def __getattr__(name: str) -> Any:
    # Resolved on first use, so that `import marvel_jax` loads neither jax nor transformers.
    if name not in _HOMES:
        raise AttributeError(f"module 'marvel_jax' has no attribute {name!r}")
    import importlib

    return getattr(importlib.import_module(_HOMES[name]), name)
