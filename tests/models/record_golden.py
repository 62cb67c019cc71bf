"""Records tests/models/golden: `python -m tests.models.record_golden` (needs torch).

Three tiny random Qwen2-VL checkpoints, saved by transformers, and for each the inputs and what
transformers makes of them. All biases are non-zero and all gains differ from one, so that leaving
one out shows; in "small_norms" the states are so small that the norms' epsilon matters.
"""

import shutil
from pathlib import Path

import numpy as np

from marvel_jax.models.config import Qwen2VLConfig
from tests.models import samples, torch_reference

GOLDEN = Path(__file__).parent / "golden"

_TEXT = {"vocab_size": 96, "bos_token_id": None, "eos_token_id": None}
CHECKPOINTS = {
    "tied": {
        "tie_word_embeddings": True,
        "text": {
            "hidden_size": 32,
            "intermediate_size": 48,
            "num_hidden_layers": 2,
            "num_attention_heads": 4,
            "num_key_value_heads": 2,
            "rms_norm_eps": 1e-6,
            "mrope_section": [2, 1, 1],
        },
        "vision": {"depth": 2, "embed_dim": 32, "num_heads": 2, "mlp_ratio": 2, "patch_size": 7},
    },
    "untied": {
        "tie_word_embeddings": False,
        "text": {
            "hidden_size": 24,
            "intermediate_size": 40,
            "num_hidden_layers": 3,
            "num_attention_heads": 2,
            "num_key_value_heads": 1,
            "rms_norm_eps": 1e-5,
            "mrope_section": [1, 2, 3],
        },
        "vision": {"depth": 3, "embed_dim": 16, "num_heads": 1, "mlp_ratio": 4, "patch_size": 14},
    },
    "small_norms": {
        "tie_word_embeddings": True,
        "text": {
            "hidden_size": 32,
            "intermediate_size": 48,
            "num_hidden_layers": 2,
            "num_attention_heads": 2,
            "num_key_value_heads": 2,
            "rms_norm_eps": 1e-6,
            "mrope_section": [4, 2, 2],
        },
        "vision": {"depth": 2, "embed_dim": 32, "num_heads": 4, "mlp_ratio": 2, "patch_size": 7},
    },
}

# Where a tower's residual stream comes from: scaled down, they make every norm's input small.
_RESIDUAL = ("embed_tokens", "patch_embed", "attn.proj", "fc2", "o_proj", "down_proj", "mlp.2")


def main() -> None:
    for number, name in enumerate(CHECKPOINTS):
        folder = GOLDEN / name
        shutil.rmtree(folder, ignore_errors=True)
        make_checkpoint(folder, name, seed=number)
        np.savez_compressed(folder / "golden.npz", **record(folder, seed=100 * number))
        size = sum(path.stat().st_size for path in folder.iterdir())
        print(f"{folder}: {size / 1024:.0f} KiB")


def make_checkpoint(folder: Path, name: str, *, seed: int) -> None:
    import torch
    from transformers import Qwen2VLConfig as ReferenceConfig
    from transformers import Qwen2VLForConditionalGeneration

    spec = CHECKPOINTS[name]
    text = {**_TEXT, **spec["text"]}
    section = text.pop("mrope_section")
    rope = {"rope_type": "default", "rope_theta": 10_000.0, "mrope_section": section}
    config = ReferenceConfig(
        text_config={**text, "rope_parameters": rope},
        vision_config={**spec["vision"], "hidden_size": text["hidden_size"]},
        tie_word_embeddings=spec["tie_word_embeddings"],
        image_token_id=93,
        video_token_id=92,
        vision_start_token_id=94,
        vision_end_token_id=95,
    )
    model = Qwen2VLForConditionalGeneration(config)
    generator = torch.Generator().manual_seed(seed)
    for path, weight in model.named_parameters():
        noise = torch.randn(weight.shape, generator=generator)
        if path.endswith("bias"):
            value = 0.3 * noise
        elif weight.ndim == 1:
            value = 1 + 0.3 * noise
        elif "embed_tokens" in path:
            value = noise
        else:
            value = noise / weight[0].numel() ** 0.5
        small = name == "small_norms" and any(part in path for part in _RESIDUAL)
        weight.data.copy_(value * 1e-3 if small else value)
    model.save_pretrained(folder)


def record(folder: Path, *, seed: int) -> dict[str, np.ndarray]:
    model = torch_reference.load(folder)
    out: dict[str, np.ndarray] = {}
    for sample in samples.all_samples(Qwen2VLConfig.from_folder(folder), seed=seed):
        name = sample.name
        out[f"{name}/tokens"], out[f"{name}/pooled"] = sample.tokens, sample.pooled
        out[f"{name}/grids"] = np.array(sample.grids, np.int32).reshape(-1, 2)
        out[f"{name}/patches"] = sample.patches
        out[f"{name}/mrope"] = torch_reference.rope_index(model, sample)[:, 0].T.astype(np.int32)
        if sample.grids:
            out[f"{name}/visual"] = torch_reference.visual_tokens(model, sample)
        for attention in ("bidirectional", "causal"):
            for positions in ("mrope", "sequential"):
                out[f"{name}/{attention}/{positions}"] = torch_reference.hidden_states(
                    model, sample, attention=attention, positions=positions
                )
    return out


if __name__ == "__main__":
    main()
