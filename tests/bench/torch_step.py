"""One contrastive train step in transformers and torch, asked for line by line; needs torch.

    python tests/bench/torch_step.py FOLDER

FOLDER holds `model/`, `items.npz` and `step.json` as marvel_jax.bench.peers writes them. Each line
of standard input, "plain" or "cached", takes one step and prints one JSON object; with " memory"
behind it, of the step's peak memory and not of its time.

"plain" is InfoNCE with two forwards, all queries and all candidates, each padded to its longest.
"cached" is GradCache as sentence-transformers' cached loss does it: mini-batches sorted by length
and padded to their own longest, embedded without a graph; the loss and its gradient at the
embeddings; then a second forward of each mini-batch to carry the gradient on.
"""

import dataclasses
import json
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from transformers import Qwen2VLForConditionalGeneration
from transformers.utils import logging

sys.path.insert(0, str(Path(__file__).parents[2]))
from marvel_jax.bench.stopwatch import lap, peak_memory


@dataclasses.dataclass(frozen=True)
class Padded:
    """Some items as a collator hands them over, and their places among all."""

    places: torch.Tensor  # [n]
    inputs: dict[str, torch.Tensor]
    pooled: torch.Tensor  # [n, L]


class Items:
    """The items of `items.npz`, one by one."""

    def __init__(self, path: Path, described: dict[str, Any]) -> None:
        found = np.load(path)
        ends = np.cumsum(found["lengths"])[:-1]
        self.tokens = np.split(found["tokens"], ends)
        self.positions = np.split(found["positions"], ends)
        self.pooled = np.split(found["pooled"], ends)
        self.patches = np.split(found["patches"], np.cumsum(found["patch_counts"])[:-1])
        self.grids = np.split(found["grids"], np.cumsum(found["image_counts"])[:-1])
        self.queries = int(found["queries"])
        self.own = torch.from_numpy(found["own"].astype(np.int64))
        self.masked = torch.from_numpy(found["masked"])
        self._mean = np.array(described["image_mean"], np.float32)[:, None]
        self._std = np.array(described["image_std"], np.float32)[:, None]

    def pad(self, places: Sequence[int], frames: int) -> Padded:
        """The batch that a processor and a padding collator make of some items."""
        longest = max(len(self.tokens[place]) for place in places)
        tokens = np.zeros((len(places), longest), np.int64)
        positions = np.zeros((3, len(places), longest), np.int64)
        mask, pooled = np.zeros_like(tokens), np.zeros(tokens.shape, np.float32)
        for row, place in enumerate(places):
            length = len(self.tokens[place])
            tokens[row, :length] = self.tokens[place]
            positions[:, row, :length] = self.positions[place].T
            mask[row, :length] = 1
            pooled[row, :length] = self.pooled[place]
        inputs = {"input_ids": tokens, "position_ids": positions, "attention_mask": mask}
        grids = np.concatenate([self.grids[place] for place in places])
        if len(grids):
            patches = np.concatenate([self.patches[place] for place in places])
            pixels = patches.reshape(len(patches), 3, 1, -1).astype(np.float32) / 255
            pixels = (pixels - self._mean[:, None]) / self._std[:, None]
            # A still image is the same frame twice.
            inputs["pixel_values"] = np.repeat(pixels, frames, axis=2).reshape(len(patches), -1)
            inputs["image_grid_thw"] = np.insert(grids, 0, 1, axis=1)
        return Padded(
            torch.tensor(list(places)),
            {name: torch.from_numpy(value) for name, value in inputs.items()},
            torch.from_numpy(pooled),
        )


