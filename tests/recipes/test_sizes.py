"""The size "small": every stage of a real recipe on the emoji corpus, which has no validation."""

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

from marvel_jax.data.mbeir import MbeirFolder
from marvel_jax.files import read_json

ROOT = Path(__file__).parents[2]
PATIENCE = 900  # seconds until a child is given up


@pytest.mark.slow
def test_the_whole_recipe_runs_on_emoji_and_judges_on_other_queries_than_it_fits_on(tmp_path):
    config = ROOT / "configs/umarvel_qwen2_vl_7b.py"
    done = subprocess.run(
        [sys.executable, "-m", "tests.recipes.small_run", str(config), str(tmp_path)],
        cwd=ROOT,
        env={**os.environ, "XLA_FLAGS": "--xla_force_host_platform_device_count=1"},
        capture_output=True,
        text=True,
        timeout=PATIENCE,
        check=False,
    )
    assert done.returncode == 0, done.stderr[-3000:]
    stages = json.loads(done.stdout.splitlines()[-1])["stages"]
    assert stages["distill"]["steps"] == 1 and all(one["ran"] for one in stages.values())
    fitted, judged = (
        {query.id for query in MbeirFolder(tmp_path / name / "corpus").source("test").queries}
        for name in ("val", "stand-in-test")
    )
    assert fitted and judged and not fitted & judged
    fusion = read_json(tmp_path / "fuse/fusion.json")
    for pool in ("local", "global"):
        assert sum(one["num_queries"] for one in fusion["pools"][pool]["sets"]) == len(judged)
        assert fusion["pools"][pool]["weights"]["validation_queries"] == len(fitted)
