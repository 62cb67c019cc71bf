"""The dense layer: one matmul over all tokens of all rows, float32 gradients, and its adapter."""

from collections.abc import Callable
from typing import Any, NamedTuple

import flax.linen as nn
import jax
import jax.numpy as jnp

from marvel_jax.models.lora import LoraConfig, dropout


class Dropout(NamedTuple):
    """What the adapters of one block drop: keys [R, S, 2] uint32, and the number of the block."""

    keys: jax.Array
    layer: jax.Array


def matmul(x: jax.Array, kernel: jax.Array) -> jax.Array:
    """Multiplies x [..., D] by a kernel [D, ...], in the type of `x`.

    The kernel may be a float32 master while `x` is bfloat16. Then it is cast for the matmul, but
    its gradient leaves the matmul's float32 accumulator as it is: what data shards and chunks of a
    batch add to it is added in float32.

    The leading axes of `x` are flattened first. With rows and tokens on two axes, XLA's CPU
    backend computes the kernel's gradient from a transposed copy of the cotangent that it writes
    element by element: a whole step took 1.4 times the CPU time (2 layers, width 256).
    """
    flat = x.reshape(-1, x.shape[-1])
    if kernel.dtype == jnp.float32 != x.dtype:
        product = _mixed_matmul(flat, kernel)
    else:
        product = _flat_matmul(flat, kernel.astype(x.dtype))
    return product.reshape(*x.shape[:-1], *kernel.shape[1:])


def contract(left: jax.Array, right: jax.Array, dimension_numbers: Any) -> jax.Array:
    """`jax.lax.dot_general` with a float32 result, whatever the type of the operands."""
    if left.dtype == right.dtype == jnp.float32:
        return jax.lax.dot_general(left, right, dimension_numbers)

    def wide(left: jax.Array, right: jax.Array) -> jax.Array:
        left, right = left.astype(jnp.float32), right.astype(jnp.float32)
        return jax.lax.dot_general(left, right, dimension_numbers)

    def narrow(left: jax.Array, right: jax.Array) -> jax.Array:
        wanted = jnp.float32
        return jax.lax.dot_general(left, right, dimension_numbers, preferred_element_type=wanted)

    # XLA's CPU backend fails at run time on some shapes of bfloat16 x bfloat16 = float32.
    return jax.lax.platform_dependent(left, right, cpu=wide, default=narrow)


def _flat_matmul(x: jax.Array, kernel: jax.Array) -> jax.Array:
    return jax.lax.dot_general(x, kernel, (((1,), (0,)), ((), ())))


# A rule of its own, because autodiff would give the gradient of the cast kernel in the cast type.
@jax.custom_vjp
def _mixed_matmul(x: jax.Array, master: jax.Array) -> jax.Array:
    return _flat_matmul(x, master.astype(x.dtype))


def _mixed_forward(x: jax.Array, master: jax.Array) -> tuple[jax.Array, Any]:
    # The cast kernel is kept: a master cast again would be fetched again from its shards.
    kernel = master.astype(x.dtype)
    return _flat_matmul(x, kernel), (x, kernel)


def _mixed_backward(saved: Any, cotangent: jax.Array) -> tuple[jax.Array, jax.Array]:
    x, kernel = saved
    _, pull = jax.vjp(lambda x: _flat_matmul(x, kernel), x)
    return *pull(cotangent), contract(x, cotangent, (((0,), (0,)), ((), ())))


_mixed_matmul.defvjp(_mixed_forward, _mixed_backward)


class Dense(nn.Module):
    """x [..., D] to [..., *features] of `dtype`: kernel, bias, and an adapter where there is one.

    The adapter is looked for in the collection "adapters" ("a" [D, rank] and "b" [rank, features]),
    so that the parameters are those of a layer without one.
    """

    features: int | tuple[int, ...]
    dtype: Any
    kernel_init: Callable[..., jax.Array]
    use_bias: bool = True
    lora: LoraConfig | None = None

    @nn.compact
    def __call__(self, x: jax.Array, drop: Dropout | None = None) -> jax.Array:
        features = self.features if isinstance(self.features, tuple) else (self.features,)
        kernel = self.param("kernel", self.kernel_init, (x.shape[-1], *features))
        bias = self.param("bias", nn.initializers.zeros, features) if self.use_bias else None
        x = x.astype(self.dtype)
        y = matmul(x, kernel)
        lora = self.lora
        if lora is not None and self.has_variable("adapters", "a"):
            a: jax.Array = self.get_variable("adapters", "a")
            b: jax.Array = self.get_variable("adapters", "b")
            y = y + matmul(self._narrow(x, a, drop, lora), b * lora.scale)
        if bias is None:
            return y
        # Added in float32, so that the bias's gradient is a sum in float32.
        return (y.astype(jnp.float32) + bias).astype(self.dtype)

    def _narrow(
        self, x: jax.Array, a: jax.Array, drop: Dropout | None, lora: LoraConfig
    ) -> jax.Array:
        """The adapter's first half, [..., rank]."""
        if drop is None or not lora.dropout:
            return matmul(x, a)

        # Recomputed in the backward pass: a mask is cheaper to draw again than to keep.
        @jax.checkpoint
        def narrow(x: jax.Array, a: jax.Array, drop: Dropout) -> jax.Array:
            rate, linear = lora.dropout, str(self.name)
            return matmul(dropout(x, drop.keys, layer=drop.layer, linear=linear, rate=rate), a)

        return narrow(x, a, drop)
