"""`launch/accelerator_check`: is a GPU or TPU right, and how fast, in ten minutes and one JSON.

This process starts no device. Each step runs in a process of its own, so that one that hangs or
dies takes nothing along, and the next finds the whole memory of the device free.
"""

import argparse
import json
import os
import queue
import shlex
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any, NamedTuple

import marvel_jax
from marvel_jax.bench.accelerator_steps import STEPS, Step
from marvel_jax.bench.machine import spell, table
from marvel_jax.errors import MarvelError
from marvel_jax.files import write_json
from marvel_jax.parallel.chips import GPU_MEMORY_SHARE

_ROOT = Path(marvel_jax.__file__).parents[1]
_CHILD = "marvel_jax.bench.accelerator_steps"
# Beyond its time, for a step to end its case; then it is killed.
_GRACE = 10.0
_SECONDS_TO_DIE = 5.0
# Of all the time, so that the result is told before it is up.
_SECONDS_TO_TELL = 3.0
_LEAST_SECONDS = 5.0
_ENVIRONMENT = {
    # Of the device's memory: the check has it to itself, and 7B needs it.
    "XLA_PYTHON_CLIENT_MEM_FRACTION": str(GPU_MEMORY_SHARE),
    "TOKENIZERS_PARALLELISM": "false",
    "JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS": "0.3",
    "HF_HUB_OFFLINE": "1",
}

# Ends the name of a step that measures torch at what the step of the rest of its name does.
_TORCH = ", torch"
# Why a step is not "ok", in its own words.
_REASONS = ("error", "late", "skipped", "unfit")

Result = dict[str, Any]


class Given(NamedTuple):
    """What is asked for. `quick` None is chosen by the platform."""

    out: Path
    minutes: float
    quick: bool | None
    only: tuple[str, ...]


def check(given: Given, *, command: str, steps: Sequence[Step] = STEPS) -> Result:
    """Runs the steps in their order, and writes the result after every row that one measures."""
    began = time.monotonic()
    end = began + 60 * given.minutes - _SECONDS_TO_TELL
    result: Result = {
        "bench": "accelerator",
        "command": command,
        "started": time.strftime("%Y-%m-%dT%H:%M:%SZ", time.gmtime()),
        "quick": given.quick,
        "machine": None,
        "passed": None,
        "ratios": {},
        "seconds": 0.0,
        "steps": [],
    }
    for step in steps:
        first = step.name == "machine"
        if given.only and step.name not in given.only and not first:
            continue
        found: Result = {"step": step.name, "state": "running", "seconds": 0.0, "rows": []}
        result["steps"].append(found)
        left = end - time.monotonic()
        if left < _LEAST_SECONDS:
            found |= {"state": "no time left"}
            continue
        _tell(f"{step.name}: {min(step.seconds, left):.0f} s at most")
        for _ in _run(step, found, result, quick=bool(given.quick), end=end):
            result["seconds"] = round(time.monotonic() - began, 1)
            write_json(given.out, result)
        _tell(f"{step.name}: {found['state']} after {found['seconds']} s")
        if first:
            if result["machine"] is None:
                break  # nothing else can run
            if result["quick"] is None:
                result["quick"] = result["machine"]["platform"] == "cpu"
                given = given._replace(quick=result["quick"])
    result["ratios"] = ratios(result["steps"])
    checks = {step.name for step in steps if step.check}
    result["passed"] = all(
        one["state"] == "ok"
        or (one["step"] not in checks and one["state"] not in ("error", "failed"))
        for one in result["steps"]
    )
    result["seconds"] = round(time.monotonic() - began, 1)
    write_json(given.out, result)
    return result


def ratios(steps: Sequence[Result]) -> dict[str, float]:
    """Ours over torch's of the same run, the best of each: pairs or items a second and device."""
    best: dict[str, float] = {}
    for one in steps:
        rates = (
            row.get("pairs/s", row.get("items/s", 0.0)) / row.get("devices", 1)
            for row in one["rows"]
        )
        best[one["step"]] = max(rates, default=0.0)
    return {
        name: round(best[name] / rate, 3)
        for theirs, rate in best.items()
        if rate and best.get(name := theirs.removesuffix(_TORCH)) and name != theirs
    }


def _run(step: Step, found: Result, result: Result, *, quick: bool, end: float) -> Iterator[None]:
    """Runs one step, and yields whenever there is more to be written."""
    machine = result["machine"] or {}
    started = time.monotonic()
    seconds = min(step.seconds, end - started)
    stop = min(started + seconds + _GRACE, end)
    arguments = [step.name, "--seconds", f"{seconds:.1f}"]
    arguments += ["--platform", machine.get("platform", "cpu")]
    arguments += ["--device-kind", machine.get("device", "cpu")]
    arguments += ["--quick"] if quick else []
    state = None
    with _child(arguments, torch=step.name.endswith(_TORCH)) as (process, lines):
        while state is None:
            try:
                line = lines.get(timeout=max(0.0, stop - time.monotonic()))
            except queue.Empty:
                state = "out of time"
                continue
            if line is None:
                code = _exit_code(process)
                state = "ok" if code == 0 else "error"
                if code != 0:
                    found.setdefault("error", f"the step ended with exit code {code}")
                continue
            message = json.loads(line)
            if "row" in message:
                found["rows"].append(message["row"])
                _tell(
                    "  "
                    + ", ".join(f"{key} {spell(value)}" for key, value in message["row"].items())
                )
            elif "facts" in message:
                result["machine"] = message["facts"]
            else:
                found |= message
                _tell(f"  {message}")
            found["seconds"] = round(time.monotonic() - started, 1)
            yield
    if state == "ok":
        state = next((word for word in _REASONS if word in found), "ok")
    if any(row.get("ok") is False for row in found["rows"]):
        state = "failed"
    found["state"] = state
    found["seconds"] = round(time.monotonic() - started, 1)
    yield


