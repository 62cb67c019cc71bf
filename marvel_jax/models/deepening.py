"""A deeper model of a trained one: further language layers that begin as the identity.

Source: block expansion of LLaMA Pro (arXiv 2401.02415), here with all new blocks on top.
"""

import dataclasses
from typing import Any

import jax
import jax.numpy as jnp

from marvel_jax.errors import MarvelError
from marvel_jax.models import names
from marvel_jax.models.config import Qwen2VLConfig
from marvel_jax.models.qwen2_vl import init_params

_BLOCKS = "language/blocks/"
_WRITERS = (f"{_BLOCKS}out/kernel", f"{_BLOCKS}down/kernel")
"""What a block adds to the stream goes through these: zero, and it adds nothing."""


def deepen(
    params: dict[str, Any], config: Qwen2VLConfig, *, layers: int, key: jax.Array
) -> tuple[dict[str, Any], Qwen2VLConfig]:
    """The same function with `layers` more language layers on top, and its architecture.

    The new layers are drawn as `init_params` draws them, but for the two kernels by which a block
    writes: these are zero, so that all hidden states are what they were until training moves them.

    Raises:
      MarvelError: `layers` is not positive.
    """
    if layers < 1:
        raise MarvelError(f"layers={layers}: a deeper model has 1 or more further layers.")
    depth = config.text.num_hidden_layers + layers
    deeper = dataclasses.replace(
        config, text=dataclasses.replace(config.text, num_hidden_layers=depth)
    )
    drawn = names.flatten(init_params(deeper, key=key))
    flat = names.flatten(params)
    for path, values in flat.items():
        if path.startswith(_BLOCKS):
            new = drawn[path][-layers:].astype(values.dtype)
            new = jnp.zeros_like(new) if path in _WRITERS else new
            flat[path] = jnp.concatenate([jnp.asarray(values), new])
    return names.nest(flat), deeper
