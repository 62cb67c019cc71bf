"""A file of texts for next-token losses, beside the tests."""

import json
import tempfile
from functools import cache
from pathlib import Path

import numpy as np

from marvel_jax.training.objective_config import RetentionConfig
from tests import tiny

TEXTS = 24


@cache
def path() -> Path:
    """Conversations and plain texts by turns, some longer than 24 tokens."""
    rng = np.random.default_rng(7)
    lines = []
    for number in range(TEXTS):
        said = " ".join(rng.choice(tiny.WORDS, 2 + number % 9))
        if number % 2:
            lines.append({"text": said})
            continue
        asked = [
            {"role": "system", "content": "big"},
            {"role": "user", "content": "red"},
            {"role": "assistant", "content": said},
        ]
        lines.append({"messages": asked})
    file = Path(tempfile.mkdtemp(prefix="marvel-texts-")) / "texts.jsonl"
    file.write_text("".join(json.dumps(line) + "\n" for line in lines), encoding="utf-8")
    return file


RETENTION = RetentionConfig(path=str(path()), weight=0.25, texts=8, max_tokens=24)
