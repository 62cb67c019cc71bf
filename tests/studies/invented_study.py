"""Studies that never ran: trials with figures from known laws, and noise by seed."""

import json
from collections.abc import Callable, Iterable
from pathlib import Path

import numpy as np

Point = dict[str, float | int | str | bool]


def write_study(
    folder: Path,
    *,
    axes: dict[str, list],
    metrics: dict[str, str],
    points: Iterable[Point],
    measure: Callable[[Point, float], dict[str, float] | str],
    seeds: tuple[int, ...] = (0, 1),
    question: str = "Is bigger better?",
) -> Path:
    """A study's folder. `measure` takes a point and a standard normal number, and gives the
    metrics of a trial, or the error of one that failed.
    """
    rng = np.random.default_rng(0)
    listed = []
    for point in points:
        for seed in seeds:
            key = f"{len(listed):04x}"
            found = measure(point, float(rng.standard_normal()))
            failed = isinstance(found, str)
            trial = {
                "key": key,
                "point": point,
                "seed": seed,
                "status": "failed" if failed else "done",
                "error": found if failed else None,
                "metrics": {} if failed else found,
                "folder": f"runs/{key}",
            }
            path = folder / "trials" / f"{key}.json"
            path.parent.mkdir(parents=True, exist_ok=True)
            path.write_text(json.dumps(trial))
            (folder / trial["folder"]).mkdir(parents=True)
            listed.append({"number": len(listed) + 1, "key": key})
    study = {
        "name": folder.name,
        "question": question,
        "axes": [{"name": name, "values": values} for name, values in axes.items()],
        "metrics": [{"name": name, "better": better} for name, better in metrics.items()],
        "design": {"kind": "grid"},
        "seeds": list(seeds),
        "trials": listed,
    }
    (folder / "study.json").write_text(json.dumps(study))
    return folder


def batch_study(folder: Path) -> Path:
    """A peak over the batch, a loss that grows with it, negatives in words and one that failed."""
    batches, kinds = [32, 64, 128, 256, 512, 1024], ["none", "mined", "in <b>bold</b>"]

    def measure(point: Point, noise: float) -> dict[str, float] | str:
        if point["batch"] == 1024 and point["negatives"] == "mined":
            return "again: out of memory: <script>alert(1)</script>"
        steps = np.log2(point["batch"] / 32)
        score = 0.5 - 0.012 * (steps - 3) ** 2 + 0.05 * kinds.index(point["negatives"])
        luck = 0.004 * noise
        return {
            "mean local": score + luck,
            "loss": 1.5 + 0.7 * steps - 0.1 * kinds.index(point["negatives"]) - 20 * luck,
            "flops": 3e13 * (1 + kinds.index(point["negatives"])),
            "seconds": 60.0,
        }

    return write_study(
        folder,
        axes={"batch": batches, "negatives": kinds},
        metrics={"mean local": "higher", "loss": "lower"},
        points=[{"batch": batch, "negatives": kind} for batch in batches for kind in kinds],
        measure=measure,
    )


def model_data_study(
    folder: Path, *, noise: float = 0.002, metrics: tuple[str, ...] = ("mean local", "loss")
) -> Path:
    """Size x data under Chinchilla's law with exponents 0.3 and 0.35."""
    sizes = [int(1e5 * 2**n) for n in range(6)]
    counts = [int(1e6 * 2**n) for n in range(6)]

    def measure(point: Point, luck: float) -> dict[str, float] | str:
        size, tokens = float(point["size"]), float(point["data"])
        loss = 1.5 + 40 * size**-0.3 + 200 * tokens**-0.35 + noise * luck
        return {
            "loss": loss,
            "mean local": 1 / loss,
            "flops": 6 * size * tokens,
            "tokens": tokens,
            "parameters": size,
            "seconds": 10.0,
        }

    return write_study(
        folder,
        axes={"size": sizes, "data": counts},
        metrics={name: "lower" if name == "loss" else "higher" for name in metrics},
        points=[{"size": size, "data": count} for size in sizes for count in counts],
        measure=measure,
        seeds=(0,),
    )
