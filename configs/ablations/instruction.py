"""The instruction: read but not pooled, read and pooled, or left out.

marvel run configs/ablations/instruction.py --workdir runs/instruction --size small
marvel table configs/ablations/instruction.py --workdir runs/instruction

The paper's second table: masked 57.3 / 55.5, pooled 57.2 / 55.2, none 55.3 / 43.4 (M-BEIR, local /
global): in the pool of everything the instruction alone says what is sought.
"""

from marvel_jax.recipes.ablations import ablation
from marvel_jax.recipes.umarvel_stages import BASE, data, instruct

ROWS = {"masked": "masked", "not masked": "pooled", "no instruction": "none"}

recipe = ablation(
    "The instruction",
    {
        label: instruct(
            BASE, batch=480, rate=1e-4, learn_temperature=False, instruction=choice
        ).config
        for label, choice in ROWS.items()
    },
    data=data("Qwen/Qwen2-VL-7B-Instruct"),
)
