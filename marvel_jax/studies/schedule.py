"""A study for a cluster: the files of launch/, changed so that each task runs one trial.

What they say of hosts, devices, images and volumes stays: change it there, or in what is written.
"""

import re
import shlex
from collections.abc import Sequence
from pathlib import Path
from typing import Literal

import marvel_jax
from marvel_jax.errors import MarvelError
from marvel_jax.files import write_text

Cluster = Literal["slurm", "gke-gpu", "gke-tpu"]

TEMPLATES: dict[str, str] = {
    "slurm": "slurm.sbatch",
    "gke-gpu": "gke_jobset_gpu.yaml",
    "gke-tpu": "gke_jobset_tpu.yaml",
}

_SLURM_HEAD = """\
# A study on Slurm: every task of the array runs one trial.
# Written by `marvel study schedule` from launch/slurm.sbatch.
"""
_GKE_HEAD = """\
# A trial of a study on GKE.
# Written by `marvel study schedule` from launch/{}.
"""

_LONGEST_NAME = 40  # of a run: Kubernetes has 63 letters for it with job and pod behind it
_POD_NAME = "umarvel"  # of the run in the manifests

# A trial that failed is a result, and would fail again. What ends with another code, such as 1 when
# a host was lost, begins again. (3 is `studies.run.EXIT_FAILED_TRIALS`, 2 wrong arguments.)
_FINAL_CODES = """\
{indent}podFailurePolicy:
{indent}  rules:
{indent}    # A trial that failed has been written down: it is not begun again.
{indent}    - action: FailJob
{indent}      onExitCodes:
{indent}        containerName: marvel
{indent}        operator: In
{indent}        values: [2, 3]
"""
_FINAL_JOBS = """\
{indent}rules:
{indent}  - action: FailJobSet
{indent}    onJobFailureReasons: [PodFailurePolicy]
"""


def write_schedule(
    out: Path,
    *,
    cluster: Cluster,
    command: Sequence[str],
    name: str,
    trials: int,
    at_once: int | None = None,
    launch: Path | None = None,
) -> str:
    """Writes a Slurm array script, or a JobSet for each trial, and returns how to submit it.

    Args:
      out: the file.
      cluster: for what.
      command: of `marvel`, without the number of the trial.
      name: of the study.
      trials: how many.
      at_once: Slurm: at most so many run at the same time.
      launch: the folder of the files that are changed; None: that of the checkout.

    Raises:
      MarvelError: they are not there, or a line that is to be changed is not in them.
    """
    if at_once is not None and (cluster != "slurm" or at_once < 1):
        raise MarvelError(
            f"--at-once {at_once}: give 1 or more, and only for slurm; on GKE the node pool's size "
            "says how many pods run."
        )
    template = _folder(launch) / TEMPLATES[cluster]
    if not template.is_file():
        raise MarvelError(f"{template} does not exist: give the launch/ of a checkout (--launch).")
    text = template.read_text(encoding="utf-8")
    if cluster == "slurm":
        array = f"1-{trials}" + (f"%{at_once}" if at_once else "")
        write_text(out, _slurm(text, template, command=command, name=name, array=array))
        return f"submit it from the checkout: sbatch {shlex.quote(str(out))}"
    run = re.sub(r"[^a-z0-9]+", "-", name)[:_LONGEST_NAME].strip("-")
    documents = [
        _jobset(text, template, command=[*command, "--trial", str(n)], name=f"{run}-{n}")
        for n in range(1, trials + 1)
    ]
    write_text(out, "---\n".join(documents))
    return f"submit them: kubectl apply -f {shlex.quote(str(out))}"


def _folder(launch: Path | None) -> Path:
    """The launch/ of the checkout that the package is of, or that one stands in."""
    if launch is not None:
        return launch
    places = [Path(marvel_jax.__file__).parents[1] / "launch", Path("launch")]
    return next((place for place in places if place.is_dir()), places[-1])


def _slurm(text: str, template: Path, *, command: Sequence[str], name: str, array: str) -> str:
    given = " ".join(map(shlex.quote, command))
    changes = (
        (
            r"(?s)\A(#!.*?\n)(#.*?\n)(?=#SBATCH|# Change)",
            f"\\1{_SLURM_HEAD}",
        ),
        (r"(?m)^#SBATCH --job-name=.*$", f"#SBATCH --job-name={name}\n#SBATCH --array={array}"),
        (r"(?m)^#SBATCH --output=.*$", "#SBATCH --output=slurm-%A_%a.out"),
        (
            r"(?m)^set -euo pipefail$",
            f'set -euo pipefail\nset -- {given} --trial "${{SLURM_ARRAY_TASK_ID:-1}}" "$@"',
        ),
        (r'/marvel" train "\$@"\)', '/marvel" "$@")'),
        (r'if \[ "\$\{1:-\}" = --dry-run \]; then dry_run=yes; shift; fi\n', ""),
        (r'dry_run=""\n', 'dry_run="${DRY_RUN:-}"\n'),
        (r"(?s)if \[ \$# -eq 0 \]; then\n.*?\nfi\n", ""),
    )
    return _changed(text, template, changes)


def _jobset(text: str, template: Path, *, command: Sequence[str], name: str) -> str:
    args = "".join(f'\\g<1>  - "{_yaml(one)}"\n' for one in command)
    changes = (
        (
            r"\A(#.*\n)+",
            _GKE_HEAD.format(template.name),
        ),
        (r"(?m)^( *)args:.*\n(?:\1  - .*\n)+", f"\\1args:\n{args}"),
        (r"(?m)^( *)(maxRestarts: .*\n)", "\\1\\2" + _FINAL_JOBS.replace("{indent}", "\\1")),
        (r"(?m)^( *)(backoffLimit: .*\n)", "\\1\\2" + _FINAL_CODES.replace("{indent}", "\\1")),
    )
    changed = _changed(text, template, changes)
    return re.sub(rf"\b{_POD_NAME}\b", name, changed)


def _changed(text: str, template: Path, changes: Sequence[tuple[str, str]]) -> str:
    for pattern, made in changes:
        text, count = re.subn(pattern, made, text, count=1)
        if not count:
            raise MarvelError(
                f"{template} has no line like {pattern!r}, which is changed for a study: take the "
                "file of this release of marvel-jax."
            )
    return text


def _yaml(text: str) -> str:
    """In double quotes, for YAML and then for the replacement of a regular expression."""
    return text.replace("\\", "\\\\").replace('"', '\\"').replace("\\", "\\\\")
