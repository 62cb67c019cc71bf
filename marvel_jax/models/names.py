"""The one table of parameters: our paths, the hub's names, transforms, sizes and logical axes.

Conversion (hub.py), sharding and adapters read this table and nothing else; a test holds it equal
to the tree that `init_params` makes.
"""

import dataclasses
import re
from collections.abc import Callable, Iterable, Mapping
from typing import Any, Protocol

import numpy as np

from marvel_jax import files
from marvel_jax.errors import MarvelError
from marvel_jax.models.config import Qwen2VLConfig

# The learned temperature that U-MARVEL keeps among the weights; it is no parameter of the network.
TEMPERATURE = "sim.temp"

# Buffers that old checkpoints stored and that are computed here.
_IGNORED = re.compile(r"(^|\.)(rotary_emb|rotary_pos_emb)\.inv_freq$")

# Where the towers stand in a file: first as the hub has it (and save_pretrained of transformers 4
# and 5 writes it), then as transformers 4.52+ and 5 name it in memory, last as the model without
# its head is saved.
_LANGUAGE = ("model.", "model.language_model.", "language_model.")
_VISION = ("visual.", "model.visual.")


class Stored(Protocol):
    """A tensor of the hub, in memory or on disk: indexing gives just that part of it."""

    @property
    def shape(self) -> tuple[int, ...]: ...
    def __getitem__(self, index: tuple[slice, ...]) -> np.ndarray: ...


Region = tuple[slice, ...]
"""A box of an array: one slice an axis, with start and stop."""


@dataclasses.dataclass(frozen=True)
class Transform:
    """How any part of a tensor of the hub becomes ours, and how ours becomes the hub's.

    Attributes:
      part: (stored, region of ours) -> that region, reading no more of the tensor than it needs.
      to_hub: the whole, back. Both are views wherever numpy allows.
      outer: our axis that is outermost on disk: cut along it, a tensor is read in long runs.
    """

    part: Callable[[Stored, Region], np.ndarray]
    to_hub: Callable[[np.ndarray, Qwen2VLConfig], np.ndarray]
    outer: int


def _patch_part(stored: Stored, region: Region) -> np.ndarray:
    # The pixels of a patch are four axes on disk, and are read whole: no one shards them.
    values, features = region
    whole = tuple(slice(0, size) for size in stored.shape[1:])
    kernel = stored[(features, *whole)]
    return kernel.reshape(kernel.shape[0], -1).T[values]


def _patch_kernel(kernel: np.ndarray, config: Qwen2VLConfig) -> np.ndarray:
    v = config.vision
    size = (v.embed_dim, v.in_channels, v.temporal_patch_size, v.patch_size, v.patch_size)
    return kernel.T.reshape(size)


def _qkv_part(stored: Stored, region: Region) -> np.ndarray:
    """[in, 3, out] of [3 * out, in], or [3, out] of [3 * out]."""
    *inputs, which, features = region
    size = stored.shape[0] // 3
    starts = [number * size for number in range(which.start, which.stop)]
    parts = [
        stored[(slice(start + features.start, start + features.stop), *inputs)].T
        for start in starts
    ]
    return np.stack(parts, axis=-2)


TRANSFORMS: Mapping[str, Transform] = {
    "same": Transform(lambda x, at: x[at], lambda x, _: x, outer=0),
    # torch.nn.Linear stores [out, in].
    "transpose": Transform(lambda x, at: x[at[::-1]].T, lambda x, _: x.T, outer=1),
    # A convolution whose kernel is its stride: [out, channels, frames, height, width].
    "patch_kernel": Transform(_patch_part, _patch_kernel, outer=1),
    # Query, key and value one after the other: [3 * out, in] and [3 * out].
    "qkv_kernel": Transform(_qkv_part, lambda x, _: x.reshape(x.shape[0], -1).T, outer=2),
    "qkv_bias": Transform(_qkv_part, lambda x, _: x.reshape(-1), outer=1),
}


