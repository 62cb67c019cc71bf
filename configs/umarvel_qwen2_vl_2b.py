"""U-MARVEL on Qwen2-VL-2B: the recipe of the 7B model with its hyper-parameters.

marvel run configs/umarvel_qwen2_vl_2b.py --workdir runs/2b --dry-run
marvel run configs/umarvel_qwen2_vl_2b.py --workdir runs/2b

(None are published for this size; those of the 7B model are where to start.)
"""

from marvel_jax.recipes.umarvel import umarvel

recipe = umarvel("Qwen/Qwen2-VL-2B-Instruct")
