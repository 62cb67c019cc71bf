"""Every stage of the real recipe, on made-up data with a model of thousands of parameters."""

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

from marvel_jax.files import read_json
from marvel_jax.recipes.recipe import load_recipe
from marvel_jax.recipes.run_command import sized

ROOT = Path(__file__).parents[2]
CONFIG = ROOT / "configs/umarvel_qwen2_vl_7b.py"
PATIENCE = 900  # seconds until a child is given up


@pytest.mark.slow
def test_every_stage_of_the_recipe_runs_and_a_second_run_prints_the_table_again(tmp_path):
    command = [sys.executable, "-m", "marvel_jax.cli", "run", CONFIG, "--size", "tiny"]
    ran = [
        subprocess.run(
            [*map(str, command), "--workdir", str(tmp_path), "--json"],
            cwd=ROOT,
            env={**os.environ, "XLA_FLAGS": "--xla_force_host_platform_device_count=1"},
            capture_output=True,
            text=True,
            timeout=PATIENCE,
            check=False,
        )
        for _ in range(2)
    ]
    for one in ran:
        assert one.returncode == 0, one.stderr[-3000:]
    first, second = (json.loads(one.stdout.splitlines()[-1])["stages"] for one in ran)
    stages = sized(load_recipe(CONFIG), "tiny").stages
    assert list(first) == [stage.name for stage in stages]
    assert all(one["ran"] for one in first.values())
    assert not any(one["ran"] for one in second.values())
    tables = [[line for line in one.stdout.splitlines() if " pool " in line] for one in ran]
    assert len(tables[0]) >= 2 and tables[0] == tables[1]
    # What each stage read is what the one before it left.
    left = {s.name: read_json(tmp_path / s.name / "done.json") for s in stages}
    for record in left.values():
        for one in record["inputs"].values():
            stage, _, output = one["from"].partition(".")
            assert one["hash"] == left[stage]["outputs"][output]["hash"]
    table = read_json(tmp_path / "report/table.json")
    assert len(table["tasks"]) == 16 and set(table["pools"]) == {"local", "global"}
