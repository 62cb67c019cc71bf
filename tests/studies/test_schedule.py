"""A study on a cluster: each task runs one trial, with what launch/ says of hosts and devices."""

import contextlib
import shutil
from pathlib import Path

import pytest
import yaml

from marvel_jax.errors import MarvelError
from marvel_jax.studies.run import EXIT_FAILED_TRIALS
from marvel_jax.studies.schedule import TEMPLATES, write_schedule
from tests.launch.test_manifests import FIELDS
from tests.launch.test_scripts import LAUNCH, ROOT, run, tool, write_program

COMMAND = ("study", "run", "configs/studies/a b.py", "--workdir", '/runs/a "b" \\c')


def written(path: Path, cluster: str, **options: object) -> str:
    options = {"command": COMMAND, "name": "batch_negatives", "trials": 12, **options}
    write_schedule(path, cluster=cluster, **options)
    return path.read_text()


def test_an_array_runs_a_trial_a_task(tmp_path, monkeypatch):
    script = tmp_path / "study.sbatch"
    written(script, "slurm", at_once=4)
    assert run("bash", "-n", script).returncode == 0
    # Slurm itself runs a copy from elsewhere, from the checkout that it was submitted from.
    monkeypatch.setenv("SLURM_ARRAY_TASK_ID", "7")
    root = tmp_path / "checkout"
    shutil.copytree(LAUNCH, root / "launch")
    write_program(root / ".venv/bin/marvel", "exit 0")
    write_program(tmp_path / "bin/srun", "printf '%s\\n' \"$@\"; exit 143")
    write_program(tmp_path / "bin/scontrol", f'echo "$@" >{tmp_path}/scontrol')
    monkeypatch.setenv("PATH", f"{tmp_path / 'bin'}:/usr/bin:/bin")
    monkeypatch.setenv("SLURM_SUBMIT_DIR", str(root))
    monkeypatch.setenv("SLURM_JOB_ID", "99")
    monkeypatch.delenv("VENV", raising=False)
    found = run("bash", script, "--retry")
    given = found.stdout.splitlines()
    assert given[given.index(str(root / ".venv/bin/marvel")) + 1 :] == [
        *COMMAND,
        "--trial",
        "7",
        "--retry",
    ]
    # What was told to stop is queued again, as a training is.
    assert found.returncode == 143 and (tmp_path / "scontrol").read_text() == "requeue 99\n"


def test_an_array_has_the_settings_of_launch(tmp_path):
    text = written(tmp_path / "study.sbatch", "slurm", at_once=4)
    options = {line for line in text.splitlines() if line.startswith("#SBATCH")}
    before = {
        line
        for line in (LAUNCH / "slurm.sbatch").read_text().splitlines()
        if line.startswith("#SBATCH")
    }
    assert options - before == {
        "#SBATCH --job-name=batch_negatives",
        "#SBATCH --array=1-12%4",
        "#SBATCH --output=slurm-%A_%a.out",
    }
    assert len(before - options) == 2
    found = run(tool("shellcheck"), "-x", tmp_path / "study.sbatch", cwd=ROOT)
    assert found.returncode == 0, found.stdout


@pytest.mark.parametrize("cluster", ["gke-gpu", "gke-tpu"])
def test_every_trial_is_a_jobset_of_its_own(tmp_path, cluster):
    written(tmp_path / "study.yaml", cluster)
    found = list(yaml.safe_load_all((tmp_path / "study.yaml").read_text()))
    before = yaml.safe_load((LAUNCH / TEMPLATES[cluster]).read_text())
    assert len(found) == 12
    assert len({one["metadata"]["name"] for one in found}) == 12
    for number, one in enumerate(found, start=1):
        assert set(one["spec"]) <= FIELDS["spec"]
        job = one["spec"]["replicatedJobs"][0]["template"]["spec"]
        assert set(job) <= FIELDS["spec.replicatedJobs.template.spec"]
        (container,) = job["template"]["spec"]["containers"]
        assert container["args"] == [*COMMAND, "--trial", str(number)]
        # A trial that failed is not begun again; the loss of a host (1) is none.
        (rule,) = job.pop("podFailurePolicy")["rules"]
        assert rule["action"] == "FailJob"
        assert rule["onExitCodes"]["containerName"] == container["name"]
        assert EXIT_FAILED_TRIALS in rule["onExitCodes"]["values"]
        assert 1 not in rule["onExitCodes"]["values"]
        (rule,) = one["spec"]["failurePolicy"].pop("rules")
        assert rule == {"action": "FailJobSet", "onJobFailureReasons": ["PodFailurePolicy"]}
        # All else is what launch/ says.
        old = before["spec"]["replicatedJobs"][0]["template"]["spec"]["template"]["spec"]
        container["args"] = old["containers"][0]["args"]
        one["metadata"]["name"] = before["metadata"]["name"]
        assert one == before


def test_what_cannot_be_scheduled_is_refused(tmp_path):
    with pytest.raises(MarvelError, match="only for slurm"):
        written(tmp_path / "a", "gke-gpu", at_once=3)
    with pytest.raises(MarvelError, match=r"slurm\.sbatch does not exist.*--launch"):
        written(tmp_path / "a", "slurm", launch=tmp_path)
    (tmp_path / "slurm.sbatch").write_text("#!/usr/bin/env bash\n# nothing\n#SBATCH --nodes=1\n")
    with pytest.raises(MarvelError, match="has no line like"):
        written(tmp_path / "a", "slurm", launch=tmp_path)
    with contextlib.suppress(FileNotFoundError):
        assert not (tmp_path / "a").read_text()
