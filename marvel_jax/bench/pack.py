"""How full the rows of a batch are on M-BEIR's mix of lengths, and what planning a step takes."""

import time
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from typing import Any

import numpy as np

from marvel_jax.bench.machine import result
from marvel_jax.data.batch import RowShape
from marvel_jax.data.epoch_plan import Plan, PlanConfig
from marvel_jax.data.mbeir_lengths import MbeirMix, mbeir_lengths
from marvel_jax.errors import MarvelError

# More than half of the tokens are visual, of four patches each: 2.2 patches a token on average,
# and a tenth more, so that patches rarely hold up the tokens.
MBEIR_ROW = RowShape(tokens=1536, patches=3712, items=64)
_LEAST_QUERIES = 20_000


@dataclass(frozen=True, kw_only=True)
class PackOptions:
    """What to measure: every number of items a shard on every number of data shards."""

    items: tuple[int, ...] = (120, 480, 1920)
    shards: tuple[int, ...] = (1, 2, 4, 8, 16, 32, 64)
    row: RowShape = MBEIR_ROW
    hard_negatives: int = 0
    chunk_rows: int = 1
    steps: int = 10
    seed: int = 0

    def __post_init__(self) -> None:
        brought = 2 + self.hard_negatives
        for items in self.items:
            if items < brought or items % brought:
                raise MarvelError(
                    f"items is {items}: give a multiple of {brought}, as a query brings a positive "
                    f"and {self.hard_negatives} hard negatives."
                )
        if self.steps < 1 or min(self.shards, default=0) < 1:
            raise MarvelError(f"steps={self.steps}, shards={self.shards}: give at least 1 of each.")


def run(options: PackOptions) -> dict[str, Any]:
    """The share of the rows that real tokens and patches fill, rounding included.

    `row_counts` are all that can occur; `seconds_per_step` is the processor's time to draw and
    pack one global batch, which every process does ahead of the step.
    """
    rows = [_measure(plan, options) for plan in _plans(options)]
    return result(
        "pack",
        rows,
        row_tokens=options.row.tokens,
        row_patches=options.row.patches,
        hard_negatives=options.hard_negatives,
        steps=options.steps,
        seed=options.seed,
    )


def _plans(options: PackOptions) -> Iterator[Plan]:
    brought = 2 + options.hard_negatives
    largest = max(options.items) * max(options.shards) // brought
    index = mbeir_lengths(
        MbeirMix(
            queries=max(_LEAST_QUERIES, 2 * largest),
            hard_negatives=options.hard_negatives,
            seed=options.seed,
        )
    )
    for items in options.items:
        for shards in options.shards:
            config = PlanConfig(
                global_batch=items // brought * shards,
                seed=options.seed,
                row=options.row,
                hard_negatives=options.hard_negatives,
                chunk_rows=options.chunk_rows,
            )
            yield Plan(index, config, num_shards=shards)


def _measure(plan: Plan, options: PackOptions) -> dict[str, Any]:
    row_counts = plan.row_counts  # found before the clock starts
    started = time.process_time()
    steps = [plan.step(step) for step in range(options.steps)]
    seconds = (time.process_time() - started) / len(steps)
    items = plan.config.global_batch * (2 + options.hard_negatives)
    return {
        "items_per_shard": items // plan.num_shards,
        "shards": plan.num_shards,
        "tokens_filled": _mean(1 - step.stats.padded_tokens for step in steps),
        "patches_filled": _mean(1 - step.stats.padded_patches for step in steps),
        "rows": _mean(step.num_rows for step in steps),
        "row_counts": ", ".join(map(str, row_counts)),
        "seconds_per_step": round(seconds, 5),
        "items_per_second": round(items / seconds),
    }


def _mean(values: Iterable[float]) -> float:
    return round(float(np.mean(list(values))), 4)
