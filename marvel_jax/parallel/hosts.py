"""Several processes as one run: its start, what they agree on, what the first does for all."""

import itertools
import json
import os
import socket
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import Any, TypeVar

import jax
import numpy as np
from jax._src import distributed
from jax.experimental import multihost_utils

from marvel_jax.errors import MarvelError
from marvel_jax.parallel import schedulers, tpu_metadata
from marvel_jax.parallel.roll_call import gather
from marvel_jax.parallel.schedulers import Place
from marvel_jax.parallel.watch import Patience, Voice, Watch

JOIN_SECONDS = 300.0

_FLAGS = "flags"
# JAX's own signs of life: the watch is quicker, and says who.
_HEARTBEAT_SECONDS = 100
# A process that compiles keeps the others waiting; one that is dead, the watch finds.
_DAY_MILLISECONDS = 24 * 3600 * 1000
_ASK_MILLISECONDS = 5000
_NAMED = 6

Made = TypeVar("Made")

# The processes talk in one order: the same number is the same talk on all. Belongs to the process,
# as JAX's connection does.
_TALKS = itertools.count()


@contextmanager
def start(
    coordinator: str | None = None,
    num_processes: int | None = None,
    process_id: int | None = None,
    *,
    timeout: float = JOIN_SECONDS,
    say: Callable[[str], None] = lambda line: None,
    voice: Voice | None = None,
    patience: Patience | None = None,
) -> Iterator[None]:
    """`with` it around the run, before anything uses a device: joins this process to the others.

    What is not given is asked of the scheduler; where there is none, or the run has one process,
    nothing is started. `coordinator` is HOST:PORT of process 0, the same for all; the processes
    are waited for `timeout` seconds. `say` gets a line with this process's place in the run. From
    then on the death or error of one ends all (see `watch`). CPUs talk over gloo; accelerators over
    their own network.

    Raises:
      MarvelError: what is given, or a scheduler's environment, is incomplete or out of range; or
        the processes do not find each other in time.
    """
    place = find_place(coordinator, num_processes, process_id)
    if place is None:
        yield
        return
    told = "" if place.told_by == _FLAGS else f" ({place.told_by})"
    where = f"process {place.process_id} of {place.num_processes}, coordinator {place.coordinator}"
    say(where + told)
    gathered = gather(
        place.coordinator,
        num_processes=place.num_processes,
        process_id=place.process_id,
        timeout=timeout,
    )
    # JAX would wait for five minutes for one that fails here, and say nothing of it.
    with Watch(gathered, voice=voice, patience=patience):
        try:
            jax.distributed.initialize(
                coordinator_address=place.coordinator,
                num_processes=place.num_processes,
                process_id=place.process_id,
                # Else JAX takes one device of the host, wherever it sees Slurm or Open MPI.
                cluster_detection_method="deactivate",
                local_device_ids=None if place.local_device is None else [place.local_device],
                heartbeat_timeout_seconds=_HEARTBEAT_SECONDS,
            )
        except RuntimeError as error:
            cause = str(error).strip().splitlines()
            raise MarvelError(f"cannot join the run: {cause[0] if cause else error!r}") from error
        yield


def find_place(
    coordinator: str | None,
    num_processes: int | None,
    process_id: int | None,
    *,
    environment: Mapping[str, str] | None = None,
) -> Place | None:
    """This process's place, from what is given and, for the rest, what a scheduler tells.

    None is a run of one process. Raises as `start` does.
    """
    given = {
        "--coordinator": coordinator,
        "--num-processes": num_processes,
        "--process-id": process_id,
    }
    if num_processes == 1 and not process_id:
        return None
    if coordinator is None or num_processes is None or process_id is None:
        metadata = tpu_metadata.attribute if tpu_metadata.has_tpu() else None
        found = schedulers.detect(
            os.environ if environment is None else environment,
            coordinator=coordinator,
            tpu_metadata=metadata,
        )
        missing = [name for name, value in given.items() if value is None]
        if found is None:
            if len(missing) == len(given):
                return None
            raise MarvelError(
                f"a run of several processes needs {', '.join(missing)} too, for example "
                "--coordinator host0:12345 --num-processes 2 --process-id 0."
            )
        if num_processes is not None:
            found = found._replace(num_processes=num_processes)
        if process_id is not None:
            found = found._replace(process_id=process_id)
        place = found
    else:
        place = Place(coordinator, num_processes, process_id, _FLAGS)
    if place.num_processes == 1 and place.process_id == 0:
        return None
    host, colon, port = place.coordinator.rpartition(":")
    if not (host and colon and port.isdigit()):
        raise MarvelError(f"--coordinator {place.coordinator}: expected HOST:PORT of process 0.")
    if not 0 <= place.process_id < place.num_processes:
        raise MarvelError(
            f"--process-id {place.process_id}: with --num-processes {place.num_processes} it is "
            f"one of 0 to {place.num_processes - 1}, another on each process."
        )
    return place


