"""The vision tower of Qwen2-VL: patches of several images, packed in rows of one static shape."""

import functools
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np

from marvel_jax.errors import MarvelError
from marvel_jax.models import attention, linear, rotary
from marvel_jax.models.config import VisionConfig
from marvel_jax.models.kernels import Kernel
from marvel_jax.models.linear import Dense

# Fixed in the architecture: it is in no config.json.
LAYER_NORM_EPS = 1e-6


class LayerNorm(nn.Module):
    """Layer normalisation in float32, with the variance taken about the mean."""

    dtype: Any

    @nn.compact
    def __call__(self, x: jax.Array) -> jax.Array:
        scale = self.param("scale", nn.initializers.ones, (x.shape[-1],))
        bias = self.param("bias", nn.initializers.zeros, (x.shape[-1],))
        # Computed again in the backward pass, like the activations below: see language.RMSNorm.
        norm = jax.checkpoint(functools.partial(layer_norm, epsilon=LAYER_NORM_EPS))
        return norm(x, scale, bias).astype(self.dtype)


def layer_norm(x: jax.Array, scale: jax.Array, bias: jax.Array, *, epsilon: float) -> jax.Array:
    """Brings x [..., D] to mean 0 and variance 1, then to a gain and a bias [D]; float32."""
    x = x.astype(jnp.float32)
    x = x - x.mean(axis=-1, keepdims=True)
    return x * jax.lax.rsqrt(jnp.mean(x**2, axis=-1, keepdims=True) + epsilon) * scale + bias


class PatchEmbed(nn.Module):
    """Raw pixels to vectors: normalisation, and a convolution that is a matmul on patches.

    The kernel [channels * frames * size * size, embed_dim] covers `temporal_patch_size` frames. A
    still image is the same frame twice, so the frames' weights are summed when they are applied:
    half the operations and half the bytes sent. They stay apart in the parameters, for video and
    for a lossless export.
    """

    config: VisionConfig
    dtype: Any

    @nn.compact
    def __call__(self, patches: jax.Array) -> jax.Array:
        config = self.config
        initializer = nn.initializers.normal(config.initializer_range)
        kernel = self.param("kernel", initializer, (config.patch_values, config.embed_dim))
        area, values = config.patch_size**2, patches.shape[-1]
        if values == config.still_values:
            frames = (config.in_channels, config.temporal_patch_size, area, config.embed_dim)
            kernel = kernel.astype(jnp.float32).reshape(frames).sum(axis=1)
            kernel = kernel.reshape(values, config.embed_dim)
        elif values != config.patch_values:
            raise MarvelError(
                f"patches hold {values} values, but this model's patch_size {config.patch_size} "
                f"and {config.in_channels} channels need {config.still_values} (a still) or "
                f"{config.patch_values} (video): prepare the images with the model's own "
                "preprocessor_config.json."
            )
        mean, std = np.asarray(config.image_mean), np.asarray(config.image_std)
        repeats = values // config.in_channels
        scale = np.repeat(1.0 / (255.0 * std), repeats).astype(np.float32)
        shift = np.repeat(-mean / std, repeats).astype(np.float32)
        pixels = (patches.astype(jnp.float32) * scale + shift).astype(self.dtype)
        return linear.matmul(pixels, kernel)


def _dense_options(config: VisionConfig, dtype: Any) -> dict[str, Any]:
    """What every dense layer of the tower has in common."""
    init = nn.initializers.normal(config.initializer_range)
    return {"dtype": dtype, "kernel_init": init}


class VisionBlock(nn.Module):
    """One pre-norm transformer block; attention stays within an image."""

    config: VisionConfig
    dtype: Any
    kernel: Kernel
    keep: str

    @nn.compact
    def __call__(
        self, x: jax.Array, angles: jax.Array, segments: jax.Array
    ) -> tuple[jax.Array, None]:
        config, dtype = self.config, self.dtype
        options = _dense_options(config, dtype)
        width = config.embed_dim
        heads = (*x.shape[:2], config.num_heads, config.head_dim)

        normed = LayerNorm(dtype, name="attention_norm")(x)
        # [.., 3, width] and not [.., 3 * width]: a mesh axis then divides heads, never q from k.
        qkv = Dense((3, width), name="qkv", **options)(normed)
        query, key, value = (qkv[:, :, i].reshape(heads) for i in range(3))
        mixed = attention.attend(
            rotary.rotate(query, angles),
            rotary.rotate(key, angles),
            value,
            segments=segments,
            causal=False,
            kernel=self.kernel,
            keep=self.keep,
        )
        x = x + Dense(width, name="out", **options)(mixed.reshape(x.shape))

        normed = LayerNorm(dtype, name="mlp_norm")(x)
        up = Dense(config.mlp_size, name="up", **options)(normed)
        down = Dense(width, name="down", **options)(jax.checkpoint(quick_gelu)(up))
        return x + down, None


class Merger(nn.Module):
    """Neighbouring patches, side by side, become one token of the language model."""

    config: VisionConfig
    width: int
    dtype: Any

    @nn.compact
    def __call__(self, x: jax.Array) -> jax.Array:
        config, dtype = self.config, self.dtype
        options = _dense_options(config, dtype)
        size = config.merged_size
        x = LayerNorm(dtype, name="norm")(x)
        x = x.reshape(x.shape[0], -1, size)
        x = jax.checkpoint(exact_gelu)(Dense(size, name="up", **options)(x))
        return Dense(self.width, name="down", **options)(x)


class VisionTower(nn.Module):
    """Patches of a row's images to the visual tokens of that row.

    Call with patches [R, P, C] uint8, patch_hw [R, P, 2] and patch_segments [R, P]; P is a multiple
    of `spatial_merge_size`^2 and so is every image, whose patches come block by block in the order
    of the merge. Returns [R, P / spatial_merge_size^2, width].
    """

    config: VisionConfig
    width: int
    dtype: Any
    wrap_block: Any
    kernel: Kernel
    keep: str

    @nn.compact
    def __call__(
        self, patches: jax.Array, patch_hw: jax.Array, patch_segments: jax.Array
    ) -> jax.Array:
        config = self.config
        x = PatchEmbed(config, self.dtype, name="patch_embed")(patches)
        theta = config.rope_theta
        angles = rotary.grid_angles(patch_hw, head_dim=config.head_dim, theta=theta)
        blocks = self.wrap_block(VisionBlock, length=config.depth, shared=2)(
            config,
            dtype=self.dtype,
            kernel=self.kernel,
            keep=self.keep,
            name="blocks",
        )
        x, _ = blocks(x, angles, patch_segments)
        return Merger(config, self.width, self.dtype, name="merger")(x)


def quick_gelu(x: jax.Array) -> jax.Array:
    """The activation of the tower's blocks, x * sigmoid(1.702 x)."""
    return x * jax.nn.sigmoid(1.702 * x)


def exact_gelu(x: jax.Array) -> jax.Array:
    """The GELU with the error function, the merger's activation; JAX's default is tanh."""
    return jax.nn.gelu(x, approximate=False)
