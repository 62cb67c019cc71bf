"""GradCache: a global batch of any size through a fixed amount of memory, its loss exact."""

from collections.abc import Callable, Sequence
from typing import Any

import jax
import jax.numpy as jnp
from jax.sharding import Mesh, PartitionSpec

from marvel_jax.errors import MarvelError
from marvel_jax.parallel.activations import constrain
from marvel_jax.parallel.mesh import DATA_AXES, data_shards

Encode = Callable[[Any, Any, Sequence[str]], jax.Array]


def encode_in_chunks(
    encode: Encode, values: Any, rows: Any, *, chunk_rows: int | None, mesh: Mesh
) -> jax.Array:
    """Encodes all rows, `chunk_rows` of each device's at a time (None: all at once).

    Only what `encode` returns is kept of a chunk; the backward pass encodes it once more. Value
    and gradient are those of the whole batch in one piece, whatever the loss that follows (Gao et
    al. 2021, arXiv 2101.06983), and the gradients of `values` are added up in their own type.

    What is sent: weights that are split over "fsdp" are fetched layer by layer and let go again,
    for each chunk once forward and twice backward, and their gradients are summed there chunk by
    chunk, so that no device ever holds them all. Over "data", the slow network of a hybrid mesh,
    gradients are summed once a step. So fewer and larger chunks are faster: take the largest
    `chunk_rows` that fits.

    `encode` takes (values, rows, axes) and returns an array with a leading axis of rows; `axes` are
    the mesh axes over which its rows are split. `values` is the tree that it reads and that
    gradients are taken of; `rows` a tree of arrays [R, ...], split over the data shards.

    Raises:
      MarvelError: the rows of a data shard are no multiple of `chunk_rows`.
    """
    shards = data_shards(mesh)
    here = len(jax.tree.leaves(rows)[0]) // shards
    if chunk_rows is None or chunk_rows == here:
        return encode(values, rows, DATA_AXES)
    if here % chunk_rows:
        raise MarvelError(
            f"chunk_rows={chunk_rows} does not divide the {here} rows of a data shard: plan the "
            "batches with the same chunk_rows."
        )
    chunks, inner = here // chunk_rows, mesh.shape["fsdp"]

    # A chunk takes some rows of every device, and no row leaves its device: a plain reshape to
    # [chunks, rows] would give whole chunks to a device, and move them at every step.
    def split(leaf: jax.Array) -> jax.Array:
        parts = leaf.reshape(inner, chunks, chunk_rows, *leaf.shape[1:])
        parts = jnp.swapaxes(parts, 0, 1).reshape(chunks, inner * chunk_rows, *leaf.shape[1:])
        return constrain(parts, mesh, PartitionSpec(None, "fsdp"))

    def join(parts: jax.Array) -> jax.Array:
        parts = constrain(parts, mesh, PartitionSpec(None, "fsdp"))
        parts = parts.reshape(chunks, inner, chunk_rows, *parts.shape[2:])
        return jnp.swapaxes(parts, 0, 1).reshape(inner * here, *parts.shape[3:])

    def scan(values: Any, rows: Any) -> jax.Array:
        again = jax.checkpoint(lambda chunk: encode(values, chunk, ("fsdp",)), prevent_cse=False)
        _, parts = jax.lax.scan(
            lambda _, chunk: (None, again(chunk)), None, jax.tree.map(split, rows)
        )
        return join(parts)

    if mesh.shape["data"] == 1:
        return scan(values, rows)
    # By hand over "data", so that gradients are summed where `values` enter: left to the compiler,
    # every layer of every chunk would be summed over the slow network.
    everywhere, by_data = PartitionSpec(), PartitionSpec("data")
    return jax.shard_map(
        scan,
        mesh=mesh,
        in_specs=(everywhere, by_data),
        out_specs=by_data,
        axis_names={"data"},
        check_vma=False,  # jax 0.12 cannot infer it through the error function
    )(values, rows)
