"""How far we are from transformers on the golden checkpoints, right and with one thing wrong."""

import contextlib
import dataclasses
import functools
import types
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, NamedTuple
from unittest import mock

import jax
import jax.numpy as jnp
import numpy as np

from marvel_jax.models import attention, hub, language, names, qwen2_vl, vision
from marvel_jax.models.config import Qwen2VLConfig
from tests.models.samples import LAYOUTS, MERGE, Sample, build_rows

GOLDEN = Path(__file__).parent / "golden"
CHECKPOINTS = ("tied", "untied", "small_norms")
ATTENTIONS = ("bidirectional", "causal")
SCHEMES = ("mrope", "sequential")
TOLERANCE = 1e-5

# Both rows hold several items and end in padding.
_PLACEMENT = (("text", "image", "several"), ("tall", "both", "wide"))


@dataclasses.dataclass(frozen=True)
class Golden:
    """One recorded checkpoint: our parameters, the inputs, and transformers' outputs."""

    config: Qwen2VLConfig
    params: dict[str, Any]
    samples: dict[str, Sample]
    arrays: dict[str, np.ndarray]


class Errors(NamedTuple):
    """Largest differences: of visual tokens and hidden states as a share of their scale (the
    largest value, at most 1 for visual tokens), of unit embeddings absolute."""

    visual: float
    hidden: float
    mean: float
    last: float

    @property
    def embedding(self) -> float:
        return max(self.mean, self.last)


@functools.cache
def golden(name: str) -> Golden:
    checkpoint = hub.load(GOLDEN / name)
    with np.load(GOLDEN / name / "golden.npz") as file:
        arrays = dict(file)
    samples = {
        item: Sample(
            name=item,
            tokens=arrays[f"{item}/tokens"],
            pooled=arrays[f"{item}/pooled"],
            grids=tuple((int(h), int(w)) for h, w in arrays[f"{item}/grids"]),
            patches=arrays[f"{item}/patches"],
            image_token=checkpoint.config.image_token_id,
        )
        for item in LAYOUTS
    }
    params = jax.tree.map(jnp.asarray, checkpoint.params)
    return Golden(checkpoint.config, params, samples, arrays)


def packed_rows(name: str, scheme: str) -> Any:
    samples = golden(name).samples
    rows = [[samples[item] for item in row] for row in _PLACEMENT]
    tokens = 5 + max(sum(len(s.tokens) for s in row) for row in rows)
    patches = 8 + max(sum(len(s.patches) for s in row) for row in rows)
    return build_rows(rows, scheme=scheme, tokens=tokens, patches=patches)


def forward(config: Qwen2VLConfig, attention_kind: str) -> Callable[..., Any]:
    """(params, rows) -> visual tokens, hidden states, mean-pooled and last-token embeddings."""

    def run(params: Any, rows: Any) -> tuple[jax.Array, ...]:
        embed = functools.partial(
            qwen2_vl.embed, params, rows, config, items_per_row=3, attention=attention_kind
        )
        return (
            qwen2_vl.visual_tokens(params, rows, config),
            qwen2_vl.hidden_states(params, rows, config, attention=attention_kind),
            embed(pooling="mean").vectors,
            embed(pooling="last").vectors,
        )

    return jax.jit(run)


# Compiled once for each model; a mutation of the code must not find the right one's program here.
compiled = functools.cache(forward)


def compare(name: str, outputs: tuple[Any, ...], *, attention_kind: str, scheme: str) -> Errors:
    """Our outputs on `packed_rows` against the recorded ones."""
    visual, hidden, mean, last = (np.asarray(output, np.float64) for output in outputs)
    arrays, samples = golden(name).arrays, golden(name).samples
    errors = []
    for r, row in enumerate(_PLACEMENT):
        token = patch = 0
        for g, item in enumerate(row):
            sample = samples[item]
            states = arrays[f"{item}/{attention_kind}/{scheme}"].astype(np.float64)
            ours = hidden[r, token : token + len(states)]
            pooled = states[sample.pooled]
            error = [0.0, _largest(ours - states) / _largest(states)]
            error.append(_largest(mean[r, g] - _unit(pooled.mean(axis=0))))
            error.append(_largest(last[r, g] - _unit(pooled[-1])))
            if sample.grids:
                tower = arrays[f"{item}/visual"].astype(np.float64)
                ours = visual[r, patch : patch + len(tower)]
                error[0] = _largest(ours - tower) / min(1.0, _largest(tower))
            errors.append(error)
            token += len(states)
            patch += len(sample.patches) // MERGE**2
    return Errors(*np.max(errors, axis=0).tolist())


def parity(name: str, *, attention_kind: str, scheme: str) -> Errors:
    """How far the model as it is stands from transformers."""
    outputs = compiled(golden(name).config, attention_kind)(
        golden(name).params, packed_rows(name, scheme)
    )
    return compare(name, outputs, attention_kind=attention_kind, scheme=scheme)


