"""Qwen2-VL as pure functions: `init_params`, `embed`, and the two stages of `embed`."""

from collections.abc import Sequence
from typing import Any, Protocol, cast

import flax.linen as nn
import jax
import jax.numpy as jnp

from marvel_jax.errors import MarvelError
from marvel_jax.models.config import Qwen2VLConfig
from marvel_jax.models.kernels import ALL_XLA, Kernels
from marvel_jax.models.language import LanguageModel
from marvel_jax.models.linear import Dense
from marvel_jax.models.lora import LoraConfig, check_adapters
from marvel_jax.models.pooling import Embeddings, pool
from marvel_jax.models.vision import VisionTower

Params = dict[str, Any]

# "branching" is causal attention over segments that branch (`models.attention.attend`).
ATTENTIONS = ("bidirectional", "causal", "branching")

# What the backward pass keeps of a block; what it does not keep, it computes again. None: all.
# Whatever is kept, the attention weights are so with "none" only: `attend` sees to that.
REMAT = {
    "none": None,
    "attention": None,
    "dots": jax.checkpoint_policies.dots_with_no_batch_dims_saveable,
    "full": jax.checkpoint_policies.nothing_saveable,
}


class Rows(Protocol):
    """What the model reads: R rows of S tokens and P patches, several items packed in each.

    tokens [R, S] int32; positions [R, S, 3] int32 (M-RoPE's time, height, width); segments [R, S]
    int32 (0 = padding, else the item of the row, from 1); pooled [R, S] bool; patches [R, P, C]
    uint8; patch_hw [R, P, 2] int32; patch_segments [R, P] int32 (0 = padding, else the image);
    vision_index [R, S] int32 (which merged token of the row stands here, -1 = text).
    """

    @property
    def tokens(self) -> Any: ...
    @property
    def positions(self) -> Any: ...
    @property
    def segments(self) -> Any: ...
    @property
    def pooled(self) -> Any: ...
    @property
    def patches(self) -> Any: ...
    @property
    def patch_hw(self) -> Any: ...
    @property
    def patch_segments(self) -> Any: ...
    @property
    def vision_index(self) -> Any: ...


class Qwen2VL(nn.Module):
    """The whole network; used through the functions below."""

    config: Qwen2VLConfig
    attention: str = "bidirectional"
    dtype: Any = jnp.float32
    remat: str = "none"
    kernels: Kernels = ALL_XLA
    lora: LoraConfig | None = None

    def setup(self) -> None:
        config = self.config
        if self.attention not in ATTENTIONS:
            raise MarvelError(
                f"attention {self.attention!r} is unknown: use one of {', '.join(ATTENTIONS)}."
            )
        if self.remat not in REMAT:
            raise MarvelError(f"remat {self.remat!r} is unknown: use one of {', '.join(REMAT)}.")
        width, causal = config.text.hidden_size, self.attention != "bidirectional"
        shared = {
            "dtype": self.dtype,
            "keep": "weights" if self.remat == "none" else "inputs",
            "wrap_block": self._stack,
        }
        self.vision = VisionTower(config.vision, width=width, kernel=self.kernels.vision, **shared)
        self.language = LanguageModel(
            config.text,
            causal=causal,
            kernel=self.kernels.language,
            lora=self.lora,
            branching=self.attention == "branching",
            **shared,
        )
        if not config.tie_word_embeddings:
            init = nn.initializers.normal(config.text.initializer_range)
            self.lm_head = Dense(
                config.text.vocab_size, use_bias=False, dtype=self.dtype, kernel_init=init
            )

    def _stack(self, block: type[nn.Module], *, length: int, shared: int, each: int = 0) -> Any:
        """A scan over `length` copies of the block, parameters stacked on a leading axis.

        After the carry the block takes `shared` arguments that are the same for all copies, then
        `each` that have one entry for each.
        """
        policy = REMAT[self.remat]
        if policy is not None:
            block = nn.remat(block, policy=policy, prevent_cse=False)
        return nn.scan(
            block,
            variable_axes={"params": 0, "adapters": 0},
            split_rngs={"params": True},
            in_axes=(nn.broadcast,) * shared + (0,) * each,
            length=length,
        )

    def visual_tokens(self, rows: Rows) -> jax.Array | None:
        if rows.patches.shape[1] == 0:
            return None
        return self.vision(rows.patches, rows.patch_hw, rows.patch_segments)

    def __call__(self, rows: Rows, dropout_keys: jax.Array | None = None) -> jax.Array:
        visual = self.visual_tokens(rows)
        hidden = self.language(
            rows.tokens, rows.positions, rows.segments, rows.vision_index, visual, dropout_keys
        )
        if self.is_initializing() and not self.config.tie_word_embeddings:
            self.lm_head(hidden)  # The embedder does not use it, but a lossless export needs it.
        return hidden


