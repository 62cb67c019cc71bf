"""Low-rank adapters (LoRA, arXiv 2106.09685) as a second tree of parameters beside the base.

An adapter of a dense layer adds alpha / rank * (dropout(x) @ a) @ b. `models/linear.py` applies it;
this file says which layers have one, what it weighs, and which of its inputs dropout leaves out.
"""

import dataclasses
import difflib
import math
import re
from collections.abc import Mapping
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from marvel_jax.errors import MarvelError
from marvel_jax.models import names
from marvel_jax.models.config import Qwen2VLConfig

LINEARS = ("query", "key", "value", "out", "gate", "up", "down")
"""The dense layers of a language block, all that can be adapted. Their order numbers the dropout
masks: a new one goes to the end."""

_BLOCKS = "language/blocks/"


@dataclasses.dataclass(frozen=True)
class LoraConfig:
    """Which layers are adapted and how. The defaults are U-MARVEL's (arXiv 2507.14902).

    Attributes:
      rank: the width of the bottleneck.
      alpha: the adapter's output is scaled by alpha / rank.
      dropout: the share of an adapter's inputs that is left out in training.
      targets: a regular expression that must match the whole path of a dense layer, as the names
        table has it but without "/kernel".
    """

    rank: int = 128
    alpha: float = 256.0
    dropout: float = 0.05
    targets: str = r"language/blocks/(query|key|value|out|gate|up|down)"

    def __post_init__(self) -> None:
        if not isinstance(self.rank, int) or isinstance(self.rank, bool) or self.rank < 1:
            raise MarvelError(f"adapters.rank must be a positive integer, found {self.rank!r}.")
        if not (self.alpha > 0 and math.isfinite(self.alpha)):
            raise MarvelError(
                f"adapters.alpha={self.alpha} must be positive and finite: twice the rank, "
                f"{2 * self.rank}, is usual."
            )
        if not 0 <= self.dropout < 1:
            raise MarvelError(f"adapters.dropout={self.dropout} is a share: 0 to below 1.")
        try:
            re.compile(self.targets)
        except re.error as error:
            raise MarvelError(
                f"adapters.targets={self.targets!r} is no regular expression ({error}); "
                f"the default is {LoraConfig.targets!r}."
            ) from None

    @property
    def scale(self) -> float:
        return self.alpha / self.rank


def _targets(config: Qwen2VLConfig, lora: LoraConfig) -> list[tuple[str, names.Parameter]]:
    """(path without "/kernel", row of the table) of every adapted layer."""
    layers = {
        row.path.removesuffix("/kernel"): row
        for row in names.table(config)
        if row.path.endswith(("/kernel", "/token_embedding"))
    }
    able = [_BLOCKS + linear for linear in LINEARS]
    matched = [path for path in layers if re.fullmatch(lora.targets, path)]
    unable = [path for path in matched if path not in able]
    if unable or not matched:
        what = f"matches {', '.join(unable)}, which cannot be adapted" if unable else "matches none"
        raise MarvelError(
            f"adapters.targets={lora.targets!r} {what}. The layers that can be adapted are "
            f"{', '.join(able)}; the expression must match the whole path."
        )
    return [(path, layers[path]) for path in able if path in matched]


def adapter_shapes(config: Qwen2VLConfig, lora: LoraConfig) -> dict[str, tuple[int, ...]]:
    """{"language/blocks/query/a": (L, in, rank), "language/blocks/query/b": (L, rank, out), ...}.

    Raises:
      MarvelError: `lora.targets` matches no layer, or one that cannot be adapted.
    """
    shapes: dict[str, tuple[int, ...]] = {}
    for path, row in _targets(config, lora):
        layers, fan_in, fan_out = row.shape(config)
        shapes[f"{path}/a"] = (layers, fan_in, lora.rank)
        shapes[f"{path}/b"] = (layers, lora.rank, fan_out)
    return shapes


