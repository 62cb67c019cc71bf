"""The same items through transformers' Qwen2-VL, in float32 on the CPU. Needs torch."""

from pathlib import Path
from typing import Any

import numpy as np

from tests.models.samples import Sample


def load(folder: Path | str) -> Any:
    """The model of a folder, eager attention, so that a mask means what it says."""
    import torch
    from transformers import Qwen2VLForConditionalGeneration

    model = Qwen2VLForConditionalGeneration.from_pretrained(
        folder, dtype=torch.float32, attn_implementation="eager"
    )
    return model.eval()


def visual_tokens(model: Any, sample: Sample) -> np.ndarray:
    """[P / 4, D]: what the vision tower makes of a sample's images."""
    import torch

    with torch.no_grad():
        out = model.model.visual(_pixels(model, sample), grid_thw=_grids(sample))
    return out.pooler_output.numpy()


def hidden_states(
    model: Any, sample: Sample, *, attention: str, positions: str, mask: bool = True
) -> np.ndarray:
    """[L, D]: the last hidden states of one sample.

    Bidirectional attention is asked for with a 4-D additive mask, or, with mask=False, by what the
    folder's config.json says.
    """
    import torch

    tokens = torch.from_numpy(sample.tokens.astype(np.int64))[None]
    arguments: dict[str, Any] = {"input_ids": tokens}
    length = tokens.shape[1]
    if mask and attention == "bidirectional":
        arguments["attention_mask"] = torch.zeros((1, 1, length, length))
    if sample.grids:
        arguments["pixel_values"] = _pixels(model, sample)
        arguments["image_grid_thw"] = _grids(sample)
    if positions == "sequential":
        arguments["position_ids"] = torch.arange(length).expand(3, 1, length)
    else:
        arguments["position_ids"] = torch.from_numpy(rope_index(model, sample))
    with torch.no_grad():
        return model.model(**arguments).last_hidden_state[0].numpy()


def rope_index(model: Any, sample: Sample) -> np.ndarray:
    """[3, 1, L]: the positions that transformers gives the sample."""
    import torch

    tokens = torch.from_numpy(sample.tokens.astype(np.int64))[None]
    kinds = (tokens == sample.image_token).int()
    grids = _grids(sample) if sample.grids else None
    index, _ = model.model.get_rope_index(tokens, kinds, image_grid_thw=grids)
    return index.numpy()


def _grids(sample: Sample) -> Any:
    import torch

    return torch.tensor([[1, height, width] for height, width in sample.grids])


def _pixels(model: Any, sample: Sample) -> Any:
    """Rescaled, normalised and with the frame doubled, as the processor gives a still image."""
    import torch
    from transformers.image_utils import OPENAI_CLIP_MEAN, OPENAI_CLIP_STD

    vision = model.config.vision_config
    size, frames = vision.patch_size, vision.temporal_patch_size
    pixels = sample.patches.reshape(-1, 3, 1, size, size).astype(np.float32) / 255
    mean = np.array(OPENAI_CLIP_MEAN, np.float32)[:, None, None, None]
    std = np.array(OPENAI_CLIP_STD, np.float32)[:, None, None, None]
    doubled = np.repeat((pixels - mean) / std, frames, axis=2)
    return torch.from_numpy(doubled.reshape(len(pixels), -1))