def is_main() -> bool:
    """Whether this process writes what is written once: recipe, metrics, models."""
    return jax.process_index() == 0


def is_alone() -> bool:
    """Whether the run has only this process."""
    return jax.process_count() == 1


def together(make: Callable[[], Made]) -> Made:
    """What `make` returns on this process, once every process has made its own.

    What takes some processes longer than others belongs in it (see `connect`).
    """
    made = make()
    client = _client()
    if client is not None:
        client.wait_at_barrier(f"marvel/together/{next(_TALKS)}", _DAY_MILLISECONDS)
    return made


def connect() -> None:
    """Opens the network between the devices of all processes, at a moment when all are here.

    Else the first collective opens it, and a network of CPUs (gloo) waits for the last process to
    come to that for 30 s only; once it is open, for as long as it takes.
    """
    if not is_alone():
        together(jax.devices)
        multihost_utils.process_allgather(np.int32(0))


def from_main(make: Callable[[], Any]) -> Any:
    """What `make` returns on the first process (a JSON-able value), on every process.

    Raises:
      MarvelError: on every process, where `make` raised one on the first.
    """
    client = _client()
    if client is None:
        return make()
    key = f"marvel/from_main/{next(_TALKS)}"
    if distributed.global_state.process_id == 0:
        client.key_value_set(key, _answer(make))
    answer = json.loads(_get(client, key))
    if "error" in answer:
        raise MarvelError(answer["error"])
    return answer["value"]


def agree(facts: Mapping[str, str]) -> None:
    """Returns where every process of the run holds the same facts; all must call it.

    Touches no device. The texts should be short: hashes of what is long.

    Raises:
      MarvelError: on every process, naming each fact that differs and who holds which value.
    """
    client = _client()
    if client is None:
        return
    here, count = distributed.global_state.process_id, distributed.global_state.num_processes
    key = f"marvel/agree/{next(_TALKS)}"
    client.key_value_set(f"{key}/{here}", json.dumps([socket.gethostname(), dict(facts)]))
    if here == 0:
        told = [json.loads(_get(client, f"{key}/{number}")) for number in range(count)]
        found = differences([host for host, _ in told], [facts for _, facts in told])
        client.key_value_set(f"{key}/verdict", json.dumps(found))
    found = json.loads(_get(client, f"{key}/verdict"))
    if found:
        raise MarvelError(
            f"the processes of this run do not agree: {'; '.join(found)}. Nothing was computed. "
            "Make them the same, and start all processes again."
        )


def differences(hosts: Sequence[str], told: Sequence[Mapping[str, str]]) -> list[str]:
    """A line for each fact that is not the same everywhere, the commonest value first."""
    names = dict.fromkeys(name for facts in told for name in facts)
    lines = []
    for name in names:
        holders: dict[str, list[int]] = {}
        for number, facts in enumerate(told):
            holders.setdefault(facts.get(name, "missing"), []).append(number)
        if len(holders) > 1:
            ranked = sorted(holders.items(), key=lambda item: -len(item[1]))
            lines.append(
                f"{name} is "
                + ", ".join(f"{value} on {_listed(hosts, who)}" for value, who in ranked)
            )
    return lines


def _listed(hosts: Sequence[str], numbers: list[int]) -> str:
    named = [f"{number} (host {hosts[number]})" for number in numbers[:_NAMED]]
    more = f" and {len(numbers) - _NAMED} more" if len(numbers) > _NAMED else ""
    return f"process{'es' if len(numbers) > 1 else ''} {', '.join(named)}{more}"


def _answer(make: Callable[[], Any]) -> str:
    try:
        return json.dumps({"value": make()})
    except MarvelError as error:
        return json.dumps({"error": str(error)})


def _client() -> Any:
    """JAX's connection with the run's key-value store; None in a run of one process."""
    return distributed.global_state.client


def _get(client: Any, key: str) -> str:
    # In pieces, so that Ctrl-C is heard.
    while True:
        try:
            return client.blocking_key_value_get(key, _ASK_MILLISECONDS)
        except jax.errors.JaxRuntimeError as error:
            if "DEADLINE_EXCEEDED" not in str(error):
                raise
