"""How a vector lies in a store: one row of plain numbers, whatever its type.

| type     | a stored row                                | a decoded vector                        |
|----------|---------------------------------------------|-----------------------------------------|
| float32  | D float32                                   | as it was                               |
| bfloat16 | D uint16, the upper halves of the float32   | each number within 2^-8 of itself       |
| int8     | D signed bytes, then a float32 scale        | bytes x scale, of norm 1                |
| binary   | ceil(D / 8) bytes, a bit a number: its sign | +-1 / sqrt(D), of norm 1                |

The scale of int8 is one over the norm of the bytes, not the step of the rounding: what is decoded
is a unit vector again, and a score of it a cosine. Binary vectors are searched by float queries
(asymmetrically): only the corpus loses precision.
"""

import math
from collections.abc import Sequence
from typing import Literal, get_args

import numpy as np

from marvel_jax.errors import MarvelError

StoreType = Literal["float32", "bfloat16", "int8", "binary"]
STORE_TYPES: tuple[StoreType, ...] = get_args(StoreType)  # by precision, the finest first

_SCALE_BYTES = 4
_LEVELS = 127
_NORM_TOLERANCE = 1e-3  # float32 vectors are within 1e-6; a forgotten normalisation is far off


def stored_row(dtype: StoreType, dimension: int) -> tuple[np.dtype, int]:
    """The type and the number of the numbers in a stored row of a vector of `dimension` numbers."""
    if dtype == "float32":
        return np.dtype("<f4"), dimension
    if dtype == "bfloat16":
        return np.dtype("<u2"), dimension
    if dtype == "int8":
        return np.dtype("u1"), dimension + _SCALE_BYTES
    return np.dtype("u1"), -(-dimension // 8)


def bytes_per_vector(dtype: StoreType, dimension: int) -> int:
    """Bytes of a stored row, without its id."""
    kind, length = stored_row(dtype, dimension)
    return kind.itemsize * length


def encode(vectors: np.ndarray, dtype: StoreType) -> np.ndarray:
    """Stored rows [n, W] of unit vectors float32 [n, D]; see the table above.

    Raises:
      MarvelError: `dtype` is none of `STORE_TYPES`.
    """
    check_type(dtype)
    vectors = np.ascontiguousarray(vectors, dtype="<f4")
    if dtype == "float32":
        return vectors
    if dtype == "bfloat16":
        bits = vectors.view("<u4")
        # To the nearest, ties to even: the rounding of jax and of the hardware.
        return ((bits + (0x7FFF + ((bits >> 16) & 1))) >> 16).astype("<u2")
    if dtype == "int8":
        peak = np.abs(vectors).max(axis=1, keepdims=True)
        numbers = np.rint(vectors * (_LEVELS / peak)).astype(np.int8)
        squares = np.square(numbers, dtype=np.int32).sum(axis=1, keepdims=True, dtype=np.int64)
        scale = (1.0 / np.sqrt(squares)).astype("<f4")
        return np.concatenate([numbers.view("u1"), scale.view("u1")], axis=1)
    return np.packbits(vectors >= 0, axis=1, bitorder="little")


def decode(stored: np.ndarray, dtype: StoreType, *, dimension: int) -> np.ndarray:
    """Float32 [n, D] of stored rows [n, W]: the vectors that a search scores.

    Raises:
      MarvelError: `dtype` is none of `STORE_TYPES`.
    """
    check_type(dtype)
    if dtype == "float32":
        return stored
    if dtype == "bfloat16":
        return (stored.astype("<u4") << 16).view("<f4")
    if dtype == "int8":
        scale = np.ascontiguousarray(stored[:, dimension:]).view("<f4")
        return stored[:, :dimension].view(np.int8).astype(np.float32) * scale
    bits = np.unpackbits(stored, axis=1, count=dimension, bitorder="little")
    size = np.float32(1 / math.sqrt(dimension))
    return np.where(bits, size, -size)


def truncate(vectors: np.ndarray, dimension: int) -> np.ndarray:
    """The first `dimension` numbers of vectors float32 [n, D], of norm 1 again.

    A vector whose first numbers are all 0 becomes NaN, which every reader of vectors refuses.
    """
    if dimension == vectors.shape[1]:
        return vectors
    kept = vectors[:, :dimension].astype(np.float64)
    with np.errstate(invalid="ignore", divide="ignore"):
        return (kept / np.linalg.norm(kept, axis=1, keepdims=True)).astype(np.float32)


def check_type(dtype: str) -> None:
    """Refuses what is none of `STORE_TYPES`."""
    if dtype not in STORE_TYPES:
        raise MarvelError(
            f"dtype={dtype!r}: vectors are stored as one of {', '.join(STORE_TYPES)}."
        )


def check_norms(vectors: np.ndarray, ids: Sequence[str], *, where: object) -> None:
    """Refuses vectors [n, D] that are not finite or not of unit norm; the id is named."""
    norms = np.sqrt(np.einsum("nd,nd->n", vectors, vectors))
    wrong = np.flatnonzero(~(np.abs(norms - 1) <= _NORM_TOLERANCE))  # ~ so that NaN is wrong
    if wrong.size:
        raise MarvelError(
            f"{where}: the vector of {ids[wrong[0]]!r} has norm {norms[wrong[0]]:g}, "
            f"expected 1 ({wrong.size} such rows of {len(ids)}). Vectors must be finite and "
            "normalised."
        )
