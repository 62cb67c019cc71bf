"""Where activations lie: every row of a batch stays with the devices that hold it."""

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from typing import Any

import flax.linen as nn
import jax
from jax.sharding import Mesh, NamedSharding, PartitionSpec

from marvel_jax.parallel.mesh import DATA_AXES
from marvel_jax.parallel.sharding import ShardingRules


@contextmanager
def rows_in_place(mesh: Mesh, *, num_rows: int, axes: Sequence[str] = DATA_AXES) -> Iterator[None]:
    """While this is open, what Flax modules take and return keeps its rows split over `axes`.

    Every array of `num_rows` on its leading axis is held there, its other axes are left to the
    compiler; the modules know nothing of it. Without it the compiler may as well split the model
    dimension of the activations as the weights are split over "fsdp": each device then computes all
    rows, and sums activations with the others in every layer, instead of fetching the weights.
    """

    def hold(value: Any) -> Any:
        if not isinstance(value, jax.Array) or value.ndim < 2 or value.shape[0] != num_rows:
            return value
        free = [PartitionSpec.UNCONSTRAINED] * (value.ndim - 1)
        return constrain(value, mesh, PartitionSpec(tuple(axes), *free))

    def intercept(call: Callable[..., Any], args: Any, kwargs: Any, context: Any) -> Any:
        if context.method_name != "__call__":
            return call(*args, **kwargs)
        args, kwargs = jax.tree.map(hold, (args, kwargs))
        return jax.tree.map(hold, call(*args, **kwargs))

    with nn.intercept_methods(intercept):
        yield


def gathered(
    weight: jax.Array, logical_axes: tuple[str | None, ...], mesh: Mesh, *, rules: ShardingRules
) -> jax.Array:
    """A weight fetched whole over the data axes; over "tensor" it stays split.

    For a table that is read by index: left to itself, the compiler looks up the rows of all
    devices on each of them.
    """
    spec = rules.spec(logical_axes, weight.shape, mesh)
    kept = [None if axis in DATA_AXES else axis for axis in spec]
    return constrain(weight, mesh, PartitionSpec(*kept))


def constrain(value: jax.Array, mesh: Mesh, spec: PartitionSpec) -> jax.Array:
    """`jax.lax.with_sharding_constraint`, also inside a `shard_map` over some of the axes."""
    context = jax.sharding.get_abstract_mesh()
    return jax.lax.with_sharding_constraint(
        value, NamedSharding(mesh if context.empty else context, spec)
    )
