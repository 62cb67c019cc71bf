"""A checkpoint fits any mesh, and says what is wrong when it does not fit the config."""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from marvel_jax.data.batch import RowShape
from marvel_jax.errors import MarvelError
from marvel_jax.parallel.mesh import MeshConfig, make_mesh
from marvel_jax.training.checkpoints import Checkpoints, read_params
from marvel_jax.training.config import (
    CheckpointConfig,
    DataConfig,
    ModelConfig,
    TrainConfig,
)
from marvel_jax.training.optimizer import make_optimizer
from marvel_jax.training.state import TrainState, create_state, initial_values
from tests import tiny


def state_on(mesh: MeshConfig, *, seed: int = 0, architecture=None) -> TrainState:
    architecture = architecture or tiny.architecture()
    row = RowShape(tokens=64, patches=64, items=4)
    config = TrainConfig(
        data=DataConfig(path=".", row=row), model=ModelConfig(scratch=architecture), seed=seed
    )
    params, frozen = initial_values(config, architecture, weights=None, temperature=None)
    devices = jax.devices()[: mesh.data * mesh.fsdp * mesh.tensor]
    optimizer = make_optimizer(config.optimizer, steps=10)
    built = make_mesh(mesh, devices=devices)
    return create_state(params, frozen, optimizer, config, architecture, built).state


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
    step, params = read_params(saved)
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


@pytest.mark.parametrize("read", ["restore", "read_params"])
def test_an_empty_folder_holds_no_checkpoint(tmp_path, read):
    checkpoints = Checkpoints(tmp_path)
    assert checkpoints.latest() is None
    with pytest.raises(MarvelError, match="holds no checkpoint: train first"):
        checkpoints.restore(state_on(ONE)) if read == "restore" else read_params(tmp_path)


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
        read_params(tmp_path)


def small(step: int) -> TrainState:
    return TrainState(jnp.int32(step), {"model": {"w": jnp.full(3, step, jnp.float32)}}, {})


def kept(folder) -> list[int]:
    return sorted(int(path.name) for path in folder.iterdir())


LOSSES = {1: 3.0, 2: 1.0, 3: 2.0, 4: 1.5, 5: 2.5, 6: 2.6}


@pytest.mark.parametrize(
    ("config", "expected"),
    [
        (CheckpointConfig(keep_last=2), [5, 6]),
        (CheckpointConfig(keep_last=1, keep_best=1), [2, 6]),
        (CheckpointConfig(keep_last=2, keep_best=2), [2, 4, 5, 6]),
        # Of an accuracy the high ones are good.
        (CheckpointConfig(keep_last=1, keep_best=2, best_metric="accuracy"), [1, 6]),
    ],
    ids=["last", "best", "both", "higher is better"],
)
def test_the_last_and_the_best_are_kept_over_a_resume(tmp_path, config, expected):
    for part in ((1, 2, 3), (4, 5, 6)):
        checkpoints = Checkpoints(tmp_path, config)
        for step in part:
            checkpoints.save(
                small(step), step=step, metrics={"loss": LOSSES[step], "accuracy": LOSSES[step]}
            )
        checkpoints.close()
    assert kept(tmp_path) == expected


def test_a_checkpoint_is_thrown_away_as_a_whole(tmp_path, monkeypatch):
    """A process killed while it deletes must not leave half of one under a whole one's name."""
    import shutil

    removed = []
    remove = shutil.rmtree
    monkeypatch.setattr(
        shutil, "rmtree", lambda path, *a, **o: (removed.append(path), remove(path, *a, **o))
    )
    checkpoints = Checkpoints(tmp_path, CheckpointConfig(keep_last=1))
    for step in (1, 2, 3):
        checkpoints.save(small(step), step=step)
    checkpoints.close()
    assert kept(tmp_path) == [3]
    assert removed and not any(str(path.name).isdigit() for path in removed)


def test_the_same_step_is_saved_once(tmp_path):
    checkpoints = Checkpoints(tmp_path)
    checkpoints.save(small(4), step=4)
    checkpoints.wait()
    before = {path: path.stat().st_mtime_ns for path in tmp_path.rglob("*")}
    checkpoints.save(small(4), step=4)
    checkpoints.close()
    assert before == {path: path.stat().st_mtime_ns for path in tmp_path.rglob("*")}


def test_what_is_not_trained_is_not_saved(tmp_path):
    config = TrainConfig(
        data=DataConfig(path="."),
        model=ModelConfig(scratch=tiny.architecture(), frozen="vision/.*|language/blocks/.*"),
    )
    params, _ = initial_values(config, config.model.scratch, weights=None, temperature=None)
    checkpoints = Checkpoints(tmp_path)
    checkpoints.save(TrainState(jnp.int32(1), params, {}), step=1)
    checkpoints.close()
    found = read_params(tmp_path)[1]["model"]
    assert set(found) == {"language"} and "blocks" not in found["language"]
