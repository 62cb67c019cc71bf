"""The quickstart's training run: a small Qwen2-VL from scratch on the emoji corpus.

marvel data emoji --out data/emoji
marvel train configs/emoji.py --workdir runs/emoji
"""

from marvel_jax.recipes.emoji import train_config

config = train_config("data/emoji")
