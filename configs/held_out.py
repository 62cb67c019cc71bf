"""U-MARVEL judged on what it was never trained on: without NIGHTS, OVEN and InfoSeek.

marvel run configs/held_out.py --workdir runs/held_out --dry-run
marvel run configs/held_out.py --workdir runs/held_out

Every training sees the other eleven sets alone, queries and candidates, and the reranker's weight
is fitted on their validation queries; the scores are those of the five that were left out. (No
figures are published for it.)
"""

from marvel_jax.recipes.stages import Subset
from marvel_jax.recipes.umarvel import umarvel
from marvel_jax.recipes.umarvel_stages import MBEIR

UNSEEN = ("nights_task4", "oven_task6", "oven_task8", "infoseek_task6", "infoseek_task8")

recipe = umarvel(
    "Qwen/Qwen2-VL-7B-Instruct",
    before=(
        Subset("seen", MBEIR, exclude=UNSEEN, candidates="own"),
        Subset("seen-val", MBEIR, split="val", exclude=UNSEEN),
        Subset("unseen", MBEIR, split="test", include=UNSEEN),
    ),
    folder="seen.mbeir",
    queries=693_190,
    test="unseen.mbeir",
    validation="seen-val.mbeir",
    # One weight for all: what is held out can have none of its own.
    scope="global",
    title="M-BEIR's held-out sets",
)
