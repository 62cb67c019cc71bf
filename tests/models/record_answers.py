"""Records tests/models/golden/answers.npz: `python -m tests.models.record_answers` (needs torch).

The logits that transformers gives a few tokens at every place of the golden samples.
"""

from pathlib import Path
from typing import Any

import numpy as np

from tests.models import parity, torch_reference
from tests.models.samples import Sample

PATH = parity.GOLDEN / "answers.npz"
ANSWERS = (17, 5, 80)


def main() -> None:
    out = {}
    for name in parity.CHECKPOINTS:
        model = torch_reference.load(parity.GOLDEN / name)
        for item, sample in parity.golden(name).samples.items():
            out[f"{name}/{item}"] = answer_logits(model, sample)
    np.savez_compressed(PATH, **out)
    print(f"{PATH}: {Path(PATH).stat().st_size / 1024:.0f} KiB")


def answer_logits(model: Any, sample: Sample) -> np.ndarray:
    """[L, A]: the next token's logits by transformers' own call of the whole model."""
    import torch

    arguments: dict[str, Any] = {
        "input_ids": torch.from_numpy(sample.tokens.astype(np.int64))[None]
    }
    arguments["mm_token_type_ids"] = (arguments["input_ids"] == sample.image_token).int()
    if sample.grids:
        arguments["pixel_values"] = torch_reference._pixels(model, sample)
        arguments["image_grid_thw"] = torch_reference._grids(sample)
    with torch.no_grad():
        logits = model(**arguments).logits[0]
    return logits[:, list(ANSWERS)].numpy()


if __name__ == "__main__":
    main()
