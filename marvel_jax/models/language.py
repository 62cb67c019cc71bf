"""The language model of Qwen2-VL: a Qwen2 decoder whose mask and positions are inputs."""

from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp

from marvel_jax.models import attention, linear, rotary
from marvel_jax.models.config import TextConfig


class RMSNorm(nn.Module):
    """Root-mean-square normalisation in float32."""

    epsilon: float
    dtype: Any

    @nn.compact
    def __call__(self, x: jax.Array) -> jax.Array:
        scale = self.param("scale", nn.initializers.ones, (x.shape[-1],))
        x = x.astype(jnp.float32)
        x = x * jax.lax.rsqrt(jnp.mean(x**2, axis=-1, keepdims=True) + self.epsilon)
        return (x * scale).astype(self.dtype)


class LanguageBlock(nn.Module):
    """One pre-norm block: grouped-query attention with biases, then a SwiGLU."""

    config: TextConfig
    dtype: Any
    causal: bool
    implementation: str

    @nn.compact
    def __call__(
        self, x: jax.Array, angles: jax.Array, segments: jax.Array
    ) -> tuple[jax.Array, None]:
        config = self.config
        init = nn.initializers.normal(config.initializer_range)

        def dense(features: int, *, name: str, use_bias: bool = False) -> nn.Dense:
            return nn.Dense(
                features,
                use_bias=use_bias,
                dtype=self.dtype,
                kernel_init=init,
                dot_general=linear.dot_general,
                name=name,
            )

        def heads(x: jax.Array) -> jax.Array:
            return x.reshape(*x.shape[:2], -1, config.head_dim)

        normed = RMSNorm(config.rms_norm_eps, self.dtype, name="attention_norm")(x)
        query = dense(config.query_size, name="query", use_bias=True)(normed)
        key = dense(config.kv_size, name="key", use_bias=True)(normed)
        value = dense(config.kv_size, name="value", use_bias=True)(normed)
        mixed = attention.attend(
            rotary.rotate(heads(query), angles),
            rotary.rotate(heads(key), angles),
            heads(value),
            segments=segments,
            causal=self.causal,
            implementation=self.implementation,
        )
        x = x + dense(config.hidden_size, name="out")(mixed.reshape(query.shape))

        normed = RMSNorm(config.rms_norm_eps, self.dtype, name="mlp_norm")(x)
        gate = jax.nn.silu(dense(config.intermediate_size, name="gate")(normed))
        up = dense(config.intermediate_size, name="up")(normed)
        return x + dense(config.hidden_size, name="down")(gate * up), None


class LanguageModel(nn.Module):
    """Tokens, with visual tokens put in their places, to final hidden states [R, S, D].

    Call with tokens [R, S], positions [R, S, 3], segments [R, S], vision_index [R, S] (-1 = text)
    and visual [R, V, D], or None where the batch has no image.
    """

    config: TextConfig
    dtype: Any
    causal: bool
    wrap_block: Any
    implementation: str

    @nn.compact
    def __call__(
        self,
        tokens: jax.Array,
        positions: jax.Array,
        segments: jax.Array,
        vision_index: jax.Array,
        visual: jax.Array | None,
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
        blocks = self.wrap_block(LanguageBlock, length=config.num_hidden_layers)
        blocks = blocks(config, self.dtype, self.causal, self.implementation, name="blocks")
        x, _ = blocks(x, angles, segments)
        return RMSNorm(config.rms_norm_eps, self.dtype, name="norm")(x)
