"""Encoding and a LoRA step in transformers and torch, on CUDA where it is; needs torch.

    python tests/bench/torch_accelerated.py FOLDER

FOLDER holds `model/` (a config.json; weights or none, then they are random), `items.npz` and
`peer.json` as marvel_jax.bench.torch_peers writes them. Prints one JSON object as its last line.

"encode": batches of items of like length, padded to the longest, of a bounded number of tokens.
"step": GradCache as sentence-transformers' cached loss does it (mini-batches sorted by length, two
forwards), over adapters on a frozen base, with gradient checkpointing.
Pictures are normalised, converted and padded before the clock starts.
"""

import json
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import torch
from transformers import AutoConfig, Qwen2VLForConditionalGeneration
from transformers.utils import logging

sys.path.insert(0, str(Path(__file__).parents[2]))
from marvel_jax.bench.stopwatch import lap
from tests.bench.torch_step import Items, Padded

LINEARS = ("q_proj", "k_proj", "v_proj", "o_proj", "gate_proj", "up_proj", "down_proj")


class Adapted(torch.nn.Module):
    """A frozen dense layer and alpha / rank * (dropout(x) @ a) @ b beside it."""

    def __init__(self, base: torch.nn.Linear, *, rank: int, scale: float, dropout: float) -> None:
        super().__init__()
        self.base, self.scale, self.dropout = base, scale, torch.nn.Dropout(dropout)
        device = base.weight.device
        self.a = torch.nn.Parameter(torch.empty(rank, base.in_features, device=device))
        torch.nn.init.kaiming_uniform_(self.a, a=5**0.5)
        self.b = torch.nn.Parameter(torch.zeros(base.out_features, rank, device=device))

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        low = torch.nn.functional.linear(self.dropout(x), self.a.to(x.dtype))
        return self.base(x) + self.scale * torch.nn.functional.linear(low, self.b.to(x.dtype))


