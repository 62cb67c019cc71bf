"""The published Qwen2-VL models by Hub id: nothing is fetched to plan or to measure them."""

from marvel_jax.models.config import Qwen2VLConfig, TextConfig, VisionConfig

# The vision tower is the same in every size; only the merger's output is as wide as a token.
_VISION = VisionConfig(depth=32, embed_dim=1280, num_heads=16, mlp_ratio=4)


def _model(
    *, width: int, mlp: int, layers: int, heads: int, groups: int, vocabulary: int, tied: bool
) -> Qwen2VLConfig:
    return Qwen2VLConfig(
        vision=_VISION,
        text=TextConfig(
            vocab_size=vocabulary,
            hidden_size=width,
            intermediate_size=mlp,
            num_hidden_layers=layers,
            num_attention_heads=heads,
            num_key_value_heads=groups,
            mrope_section=(16, 24, 24),
            rms_norm_eps=1e-6,
            rope_theta=1_000_000.0,
        ),
        tie_word_embeddings=tied,
    )


# Figures of each model's config.json on the Hugging Face Hub, and of arXiv 2409.12191, table 1.
PUBLISHED: dict[str, Qwen2VLConfig] = {
    "Qwen/Qwen2-VL-2B-Instruct": _model(
        width=1536, mlp=8960, layers=28, heads=12, groups=2, vocabulary=151_936, tied=True
    ),
    "Qwen/Qwen2-VL-7B-Instruct": _model(
        width=3584, mlp=18_944, layers=28, heads=28, groups=4, vocabulary=152_064, tied=False
    ),
    "Qwen/Qwen2-VL-72B-Instruct": _model(
        width=8192, mlp=29_568, layers=80, heads=64, groups=8, vocabulary=152_064, tied=False
    ),
}