@dataclasses.dataclass(frozen=True)
class Mutation:
    """One thing done wrong. `run(name)` gives the outputs of bidirectional attention, M-RoPE,
    or None where a checkpoint has no such thing."""

    name: str
    run: Callable[[str], tuple[Any, ...] | None]

    def error(self, name: str) -> float:
        """The error of the embeddings on one checkpoint, NaN where it has no such thing."""
        outputs = self.run(name)
        if outputs is None:
            return float("nan")
        return compare(name, outputs, attention_kind="bidirectional", scheme="mrope").embedding


def _with_code(label: str, patch: Callable[[], contextlib.AbstractContextManager]) -> Mutation:
    def run(name: str) -> tuple[Any, ...]:
        with patch():
            program = forward(golden(name).config, "bidirectional")
            return program(golden(name).params, packed_rows(name, "mrope"))

    return Mutation(label, run)


def _with_config(label: str, change: Callable[[Qwen2VLConfig], Qwen2VLConfig]) -> Mutation:
    def run(name: str) -> tuple[Any, ...]:
        program = forward(change(golden(name).config), "bidirectional")
        return program(golden(name).params, packed_rows(name, "mrope"))

    return Mutation(label, run)


def _with_inputs(label: str, *, attention_kind: str, scheme: str) -> Mutation:
    def run(name: str) -> tuple[Any, ...]:
        program = compiled(golden(name).config, attention_kind)
        return program(golden(name).params, packed_rows(name, scheme))

    return Mutation(label, run)


def _other_epsilon(config: Qwen2VLConfig) -> Qwen2VLConfig:
    other = {1e-6: 1e-5, 1e-5: 1e-6}[config.text.rms_norm_eps]
    return dataclasses.replace(config, text=dataclasses.replace(config.text, rms_norm_eps=other))


def _unmasked(tower: Any) -> contextlib.AbstractContextManager:
    """In one tower's file, attention sees across items, images and padding."""

    def wrong(*heads: jax.Array, segments: jax.Array, **options: Any) -> Any:
        return attention.attend(*heads, segments=jnp.ones_like(segments), **options)

    return mock.patch.object(tower, "attention", types.SimpleNamespace(attend=wrong))


def mutations() -> Iterator[Mutation]:
    """Every mistake that parity must notice."""
    patch = mock.patch.object
    yield _with_config("RMSNorm epsilon 1e-5 for 1e-6 or the reverse", _other_epsilon)
    yield _with_code("LayerNorm epsilon 1e-5", lambda: patch(vision, "LAYER_NORM_EPS", 1e-5))
    yield _with_code("tanh GELU in the merger", lambda: patch(vision, "exact_gelu", jax.nn.gelu))
    yield _with_code(
        "exact GELU in the tower's blocks",
        lambda: patch(vision, "quick_gelu", vision.exact_gelu),
    )
    yield _with_inputs("causal attention", attention_kind="causal", scheme="mrope")
    yield _with_inputs(
        "1-D positions for M-RoPE", attention_kind="bidirectional", scheme="sequential"
    )
    yield _with_code("language segment mask off", lambda: _unmasked(language))
    yield _with_code("vision segment mask off", lambda: _unmasked(vision))
    yield from dropped_vectors()


def dropped_vectors() -> Iterator[Mutation]:
    """Each single bias set to 0 and each single gain set to 1, layer by layer."""
    deepest = Qwen2VLConfig.from_folder(GOLDEN / "untied")
    for row in names.table(deepest):
        *_, leaf = row.path.split("/")
        if leaf not in ("bias", "scale"):
            continue
        neutral = 0.0 if leaf == "bias" else 1.0
        parts = ("query", "key", "value") if row.transform == "qkv_bias" else (None,)
        for layer in range(row.num_layers(deepest)):
            for number, part in enumerate(parts):
                index = (layer,) if row.layers else ()
                index += (number,) if part else ()
                label = row.path + (f"[{layer}]" if row.layers else "")
                label += f" {part}" if part else ""
                yield _with_leaf(f"{label} dropped", row.path, index or (...,), neutral)


def _with_leaf(label: str, path: str, index: tuple[Any, ...], value: float) -> Mutation:
    def run(name: str) -> tuple[Any, ...] | None:
        flat = names.flatten(golden(name).params)
        if isinstance(index[0], int) and index[0] >= flat[path].shape[0]:
            return None  # This model has fewer layers.
        params = names.nest({**flat, path: flat[path].at[index].set(value)})
        return compiled(golden(name).config, "bidirectional")(params, packed_rows(name, "mrope"))

    return Mutation(label, run)


def _unit(vector: np.ndarray) -> np.ndarray:
    return vector / np.linalg.norm(vector)


def _largest(array: np.ndarray) -> float:
    return float(np.abs(array).max())
