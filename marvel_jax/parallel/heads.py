"""What no mesh may do, told before a weight is drawn or anything is compiled."""

import math

from marvel_jax.errors import MarvelError
from marvel_jax.models.config import Qwen2VLConfig


def check_heads(architecture: Qwen2VLConfig, *, tensor: int) -> None:
    """Holds mesh.tensor against the heads of both towers.

    Raises:
      MarvelError: it does not divide them all; the message says what would.
    """
    heads = {
        "query heads": architecture.text.num_attention_heads,
        "key heads": architecture.text.num_key_value_heads,
        "vision heads": architecture.vision.num_heads,
    }
    uneven = {name: count for name, count in heads.items() if count % tensor}
    if uneven:
        common = math.gcd(*heads.values())
        works = ", ".join(str(size) for size in range(1, common + 1) if common % size == 0)
        told = " and ".join(f"{count} {name}" for name, count in uneven.items())
        raise MarvelError(
            f"mesh.tensor={tensor} does not divide the model's {told}: use mesh.tensor={works}."
        )
