"""Attention x pooling x prompt: how an embedding is taken from a language model.

marvel run configs/ablations/embedding.py --workdir runs/embedding --size small
marvel table configs/ablations/embedding.py --workdir runs/embedding

The paper's first table, each variant from the instruct model with 480 queries a batch: a causal
model read at its last token with a prompt 56.6 / 54.8, bidirectional and mean pooled without one
57.2 / 55.2 (M-BEIR, local / global).
"""

from marvel_jax.recipes.ablations import ablation
from marvel_jax.recipes.umarvel_stages import BASE, data, instruct

ROWS = {
    "causal, last token, prompt": ("causal", "last", "one_word"),
    "bidirectional, last token, prompt": ("bidirectional", "last", "one_word"),
    "causal, mean, prompt": ("causal", "mean", "one_word"),
    "bidirectional, mean, prompt": ("bidirectional", "mean", "one_word"),
    "bidirectional, mean, no prompt": ("bidirectional", "mean", "none"),
}

recipe = ablation(
    "How an embedding is taken",
    {
        label: instruct(
            BASE,
            batch=480,
            rate=1e-4,
            learn_temperature=False,
            attention=attention,
            pooling=pooling,
            prompt=prompt,
        ).config
        for label, (attention, pooling, prompt) in ROWS.items()
    },
    data=data("Qwen/Qwen2-VL-7B-Instruct"),
)
