"""CPU seconds of value and gradient with dense layers as they are, and with rows left apart.

python -m tests.models.linear_speed
"""

import time
from typing import NamedTuple
from unittest import mock

import jax
import jax.numpy as jnp
import numpy as np

from marvel_jax.data.batch import Rows
from marvel_jax.models import linear
from marvel_jax.models.config import Qwen2VLConfig
from marvel_jax.models.qwen2_vl import embed, init_params
from marvel_jax.recipes.emoji import architecture

REPEATS = 8


class Shape(NamedTuple):
    """How many rows there are, what each holds, and the patches of an image."""

    rows: int
    tokens: int
    patches: int
    items: int
    image: int


QUICKSTART = Shape(rows=80, tokens=64, patches=32, items=4, image=16)


def random_rows(config: Qwen2VLConfig, shape: Shape) -> Rows:
    rng = np.random.default_rng(0)
    rows, tokens, patches, items, image = shape
    position = np.arange(tokens)
    segments = np.tile(position // (tokens // items) + 1, (rows, 1)).astype(np.int32)
    return Rows(
        tokens=rng.integers(0, config.text.vocab_size, (rows, tokens)).astype(np.int32),
        positions=np.tile(position[None, :, None] % 16, (rows, 1, 3)).astype(np.int32),
        segments=segments,
        pooled=segments > 0,
        patches=rng.integers(0, 256, (rows, patches, config.vision.still_values)).astype(np.uint8),
        patch_hw=np.zeros((rows, patches, 2), np.int32),
        patch_segments=np.tile(np.arange(patches) // image + 1, (rows, 1)).astype(np.int32),
        vision_index=np.tile(np.where(position < patches // 4, position, -1), (rows, 1)),
    )


def cpu_seconds(config: Qwen2VLConfig) -> float:
    """The least of several calls, after one that compiles."""
    jax.clear_caches()
    params = init_params(config, key=jax.random.key(0))
    rows = jax.tree.map(jnp.asarray, random_rows(config, QUICKSTART))

    def loss(params: dict, rows: Rows) -> jax.Array:
        vectors = embed(params, rows, config, items_per_row=QUICKSTART.items).vectors
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


def apart(x: jax.Array, kernel: jax.Array) -> jax.Array:
    """A dense layer's product as Flax has it, rows and tokens on two axes."""
    return jax.lax.dot_general(x, kernel, (((x.ndim - 1,), (0,)), ((), ())))


def main() -> None:
    config = architecture()
    ours = cpu_seconds(config)
    with mock.patch.object(linear, "matmul", apart):
        flax = cpu_seconds(config)
    print(f"as Flax has them {flax:.3f}, flattened {ours:.3f}, ratio {flax / ours:.2f}")


if __name__ == "__main__":
    main()
