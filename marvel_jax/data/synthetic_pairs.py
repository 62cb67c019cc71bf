"""Pairs of synthetic scenes: sentences of what is seen, and pictures with captions."""

import csv
import json
from pathlib import Path

import numpy as np

from marvel_jax.data import synthetic_scenes
from marvel_jax.files import write_text

NLI_FILE = "nli_for_simcse.csv"
CAPTIONS_FILE = "cc3m-595k/train_anno.json"


def write_pairs(folder: Path, *, count: int, short_side: int, seed: int) -> dict[str, int]:
    """`count` sentence triplets as SimCSE has them, and captioned pictures as CC3M-595K lists them.

    Returns how many there are of each.
    """
    rng = np.random.default_rng([seed, 3])
    scenes = synthetic_scenes.Scenes(3 * count, rng)
    text = _CsvText()
    rows = csv.writer(text)
    rows.writerow(["sent0", "sent1", "hard_neg"])
    for _ in range(count):
        scene = scenes.take()
        other, _ = synthetic_scenes.changed(scene, rng)
        said, true = (
            synthetic_scenes.write("caption", str(scene), scale=1.0, rng=rng) for _ in range(2)
        )
        false = synthetic_scenes.write("caption", str(other), scale=1.0, rng=rng)
        rows.writerow([said, true, false])
    write_text(folder / NLI_FILE, "".join(text.lines))
    entries = {}
    for number in range(count):
        scene = scenes.take()
        path = folder / CAPTIONS_FILE
        picture = Path("images") / f"{number:08d}.jpg"
        (path.parent / picture).parent.mkdir(parents=True, exist_ok=True)
        (path.parent / picture).write_bytes(
            synthetic_scenes.draw(scene, short_side=short_side, rng=rng)
        )
        caption = synthetic_scenes.write("caption", str(scene), scale=1.0, rng=rng)
        entries[f"{number:08d}"] = {
            "h5v": picture.as_posix(),
            "h5a": "",
            "text": "",
            "instruct_ans": [caption],
        }
    write_text(folder / CAPTIONS_FILE, json.dumps(entries, ensure_ascii=False))
    return {"nli": count, "captions": count}


class _CsvText:
    """What csv.writer writes to."""

    def __init__(self) -> None:
        self.lines: list[str] = []

    def write(self, line: str) -> None:
        self.lines.append(line)
