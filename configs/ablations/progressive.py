"""The progressive transition: what text and captions before the instructions bring.

marvel run configs/ablations/progressive.py --workdir runs/progressive --size small
marvel table configs/ablations/progressive.py --workdir runs/progressive

The paper's third table: M-BEIR alone 56.6 / 53.9, behind NLI 57.3 / 55.5, behind NLI and CC3M
57.7 / 55.8 (M-BEIR, local / global).
"""

from marvel_jax.recipes.ablations import ablation
from marvel_jax.recipes.umarvel_stages import BASE, captions, data, instruct, text

ROWS = {
    "M-BEIR": BASE,
    "text, then M-BEIR": "text.model",
    "text, captions, then M-BEIR": "captions.model",
}

recipe = ablation(
    "The progressive transition",
    {
        label: instruct(start, batch=480, rate=1e-4, learn_temperature=False).config
        for label, start in ROWS.items()
    },
    data=data("Qwen/Qwen2-VL-7B-Instruct"),
    before=(text(rank=64), captions(rank=128)),
)
