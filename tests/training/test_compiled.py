"""A step is compiled once for each shape of batch, by all processes before one of them runs it."""

import subprocess
import sys
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from marvel_jax.parallel import hosts
from marvel_jax.training.compiled import CompiledStep
from tests.training import runs


@pytest.fixture
def traced():
    """The sizes of batch for which the step was traced."""
    return []


@pytest.fixture
def step(traced):
    def step(state, frozen, batch, finite):
        traced.append(len(batch["x"]))
        after = state + (batch["x"] * frozen["weight"]).sum()
        return jnp.where(finite, after, state), {"loss": after, "finite": finite}

    return jax.jit(step, donate_argnums=0)


def arguments(rows: int) -> tuple:
    batch = {"x": np.arange(rows, dtype=np.float32)}
    return jnp.float32(1.0), {"weight": jnp.float32(2.0)}, batch, jnp.bool_(True)


def test_each_shape_is_compiled_once_and_gives_what_the_step_gives(step, traced):
    compiled = CompiledStep(step)
    for rows in (3, 5, 3, 5, 3):
        state, metrics = compiled(*arguments(rows))
        assert state == metrics["loss"] == 1 + rows * (rows - 1)
    assert traced == [3, 5]


def test_all_have_compiled_before_one_runs(step, monkeypatch):
    """`hosts.together` returns when every process has made its own: nothing may run before."""
    order = []

    def together(make):
        program = make()
        order.append("all compiled")
        return lambda *given: (order.append("run"), program(*given))[1]

    monkeypatch.setattr(hosts, "together", together)
    compiled = CompiledStep(step)
    compiled(*arguments(4))
    compiled(*arguments(4))
    assert order == ["all compiled", "run", "run"]


def test_alone_nobody_is_waited_for_and_an_error_is_the_step_s_own():
    assert hosts.together(lambda: 7) == 7
    with pytest.raises(ZeroDivisionError):
        hosts.together(lambda: 1 // 0)


CHILD = """
import sys, time
from pathlib import Path
from marvel_jax.parallel import hosts

number, made = int(sys.argv[2]), Path(sys.argv[3])
with hosts.start(sys.argv[1], 2, number):

    def make():
        if number == 0:
            time.sleep(1.5)
            made.touch()
        return number

    assert hosts.together(make) == number
    assert made.exists(), "not all have made theirs"
"""


def test_the_quick_process_waits_for_the_slow_one(tmp_path: Path):
    address = f"localhost:{runs.free_port()}"
    command = [sys.executable, "-c", CHILD, address]
    started = [
        subprocess.Popen(
            [*command, str(number), str(tmp_path / "made")],
            cwd=runs.ROOT,
            stderr=subprocess.PIPE,
            text=True,
        )
        for number in range(2)
    ]
    try:
        told = [process.communicate(timeout=120)[1] for process in started]
    finally:
        for process in started:
            process.kill()
    assert [process.returncode for process in started] == [0, 0], told