@dataclasses.dataclass(frozen=True)
class Parameter:
    """One leaf of the parameter tree.

    Attributes:
      path: ours, separated by "/".
      hub: names on disk, the one that we write first; "{layer}" where layers are stacked.
      transform: a key of TRANSFORMS, applied layer by layer.
      sizes: of each axis, layers not included: a field or property of the config, or a number.
      axes: the logical axis names that sharding rules speak of, "layers" first where stacked.
      layers: the config's field that counts the layers, or None.
      optional: a file may lack it; the tree then lacks it too.
    """

    path: str
    hub: tuple[str, ...]
    transform: str
    sizes: tuple[str | int, ...]
    axes: tuple[str | None, ...]
    layers: str | None = None
    optional: bool = False

    def shape(self, config: Qwen2VLConfig) -> tuple[int, ...]:
        """The shape of our array, layers included."""
        stack = () if self.layers is None else (_size(config, self.layers),)
        return stack + tuple(_size(config, size) for size in self.sizes)

    def num_layers(self, config: Qwen2VLConfig) -> int:
        """How many tensors of the hub make this parameter."""
        return 1 if self.layers is None else _size(config, self.layers)

    def hub_shape(self, config: Qwen2VLConfig) -> tuple[int, ...]:
        """The shape of one tensor on disk."""
        ours = tuple(_size(config, size) for size in self.sizes)
        empty = np.broadcast_to(np.float32(0), ours)
        return TRANSFORMS[self.transform].to_hub(empty, config).shape

    def hub_name(self, layer: int) -> str:
        """The name under which we write a layer."""
        return self.hub[0].format(layer=layer)


def table(config: Qwen2VLConfig) -> tuple[Parameter, ...]:
    """Every parameter of the model that `config` describes."""
    rows = [*_vision(), *_language()]
    if not config.tie_word_embeddings:
        # Optional, because a model saved without its head embeds just as well.
        head = Parameter(
            path="lm_head/kernel",
            hub=("lm_head.weight",),
            transform="transpose",
            sizes=("text.hidden_size", "text.vocab_size"),
            axes=("embed", "vocab"),
            optional=True,
        )
        rows.append(head)
    return tuple(rows)


def logical_axes(config: Qwen2VLConfig) -> dict[str, Any]:
    """A tree like the parameters', whose leaves are tuples of logical axis names."""
    return nest({parameter.path: parameter.axes for parameter in table(config)})


def nest(flat: Mapping[str, Any]) -> dict[str, Any]:
    """{"a/b": x} to {"a": {"b": x}}."""
    tree: dict[str, Any] = {}
    for path, leaf in flat.items():
        *parents, name = path.split("/")
        branch = tree
        for parent in parents:
            branch = branch.setdefault(parent, {})
        branch[name] = leaf
    return tree


def flatten(tree: Mapping[str, Any]) -> dict[str, Any]:
    """{"a": {"b": x}} to {"a/b": x}."""
    return files.flatten(tree, separator="/")


def match(keys: Iterable[str], config: Qwen2VLConfig) -> dict[str, list[str]]:
    """Finds the tensors of each parameter: {our path: [name on disk of each layer]}.

    The temperature and the buffers that are computed here are no parameters and are left out; so is
    the head of a model with tied embeddings, which is the token embedding over again.

    Raises:
      MarvelError: one message that lists every tensor nobody asked for, every parameter without
        its tensor, and every parameter with two.
    """
    left = {key for key in keys if key != TEMPERATURE and not _IGNORED.search(key)}
    if config.tie_word_embeddings:
        left.discard("lm_head.weight")
    found: dict[str, list[str]] = {}
    missing, twice = [], []
    for parameter in table(config):
        names = []
        for layer in range(parameter.num_layers(config)):
            aliases = [alias.format(layer=layer) for alias in parameter.hub]
            present = [alias for alias in aliases if alias in left]
            left.difference_update(present)
            if len(present) > 1:
                twice.append(f"{parameter.path} as {' and '.join(present)}")
            elif present:
                names.append(present[0])
            elif not parameter.optional:
                missing.append(aliases[0])
        if names:
            found[parameter.path] = names
    problems = [
        f"{len(entries)} {what}: {', '.join(sorted(entries))}"
        for what, entries in (
            ("unknown weight(s), which no parameter of this model takes", left),
            ("missing weight(s)", missing),
            ("parameter(s) given twice", twice),
        )
        if entries
    ]
    if problems:
        raise MarvelError(
            "the weights do not fit config.json.\n  " + "\n  ".join(problems) + "\n  Check that "
            "config.json belongs to these weights (num_hidden_layers, depth, tie_word_embeddings)."
        )
    return found


