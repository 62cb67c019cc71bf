"""Attention x pooling without a prompt: each alone, and both together.

marvel run configs/ablations/attention_pooling.py --workdir runs/attention_pooling --size small
marvel table configs/ablations/attention_pooling.py --workdir runs/attention_pooling

The paper's first table changes the prompt at the same time (`embedding.py` has its rows); here
nothing else changes.
"""

from marvel_jax.recipes.ablations import ablation
from marvel_jax.recipes.umarvel_stages import BASE, data, instruct

recipe = ablation(
    "Attention and pooling",
    {
        f"{attention}, {words}": instruct(
            BASE,
            batch=480,
            rate=1e-4,
            learn_temperature=False,
            attention=attention,
            pooling=pooling,
        ).config
        for attention in ("causal", "bidirectional")
        for pooling, words in (("last", "last token"), ("mean", "mean"))
    },
    data=data("Qwen/Qwen2-VL-7B-Instruct"),
)
