"""The steps that ours is measured beside: `tests/plain_step.py`, and transformers with torch.

Both are in the tests of a checkout and are loaded by path; torch runs in a child process, so that
its threads and its memory are its own.
"""

import importlib.util
import json
import subprocess
import sys
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from types import TracebackType
from typing import TYPE_CHECKING, Any, Self

import numpy as np

import marvel_jax
from marvel_jax.bench.stopwatch import Lap
from marvel_jax.errors import MarvelError

if TYPE_CHECKING:
    from marvel_jax.data.batch import Batch, Rows
    from marvel_jax.training.config import TrainConfig
    from marvel_jax.training.inputs import Inputs

_PLAIN, _TORCH = Path("tests/plain_step.py"), Path("tests/bench/torch_step.py")
_STEPS = 1000  # for which learning rates are sent along


def checkout(*needed: Path) -> Path | None:
    """The folder that holds the package and its tests, where the package is a checkout's."""
    root = Path(marvel_jax.__file__).parents[1]
    return root if all((root / path).is_file() for path in needed or (_PLAIN, _TORCH)) else None


def unfit(config: "TrainConfig", batch: "Batch") -> str | None:
    """Why the peers cannot take this config's step; None if they can."""
    import jax

    if jax.default_backend() != "cpu" or jax.device_count() != 1:
        return f"they run on one CPU device, not on {jax.device_count()} x {jax.default_backend()}"
    if config.model.dtype != "float32":
        return f"they compute in float32, not in {config.model.dtype}"
    if config.model.adapters is not None or config.model.frozen is not None:
        return "they train every weight"
    settings = config.embedding
    if settings.attention != "bidirectional" or settings.pooling != "mean":
        return "they are bidirectional with mean pooling"
    if config.data.positives_per_query != 1 or not np.all(batch.candidate_valid):
        return "they take one positive a query and no missing candidates"
    if not config.optimizer.learn_temperature:
        return "they learn the temperature"
    return None


def why_no_torch() -> str | None:
    """None where torch is installed."""
    return None if importlib.util.find_spec("torch") else "torch is not installed"


def host_weights(config: "TrainConfig", inputs: "Inputs") -> dict[str, Any]:
    """{"model": ..., "log_temperature": ...} before the first step, as numpy arrays."""
    import jax

    from marvel_jax.models import hub
    from marvel_jax.training.state import initial_values

    weights = temperature = None
    if inputs.weights_folder is not None:
        checkpoint = hub.load(inputs.weights_folder)
        weights, temperature = checkpoint.params, checkpoint.temperature
    params, _ = initial_values(
        config, inputs.architecture, weights=weights, temperature=temperature
    )
    return {str(name): jax.device_get(value) for name, value in params.items()}


def rates(config: "TrainConfig") -> list[float]:
    """The learning rates of the first steps."""
    from marvel_jax.training.optimizer import learning_rate_schedule

    schedule = learning_rate_schedule(config.optimizer, steps=config.steps)
    return [float(schedule(step)) for step in range(min(_STEPS, config.steps))]


def plain_step(
    root: Path,
    config: "TrainConfig",
    inputs: "Inputs",
    batch: "Batch",
    weights: dict[str, Any],
) -> tuple[Callable[[], float], float]:
    """(takes one more step and returns its loss, the first step's loss), compiled."""
    import jax
    import jax.numpy as jnp

    spec = importlib.util.spec_from_file_location("marvel_plain_step", root / _PLAIN)
    assert spec is not None and spec.loader is not None  # it is a Python file
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    step = jax.jit(
        module.train_step,
        static_argnames=("config", "items_per_row", "b1", "b2"),
        donate_argnames=("params", "moments"),
    )
    there = jax.tree.map(jnp.asarray, batch._replace(own_positive=batch.own_positive[:, 0]))
    params = jax.tree.map(jnp.array, weights)
    moments = tuple(jax.tree.map(jnp.zeros_like, params) for _ in range(2))
    schedule, optimizer = rates(config), config.optimizer
    taken = 0

    def take() -> float:
        nonlocal params, moments, taken
        params, moments, loss = step(
            params,
            moments,
            there,
            taken,
            config=inputs.architecture,
            items_per_row=config.data.row.items,
            rate=schedule[taken % len(schedule)],
            b1=optimizer.b1,
            b2=optimizer.b2,
            eps=optimizer.eps,
            clip=optimizer.clip_norm,
        )
        jax.block_until_ready((params, moments))
        taken += 1
        return float(loss)

    return take, take()


