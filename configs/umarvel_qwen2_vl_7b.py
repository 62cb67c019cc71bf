"""U-MARVEL on Qwen2-VL-7B: from the instruct model to embedder and reranker, stage by stage.

marvel run configs/umarvel_qwen2_vl_7b.py --workdir runs/7b --dry-run
marvel run configs/umarvel_qwen2_vl_7b.py --workdir runs/7b
marvel run configs/umarvel_qwen2_vl_7b.py --workdir runs/7b-tiny --size tiny

Hyper-parameters are the published ones (arXiv 2507.14902), on 64 devices of 80 GB.
"""

from marvel_jax.recipes.umarvel import umarvel

recipe = umarvel("Qwen/Qwen2-VL-7B-Instruct")
