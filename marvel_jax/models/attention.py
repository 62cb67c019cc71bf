"""`attend`: the one door to every attention kernel, so that no path can turn causal by itself."""

import functools
import math
from collections.abc import Callable

import jax
import jax.numpy as jnp
from jax.sharding import PartitionSpec

from marvel_jax.errors import MarvelError
from marvel_jax.models.kernels import XLA, Kernel, xla

_Attend = Callable[[jax.Array, jax.Array, jax.Array, jax.Array], jax.Array]


def attend(
    query: jax.Array,
    key: jax.Array,
    value: jax.Array,
    *,
    segments: jax.Array,
    causal: bool,
    kernel: Kernel = XLA,
    keep: str = "weights",
    branching: bool = False,
) -> jax.Array:
    """Softmax attention within segments, with grouped queries.

    Args:
      query: [R, S, H, E]
      key: [R, S, K, E], where K divides H; query head h reads key head h // (H / K).
      value: [R, S, K, E]
      segments: [R, S] integers. A token sees the tokens of its own segment and no others; 0 is
        padding, which sees padding only, so that nothing real depends on it and no row is empty
        (with "cudnn" padding sees nothing, and what stands there is 0).
      causal: whether a token sees only itself and what stands before it in the row.
      kernel: what computes it, and over which mesh: `kernels.choice.choose` makes the choice.
      keep: what the backward pass of "xla" finds: the attention "weights", H * S * S numbers a row,
        or only the "inputs", from which it computes the weights again, some queries at a time. The
        other kernels always keep the inputs, the output and H * S numbers a row.
      branching: whether segments branch: a token of segment s + k * `xla.BRANCH` sees the tokens of
        s, the trunk, beside its own. With "xla" only.

    Returns:
      [R, S, H, E] of the type of `query`; logits and softmax are float32.

    Raises:
      MarvelError: a kernel that does not exist, a `keep`, or rows or heads that the kernel's mesh
        axes do not divide.
    """
    if keep not in ("weights", "inputs"):
        raise MarvelError(f"attention cannot keep {keep!r}: use 'weights' or 'inputs'.")
    if kernel.name == "xla":
        return xla.attend(
            query,
            key,
            value,
            segments,
            causal=causal,
            keep=keep,
            branching=branching,
            windows=kernel.windows,
        )
    if branching:
        raise MarvelError(
            f"attention kernel {kernel.name!r} cannot do segments that branch: use 'xla'."
        )
    run = _without_mesh(kernel, causal=causal)
    if kernel.mesh is None:
        return run(query, key, value, segments)
    return _over_mesh(run, kernel, query, key, value, segments)


def _without_mesh(kernel: Kernel, *, causal: bool) -> _Attend:
    # Imported by those who need them: Pallas takes its time, and the CPU never does.
    if kernel.name == "pallas_gpu":
        from marvel_jax.models.kernels import pallas_gpu

        return functools.partial(pallas_gpu.attend, causal=causal, interpret=kernel.interpret)
    if kernel.name == "splash":
        from marvel_jax.models.kernels import splash

        return functools.partial(splash.attend, causal=causal, interpret=kernel.interpret)
    if kernel.name == "cudnn":
        from marvel_jax.models.kernels import cudnn

        return functools.partial(cudnn.attend, causal=causal)
    raise MarvelError(
        f"attention kernel {kernel.name!r} is unknown: use xla, pallas_gpu, cudnn or splash."
    )


def _over_mesh(
    run: _Attend,
    kernel: Kernel,
    query: jax.Array,
    key: jax.Array,
    value: jax.Array,
    segments: jax.Array,
) -> jax.Array:
    """Every device runs the kernel on its own rows and heads; nothing is sent."""
    assert kernel.mesh is not None
    context = jax.sharding.get_abstract_mesh()
    mesh = kernel.mesh if context.empty else context
    # GradCache splits "data" by hand, around the whole encode, and leaves the other axes to us.
    manual = set() if context.empty else set(context.manual_axes)
    parts = math.prod(mesh.shape[axis] for axis in kernel.row_axes)
    if len(query) % parts:
        raise MarvelError(
            f"{len(query)} rows do not divide over the {parts} devices of the mesh axes "
            f"{', '.join(kernel.row_axes)}: attention kernel {kernel.name!r} wants a multiple."
        )
    head_axis = kernel.head_axis
    if head_axis is not None:
        parts, heads, groups = mesh.shape[head_axis], query.shape[2], key.shape[2]
        if heads % parts:
            raise MarvelError(
                f"mesh.{head_axis}={parts} does not divide {heads} attention heads: attention "
                f"kernel {kernel.name!r} wants a divisor of them, as {math.gcd(heads, parts)}."
            )
        # Where there are fewer key heads than devices, several devices hold the same one.
        times = math.lcm(groups, parts) // groups
        key, value = (x if times == 1 else jnp.repeat(x, times, axis=2) for x in (key, value))
    heads_split = PartitionSpec(kernel.row_axes or None, None, head_axis)
    rows_split = PartitionSpec(kernel.row_axes or None)
    return jax.shard_map(
        run,
        mesh=mesh,
        in_specs=(heads_split, heads_split, heads_split, rows_split),
        out_specs=heads_split,
        axis_names=set(mesh.axis_names) - manual,
        check_vma=False,  # a Pallas call does not say over which axes its result varies
    )(query, key, value, segments)
