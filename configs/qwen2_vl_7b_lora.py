"""U-MARVEL's instruction stage on Qwen2-VL-7B: adapters, one epoch of M-BEIR, 3,840 pairs a batch.

marvel plan configs/qwen2_vl_7b_lora.py --topology gpu:h100:64
marvel train configs/qwen2_vl_7b_lora.py --layout gpu:h100:64 --workdir runs/7b

The figures are those of the published recipe (arXiv 2507.14902 and its launch scripts); the
published run starts from weights that two text and caption stages have adapted already.
"""

from marvel_jax.data.batch import RowShape
from marvel_jax.models.lora import LoraConfig
from marvel_jax.settings import EmbeddingSettings
from marvel_jax.training.config import DataConfig, ModelConfig, OptimizerConfig, TrainConfig

config = TrainConfig(
    data=DataConfig(
        path="data/mbeir",
        reader="mbeir",
        global_batch=3840,
        # The longest item, 480 tokens of text beside 300 visual ones, fits with room for others;
        # 60 pairs a device, as on 64 of them, fill 95% of 15 such rows. Of patches a row has 2.4 a
        # token, where the mix of text and pictures has 2.2, so that tokens fill up first. Both are
        # multiples of 128, as attention kernels like them.
        row=RowShape(tokens=1280, patches=3072, items=64),
    ),
    model=ModelConfig(
        source="Qwen/Qwen2-VL-7B-Instruct",
        dtype="bfloat16",
        remat="full",
        adapters=LoraConfig(rank=128, alpha=256.0),
    ),
    embedding=EmbeddingSettings(max_pixels=300 * 28 * 28, max_text_tokens=480),
    # The temperature is learned, from 0.05 where the weights bring none.
    optimizer=OptimizerConfig(learning_rate=4e-4, warmup_fraction=0.03, clip_norm=1.0),
    steps=348,  # 1,332,790 queries, once
    seed=42,
)

# By topology: `marvel plan` says that each fits, `marvel train --layout` takes it. Adapters leave
# the base frozen, so that devices which can hold it whole send only the adapters' gradients. What
# the backward pass keeps decides the speed: one forward pass that is computed again in part
# (remat "full") where its rows fit, else chunks so small that they need not be.
layouts = {
    "gpu:h100:1": ("chunk_rows=5", "model.remat=none"),
    "gpu:h100:8": ("chunk_rows=5", "model.remat=none"),
    "gpu:h100:64": ("model.remat=full",),
    # The base does not fit a chip of 16 GB: it is split over 16 of them.
    "tpu:v5e:8x8": ("mesh.fsdp=16", "chunk_rows=5", "model.remat=full"),
    "tpu:v5p:2x2x2": ("chunk_rows=5", "model.remat=none"),
    "tpu:v5p:4x4x4": ("model.remat=full",),
}
