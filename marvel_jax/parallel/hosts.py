"""Several processes as one run: the explicit start, and what the first one does for all."""

import json
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor, wait
from typing import Any, TypeVar

import jax
import numpy as np
from jax.experimental import multihost_utils

from marvel_jax.errors import MarvelError

# A process that died is noticed by the others after this time, and the run ends.
_HEARTBEAT_SECONDS = 100
_SECONDS_BETWEEN_QUESTIONS = 1.0
_NOT_YET = -1

Made = TypeVar("Made")


def start(coordinator: str | None, num_processes: int | None, process_id: int | None) -> None:
    """Joins this process to a run of `num_processes`; must come before anything uses a device.

    All None is a run of one process, and does nothing. `coordinator` is HOST:PORT of process 0,
    the same for all. CPUs talk over gloo; accelerators over their own network.

    Raises:
      MarvelError: one of the three is missing or out of range, or the others cannot be reached.
    """
    given = {
        "--coordinator": coordinator,
        "--num-processes": num_processes,
        "--process-id": process_id,
    }
    missing = [name for name, value in given.items() if value is None]
    if coordinator is None or num_processes is None or process_id is None:
        if len(missing) < len(given):
            raise MarvelError(
                f"a run of several processes needs {', '.join(missing)} too, for example "
                "--coordinator host0:12345 --num-processes 2 --process-id 0."
            )
        return
    host, colon, port = coordinator.rpartition(":")
    if not (host and colon and port.isdigit()):
        raise MarvelError(f"--coordinator {coordinator}: expected HOST:PORT of process 0.")
    if not 0 <= process_id < num_processes:
        raise MarvelError(
            f"--process-id {process_id}: with --num-processes {num_processes} it is one of 0 to "
            f"{num_processes - 1}, another on each process."
        )
    try:
        jax.distributed.initialize(
            coordinator_address=coordinator,
            num_processes=num_processes,
            process_id=process_id,
            heartbeat_timeout_seconds=_HEARTBEAT_SECONDS,
        )
    except RuntimeError as error:
        cause = str(error).strip().splitlines()
        raise MarvelError(
            f"process {process_id} of {num_processes} cannot join the run at {coordinator}: "
            f"{cause[0] if cause else error!r}"
        ) from error


def is_main() -> bool:
    """Whether this process writes what is written once: recipe, metrics, models."""
    return jax.process_index() == 0


def is_alone() -> bool:
    """Whether the run has only this process."""
    return jax.process_count() == 1


def together(make: Callable[[], Made]) -> Made:
    """What `make` returns on this process, once every process has made its own."""
    if is_alone():
        return make()
    with ThreadPoolExecutor(1) as pool:
        making = pool.submit(make)
        # All ask again and again who is done: gloo gives up on who is silent for long.
        while True:
            done = bool(wait([making], timeout=_SECONDS_BETWEEN_QUESTIONS).done)
            if np.all(multihost_utils.process_allgather(np.bool_(done))):
                return making.result()


def from_main(make: Callable[[], Any]) -> Any:
    """What `make` returns on the first process (a JSON-able value), on every process.

    Raises:
      MarvelError: on every process, where `make` raised one on the first.
    """
    if is_alone():
        return make()
    content = b""
    with ThreadPoolExecutor(1) as pool:
        making = pool.submit(_answer, make) if is_main() else None
        # All ask again and again whether it is there: gloo gives up on who is silent for long.
        length = _NOT_YET
        while length == _NOT_YET:
            if making is not None and wait([making], timeout=_SECONDS_BETWEEN_QUESTIONS).done:
                content = making.result()
            told = np.int32(len(content) or _NOT_YET)
            length = int(multihost_utils.broadcast_one_to_all(told))
    padded = np.zeros(length, np.uint8)
    padded[: len(content)] = np.frombuffer(content, np.uint8)
    whole = np.asarray(multihost_utils.broadcast_one_to_all(padded))
    answer = json.loads(whole.tobytes().decode())
    if "error" in answer:
        raise MarvelError(answer["error"])
    return answer["value"]


def _answer(make: Callable[[], Any]) -> bytes:
    try:
        return json.dumps({"value": make()}).encode()
    except MarvelError as error:
        return json.dumps({"error": str(error)}).encode()