def logical_axes(config: Qwen2VLConfig, lora: LoraConfig) -> dict[str, Any]:
    """The tree of adapters with tuples of logical axis names as its leaves; see `names`."""
    axes: dict[str, tuple[str | None, ...]] = {}
    for path, row in _targets(config, lora):
        layers, before, after = row.axes
        axes[f"{path}/a"] = (layers, before, "lora_rank")
        axes[f"{path}/b"] = (layers, "lora_rank", after)
    return names.nest(axes)


def init_adapters(config: Qwen2VLConfig, lora: LoraConfig, *, key: jax.Array) -> dict[str, Any]:
    """Fresh float32 adapters: `a` uniform in +-1/sqrt(in), as PEFT draws it, and `b` zero.

    A layer's `a` depends on the key and the layer only, not on what else is adapted.
    """
    flat = {}
    for path, shape in adapter_shapes(config, lora).items():
        if path.endswith("/b"):
            flat[path] = jnp.zeros(shape, jnp.float32)
            continue
        number = LINEARS.index(path.split("/")[-2])
        bound = shape[1] ** -0.5
        draw = jax.random.fold_in(key, number)
        flat[path] = jax.random.uniform(draw, shape, jnp.float32, -bound, bound)
    return names.nest(flat)


def check_adapters(adapters: Mapping[str, Any], config: Qwen2VLConfig, lora: LoraConfig) -> None:
    """Holds a tree of adapters (arrays or shapes) to what the model and `lora` ask for.

    Raises:
      MarvelError: one message that lists every path that no layer takes, every one that is missing
        and every array of a wrong shape.
    """
    expected = adapter_shapes(config, lora)
    found = {path: tuple(np.shape(leaf)) for path, leaf in names.flatten(adapters).items()}
    missing = [path for path in expected if path not in found]
    problems = []
    for path in sorted(found.keys() - expected.keys()):
        close = difflib.get_close_matches(path, missing or expected, n=1, cutoff=0.8)
        problems.append(f"unknown: {path}" + (f" (is it {close[0]}?)" if close else ""))
    problems += [f"missing: {path} {expected[path]}" for path in missing]
    problems += [
        f"wrong shape: {path} is {found[path]}, should be {shape}"
        for path, shape in expected.items()
        if path in found and found[path] != shape
    ]
    if problems:
        raise MarvelError(
            f"the adapters do not fit the model and {lora}.\n  " + "\n  ".join(problems) + "\n  "
            "Check that they were trained on this model with this rank and these targets."
        )


def merge(
    params: Mapping[str, Any], adapters: Mapping[str, Any], lora: LoraConfig
) -> dict[str, Any]:
    """Parameters with the adapters added in: kernel + alpha / rank * a @ b, in float32.

    Takes numpy or jax arrays, works leaf by leaf and changes nothing in place. Adapted kernels come
    out in float32 even where the base is bfloat16, which would round most of an adapter away; all
    other leaves come out as they are.

    Raises:
      MarvelError: an adapter of a layer that `params` does not hold, or half of an adapter.
    """
    merged = names.flatten(params)
    flat = names.flatten(adapters)
    for layer in sorted({path.rpartition("/")[0] for path in flat}):
        kernel, a, b = merged.get(f"{layer}/kernel"), flat.get(f"{layer}/a"), flat.get(f"{layer}/b")
        if kernel is None or a is None or b is None:
            raise MarvelError(
                f"cannot merge the adapter {layer}: the kernel, a and b are needed, but "
                f"{'the parameters have no kernel' if kernel is None else 'a or b is missing'}."
            )
        if isinstance(kernel, np.ndarray):
            a, b = np.asarray(a, np.float32), np.asarray(b, np.float32)
            change = np.matmul(a, b)
            change *= np.float32(lora.scale)
            merged[f"{layer}/kernel"] = kernel.astype(np.float32) + change
        else:
            precision = jax.lax.Precision.HIGHEST
            change = jnp.matmul(a, b, precision=precision, preferred_element_type=jnp.float32)
            merged[f"{layer}/kernel"] = kernel.astype(jnp.float32) + lora.scale * change
    return names.nest(merged)


