"""MM-Embed's recipe on Qwen2-VL-7B: modality-aware negatives, then text among the pictures.

marvel run configs/mm_embed_qwen2_vl_7b.py --workdir runs/mm_embed --dry-run
marvel run configs/mm_embed_qwen2_vl_7b.py --workdir runs/mm_embed

A first model is trained on the batch's other queries alone. Among the 50 candidates that it finds
in the pool of everything, those of a modality that was not asked for (C1) and those at the far end
(C2) become the negatives of a second one, trained afresh. That one goes on with text among the
tasks, and an instruct model reranks what it finds, asked for True or False.

Stages are the paper's (arXiv 2411.02571); rates and batches, which are not known here, are those
of U-MARVEL.
"""

import dataclasses

from marvel_jax.data.sources import SourceConfig
from marvel_jax.recipes.recipe import Recipe
from marvel_jax.recipes.stages import Column, Evaluate, Mine, Report, Train
from marvel_jax.recipes.umarvel_stages import BASE, MBEIR, NLI, data, fused, instruct, mined

BASE_MODEL = "Qwen/Qwen2-VL-7B-Instruct"

hard = mined("mine.negatives", model=BASE, each=1)
hard = dataclasses.replace(hard, optimizer=dataclasses.replace(hard.optimizer, learning_rate=1e-4))
continual = dataclasses.replace(
    hard,
    model=dataclasses.replace(hard.model, source="hard.model"),
    data=dataclasses.replace(
        hard.data,
        path=None,
        mined=None,
        mixture=(
            SourceConfig(path=MBEIR, mined="mine.negatives", name="mbeir", weight=0.7),
            # Sentence pairs with the contradiction that comes with each.
            SourceConfig(path=NLI, reader="nli", name="text", weight=0.3),
        ),
    ),
    optimizer=dataclasses.replace(hard.optimizer, learning_rate=1.5e-5),
    steps=600,
)

files = data(BASE_MODEL)
recipe = Recipe(
    (
        instruct(BASE, name="random"),
        Evaluate("evaluate-random", "random.model", MBEIR, scann=True),
        Mine("mine", "random.model", MBEIR, preset="modality_aware"),
        Train("hard", hard),
        Evaluate("evaluate-hard", "hard.model", MBEIR, scann=True),
        Train("continual", continual),
        Evaluate("evaluate-continual", "continual.model", MBEIR, scann=True),
        *fused(
            BASE,
            "continual.model",
            prompt="true_false",
            vectors="evaluate-continual.vectors",
            top=10,
        ),
        Report(
            "report",
            (
                Column("random", "evaluate-random.scores"),
                Column("modality-aware", "evaluate-hard.scores"),
                Column("+ text", "evaluate-continual.scores"),
                Column("+ zero-shot reranker", "fuse.scores"),
            ),
            title="MM-Embed's stages on M-BEIR",
        ),
    ),
    {name: files[name] for name in ("base", "mbeir", "nli")},
)
