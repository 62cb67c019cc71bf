"""A process's place in its run comes from flags, a scheduler or both; and what all agree on."""

import pytest

from marvel_jax.errors import MarvelError
from marvel_jax.parallel import hosts
from marvel_jax.parallel.roll_call import Gathered, Peer
from tests.parallel.test_schedulers import SLURM


@pytest.mark.parametrize(
    ("given", "message"),
    [
        (("host:1", None, None), "needs --num-processes, --process-id too"),
        ((None, 2, 0), "needs --coordinator too, for example --coordinator host0:12345"),
        (("host:1", 2, None), "needs --process-id too"),
        (("host", 2, 0), "--coordinator host: expected HOST:PORT"),
        (("host:", 2, 0), "--coordinator host:: expected HOST:PORT"),
        ((":12", 2, 0), "--coordinator :12: expected HOST:PORT"),
        (("host:12", 2, 2), "--process-id 2: with --num-processes 2 it is one of 0 to 1"),
        (("host:12", 2, -1), "--process-id -1"),
        (("host:12", 1, 3), "--process-id 3: with --num-processes 1"),
    ],
)
def test_half_a_start_is_refused(given, message):
    with pytest.raises(MarvelError, match=message):
        hosts.find_place(*given, environment={})


@pytest.mark.parametrize(
    ("given", "expected"),
    [
        ((None, None, None), ("gpu07:61586", 4, 2, "Slurm")),
        (("other:7", None, None), ("other:7", 4, 2, "Slurm")),
        ((None, 8, 5), ("gpu07:61586", 8, 5, "Slurm")),
        (("other:7", 8, 5), ("other:7", 8, 5, "flags")),
    ],
)
def test_flags_win_over_the_scheduler(given, expected):
    assert hosts.find_place(*given, environment=SLURM)[:4] == expected


@pytest.mark.parametrize(
    ("given", "environment"),
    [
        ((None, None, None), {}),
        ((None, None, None), SLURM | {"SLURM_NTASKS": "1", "SLURM_PROCID": "0"}),
        ((None, 1, None), SLURM),
        (("host:1", 1, 0), {}),
    ],
)
def test_a_run_of_one_process_starts_nothing(given, environment):
    assert hosts.find_place(*given, environment=environment) is None


def test_alone_nothing_is_waited_for():
    said: list[str] = []
    with hosts.start(num_processes=1, say=said.append):
        assert hosts.is_main() and hosts.is_alone() and not said
        assert hosts.from_main(lambda: {"a": [1, "b"]}) == {"a": [1, "b"]}
        assert hosts.together(lambda: 3) == 3
        hosts.agree({"jax": "1"})
        hosts.connect()


def test_an_error_of_the_first_process_is_raised():
    def refuse():
        raise MarvelError("no")

    with pytest.raises(MarvelError, match="no"):
        hosts.from_main(refuse)


def test_what_differs_is_told_by_value_and_host():
    same = {"python": "3.12", "numpy": "2.4", "config.seed": "0"}
    told = [same, same | {"numpy": "2.5"}, same, {"python": "3.12", "config.seed": "1"}]
    assert hosts.differences(["a", "b", "c", "d"], told) == [
        (
            "numpy is 2.4 on processes 0 (host a), 2 (host c), 2.5 on process 1 (host b), "
            "missing on process 3 (host d)"
        ),
        "config.seed is 0 on processes 0 (host a), 1 (host b), 2 (host c), 1 on process 3 (host d)",
    ]
    assert hosts.differences(["a", "b"], [same, dict(reversed(same.items()))]) == []


def test_many_that_differ_are_counted():
    told = [{"numpy": "2.4"}] * 20 + [{"numpy": "2.5"}]
    (line,) = hosts.differences([f"h{number}" for number in range(21)], told)
    assert "5 (host h5) and 14 more, 2.5 on process 20 (host h20)" in line


@pytest.mark.parametrize(
    ("environment", "devices"),
    [(SLURM, None), (SLURM | {"SLURM_STEP_TASKS_PER_NODE": "8(x4)", "SLURM_LOCALID": "3"}, [3])],
)
def test_a_process_alone_on_its_host_gets_all_its_devices(monkeypatch, environment, devices):
    # JAX itself would take one device wherever it sees Slurm, and hide the others.
    given: dict = {}
    peers = (Peer(0, "gpu07", 1), Peer(2, "gpu09", 2))
    monkeypatch.setattr(hosts, "gather", lambda at, **_: Gathered(peers[1], at, peers, {}))
    monkeypatch.setattr(hosts.jax.distributed, "initialize", lambda **named: given.update(named))
    monkeypatch.setattr(hosts.os, "environ", environment)
    said: list[str] = []
    with hosts.start(say=said.append):
        pass
    assert said == ["process 2 of 4, coordinator gpu07:61586 (Slurm)"]
    assert given["cluster_detection_method"] == "deactivate"
    assert given["local_device_ids"] == devices
