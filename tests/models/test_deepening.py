"""A deeper model is the same function until it is trained, and can be trained."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from marvel_jax.errors import MarvelError
from marvel_jax.models import hub, names, qwen2_vl
from marvel_jax.models.deepening import deepen
from tests.models.parity import golden
from tests.models.samples import build_rows


def states(params, config, **options):
    sample = golden("tied").samples["both"]
    return qwen2_vl.hidden_states(params, build_rows([[sample]]), config, **options)


@pytest.mark.parametrize("attention", ["bidirectional", "causal"])
def test_a_deeper_model_says_the_same(attention):
    base = golden("tied")
    params, config = deepen(base.params, base.config, layers=2, key=jax.random.key(0))
    assert config.text.num_hidden_layers == base.config.text.num_hidden_layers + 2
    np.testing.assert_array_equal(
        states(params, config, attention=attention),
        states(base.params, base.config, attention=attention),
    )


def test_every_new_layer_can_learn():
    base = golden("tied")
    params, config = deepen(base.params, base.config, layers=2, key=jax.random.key(0))
    flat = names.flatten(jax.grad(lambda values: jnp.sum(states(values, config) ** 3))(params))
    for path in ("language/blocks/out/kernel", "language/blocks/down/kernel"):
        for layer in flat[path][-2:]:
            assert np.abs(layer).max() > 0, path


def test_a_deeper_model_is_written_and_read(tmp_path):
    base = golden("tied")
    params, config = deepen(base.params, base.config, layers=1, key=jax.random.key(0))
    hub.save(tmp_path / "model", config=config, params=params)
    read = hub.load(tmp_path / "model")
    assert read.config.text.num_hidden_layers == base.config.text.num_hidden_layers + 1
    for path, values in names.flatten(params).items():
        np.testing.assert_array_equal(values, names.flatten(read.params)[path], err_msg=path)


def test_no_further_layers_are_refused():
    base = golden("tied")
    with pytest.raises(MarvelError, match="layers=0"):
        deepen(base.params, base.config, layers=0, key=jax.random.key(0))
