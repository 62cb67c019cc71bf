"""CPU seconds of value and gradient with dense layers as they are and as Flax has them.

python -m tests.models.linear_speed
"""

import time

import jax
import jax.numpy as jnp
import numpy as np

from marvel_jax.data.batch import Rows
from marvel_jax.models import linear
from marvel_jax.models.config import Qwen2VLConfig
from marvel_jax.models.qwen2_vl import embed, init_params
from marvel_jax.recipes.emoji import architecture

ROWS, TOKENS, PATCHES, ITEMS, IMAGE = 80, 64, 32, 4, 16
REPEATS = 8


def random_rows(config: Qwen2VLConfig) -> Rows:
    rng = np.random.default_rng(0)
    position = np.arange(TOKENS)
    segments = np.tile(position // (TOKENS // ITEMS) + 1, (ROWS, 1)).astype(np.int32)
    return Rows(
        tokens=rng.integers(0, config.text.vocab_size, (ROWS, TOKENS)).astype(np.int32),
        positions=np.tile(position[None, :, None] % 16, (ROWS, 1, 3)).astype(np.int32),
        segments=segments,
        pooled=segments > 0,
        patches=rng.integers(0, 256, (ROWS, PATCHES, config.vision.still_values)).astype(np.uint8),
        patch_hw=np.zeros((ROWS, PATCHES, 2), np.int32),
        patch_segments=np.tile(np.arange(PATCHES) // IMAGE + 1, (ROWS, 1)).astype(np.int32),
        vision_index=np.tile(np.where(position < PATCHES // 4, position, -1), (ROWS, 1)),
    )


def cpu_seconds(config: Qwen2VLConfig) -> float:
    """The least of several calls, after one that compiles."""
    jax.clear_caches()
    params = init_params(config, key=jax.random.key(0))
    rows = jax.tree.map(jnp.asarray, random_rows(config))

    def loss(params: dict, rows: Rows) -> jax.Array:
        vectors = embed(params, rows, config, items_per_row=ITEMS).vectors
        vectors = vectors.reshape(-1, config.text.hidden_size)
        return jax.nn.logsumexp(vectors @ vectors.T / 0.05, axis=1).mean()

    step = jax.jit(jax.value_and_grad(loss))
    jax.block_until_ready(step(params, rows))
    spent = []
    for _ in range(REPEATS):
        before = time.process_time()
        jax.block_until_ready(step(params, rows))
        spent.append(time.process_time() - before)
    return min(spent)


def main() -> None:
    config = architecture()
    ours = cpu_seconds(config)
    flat, linear.dot_general = linear.dot_general, jax.lax.dot_general
    flax = cpu_seconds(config)
    linear.dot_general = flat
    print(f"as Flax has them {flax:.3f}, flattened {ours:.3f}, ratio {flax / ours:.2f}")


if __name__ == "__main__":
    main()
