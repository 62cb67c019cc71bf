"""A mesh that cannot divide a model's heads is told with the sizes that can."""

import pytest

from marvel_jax.errors import MarvelError
from marvel_jax.models.published import PUBLISHED
from marvel_jax.parallel.heads import check_heads

SMALL, LARGE = (PUBLISHED[f"Qwen/Qwen2-VL-{size}-Instruct"] for size in ("2B", "7B"))


def test_what_divides_all_heads_is_taken():
    for tensor in (1, 2, 4):
        check_heads(LARGE, tensor=tensor)
    for tensor in (1, 2):
        check_heads(SMALL, tensor=tensor)


def test_every_count_that_is_not_divided_is_named_and_what_would_work():
    with pytest.raises(MarvelError, match=r"^mesh.tensor=4 does not divide the model's 2 key") as e:
        check_heads(SMALL, tensor=4)
    assert str(e.value).endswith("use mesh.tensor=1, 2.")
    with pytest.raises(MarvelError, match="28 query heads and 4 key heads") as e:
        check_heads(LARGE, tensor=8)
    assert str(e.value).endswith("use mesh.tensor=1, 2, 4.")
