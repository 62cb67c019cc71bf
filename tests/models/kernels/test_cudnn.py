"""What cuDNN is asked for: shown without a GPU, by XLA on the same arguments."""

import functools
from unittest import mock

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from marvel_jax.models.kernels import cudnn
from tests.models.kernels.against_oracle import Shape, oracle, program, random_heads

SHAPE = Shape(rows=4, length=20, heads=4, groups=2, size=16)
LENGTHS = (20, 7, 1, 0)  # of the items; the last row is empty
SEGMENTS = (np.arange(20) < np.array(LENGTHS)[:, None]).astype(np.int32)


@pytest.mark.parametrize("causal", [False, True])
def test_rows_of_one_item_give_the_oracle_and_padding_gives_nothing(causal):
    """Values and gradients: no real token sees padding, and padding is 0 and not NaN."""
    heads = random_heads(SHAPE, seed=0)
    real = SEGMENTS[:, :, None, None]
    # What the model makes of padding reaches no loss.
    heads = heads._replace(cotangent=heads.cotangent * real)
    attend = functools.partial(cudnn.attend, implementation="xla")
    found = program(attend, causal)(heads, SEGMENTS)
    expected = program(oracle, causal)(heads, SEGMENTS)
    for one, other in zip(found, expected, strict=True):
        np.testing.assert_allclose(one, other * real, atol=1e-5)
    for one in found:
        assert not np.any(np.asarray(one) * (1 - real))


def test_it_is_cudnn_that_is_asked_and_rows_have_their_lengths():
    heads = random_heads(SHAPE, seed=1)
    with mock.patch.object(jax.nn, "dot_product_attention", return_value=heads.query) as asked:
        cudnn.attend(*heads[:3], jnp.asarray(SEGMENTS), causal=True)
    given = asked.call_args.kwargs
    assert given["implementation"] == "cudnn"
    assert given["is_causal"]
    # Never 0: the softmax of nothing is NaN.
    assert given["query_seq_lengths"].tolist() == [20, 7, 1, 1]
    assert given["key_value_seq_lengths"].tolist() == [20, 7, 1, 1]
    assert given.keys().isdisjoint({"mask", "bias"})
