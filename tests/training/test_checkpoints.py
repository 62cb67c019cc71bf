"""A checkpoint fits any mesh, and says what is wrong when it does not fit the config."""

import dataclasses

import jax
import numpy as np
import pytest

from marvel_jax.errors import MarvelError
from marvel_jax.parallel.mesh import MeshConfig, make_mesh
from marvel_jax.parallel.sharding import ShardingRules
from marvel_jax.training.checkpoints import Checkpoints
from marvel_jax.training.config import OptimizerConfig
from marvel_jax.training.optimizer import make_optimizer
from marvel_jax.training.state import TrainState, create_state, initial_params
from tests import tiny


def state_on(mesh: MeshConfig, *, seed: int = 0, architecture=None) -> TrainState:
    architecture = architecture or tiny.architecture()
    config = OptimizerConfig()
    params = initial_params(architecture, seed=seed, model=None, optimizer=config)
    devices = jax.devices()[: mesh.data * mesh.fsdp * mesh.tensor]
    optimizer = make_optimizer(config, steps=10)
    built = make_mesh(mesh, devices=devices)
    return create_state(params, optimizer, architecture, built, rules=ShardingRules())[0]


ONE = MeshConfig(data=1)
EIGHT = MeshConfig(data=2, fsdp=2, tensor=2)


@pytest.fixture(scope="module")
def saved(tmp_path_factory):
    """A folder with the state after 7 steps, saved from one device."""
    folder = tmp_path_factory.mktemp("checkpoints")
    checkpoints = Checkpoints(folder)
    state = state_on(ONE, seed=1)
    moments = jax.tree.map(lambda leaf: leaf + 1, state.opt_state)
    checkpoints.save(state._replace(opt_state=moments, step=state.step + 7), step=7)
    checkpoints.close()
    return folder


@pytest.mark.parametrize("mesh", [ONE, EIGHT], ids=["one device", "eight devices"])
def test_a_checkpoint_is_restored_into_any_mesh(saved, mesh):
    like = state_on(mesh)
    found = Checkpoints(saved).restore(like)
    expected = state_on(ONE, seed=1)
    jax.tree.map(np.testing.assert_array_equal, found.params, expected.params)
    jax.tree.map(
        lambda a, b: np.testing.assert_array_equal(a, b + 1), found.opt_state, expected.opt_state
    )
    assert int(found.step) == 7
    assert jax.tree.structure(found) == jax.tree.structure(like)
    assert jax.tree.all(
        jax.tree.map(lambda a, b: a.sharding.is_equivalent_to(b.sharding, a.ndim), found, like)
    )


def test_parameters_alone_come_to_the_host(saved):
    step, params = Checkpoints(saved).restore_params()
    assert step == 7
    assert all(isinstance(leaf, np.ndarray) for leaf in jax.tree.leaves(params))
    jax.tree.map(np.testing.assert_array_equal, params, state_on(ONE, seed=1).params)


@pytest.mark.parametrize(
    ("architecture", "message"),
    [
        (
            tiny.architecture(intermediate_size=40),
            r"blocks/down/kernel has shape \(2, 48, 32\) there, \(2, 40, 32\) here \(3 such",
        ),
        (tiny.architecture(num_hidden_layers=3), r"attention_norm/scale has shape \(2, 32\) there"),
        (
            dataclasses.replace(tiny.architecture(), tie_word_embeddings=False),
            r"lm_head/kernel has shape none there, \(32, \d+\) here \(1 such",
        ),
    ],
    ids=["width", "depth", "a parameter more"],
)
def test_other_shapes_are_refused_by_name(saved, architecture, message, capfd):
    with pytest.raises(MarvelError, match=message):
        Checkpoints(saved).restore(jax.eval_shape(lambda: state_on(ONE, architecture=architecture)))
    assert capfd.readouterr().err == ""


@pytest.mark.parametrize("read", ["restore", "restore_params"])
def test_an_empty_folder_holds_no_checkpoint(tmp_path, read):
    checkpoints = Checkpoints(tmp_path)
    assert checkpoints.latest() is None
    with pytest.raises(MarvelError, match="holds no checkpoint: train first"):
        checkpoints.restore(state_on(ONE)) if read == "restore" else checkpoints.restore_params()


@pytest.mark.parametrize("content", [None, b"", b"{}", b"\0" * 10])
def test_a_damaged_checkpoint_is_named(tmp_path, content):
    checkpoints = Checkpoints(tmp_path)
    checkpoints.save(state_on(ONE), step=2)
    checkpoints.close()
    file = tmp_path / "2" / "default" / "_METADATA"
    file.unlink() if content is None else file.write_bytes(content)
    with pytest.raises(MarvelError, match=r"/2 cannot be read .*Remove that folder"):
        Checkpoints(tmp_path).restore(state_on(ONE))
    with pytest.raises(MarvelError, match=r"/2 cannot be read .*Remove that folder"):
        Checkpoints(tmp_path).restore_params()
