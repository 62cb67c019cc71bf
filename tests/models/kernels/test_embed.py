"""The whole model with another kernel in both towers gives the same embeddings."""

import functools

import jax
import numpy as np
import pytest

from marvel_jax.models import qwen2_vl
from marvel_jax.models.kernels import ALL_XLA, Kernel, Kernels
from tests.models.samples import all_samples, build_rows, small_config
from tests.models.test_invariance import params

CONFIG = small_config()


def embed(kernels, attention):
    samples = all_samples(CONFIG, seed=7)
    rows = build_rows([samples[:4], samples[4:]], tokens=130, patches=300)
    run = functools.partial(
        qwen2_vl.embed, config=CONFIG, items_per_row=4, attention=attention, kernels=kernels
    )
    return jax.jit(run)(params(), rows)


@pytest.mark.parametrize(
    ("name", "attention"), [("pallas_gpu", "bidirectional"), ("splash", "causal")]
)
def test_packed_rows_of_text_and_pictures_are_embedded_the_same(name, attention):
    kernel = Kernel(name, interpret=True)
    found = embed(Kernels(kernel, kernel), attention)
    expected = embed(ALL_XLA, attention)
    np.testing.assert_array_equal(found.valid, expected.valid)
    np.testing.assert_allclose(found.vectors, expected.vectors, atol=1e-5)
