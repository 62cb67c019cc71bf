"""The table of names is the tree of parameters, and a weight is neither lost nor invented."""

import jax
import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from marvel_jax.errors import MarvelError
from marvel_jax.models import names, qwen2_vl
from tests.models.samples import small_config


@pytest.mark.parametrize("tied", [True, False])
def test_the_table_is_the_tree_that_init_makes(tied):
    config = small_config(tied=tied)
    tree = jax.eval_shape(lambda key: qwen2_vl.init_params(config, key=key), jax.random.key(0))
    shapes = {path: leaf.shape for path, leaf in names.flatten(tree).items()}
    assert shapes == {row.path: row.shape(config) for row in names.table(config)}


def test_every_axis_of_every_parameter_has_a_logical_name():
    config = small_config(tied=False)
    tree = jax.eval_shape(lambda key: qwen2_vl.init_params(config, key=key), jax.random.key(0))
    axes = names.logical_axes(config)
    ranks = jax.tree.map(lambda leaf: len(leaf.shape), tree)
    is_axes = lambda leaf: isinstance(leaf, tuple)  # noqa: E731
    assert jax.tree.map(len, axes, is_leaf=is_axes) == ranks
    for row in names.table(config):
        assert (row.axes[0] == "layers") == (row.layers is not None)


def test_each_transform_is_undone_by_its_inverse():
    config = small_config(tied=False)
    random = np.random.default_rng(0)
    for row in names.table(config):
        transform = names.TRANSFORMS[row.transform]
        stored = random.standard_normal(row.hub_shape(config))
        shape = row.shape(config)[1 if row.layers else 0 :]
        ours = transform.part(stored, tuple(slice(0, size) for size in shape))
        assert ours.shape == shape
        np.testing.assert_array_equal(transform.to_hub(ours, config), stored)


@given(st.data())
def test_a_part_of_a_parameter_is_that_part_of_the_whole(data):
    config = small_config(tied=False)
    row = data.draw(st.sampled_from(names.table(config)))
    transform = names.TRANSFORMS[row.transform]
    stored = np.random.default_rng(0).standard_normal(row.hub_shape(config))
    shape = row.shape(config)[1 if row.layers else 0 :]
    bounds = [sorted(data.draw(st.tuples(*[st.integers(0, size)] * 2))) for size in shape]
    region = tuple(slice(*pair) for pair in bounds)
    whole = transform.part(stored, tuple(slice(0, size) for size in shape))
    if all(stop > start for start, stop in bounds):
        np.testing.assert_array_equal(transform.part(stored, region), whole[region])


def hub_names(config, alias=0):
    for row in names.table(config):
        name = row.hub[min(alias, len(row.hub) - 1)]
        yield from (name.format(layer=layer) for layer in range(row.num_layers(config)))


@pytest.mark.parametrize("alias", [0, 1, 2])
def test_the_names_of_every_version_are_known(alias):
    config = small_config(tied=False)
    stored = list(hub_names(config, alias))
    found = names.match(stored, config)
    assert sorted(name for layers in found.values() for name in layers) == sorted(stored)
    assert set(found) == {row.path for row in names.table(config)}


def test_buffers_the_temperature_and_a_tied_head_are_no_parameters():
    config = small_config(tied=True)
    extra = ["sim.temp", "lm_head.weight", "model.layers.1.self_attn.rotary_emb.inv_freq"]
    extra.append("visual.rotary_pos_emb.inv_freq")
    names.match([*hub_names(config), *extra], config)


def test_an_untied_model_may_lack_its_head():
    config = small_config(tied=False)
    stored = [name for name in hub_names(config) if name != "lm_head.weight"]
    assert "lm_head/kernel" not in names.match(stored, config)


def test_one_error_lists_every_offender():
    config = small_config()
    stored = set(hub_names(config))
    stored -= {"model.norm.weight", "visual.blocks.1.attn.qkv.bias"}
    stored |= {"model.layers.2.mlp.up_proj.weight", "visual.head.weight"}
    stored |= {"model.language_model.embed_tokens.weight"}
    with pytest.raises(MarvelError) as error:
        names.match(stored, config)
    message = str(error.value)
    assert "2 unknown" in message
    assert "model.layers.2.mlp.up_proj.weight, visual.head.weight" in message
    assert "2 missing" in message
    assert "model.norm.weight, visual.blocks.1.attn.qkv.bias" in message
    assert "1 parameter(s) given twice: language/token_embedding" in message