def token_keys(
    segments: jax.Array, item_key: jax.Array, *, seed: int | jax.Array, step: int | jax.Array
) -> jax.Array:
    """The dropout key [R, S, 2] uint32 of every token.

    It is made of the seed, the step, the token's item and its place in the item, and of nothing
    else: an item is masked alike in whatever row, packing, chunk or shard it stands.

    Args:
      segments: [R, S] integers; the tokens of an item stand side by side.
      item_key: [R, G, 2] uint32, the key of the item of segment g + 1.
      seed: of the run; an integer, traced or not, as is the step.
      step: of the run.
    """
    # By name, because not every generator gives a key of a batch what it gives the key alone.
    base = jax.random.key(seed, impl="threefry2x32")
    base = jax.random.fold_in(base, step)
    fold = jax.vmap(jax.random.fold_in, in_axes=(None, 0))
    rows, items = item_key.shape[:2]
    flat = item_key.reshape(-1, 2)
    keys = jax.vmap(jax.random.fold_in)(fold(base, flat[:, 0]), flat[:, 1])
    keys = jax.random.key_data(keys).reshape(rows, items, 2)
    keys = jnp.take_along_axis(keys, jnp.maximum(segments - 1, 0)[..., None], axis=1, mode="clip")
    order = jnp.arange(segments.shape[1])
    begins = jnp.concatenate(
        [jnp.ones_like(segments[:, :1], bool), segments[:, 1:] != segments[:, :-1]], axis=1
    )
    place = order - jax.lax.cummax(jnp.where(begins, order, 0), axis=1)
    tokens = jax.vmap(jax.random.fold_in)(
        jax.random.wrap_key_data(keys.reshape(-1, 2), impl="threefry2x32"), place.reshape(-1)
    )
    return jax.random.key_data(tokens).reshape(*segments.shape, 2)


def dropout(
    x: jax.Array, keys: jax.Array, *, layer: int | jax.Array, linear: str, rate: float
) -> jax.Array:
    """Sets a share `rate` of `x` to 0 and scales the rest by 1 / (1 - rate).

    Args:
      x: [R, S, D]
      keys: [R, S, 2] uint32, as `token_keys` makes them.
      layer: which block asks; no two draw the same mask.
      linear: which of LINEARS asks.
      rate: 0 to below 1.
    """
    threshold = round(rate * 2**32)
    site = jnp.asarray(layer, jnp.uint32) * len(LINEARS) + LINEARS.index(linear) + 1
    first = _mix(keys[..., 0] + site * np.uint32(0x9E3779B9))
    second = _mix(keys[..., 1] ^ first)
    # One counter hash a number, because that is elementwise: it is the same however tokens and
    # features are split over a mesh, and costs a quarter of JAX's own generator. Its rounds are
    # those of MurmurHash3, with the second half of the key put in between, so that two tokens
    # share a mask only if all 64 bits agree.
    feature = jax.lax.broadcasted_iota(jnp.uint32, (1, 1, x.shape[-1]), 2)
    bits = _mix(first[..., None] + feature * np.uint32(0x9E3779B9), within=second[..., None])
    kept = bits >= np.uint32(threshold)
    return jnp.where(kept, x * (1 / (1 - threshold / 2**32)), 0).astype(x.dtype)


def _mix(bits: jax.Array, *, within: jax.Array | None = None) -> jax.Array:
    """Spreads every bit of uint32 numbers over all the others (the finaliser of MurmurHash3)."""
    bits = (bits ^ (bits >> 16)) * np.uint32(0x85EBCA6B)
    if within is not None:
        bits = bits ^ within
    bits = (bits ^ (bits >> 13)) * np.uint32(0xC2B2AE35)
    return bits ^ (bits >> 16)
