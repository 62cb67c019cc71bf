"""The published models are as large as their makers say, and no other shape."""

import math

import pytest

from marvel_jax.models import names
from marvel_jax.models.published import PUBLISHED


@pytest.mark.parametrize(
    ("model", "parameters"),
    [
        ("Qwen/Qwen2-VL-2B-Instruct", 2_208_985_600),
        ("Qwen/Qwen2-VL-7B-Instruct", 8_291_375_616),
        ("Qwen/Qwen2-VL-72B-Instruct", 73_405_560_320),
    ],
)
def test_parameters(model, parameters):
    table = names.table(PUBLISHED[model])
    assert sum(math.prod(row.shape(PUBLISHED[model])) for row in table) == parameters


@pytest.mark.parametrize("model", PUBLISHED)
def test_heads_and_widths_of_the_family(model):
    text, vision = PUBLISHED[model].text, PUBLISHED[model].vision
    assert (text.head_dim, vision.head_dim) == (128, 80)
    assert text.mrope_section == (16, 24, 24)
    # 3 x 14 x 14 values a patch of a still, four patches a token.
    assert (vision.still_values, vision.merged_size) == (588, 5120)
