import json

import pytest

from marvel_jax.bench import pack
from marvel_jax.errors import MarvelError


def test_the_bench_tells_what_is_filled_at_each_size() -> None:
    options = pack.PackOptions(items=(30, 60), shards=(1, 2), hard_negatives=1, steps=2)
    found = pack.run(options)
    assert json.loads(json.dumps(found)) == found
    assert [(row["items_per_shard"], row["shards"]) for row in found["rows"]] == [
        (30, 1),
        (30, 2),
        (60, 1),
        (60, 2),
    ]
    for row in found["rows"]:
        assert 0.5 < row["tokens_filled"] <= 1 and 0.5 < row["patches_filled"] <= 1
        assert row["items_per_second"] > 0


def test_sizes_that_cannot_be_are_told() -> None:
    with pytest.raises(MarvelError, match="items is 100: give a multiple of 3"):
        pack.PackOptions(items=(100,), hard_negatives=1)
    with pytest.raises(MarvelError, match="at least 1"):
        pack.PackOptions(steps=0)
