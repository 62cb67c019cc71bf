"""What processes must have alike is told apart, and what may differ between hosts is not."""

import shutil
import subprocess
import sys

import pytest

from marvel_jax.training import agreement
from marvel_jax.training.inputs import open_inputs
from marvel_jax.training.prepare import make_plan
from tests.training.runs import ROOT


def test_another_copy_of_the_code_is_another_version(tmp_path):
    shutil.copytree(ROOT / "marvel_jax", tmp_path / "marvel_jax")
    print_versions = "from marvel_jax.training.agreement import versions; print(versions())"

    def told() -> str:
        command = [sys.executable, "-c", print_versions]
        return subprocess.run(command, cwd=tmp_path, capture_output=True, text=True).stdout

    before = told()
    assert "'jax': '" in before and "(code " in before
    with (tmp_path / "marvel_jax/losses/contrastive.py").open("a") as file:
        file.write("# changed\n")
    assert told() != before


def test_only_what_changes_a_program_counts_of_the_flags():
    plain = agreement.machine({"XLA_FLAGS": "--xla_b=1 --xla_a=2"})
    assert plain["XLA_FLAGS"] == "--xla_a=2 --xla_b=1"
    dumping = {"XLA_FLAGS": "--xla_a=2 --xla_dump_to=/host3 --xla_b=1", "HOSTNAME": "host3"}
    assert agreement.machine(dumping) == plain
    assert agreement.machine({"XLA_FLAGS": "--xla_a=3"}) != plain
    assert agreement.machine({"JAX_PLATFORMS": "cpu"}) != agreement.machine({})


@pytest.mark.parametrize("place", [0, 500_000, -1])
def test_weights_of_another_content_or_size_are_told_apart(tmp_path, place):
    content = bytearray(range(256)) * 4000
    (tmp_path / "model.safetensors").write_bytes(content)
    before = agreement.sampled(tmp_path)
    assert agreement.sampled(tmp_path) == before != agreement.sampled(None)
    content[place] ^= 1
    (tmp_path / "model.safetensors").write_bytes(content)
    assert agreement.sampled(tmp_path) != before
    (tmp_path / "model.safetensors").write_bytes(content + b"more")
    assert agreement.sampled(tmp_path) != before


def test_a_folder_elsewhere_is_no_other_config_and_a_field_is(tiny_config):
    from marvel_jax.recipes.config_file import load_config

    one = agreement.settings(load_config(tiny_config))
    assert agreement.settings(load_config(tiny_config, ("steps=9",)))["config.steps"] == "9"
    assert one["config.steps"] == "8" and "config.data.path" not in one
    mesh = agreement.settings(load_config(tiny_config, ("mesh.fsdp=2",)))
    assert {name for name in one if one[name] != mesh[name]} == {"config.mesh.fsdp"}


def test_another_packing_or_order_is_another_plan(tiny_config):
    from marvel_jax.recipes.config_file import load_config

    def told(*changes: str, shards: int = 2) -> dict[str, str]:
        config = load_config(tiny_config, changes)
        plan = make_plan(config, open_inputs(config), shards=shards, cache=None)
        return agreement.planned(plan)

    one = told()
    assert told() == one
    assert told("seed=1") != one and told(shards=4) != one and told("data.row.items=3") != one
