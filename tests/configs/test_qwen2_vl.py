"""The configs of the published models can be laid out, and what is missing for them is told."""

import json
import math
from pathlib import Path

import pytest

from marvel_jax import cli
from marvel_jax.errors import MarvelError
from marvel_jax.models.published import PUBLISHED
from marvel_jax.parallel.heads import check_heads
from marvel_jax.parallel.topology import Topology
from marvel_jax.plan.batch import train_sizes
from marvel_jax.recipes.config_file import load_config, open_config
from marvel_jax.training.flops import step_flops

CONFIGS = sorted((Path(__file__).parents[2] / "configs").glob("qwen2_vl_*.py"))
LAYOUTS = [(path, name) for path in CONFIGS for name in open_config(path).layouts]


def test_both_sizes_have_layouts_for_one_device_and_for_many():
    assert len(CONFIGS) == 2
    for path in CONFIGS:
        layouts = open_config(path).layouts
        assert {"gpu:h100:1", "gpu:h100:8", "gpu:h100:64"} <= set(layouts)
        assert any(name.startswith("tpu:v5e") for name in layouts)
        assert any(name.startswith("tpu:v5p") for name in layouts)


@pytest.mark.parametrize("path", CONFIGS, ids=lambda path: path.stem)
def test_hyper_parameters_are_the_published_ones(path):
    config = load_config(path)
    adapters, optimizer = config.model.adapters, config.optimizer
    assert (adapters.rank, adapters.alpha, adapters.dropout) == (128, 256.0, 0.05)
    assert config.data.global_batch == 3840
    assert config.steps == math.ceil(1_332_790 / 3840)
    assert (optimizer.learning_rate, optimizer.warmup_fraction) == (4e-4, 0.03)
    assert (optimizer.weight_decay, optimizer.clip_norm, optimizer.learn_temperature) == (
        0,
        1,
        True,
    )
    assert (config.embedding.max_pixels, config.embedding.max_text_tokens) == (235_200, 480)
    assert not config.loss.symmetric and config.model.source in PUBLISHED


@pytest.mark.parametrize(
    ("path", "name"), LAYOUTS, ids=[f"{path.stem}-{name}" for path, name in LAYOUTS]
)
def test_a_layout_divides_devices_batch_heads_and_rows(path, name):
    config = load_config(path, layout=name)
    devices, mesh = Topology.parse(name).devices, config.mesh
    check_heads(PUBLISHED[config.model.source], tensor=mesh.tensor)
    assert devices % (mesh.fsdp * mesh.tensor) == 0
    sizes = train_sizes(config, None, shards=devices // mesh.tensor)
    assert config.chunk_rows is None or sizes.rows % config.chunk_rows == 0
    assert sizes.token_fill > 0.94


def test_full_training_costs_three_forward_passes():
    config = load_config(CONFIGS[-1])
    architecture = PUBLISHED[config.model.source]
    sizes = train_sizes(config, None, shards=64)
    common = {"queries": 3840, "candidates": 3840}
    full = step_flops(architecture, sizes.work, **common)
    forward = step_flops(architecture, sizes.work, trained=lambda path: False, **common)
    assert 2.8 * forward < full < 3 * forward


def test_an_unknown_layout_names_those_there_are():
    with pytest.raises(MarvelError, match=r"no layout 'gpu:h100:7'; it has gpu:h100:1, gpu:h100:8"):
        load_config(CONFIGS[0], layout="gpu:h100:7")


def test_set_wins_over_a_layout():
    config = load_config(CONFIGS[0], ("chunk_rows=1",), layout="gpu:h100:1")
    assert config.chunk_rows == 1 and config.model.remat == "none"


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ("layouts = 3", r"`layouts` maps a topology's name to changes as of --set"),
        ("layouts = {'a': 'mesh.fsdp=8'}", r"`layouts` maps"),
        ("layouts = {'a': ('nothing=8',)}", r"layouts\['a'\]: --set nothing: no such field"),
    ],
)
def test_broken_layouts_are_told(tmp_path, tiny_config, content, message):
    path = tmp_path / "config.py"
    path.write_text(tiny_config.read_text() + "\n" + content + "\n")
    with pytest.raises(MarvelError, match=message):
        load_config(path, layout="a")


def test_training_without_the_data_is_one_clear_error(tmp_path, capsys, monkeypatch):
    monkeypatch.chdir(tmp_path)
    with pytest.raises(SystemExit) as stop:
        cli.main(["train", str(CONFIGS[-1]), "--workdir", str(tmp_path / "run"), "--json"])
    printed = capsys.readouterr()
    assert stop.value.code == 1
    assert "data/mbeir does not exist" in json.loads(printed.out.splitlines()[-1])["error"]
    assert "Traceback" not in printed.err and not (tmp_path / "run").exists()


@pytest.mark.parametrize(
    ("topology", "message"),
    [
        ("gpu:h100:12", "multiple of 8, as gpu:h100:16"),
        ("tpu:v5e:3x3x3", "2 sides"),
        ("gpu:h300:8", "the GPU is one of"),
    ],
)
def test_planning_for_what_does_not_exist(capsys, topology, message):
    with pytest.raises(SystemExit) as stop:
        cli.main(["plan", str(CONFIGS[0]), "--topology", topology])
    assert stop.value.code == 1 and message in capsys.readouterr().err