class Peer:
    """The model, and the items in padded batches."""

    def __init__(self, folder: Path, asked: dict[str, Any]) -> None:
        self.asked, self.began = asked, time.monotonic()
        self.device, self.dtype = torch.device(asked["device"]), getattr(torch, asked["dtype"])
        self.items = Items(folder / "items.npz", asked)
        self.model = self._load(folder / "model")
        self.frames = self.model.config.vision_config.temporal_patch_size

    def _load(self, folder: Path) -> Any:
        options = {"dtype": self.dtype, "attn_implementation": "sdpa"}
        if (folder / "model.safetensors").is_file():
            model = Qwen2VLForConditionalGeneration.from_pretrained(folder, **options)
            return model.to(self.device)
        with self.device:
            config = AutoConfig.from_pretrained(folder)
            return Qwen2VLForConditionalGeneration._from_config(config, **options)

    def batches(self, sides: list[range], *, count: int, tokens: int) -> list[Padded]:
        """Items sorted by length, at most `count` of them and `tokens` with their padding."""
        found = []
        for side in sides:
            left = sorted(side, key=lambda place: -len(self.items.tokens[place]))
            while left:
                width = len(self.items.tokens[left[0]])
                size = max(1, min(count, tokens // width))
                found.append(self._prepared(left[:size]))
                left = left[size:]
        return found

    def _prepared(self, places: list[int]) -> Padded:
        batch = self.items.pad(places, self.frames)
        if "pixel_values" in batch.inputs:
            batch.inputs["pixel_values"] = batch.inputs["pixel_values"].to(self.dtype)
        return batch

    def embed(self, batch: Padded) -> torch.Tensor:
        inputs = {name: value.to(self.device) for name, value in batch.inputs.items()}
        hidden = self.model.model(**inputs, use_cache=False).last_hidden_state.float()
        counted = batch.pooled.to(self.device)[..., None]
        mean = (hidden * counted).sum(1) / counted.sum(1)
        return torch.nn.functional.normalize(mean, dim=-1)

    def fill(self, batches: list[Padded]) -> float:
        return sum(map(len, self.items.tokens)) / sum(one.pooled.numel() for one in batches)

    def timed(self, call: Callable[[], object]) -> list[tuple[float, float]]:
        def whole() -> None:
            call()
            if self.device.type == "cuda":
                torch.cuda.synchronize()

        end = self.began + self.asked["seconds"]
        whole()
        laps = [lap(whole)]
        while len(laps) < self.asked["repeats"] and time.monotonic() + laps[0].seconds < end:
            laps.append(lap(whole))
        return [tuple(one) for one in laps]

    def peak_mib(self) -> float | None:
        if self.device.type != "cuda":
            return None
        return round(torch.cuda.max_memory_allocated() / 2**20, 1)


def encode(peer: Peer, folder: Path) -> dict[str, Any]:
    count = len(peer.items.tokens)
    peer.model.eval()
    batches = peer.batches([range(count)], count=count, tokens=peer.asked["batch_tokens"])
    vectors = np.zeros((count, peer.model.config.text_config.hidden_size), np.float32)

    @torch.inference_mode()
    def take() -> None:
        found = [peer.embed(batch) for batch in batches]
        for batch, value in zip(batches, found, strict=True):
            vectors[batch.places.numpy()] = value.cpu().numpy()

    laps = peer.timed(take)
    np.save(folder / "vectors.npy", vectors)
    return {"laps": laps, "token_fill": peer.fill(batches)}


def adapt(model: Any, asked: dict[str, Any]) -> Iterator[torch.nn.Parameter]:
    """Freezes the model, gives every dense layer of the language model an adapter; yields them."""
    model.requires_grad_(False)
    for layer in model.model.language_model.layers:
        for part in (layer.self_attn, layer.mlp):
            for name in LINEARS:
                if hasattr(part, name):
                    made = Adapted(
                        getattr(part, name),
                        rank=asked["rank"],
                        scale=asked["alpha"] / asked["rank"],
                        dropout=asked["dropout"],
                    )
                    setattr(part, name, made)
                    yield from (made.a, made.b)


def step(peer: Peer, folder: Path) -> dict[str, Any]:
    asked, items, model = peer.asked, peer.items, peer.model
    parameters = list(adapt(model, asked))
    model.gradient_checkpointing_enable(gradient_checkpointing_kwargs={"use_reentrant": False})
    model.train()
    log_temperature = torch.nn.Parameter(torch.tensor(asked["log_temperature"], device=peer.device))
    parameters.append(log_temperature)
    optimizer = torch.optim.AdamW(parameters, lr=asked["rate"], weight_decay=0.0, fused=True)
    count = len(items.tokens)
    sides = [range(items.queries), range(items.queries, count)]
    batches = peer.batches(sides, count=asked["mini_batch"], tokens=asked["batch_tokens"])
    own, masked = items.own.to(peer.device), items.masked.to(peer.device)
    losses: list[float] = []

    def loss_of(vectors: torch.Tensor) -> torch.Tensor:
        queries, candidates = vectors[: items.queries], vectors[items.queries :]
        logits = queries @ candidates.T / log_temperature.exp()
        return torch.nn.functional.cross_entropy(logits.masked_fill(masked, float("-inf")), own)

    def take() -> None:
        vectors = torch.zeros(count, model.config.text_config.hidden_size, device=peer.device)
        with torch.no_grad():
            for number, batch in enumerate(batches):
                torch.manual_seed(number)  # both forwards drop the same
                vectors[batch.places.to(peer.device)] = peer.embed(batch)
        vectors.requires_grad_()
        loss = loss_of(vectors)
        loss.backward()
        for number, batch in enumerate(batches):
            torch.manual_seed(number)
            gradient = vectors.grad[batch.places.to(peer.device)]
            (peer.embed(batch) * gradient).sum().backward()
        torch.nn.utils.clip_grad_norm_(parameters, asked["clip"])
        optimizer.step()
        optimizer.zero_grad()
        losses.append(float(loss.detach()))

    laps = peer.timed(take)
    return {"laps": laps, "token_fill": peer.fill(batches), "first_loss": losses[0]}


def main() -> None:
    logging.disable_progress_bar()
    folder = Path(sys.argv[1])
    asked = json.loads((folder / "peer.json").read_text(encoding="utf-8"))
    if asked["device"] == "cuda" and not torch.cuda.is_available():
        print(json.dumps({"missing": f"torch {torch.__version__} sees no CUDA device"}))
        return
    peer = Peer(folder, asked)
    found = {"encode": encode, "step": step}[asked["task"]](peer, folder)
    print(json.dumps({**found, "peak_mib": peer.peak_mib(), "torch": torch.__version__}))


if __name__ == "__main__":
    main()