@contextmanager
def _child(
    arguments: Sequence[str], *, torch: bool
) -> Iterator[tuple[subprocess.Popen[str], "queue.Queue[str | None]"]]:
    """A step's process and its lines, None at the end; however we leave, none of it stays."""
    environment = {**_ENVIRONMENT, **os.environ}
    # Behind us: on some machines it is where jax is.
    searched = [str(_ROOT), os.environ.get("PYTHONPATH", "")]
    environment["PYTHONPATH"] = os.pathsep.join(filter(None, searched))
    cache = environment.setdefault("JAX_COMPILATION_CACHE_DIR", str(_ROOT / ".cache" / "jax"))
    Path(cache).mkdir(parents=True, exist_ok=True)
    if torch:
        environment["JAX_PLATFORMS"] = "cpu"  # ours holds no memory of the device meanwhile
    process = subprocess.Popen(
        [sys.executable, "-m", _CHILD, *arguments],
        cwd=_ROOT,
        env=environment,
        stdout=subprocess.PIPE,
        text=True,
        start_new_session=True,  # with what it starts it is ended as one
    )
    lines: queue.Queue[str | None] = queue.Queue()

    def read() -> None:
        assert process.stdout is not None
        for line in process.stdout:
            lines.put(line)
        lines.put(None)

    threading.Thread(target=read, daemon=True).start()
    try:
        yield process, lines
    finally:
        _end(process)


def _exit_code(process: subprocess.Popen[str]) -> int | None:
    """Of a process that has nothing more to say; None if it stays all the same."""
    try:
        return process.wait(timeout=_GRACE)
    except subprocess.TimeoutExpired:
        return None


def _end(process: subprocess.Popen[str]) -> None:
    for how in (signal.SIGTERM, signal.SIGKILL):
        try:
            os.killpg(process.pid, how)
        except ProcessLookupError:
            break
        try:
            process.wait(timeout=_SECONDS_TO_DIE)
        except subprocess.TimeoutExpired:
            continue
    process.wait()


def lines(result: Mapping[str, Any]) -> list[str]:
    """The result for a person: the machine, then a table for each step."""
    machine = result["machine"]
    told = []
    if machine is not None:
        memory = machine.get("device_memory_gib")
        each = f" of {memory} GiB" if memory else ""
        versions = ", ".join(f"{name} {v}" for name, v in machine["versions"].items())
        head = f"{machine['devices']} x {machine['device']}{each}, {machine['processor']}, "
        told += [
            head + f"{machine['cores']} cores, {machine['date']}",
            f"Python {machine['python']}, {versions}",
            f"not installed: {', '.join(machine['missing']) or 'nothing'}",
        ]
    for one in result["steps"]:
        why = next((one[word] for word in _REASONS if word in one), "")
        told += [
            "",
            f"{one['step']}: {one['state']} ({one['seconds']} s){f': {why}' if why else ''}",
        ]
        kinds: dict[tuple[str, ...], list[Any]] = {}
        for row in one["rows"]:
            kinds.setdefault(tuple(row), []).append(row)
        for rows in kinds.values():
            told += table(rows)
    told += [""] if result["ratios"] else []
    told += [
        f"{name}: {times:.3g} times torch, a device" for name, times in result["ratios"].items()
    ]
    verdict = "all checks passed" if result["passed"] else "NOT ALL CHECKS PASSED"
    return [*told, "", f"{verdict}, {result['seconds']} s"]


def _tell(text: str) -> None:
    sys.stderr.write(f"{text}\n")
    sys.stderr.flush()


def main(args: Sequence[str] | None = None) -> None:
    """Exits 0 if all checks passed, 1 if one did not, 130 if interrupted, 2 on wrong arguments."""
    parser = argparse.ArgumentParser(
        prog="accelerator_check",
        description="Checks and measures a GPU or TPU; needs jax, flax, optax, orbax.",
        epilog=f"Steps: {'; '.join(step.name for step in STEPS)}.",
    )
    parser.add_argument("--out", type=Path, default=Path("accelerator.json"))
    parser.add_argument("--minutes", type=float, default=10.0, help="after which it ends")
    parser.add_argument(
        "--quick", action="store_true", default=None, help="tiny shapes; the default on a CPU"
    )
    parser.add_argument(
        "--only", action="append", default=[], metavar="STEP", help="may be given several times"
    )
    asked = parser.parse_args(args)
    strange = sorted(set(asked.only) - {step.name for step in STEPS})
    if strange:
        parser.error(f"--only {strange[0]!r}: the steps are {', '.join(s.name for s in STEPS)}")
    if asked.minutes <= 0:
        parser.error(f"--minutes {asked.minutes}: give a positive number")
    typed = sys.argv[1:] if args is None else args
    command = shlex.join(["launch/accelerator_check", *typed])
    given = Given(asked.out.absolute(), asked.minutes, asked.quick, tuple(asked.only))

    def interrupt(*_: object) -> None:
        raise KeyboardInterrupt

    signal.signal(signal.SIGTERM, interrupt)
    try:
        result = check(given, command=command)
    except KeyboardInterrupt:
        _tell(f"interrupted; what was measured is in {given.out}")
        sys.exit(130)
    except (MarvelError, OSError) as error:
        _tell(f"accelerator_check: {error}")
        sys.exit(1)
    sys.stdout.write("\n".join([*lines(result), f"written to {given.out}", ""]))
    sys.exit(0 if result["passed"] else 1)


if __name__ == "__main__":
    main()
