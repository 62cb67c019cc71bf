"""The language model of Qwen2-VL: a Qwen2 decoder whose mask and positions are inputs."""

import functools
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp

from marvel_jax.models import attention, rotary
from marvel_jax.models.config import TextConfig
from marvel_jax.models.kernels import Kernel
from marvel_jax.models.linear import Dense, Dropout
from marvel_jax.models.lora import LoraConfig


class RMSNorm(nn.Module):
    """Root-mean-square normalisation in float32."""

    epsilon: float
    dtype: Any

    @nn.compact
    def __call__(self, x: jax.Array) -> jax.Array:
        scale = self.param("scale", nn.initializers.ones, (x.shape[-1],))
        # Here and in the activations: what lies between inputs and output is cheaper computed again
        # than written and read. On two CPU cores value and gradient take 0.93 of the time and 0.72
        # of the memory (tests/models/block_speed.py).
        norm = jax.checkpoint(functools.partial(rms_norm, epsilon=self.epsilon))
        return norm(x, scale).astype(self.dtype)


def rms_norm(x: jax.Array, scale: jax.Array, *, epsilon: float) -> jax.Array:
    """Divides x [..., D] by its root mean square and scales it by a gain [D]; float32."""
    x = x.astype(jnp.float32)
    return x * jax.lax.rsqrt(jnp.mean(x**2, axis=-1, keepdims=True) + epsilon) * scale


def swiglu(gate: jax.Array, up: jax.Array) -> jax.Array:
    """The activation of the blocks, silu(gate) * up."""
    return jax.nn.silu(gate) * up


class LanguageBlock(nn.Module):
    """One pre-norm block: grouped-query attention with biases, then a SwiGLU."""

    config: TextConfig
    dtype: Any
    causal: bool
    kernel: Kernel
    keep: str
    lora: LoraConfig | None = None
    branching: bool = False

    @nn.compact
    def __call__(
        self,
        x: jax.Array,
        angles: jax.Array,
        segments: jax.Array,
        keys: jax.Array | None = None,
        layer: jax.Array | None = None,
    ) -> tuple[jax.Array, None]:
        config = self.config
        drop = None if keys is None or layer is None else Dropout(keys, layer)
        init = nn.initializers.normal(config.initializer_range)

        def dense(x: jax.Array, features: int, *, name: str, use_bias: bool = False) -> jax.Array:
            module = Dense(
                features,
                use_bias=use_bias,
                dtype=self.dtype,
                kernel_init=init,
                lora=self.lora,
                name=name,
            )
            return module(x, drop)

        def heads(x: jax.Array) -> jax.Array:
            return x.reshape(*x.shape[:2], -1, config.head_dim)

        normed = RMSNorm(config.rms_norm_eps, self.dtype, name="attention_norm")(x)
        query = dense(normed, config.query_size, name="query", use_bias=True)
        key = dense(normed, config.kv_size, name="key", use_bias=True)
        value = dense(normed, config.kv_size, name="value", use_bias=True)
        mixed = attention.attend(
            rotary.rotate(heads(query), angles),
            rotary.rotate(heads(key), angles),
            heads(value),
            segments=segments,
            causal=self.causal,
            kernel=self.kernel,
            keep=self.keep,
            branching=self.branching,
        )
        x = x + dense(mixed.reshape(query.shape), config.hidden_size, name="out")

        normed = RMSNorm(config.rms_norm_eps, self.dtype, name="mlp_norm")(x)
        gate = dense(normed, config.intermediate_size, name="gate")
        up = dense(normed, config.intermediate_size, name="up")
        inner = jax.checkpoint(swiglu)(gate, up)
        return x + dense(inner, config.hidden_size, name="down"), None


class LanguageModel(nn.Module):
    """Tokens, with visual tokens put in their places, to final hidden states [R, S, D].

    Call with tokens [R, S], positions [R, S, 3], segments [R, S], vision_index [R, S] (-1 = text)
    and visual [R, V, D], or None where the batch has no image; and with the tokens' dropout keys
    [R, S, 2], or None where adapters drop nothing.
    """

    config: TextConfig
    dtype: Any
    causal: bool
    wrap_block: Any
    kernel: Kernel
    keep: str
    lora: LoraConfig | None = None
    branching: bool = False

    @nn.compact
    def __call__(
        self,
        tokens: jax.Array,
        positions: jax.Array,
        segments: jax.Array,
        vision_index: jax.Array,
        visual: jax.Array | None,
        dropout_keys: jax.Array | None = None,
    ) -> jax.Array:
        config = self.config
        init = nn.initializers.normal(config.initializer_range)
        shape = (config.vocab_size, config.hidden_size)
        table = self.param("token_embedding", init, shape)
        x = jnp.take(table, tokens, axis=0, mode="clip").astype(self.dtype)
        if visual is not None:
            # Indices are local to the row: a global index would make every device fetch the visual
            # tokens of all the others.
            index = jnp.maximum(vision_index, 0)[..., None]
            placed = jnp.take_along_axis(visual.astype(self.dtype), index, axis=1, mode="clip")
            x = jnp.where((vision_index >= 0)[..., None], placed, x)
        section, theta = config.mrope_section, config.rope_theta
        angles = rotary.mrope_angles(positions, section=section, theta=theta)
        layers = config.num_hidden_layers
        shared, each = [angles, segments], []
        if dropout_keys is not None:
            shared, each = [*shared, dropout_keys], [jnp.arange(layers)]
        blocks = self.wrap_block(LanguageBlock, length=layers, shared=len(shared), each=len(each))(
            config,
            dtype=self.dtype,
            causal=self.causal,
            kernel=self.kernel,
            keep=self.keep,
            lora=self.lora,
            branching=self.branching,
            name="blocks",
        )
        x, _ = blocks(x, *shared, *each)
        return RMSNorm(config.rms_norm_eps, self.dtype, name="norm")(x)