class _InitRows:
    """The smallest rows that reach every parameter."""

    def __init__(self, config: Qwen2VLConfig) -> None:
        patches = config.vision.spatial_merge_size**2
        self.tokens = self.segments = self.vision_index = jnp.zeros((1, 1), jnp.int32)
        self.positions = jnp.zeros((1, 1, 3), jnp.int32)
        self.pooled = jnp.ones((1, 1), bool)
        self.patches = jnp.zeros((1, patches, config.vision.still_values), jnp.uint8)
        self.patch_hw = jnp.zeros((1, patches, 2), jnp.int32)
        self.patch_segments = jnp.ones((1, patches), jnp.int32)


def init_params(config: Qwen2VLConfig, *, key: jax.Array) -> Params:
    """Random float32 parameters: a plain nested dict, the layers of a tower stacked on axis 0.

    Kernels are normal with `initializer_range`, biases 0 and gains 1. May be traced, so that
    `jax.jit(..., out_shardings=...)` creates each shard in its place.
    """
    variables = jax.jit(lambda key: Qwen2VL(config).init(key, _InitRows(config)))(key)
    return variables["params"]


def visual_tokens(
    params: Params,
    rows: Rows,
    config: Qwen2VLConfig,
    *,
    dtype: Any = jnp.float32,
    remat: str = "none",
    kernels: Kernels = ALL_XLA,
) -> jax.Array:
    """The vision tower's output [R, P / merge^2, D] of `dtype`, before it enters the text."""
    model = Qwen2VL(config, dtype=dtype, remat=remat, kernels=kernels)
    tokens = model.apply({"params": params}, rows, method=Qwen2VL.visual_tokens)
    return cast(jax.Array, tokens)


def hidden_states(
    params: Params,
    rows: Rows,
    config: Qwen2VLConfig,
    *,
    attention: str = "bidirectional",
    dtype: Any = jnp.float32,
    remat: str = "none",
    adapters: Params | None = None,
    lora: LoraConfig | None = None,
    dropout_keys: jax.Array | None = None,
    kernels: Kernels = ALL_XLA,
) -> jax.Array:
    """The language model's states [R, S, D] of `dtype`, after its final norm; see `embed`."""
    variables = {"params": params}
    if (adapters is None) != (lora is None):
        given, lacking = ("lora", "adapters") if adapters is None else ("adapters", "lora")
        raise MarvelError(f"{given} without {lacking}: give both or neither.")
    if adapters is not None and lora is not None:
        check_adapters(adapters, config, lora)
        variables["adapters"] = adapters
    elif dropout_keys is not None:
        raise MarvelError("dropout_keys without adapters: only adapters drop anything.")
    model = Qwen2VL(
        config, attention=attention, dtype=dtype, remat=remat, kernels=kernels, lora=lora
    )
    return cast(jax.Array, model.apply(variables, rows, dropout_keys))