class TorchSteps:
    """transformers and torch in a child process that takes a step whenever it is asked."""

    def __init__(
        self,
        root: Path,
        config: "TrainConfig",
        inputs: "Inputs",
        batch: "Batch",
        weights: dict[str, Any],
        folder: Path,
        *,
        mini_batch: int,
    ) -> None:
        """Writes the same weights and items to `folder` and starts the child on them.

        Raises:
          MarvelError: the child failed to start; the message says with what.
        """
        from marvel_jax.models import hub

        hub.save(
            folder / "model",
            config=inputs.architecture,
            params=weights["model"],
            attention=config.embedding.attention,
        )
        merge_area = inputs.architecture.vision.spatial_merge_size**2
        arrays: dict[str, Any] = flat_items(batch, merge_area=merge_area)
        np.savez(folder / "items.npz", **arrays)
        optimizer = config.optimizer
        described = {
            "mini_batch": mini_batch,
            "log_temperature": float(weights["log_temperature"]),
            "betas": [optimizer.b1, optimizer.b2],
            "eps": optimizer.eps,
            "clip": optimizer.clip_norm,
            "rates": rates(config),
            "image_mean": list(inputs.architecture.vision.image_mean),
            "image_std": list(inputs.architecture.vision.image_std),
        }
        (folder / "step.json").write_text(json.dumps(described), encoding="utf-8")
        self._process = subprocess.Popen(
            [sys.executable, str(root / _TORCH), str(folder)],
            cwd=root,
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
        )

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        assert self._process.stdin is not None
        self._process.stdin.close()  # the child ends with its input
        self._process.wait()

    def ask(self, command: str) -> dict[str, Any]:
        """One step, "plain" or "cached": its loss, gradient norm, token fill and times.

        With " memory" behind it, the answer has `peak_bytes` in the place of the times.

        Raises:
          MarvelError: the child has ended; what it said is on standard error.
        """
        assert self._process.stdin is not None and self._process.stdout is not None
        try:
            self._process.stdin.write(f"{command}\n")
            self._process.stdin.flush()
        except BrokenPipeError:
            pass  # told below, with the exit code
        for line in self._process.stdout:
            if line.startswith("{"):
                answer: dict[str, Any] = json.loads(line)
                return answer
        raise MarvelError(
            f"the torch step ended with exit code {self._process.wait()}: see standard error, or "
            "leave the peers out with --no-peers."
        )

    def lap(self, command: str) -> Lap:
        """What one step took, as the child measured it."""
        answer = self.ask(command)
        return Lap(answer["seconds"], answer["cpu_seconds"])


def flat_items(batch: "Batch", *, merge_area: int) -> dict[str, np.ndarray]:
    """The batch's queries, then its candidates, unpacked, as flat arrays with lengths.

    tokens [N], positions [N, 3] and pooled [N] follow each other item by item, as long as
    `lengths` says; patches [M, C] likewise with `patch_counts`, and `grids` [I, 2] (rows, columns
    of patches) with `image_counts`. `own` [B] is each query's label among the candidates, and
    `masked` [B, C] are known positives that are not it.
    """
    slots = [*batch.query_slot.tolist(), *batch.candidate_slot.tolist()]
    items = list(
        _unpacked(batch.rows, slots, items_per_row=batch.item_key.shape[1], merge_area=merge_area)
    )
    own = batch.own_positive[:, 0]
    known = (batch.positive_ids[:, :, None] == batch.candidate_id[None, None]).all(-1)
    known = (known & batch.positive_valid[:, :, None]).any(1)
    known[np.arange(len(own)), own] = False
    return {
        "queries": np.array(len(own)),
        "tokens": np.concatenate([one["tokens"] for one in items]),
        "positions": np.concatenate([one["positions"] for one in items]),
        "pooled": np.concatenate([one["pooled"] for one in items]),
        "lengths": np.array([len(one["tokens"]) for one in items]),
        "patches": np.concatenate([one["patches"] for one in items]),
        "patch_counts": np.array([len(one["patches"]) for one in items]),
        "grids": np.concatenate([one["grids"] for one in items]),
        "image_counts": np.array([len(one["grids"]) for one in items]),
        "own": own,
        "masked": known,
    }


def _unpacked(
    rows: "Rows", slots: Sequence[int], *, items_per_row: int, merge_area: int
) -> Iterator[dict[str, np.ndarray]]:
    """What each slot of the rows holds."""
    for slot in slots:
        row, segment = divmod(slot, items_per_row)
        here = rows.segments[row] == segment + 1
        merged = rows.vision_index[row][here & (rows.vision_index[row] >= 0)]
        patches = slice(0, 0)
        if merged.size:
            patches = slice(int(merged.min()) * merge_area, (int(merged.max()) + 1) * merge_area)
        images, places = rows.patch_segments[row][patches], rows.patch_hw[row][patches]
        sizes = [places[images == one].max(axis=0) + 1 for one in np.unique(images)]
        yield {
            "tokens": rows.tokens[row][here],
            "positions": rows.positions[row][here],
            "pooled": rows.pooled[row][here],
            "patches": rows.patches[row][patches],
            "grids": np.array(sizes, np.int64).reshape(-1, 2),
        }