def _size(config: Qwen2VLConfig, size: str | int) -> int:
    if isinstance(size, int):
        return size
    tower, field = size.split(".")
    return int(getattr(getattr(config, tower), field))


def _vision() -> Iterable[Parameter]:
    width, mlp = "vision.embed_dim", "vision.mlp_size"

    def row(path: str, hub: str, transform: str, *dims: tuple[str | int, str | None]) -> Parameter:
        stacked = "{layer}" in hub
        return Parameter(
            path=f"vision/{path}",
            hub=tuple(prefix + hub for prefix in _VISION),
            transform=transform,
            sizes=tuple(size for size, _ in dims),
            axes=(("layers",) if stacked else ()) + tuple(axis for _, axis in dims),
            layers="vision.depth" if stacked else None,
        )

    embed, heads = (width, "vision_embed"), (width, "vision_heads")
    hidden = (mlp, "vision_mlp")
    merged = ("vision.merged_size", "vision_embed")
    merger = ("vision.merged_size", "vision_mlp")
    token = ("text.hidden_size", "embed")

    kernel = ("vision.patch_values", "patch")
    yield row("patch_embed/kernel", "patch_embed.proj.weight", "patch_kernel", kernel, embed)
    block = "blocks.{layer}."
    for ours, theirs in (("attention_norm", "norm1"), ("mlp_norm", "norm2")):
        yield row(f"blocks/{ours}/scale", f"{block}{theirs}.weight", "same", embed)
        yield row(f"blocks/{ours}/bias", f"{block}{theirs}.bias", "same", embed)
    three = (3, None)
    yield row("blocks/qkv/kernel", f"{block}attn.qkv.weight", "qkv_kernel", embed, three, heads)
    yield row("blocks/qkv/bias", f"{block}attn.qkv.bias", "qkv_bias", three, heads)
    for ours, theirs, before, after in (
        ("blocks/out", f"{block}attn.proj", heads, embed),
        ("blocks/up", f"{block}mlp.fc1", embed, hidden),
        ("blocks/down", f"{block}mlp.fc2", hidden, embed),
        ("merger/up", "merger.mlp.0", merged, merger),
        ("merger/down", "merger.mlp.2", merger, token),
    ):
        yield row(f"{ours}/kernel", f"{theirs}.weight", "transpose", before, after)
        yield row(f"{ours}/bias", f"{theirs}.bias", "same", after)
    yield row("merger/norm/scale", "merger.ln_q.weight", "same", embed)
    yield row("merger/norm/bias", "merger.ln_q.bias", "same", embed)


def _language() -> Iterable[Parameter]:
    def row(path: str, hub: str, transform: str, *dims: tuple[str, str]) -> Parameter:
        stacked = "{layer}" in hub
        return Parameter(
            path=f"language/{path}",
            hub=tuple(prefix + hub for prefix in _LANGUAGE),
            transform=transform,
            sizes=tuple(size for size, _ in dims),
            axes=(("layers",) if stacked else ()) + tuple(axis for _, axis in dims),
            layers="text.num_hidden_layers" if stacked else None,
        )

    embed, heads = ("text.hidden_size", "embed"), ("text.query_size", "heads")
    groups, hidden = ("text.kv_size", "kv_heads"), ("text.intermediate_size", "mlp")

    vocab = ("text.vocab_size", "vocab")
    yield row("token_embedding", "embed_tokens.weight", "same", vocab, embed)
    block = "layers.{layer}."
    yield row("blocks/attention_norm/scale", f"{block}input_layernorm.weight", "same", embed)
    yield row("blocks/mlp_norm/scale", f"{block}post_attention_layernorm.weight", "same", embed)
    for ours, after in (("query", heads), ("key", groups), ("value", groups)):
        theirs = f"{block}self_attn.{ours[0]}_proj"
        yield row(f"blocks/{ours}/kernel", f"{theirs}.weight", "transpose", embed, after)
        yield row(f"blocks/{ours}/bias", f"{theirs}.bias", "same", after)
    for ours, theirs, before, after in (
        ("out", "self_attn.o", heads, embed),
        ("gate", "mlp.gate", embed, hidden),
        ("up", "mlp.up", embed, hidden),
        ("down", "mlp.down", hidden, embed),
    ):
        name = f"{block}{theirs}_proj.weight"
        yield row(f"blocks/{ours}/kernel", name, "transpose", before, after)
    yield row("norm/scale", "norm.weight", "same", embed)
