"""What U-MARVEL's released code and GME's make of an item, with torch and transformers alone.

Written from the specification (umarvel.md 1.2 to 1.8 and 2.1 to 2.3, field.md H): prompts are
strings for transformers' tokenizer, a batch is padded as theirs is, the text model is called with
embeddings and no positions. Nothing of marvel_jax is used.
"""

from collections.abc import Sequence
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import PIL.Image
import torch
from transformers import PreTrainedTokenizerFast, Qwen2VLConfig, Qwen2VLForConditionalGeneration
from transformers.models.qwen2_vl.image_processing_pil_qwen2_vl import Qwen2VLImageProcessorPil

SYSTEM = "You are a helpful assistant."
PAD = "<|endoftext|>"
PIXELS = {"min_pixels": 4 * 14 * 14, "max_pixels": 12 * 14 * 14}
_RESERVED = 8  # rows of the table behind the tokenizer's own, as published models have them


class Content(NamedTuple):
    """An item as the reference knows it: at most one picture, which goes first."""

    text: str | None = None
    picture: PIL.Image.Image | None = None
    instruction: str | None = None


def write_model(folder: Path, tokenizer: PreTrainedTokenizerFast, *, seed: int) -> None:
    """A random Qwen2-VL: no gain is one and no bias zero, so that leaving one out shows."""
    special = {
        name: tokenizer.convert_tokens_to_ids(f"<|{token}|>")
        for name, token in (
            ("image_token_id", "image_pad"),
            ("video_token_id", "video_pad"),
            ("vision_start_token_id", "vision_start"),
            ("vision_end_token_id", "vision_end"),
        )
    }
    rope = {"rope_type": "default", "rope_theta": 10_000.0, "mrope_section": [2, 1, 1]}
    text = {
        "vocab_size": len(tokenizer) + _RESERVED,
        "hidden_size": 32,
        "intermediate_size": 48,
        "num_hidden_layers": 2,
        "num_attention_heads": 4,
        "num_key_value_heads": 2,
        "rope_parameters": rope,
        "bos_token_id": None,
        "eos_token_id": None,
    }
    vision = {"depth": 2, "embed_dim": 32, "num_heads": 2, "mlp_ratio": 2, "patch_size": 7}
    model = Qwen2VLForConditionalGeneration(
        Qwen2VLConfig(
            text_config=text,
            vision_config={**vision, "hidden_size": 32},
            tie_word_embeddings=True,
            **special,
        )
    )
    generator = torch.Generator().manual_seed(seed)
    for path, weight in model.named_parameters():
        noise = torch.randn(weight.shape, generator=generator)
        if weight.ndim == 1:
            value = 0.3 * noise + (0 if path.endswith("bias") else 1)
        else:
            value = noise if "embed_tokens" in path else noise / weight[0].numel() ** 0.5
        weight.data.copy_(value)
    model.save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    _pictures().save_pretrained(folder)


def _pictures() -> Qwen2VLImageProcessorPil:
    return Qwen2VLImageProcessorPil(patch_size=7, **PIXELS)


