"""CPU seconds and memory of value and gradient: the towers as they are, and each choice undone.

python -m tests.models.block_speed [quickstart|long] [REPEATS]

The shapes are the quickstart's (80 rows of 64 tokens) and 4 rows of 1,024 tokens with items of 16.
"plain" is the model of tests/plain_step.py; the lines with adapters train these alone.
"""

import sys
import time
from collections.abc import Callable
from contextlib import AbstractContextManager, nullcontext
from unittest import mock

import jax
import jax.numpy as jnp
import numpy as np

from marvel_jax.models import lora
from marvel_jax.models.kernels import xla
from marvel_jax.models.qwen2_vl import embed, init_params
from marvel_jax.recipes.emoji import architecture
from tests import plain_step
from tests.models.linear_speed import QUICKSTART, Shape, random_rows

Loss = Callable[..., jax.Array]
CONFIG = architecture()
LORA = lora.LoraConfig(rank=16, alpha=32.0)
SHAPES = {
    "quickstart": QUICKSTART,
    "long": Shape(rows=4, tokens=1024, patches=512, items=64, image=16),
}


def spread(vectors: jax.Array) -> jax.Array:
    vectors = vectors.reshape(-1, CONFIG.text.hidden_size)
    return jax.nn.logsumexp(vectors @ vectors.T / 0.05, axis=1).mean()


def everything_kept() -> AbstractContextManager:
    """Norms and activations leave all that lies inside them for the backward pass."""
    return mock.patch.object(jax, "checkpoint", lambda function: function)


def whole_rows() -> AbstractContextManager:
    """All queries of a row at a time."""
    return mock.patch.object(xla, "_CHUNK", 2**30)


def main(shape: str = "quickstart", repeats: str = "10") -> None:
    items = SHAPES[shape].items
    rows = jax.tree.map(jnp.asarray, random_rows(CONFIG, SHAPES[shape]))
    params = init_params(CONFIG, key=jax.random.key(0))
    adapters = lora.init_adapters(CONFIG, LORA, key=jax.random.key(0))
    item_key = np.arange(len(rows.tokens) * items * 2, dtype=np.uint32).reshape(-1, items, 2)

    def ours(params: dict, **options: object) -> jax.Array:
        return spread(embed(params, rows, CONFIG, items_per_row=items, **options).vectors)

    def plain(params: dict) -> jax.Array:
        return spread(plain_step.embed(params, rows, CONFIG, items))

    def adapted(adapters: dict, *, drops: bool) -> jax.Array:
        keys = lora.token_keys(rows.segments, item_key, seed=0, step=0) if drops else None
        return ours(params, adapters=adapters, lora=LORA, dropout_keys=keys)

    cases: dict[str, tuple[Loss, dict, AbstractContextManager]] = {
        "plain": (plain, params, nullcontext()),
        "as it is": (ours, params, nullcontext()),
        "everything kept": (ours, params, everything_kept()),
        "whole rows": (ours, params, whole_rows()),
        "adapters": (lambda a: adapted(a, drops=False), adapters, nullcontext()),
        "adapters, dropout": (lambda a: adapted(a, drops=True), adapters, nullcontext()),
    }
    for remat in ("attention", "dots", "full"):
        cases[f"remat {remat}"] = (
            lambda p, remat=remat: ours(p, remat=remat),
            params,
            nullcontext(),
        )
    cases["remat attention, whole rows"] = (cases["remat attention"][0], params, whole_rows())
    steps, spent = {}, {name: [] for name in cases}
    for name, (loss, trained, change) in cases.items():
        with change:
            steps[name] = jax.jit(jax.value_and_grad(loss)).lower(trained).compile()
        jax.block_until_ready(steps[name](trained))
    for _ in range(int(repeats)):
        for name, (_, trained, _) in cases.items():
            before = time.process_time()
            jax.block_until_ready(steps[name](trained))
            spent[name].append(time.process_time() - before)
    for name, step in steps.items():
        memory = step.memory_analysis().temp_size_in_bytes / 2**20
        print(f"{name:28} {np.median(spent[name]):.3f} s (least {min(spent[name]):.3f})", end="")
        print(f"  {memory:6.0f} MiB")


if __name__ == "__main__":
    main(*sys.argv[1:])