class Steps:
    """Model, optimiser and the two ways to take a step. Both start from the same weights."""

    def __init__(self, folder: Path, items: Items, described: dict[str, Any]) -> None:
        self.items, self.described = items, described
        self.model = Qwen2VLForConditionalGeneration.from_pretrained(
            folder / "model", dtype=torch.float32, attn_implementation="sdpa"
        ).train()
        # config.json says that it is bidirectional; a causal mask would show in the first loss.
        frames = self.model.config.vision_config.temporal_patch_size
        count = len(items.tokens)
        sides = (range(items.queries), range(items.queries, count))
        size = described["mini_batch"]
        self.whole = [items.pad(side, frames) for side in sides]
        self.parts = []
        for side in sides:
            by_length = sorted(side, key=lambda place: -len(items.tokens[place]))
            for start in range(0, len(by_length), size):
                self.parts.append(items.pad(by_length[start : start + size], frames))
        self.log_temperature = torch.nn.Parameter(torch.tensor(described["log_temperature"]))
        self.parameters = [*self.model.parameters(), self.log_temperature]
        self.optimizer = torch.optim.AdamW(
            self.parameters,
            betas=tuple(described["betas"]),
            eps=described["eps"],
            weight_decay=0.0,
            fused=True,
        )
        self.taken = 0

    def embed(self, batch: Padded) -> torch.Tensor:
        hidden = self.model.model(**batch.inputs, use_cache=False).last_hidden_state
        counted = batch.pooled[..., None]
        mean = (hidden * counted).sum(1) / counted.sum(1)
        return torch.nn.functional.normalize(mean, dim=-1)

    def loss(self, vectors: torch.Tensor) -> torch.Tensor:
        queries, candidates = vectors[: self.items.queries], vectors[self.items.queries :]
        logits = queries @ candidates.T / self.log_temperature.exp()
        logits = logits.masked_fill(self.items.masked, float("-inf"))
        return torch.nn.functional.cross_entropy(logits, self.items.own)

    def plain(self) -> torch.Tensor:
        loss = self.loss(torch.cat([self.embed(batch) for batch in self.whole]))
        loss.backward()
        return loss

    def cached(self) -> torch.Tensor:
        width = self.model.config.text_config.hidden_size
        vectors = torch.zeros(len(self.items.tokens), width)
        with torch.no_grad():
            for batch in self.parts:
                vectors[batch.places] = self.embed(batch)
        vectors.requires_grad_()
        loss = self.loss(vectors)
        loss.backward()
        for batch in self.parts:
            (self.embed(batch) * vectors.grad[batch.places]).sum().backward()
        return loss

    def take(self, kind: str) -> dict[str, float]:
        rates = self.described["rates"]
        for group in self.optimizer.param_groups:
            group["lr"] = rates[self.taken % len(rates)]
        loss = {"plain": self.plain, "cached": self.cached}[kind]()
        norm = torch.nn.utils.clip_grad_norm_(self.parameters, self.described["clip"])
        self.optimizer.step()
        self.optimizer.zero_grad()
        self.taken += 1
        return {"loss": float(loss.detach()), "gradient_norm": float(norm)}

    def fill(self, kind: str) -> float:
        """Real tokens over tokens computed."""
        batches = self.whole if kind == "plain" else self.parts
        slots = sum(batch.pooled.numel() for batch in batches)
        return sum(map(len, self.items.tokens)) / slots


def main() -> None:
    logging.disable_progress_bar()
    folder = Path(sys.argv[1])
    described = json.loads((folder / "step.json").read_text(encoding="utf-8"))
    items = Items(folder / "items.npz", described)
    steps: dict[str, Steps] = {}
    for line in sys.stdin:
        kind, *asked = line.split()
        if kind not in steps:
            steps[kind] = Steps(folder, items, described)
        found: dict[str, Any] = {}

        def take(kind: str = kind, found: dict[str, Any] = found) -> None:
            found |= steps[kind].take(kind)

        if asked == ["memory"]:
            found["peak_bytes"] = peak_memory(take)
        else:
            found |= lap(take)._asdict()
        print(json.dumps({**found, "token_fill": steps[kind].fill(kind)}), flush=True)


if __name__ == "__main__":
    main()