class _Reference:
    """A model folder as transformers loads it."""

    def __init__(self, folder: Path) -> None:
        self.model = Qwen2VLForConditionalGeneration.from_pretrained(
            folder, dtype=torch.float32, attn_implementation="eager"
        ).eval()
        self.tokenizer = PreTrainedTokenizerFast.from_pretrained(folder, pad_token=PAD)
        self.pictures = _pictures()

    def states(
        self, texts: Sequence[str], contents: Sequence[Content], *, side: str, causal: bool
    ) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
        """Last hidden states [B, L, D], ids [B, L], and which of them are no padding [B, L]."""
        shown = [one.picture for one in contents if one.picture is not None]
        seen = self.pictures(shown, return_tensors="pt") if shown else None
        counts = iter([] if seen is None else (seen["image_grid_thw"].prod(dim=1) // 4).tolist())
        pad = "<|image_pad|>"
        whole = [text.replace(pad, pad * next(counts)) if pad in text else text for text in texts]
        batch = self.tokenizer(
            whole, padding=True, padding_side=side, return_tensors="pt", add_special_tokens=False
        )
        ids, valid = batch["input_ids"], batch["attention_mask"].bool()
        with torch.no_grad():
            embeds = self.model.get_input_embeddings()(ids)
            if seen is not None:
                made = self.model.model.visual(
                    seen["pixel_values"], grid_thw=seen["image_grid_thw"]
                ).pooler_output
                embeds[ids == self.tokenizer.convert_tokens_to_ids(pad)] = made
            mask: Any = batch["attention_mask"]
            if not causal:
                hidden_keys = ~valid[:, None, None, :].expand(-1, 1, ids.shape[1], -1)
                lowest = torch.finfo(torch.float32).min
                mask = torch.zeros(hidden_keys.shape).masked_fill(hidden_keys, lowest)
            out = self.model.model.language_model(
                inputs_embeds=embeds, attention_mask=mask, position_ids=None, use_cache=False
            )
        return out.last_hidden_state, ids, valid


class UMarvel(_Reference):
    """The released embedder: three added tokens, all tokens but the instruction averaged."""

    def __init__(self, folder: Path) -> None:
        super().__init__(folder)
        known = len(self.tokenizer)
        for marker in ("<emb>", "<instruction_start>", "<instruction_end>"):
            self.tokenizer.add_tokens([marker])
            self.model.resize_token_embeddings(len(self.tokenizer))
        table = self.model.get_input_embeddings().weight.data
        mean = table[: known + 1].mean(dim=0)
        # transformers draws the two markers' rows closely around the mean; here they are the mean.
        assert (table[known + 1 :] - mean).abs().max() < 1e-3
        table[known + 1 :] = mean

    def vectors(self, contents: Sequence[Content], *, generation_prompt: bool) -> np.ndarray:
        """Unit vectors [B, D]."""
        texts = []
        for one in contents:
            shown = "<|vision_start|><|image_pad|><|vision_end|>" if one.picture else ""
            asked = _formatted(one.text or "")
            if one.instruction is not None:
                told = _formatted(one.instruction)
                asked = _formatted(f"<instruction_start>{told}<instruction_end> {one.text or ''}")
            text = (
                f"<|im_start|>system\n{SYSTEM}<|im_end|>\n<|im_start|>user\n{shown}{asked}"
                "<|im_end|>\n<|im_start|>assistant\n<emb>.<|im_end|>\n"
            )
            texts.append(text + "<|im_start|>assistant\n" * generation_prompt)
        states, ids, valid = self.states(texts, contents, side="left", causal=False)
        first, last = (
            self.tokenizer.convert_tokens_to_ids(name)
            for name in ("<instruction_start>", "<instruction_end>")
        )
        closed = (ids == last).cumsum(dim=1) - (ids == last).long()
        instruction = (ids == first).cumsum(dim=1) > closed
        pooled = (valid & ~instruction)[..., None].float()
        mean = (states * pooled).sum(dim=1) / pooled.sum(dim=1).clamp(min=1e-7)
        return torch.nn.functional.normalize(mean, dim=1).numpy()


class Gme(_Reference):
    """GME: causal, and the state of the last token that is no padding."""

    def vectors(self, contents: Sequence[Content]) -> np.ndarray:
        """Unit vectors [B, D]."""
        texts = []
        for one in contents:
            shown = "<|vision_start|><|image_pad|><|vision_end|>" if one.picture else ""
            texts.append(
                f"<|im_start|>system\n{one.instruction or SYSTEM}<|im_end|>\n<|im_start|>user\n"
                f"{shown}{one.text or ''}<|im_end|>\n<|im_start|>assistant\n{PAD}"
            )
        states, _, valid = self.states(texts, contents, side="right", causal=True)
        last = states[torch.arange(len(texts)), valid.sum(dim=1) - 1]
        return torch.nn.functional.normalize(last, dim=1).numpy()


def _formatted(text: str) -> str:
    """UniIR's rule for texts."""
    text = text.replace("\r", "").strip().strip('"')
    if not text:
        return ""
    text = text[0].upper() + text[1:]
    return text if text[-1] in ".?!" else text + "."
