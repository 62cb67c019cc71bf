"""transformers and torch on the items of ours, in a child process: encoding, and a LoRA step."""

import importlib.util
import json
import subprocess
import sys
import tempfile
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

import numpy as np

from marvel_jax.bench.peers import checkout, flat_items
from marvel_jax.bench.stopwatch import Lap, median
from marvel_jax.errors import MarvelError

if TYPE_CHECKING:
    from marvel_jax.bench.encode_items import EncodeOptions
    from marvel_jax.bench.lora_step import LoraStepOptions

_PEER = Path("tests/bench/torch_accelerated.py")
# Of unit vectors from the same float32 weights: below, the two do not compute the same.
LEAST_COSINE = 0.99999


class Answer(NamedTuple):
    """What the child measured; `missing` says why there is nothing."""

    found: dict[str, Any]
    missing: str | None

    @property
    def lap(self) -> Lap:
        return median([Lap(*one) for one in self.found["laps"]])


def why_not() -> str | None:
    """Why torch cannot be measured here; None if it can."""
    if checkout(_PEER) is None:
        return f"{_PEER} is in a checkout of the project only"
    absent = [name for name in ("torch", "transformers") if not importlib.util.find_spec(name)]
    return f"{', '.join(absent)} not installed" if absent else None


def encode(
    options: "EncodeOptions",
    *,
    vectors: np.ndarray | None = None,
    device: str = "cpu",
    device_kind: str = "cpu",
    seconds: float = 3600.0,
) -> dict[str, Any]:
    """The row of transformers on batches sorted by length, for `bench.encode`.

    No repeat is begun that would end after `seconds`.
    Given our vectors of float32 weights, it gets the same weights, and has to find the same.

    Raises:
      MarvelError: it found other vectors, or the child failed.
    """
    from marvel_jax.bench import shapes
    from marvel_jax.bench.encode_items import flat, mbeir_items, speed

    architecture = shapes.architecture(options.architecture)
    items = mbeir_items(architecture, count=options.items, seed=options.seed, shrink=options.shrink)
    shared = vectors is not None and options.dtype == "float32"
    weights = None
    if shared:
        weights = shapes.random_weights(architecture, dtype="float32", seed=options.seed)
    none = {"queries": np.array(0), "own": np.zeros(0), "masked": np.zeros((0, 0), bool)}
    asked = {
        "task": "encode",
        "seconds": seconds,
        "device": device,
        "dtype": options.dtype,
        "batch_tokens": options.batch_tokens,
        "repeats": options.repeats,
    }
    with tempfile.TemporaryDirectory(prefix="marvel-") as folder:
        answer = _ask(Path(folder), architecture, {**flat(items), **none}, asked, weights)
        if answer.missing:
            return {"encode": options.architecture, "kernel": "torch", "why": answer.missing}
        theirs = np.load(Path(folder) / "vectors.npy")
    row = {
        "encode": options.architecture,
        "kernel": "torch, sorted by length",
        **speed(architecture, items, answer.lap, device_kind=device_kind, devices=1),
        "token_fill": round(answer.found["token_fill"], 4),
        "dtype": options.dtype,
        "peak_mib": answer.found["peak_mib"],
    }
    if shared and vectors is not None:
        cosine = float((vectors * theirs).sum(axis=1).min())
        if not cosine >= LEAST_COSINE:
            raise MarvelError(
                f"transformers does not find the same vectors from the same weights: the least "
                f"cosine is {cosine:.6f}. The figures would not compare."
            )
        row["cosine"] = round(cosine, 6)
    return row


def step(
    options: "LoraStepOptions",
    *,
    device: str = "cpu",
    device_kind: str = "cpu",
    seconds: float = 3600.0,
    weights: dict[str, Any] | None = None,
) -> dict[str, Any]:
    """The row of a cached loss in torch with the same adapters, items and global batch.

    Without `weights` its own are random: only the time is that of the same step.
    """
    from marvel_jax.bench import shapes
    from marvel_jax.bench.lora_step import make_batch, speed

    architecture = shapes.architecture(options.architecture)
    config, batch = make_batch(options, architecture, shards=1)
    adapters = config.model.adapters
    assert adapters is not None
    items: dict[str, Any] = flat_items(batch, merge_area=architecture.vision.spatial_merge_size**2)
    asked = {
        "task": "step",
        "seconds": seconds,
        "device": device,
        "dtype": options.dtype,
        "batch_tokens": options.torch_batch_tokens,
        "mini_batch": options.mini_batch,
        "repeats": options.repeats,
        "rank": adapters.rank,
        "alpha": adapters.alpha,
        "dropout": adapters.dropout,
        "log_temperature": float(np.log(options.temperature)),
        "rate": config.optimizer.learning_rate,
        "clip": config.optimizer.clip_norm,
    }
    with tempfile.TemporaryDirectory(prefix="marvel-") as folder:
        answer = _ask(Path(folder), architecture, items, asked, weights)
    if answer.missing:
        return {"step": "torch", "why": answer.missing}
    return {
        "step": "torch, cached loss",
        **speed(
            options, architecture, config, batch, answer.lap, device_kind=device_kind, devices=1
        ),
        "token_fill": round(answer.found["token_fill"], 4),
        "peak_mib": answer.found["peak_mib"],
        "first_loss": answer.found["first_loss"],
    }


def _ask(
    folder: Path,
    architecture: Any,
    items: dict[str, Any],
    asked: dict[str, Any],
    weights: dict[str, Any] | None,
) -> Answer:
    from marvel_jax.models import hub

    if weights is None:
        hub.save_blueprint(folder / "model", config=architecture)
    else:
        hub.save(folder / "model", config=architecture, params=weights)
    np.savez(folder / "items.npz", **items)
    asked = asked | {
        "image_mean": list(architecture.vision.image_mean),
        "image_std": list(architecture.vision.image_std),
    }
    (folder / "peer.json").write_text(json.dumps(asked), encoding="utf-8")
    root = checkout(_PEER)
    assert root is not None  # `why_not` has said so before
    done = subprocess.run(
        [sys.executable, str(root / _PEER), str(folder)],
        cwd=root,
        stdout=subprocess.PIPE,
        text=True,
        check=False,
    )
    last = next((line for line in reversed(done.stdout.splitlines()) if line[:1] == "{"), "")
    if done.returncode or not last:
        raise MarvelError(
            f"the torch peer ended with exit code {done.returncode}: see standard error."
        )
    found = json.loads(last)
    return Answer(found, found.get("missing"))
