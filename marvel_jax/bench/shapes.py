"""Architectures to measure, by name, and random weights of any of them, drawn on the device."""

from pathlib import Path
from typing import Any

from marvel_jax.errors import MarvelError
from marvel_jax.models.config import Qwen2VLConfig, TextConfig, VisionConfig

# For a processor: compiles in seconds, and its matmuls are large enough to run at their full rate.
SMALL = Qwen2VLConfig(
    vision=VisionConfig(depth=4, embed_dim=320, num_heads=4),
    text=TextConfig(
        vocab_size=8192,
        hidden_size=384,
        intermediate_size=1536,
        num_hidden_layers=4,
        num_attention_heads=3,
        num_key_value_heads=1,
        mrope_section=(16, 24, 24),
    ),
    tie_word_embeddings=True,
    image_token_id=8191,
    video_token_id=8190,
    vision_start_token_id=8189,
    vision_end_token_id=8188,
    bos_token_id=None,
    eos_token_id=None,
)
# For tests, and to see in a minute that a command works.
TINY = Qwen2VLConfig(
    vision=VisionConfig(depth=2, embed_dim=32, num_heads=2, mlp_ratio=2),
    text=TextConfig(
        vocab_size=256,
        hidden_size=64,
        intermediate_size=96,
        num_hidden_layers=2,
        num_attention_heads=4,
        num_key_value_heads=2,
        mrope_section=(4, 2, 2),
    ),
    tie_word_embeddings=True,
    image_token_id=255,
    video_token_id=254,
    vision_start_token_id=253,
    vision_end_token_id=252,
    bos_token_id=None,
    eos_token_id=None,
)
_OWN = {"small": SMALL, "tiny": TINY}


def architecture(name: str) -> Qwen2VLConfig:
    """The shape of "small", "tiny", a published model's Hub id, or a folder with a `config.json`.

    Raises:
      MarvelError: nothing of this name is known.
    """
    from marvel_jax.models.published import PUBLISHED

    known = {**_OWN, **PUBLISHED}
    if name in known:
        return known[name]
    if Path(name).is_dir():
        return Qwen2VLConfig.from_folder(name)
    raise MarvelError(
        f"architecture {name!r} is neither a folder with a config.json nor one of "
        f"{', '.join(known)}."
    )


def random_weights(
    config: Qwen2VLConfig, *, dtype: str, sharding: Any = None, seed: int = 0
) -> dict[str, Any]:
    """The tree of `init_params` without a head, drawn on the device in `dtype`, layer by layer.

    No copy in float32 ever exists, so that a model fits wherever its weights do.
    """
    import jax
    import jax.numpy as jnp

    from marvel_jax.models import names

    rows = [row for row in names.table(config) if not row.optional]  # the head is optional

    def draw(key: jax.Array, shape: tuple[int, ...], *, layers: bool) -> jax.Array:
        if layers:
            keys = jax.random.split(key, shape[0])
            return jax.lax.map(lambda one: draw(one, shape[1:], layers=False), keys)
        deviation = jnp.asarray(config.text.initializer_range, dtype)
        return jax.random.normal(key, shape, dtype) * deviation

    def make(root: jax.Array) -> dict[str, jax.Array]:
        leaves = {}
        for number, row in enumerate(rows):
            shape = tuple(row.shape(config))
            if row.path.endswith(("/bias", "/scale")):
                leaves[row.path] = jnp.full(shape, float(row.path.endswith("/scale")), dtype)
            else:
                key = jax.random.fold_in(root, number)
                leaves[row.path] = draw(key, shape, layers=row.layers is not None)
        return leaves

    # The key is an argument, so that the compiler does not draw the weights itself.
    return names.nest(jax.jit(make, out_shardings=sharding)(jax.random.key(seed)))