def embed(
    params: Params,
    rows: Rows,
    config: Qwen2VLConfig,
    *,
    items_per_row: int,
    attention: str = "bidirectional",
    pooling: str = "mean",
    dtype: Any = jnp.float32,
    remat: str = "none",
    adapters: Params | None = None,
    lora: LoraConfig | None = None,
    dropout_keys: jax.Array | None = None,
    kernels: Kernels = ALL_XLA,
) -> Embeddings:
    """Embeds every item of every row; an item's vector does not depend on its neighbours.

    Args:
      params: as `init_params` makes them; they are cast to `dtype` where they are used.
      config: the shape of `params`.
      rows: see `Rows`. With P = 0 the vision tower is not even compiled.
      items_per_row: G, the largest segment number of any row.
      attention: "bidirectional" (U-MARVEL) or "causal"; either stays within an item.
      pooling: "mean" over the pooled tokens, or the "last" of them.
      dtype: of the matmuls; norms, rotary, softmax, pooling and unit norm are float32.
      remat: what the backward pass computes again. "none"; "attention": the attention weights;
        "dots": all but the matmuls' outputs; "full": all but the blocks' inputs.
      adapters: low-rank adapters as `lora.init_adapters` makes them, or None.
      lora: what the adapters are; given if and only if they are.
      dropout_keys: [R, S, 2] uint32 (`lora.token_keys`), in training; None drops nothing.
      kernels: what computes attention in each tower (`kernels.choice.choose`).

    Returns:
      Embeddings: vectors [R, G, D] float32 of unit norm, valid [R, G] bool.

    Raises:
      MarvelError: an unknown option, patches of another size than the model's, or adapters that
        do not fit it.
    """
    hidden = hidden_states(
        params,
        rows,
        config,
        attention=attention,
        dtype=dtype,
        remat=remat,
        adapters=adapters,
        lora=lora,
        dropout_keys=dropout_keys,
        kernels=kernels,
    )
    return pool(
        hidden,
        segments=rows.segments,
        pooled=rows.pooled,
        items_per_row=items_per_row,
        pooling=pooling,
    )


def answer_logits(
    params: Params,
    rows: Rows,
    config: Qwen2VLConfig,
    *,
    places: jax.Array,
    answers: Sequence[int],
    dtype: Any = jnp.float32,
    adapters: Params | None = None,
    lora: LoraConfig | None = None,
    attention: str = "causal",
    kernels: Kernels = ALL_XLA,
) -> jax.Array:
    """What the model would say next: logits [R, G, A] float32 of a few tokens at a few places.

    One forward pass and no generation; the head is applied to these places and tokens alone.

    Args:
      params: with "lm_head" where `config.tie_word_embeddings` is False.
      rows: see `Rows`; M-RoPE positions, as the model was trained.
      config: the shape of `params`.
      places: [R, G] int32, the places in the row of the tokens before the answers.
      answers: A token ids, e.g. of "Yes" and "No".
      dtype: as for `embed`, as are the following.
      adapters: see `embed`.
      lora: see `embed`.
      attention: "causal", or "branching" for rows of branches (see `models.attention.attend`).
      kernels: see `embed`.

    Raises:
      MarvelError: the model has no head, or what `embed` raises.
    """
    hidden = hidden_states(
        params,
        rows,
        config,
        attention=attention,
        dtype=dtype,
        adapters=adapters,
        lora=lora,
        kernels=kernels,
    )
    asked = jnp.take_along_axis(hidden, places[..., None], axis=1)
    head = jnp.take(head_rows(params, config), jnp.asarray(answers), axis=0)
    return jnp.einsum(
        "rgd,ad->rga",
        asked.astype(jnp.float32),
        head.astype(jnp.float32),
        precision=jax.lax.Precision.HIGHEST,
    )


def yes_no_logits(
    params: Params,
    rows: Rows,
    config: Qwen2VLConfig,
    *,
    places: jax.Array,
    yes_no: tuple[int, int],
    **options: Any,
) -> jax.Array:
    """`answer_logits` [R, G, 2] of the tokens of "Yes" and "No", in this order."""
    return answer_logits(params, rows, config, places=places, answers=yes_no, **options)


def head_rows(params: Params, config: Qwen2VLConfig) -> jax.Array:
    """The language model's head [V, D]: the token embeddings where they are tied.

    Raises:
      MarvelError: an untied head that the weights lack.
    """
    if config.tie_word_embeddings:
        return cast(jax.Array, params["language"]["token_embedding"])
    if "lm_head" not in params:
        raise MarvelError(
            "the weights hold no lm_head, without which no token has a logit: a reranker needs a "
            "model that was saved with its head."
        )
    return cast(jax.Array, params["lm_head"]["kernel"].T)
