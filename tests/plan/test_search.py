"""The search tries what may fit, ranks by speed, keeps to its time, and gives up nothing found."""

import pytest

from marvel_jax.errors import MarvelError
from marvel_jax.plan import search
from tests.plan.plans import GIB, made_up
from tests.training.tiny_steps import config_for

ROOM = 70 * GIB


class Planner:
    """Stands in for the compiler: a step whose memory and speed follow from its settings."""

    def __init__(self, *, stop_after: int | None = None, error: Exception | None = None) -> None:
        self.seen: list = []
        self.stop_after, self.error = stop_after, error

    def __call__(self, config, topology, *, lengths, seconds=None):
        if self.stop_after is not None and len(self.seen) >= self.stop_after:
            raise self.error or KeyboardInterrupt
        self.seen.append(config)
        assert topology == "gpu:h100:8"
        rows = config.chunk_rows or 64
        each = {"none": 6, "dots": 4, "attention": 5, "full": 1}[config.model.remat]
        standing = 40 * GIB // config.mesh.fsdp
        needed = standing + rows * each * GIB
        again = 1 + 0.5 * (config.chunk_rows is not None) + 0.5 * (config.model.remat == "full")
        mesh = {"data": 8 // config.mesh.fsdp, "fsdp": config.mesh.fsdp, "tensor": 1}
        settings = {"chunk_rows": config.chunk_rows, "remat": config.model.remat}
        return made_up(
            mesh=mesh,
            settings=settings | {"dtype": "float32", "groups": 1},
            items=config.data.global_batch,
            needed_bytes=needed,
            fits=needed <= ROOM,
            weight_bytes=standing,
            moment_bytes=0,
            step_seconds=again * (1 + 0.2 * (config.mesh.fsdp > 1)),
        )


def run(monkeypatch, planner, **options):
    monkeypatch.setattr(search, "plan", planner)
    return search.search(config_for(), "gpu:h100:8", **options)


def test_what_fits_comes_first_and_the_fastest_of_it(monkeypatch):
    planner = Planner()
    found = run(monkeypatch, planner)
    fitting = [one for one in found.plans if one.fits]
    assert fitting and found.plans[: len(fitting)] == fitting
    rates = [one.items_per_second for one in fitting]
    assert rates == sorted(rates, reverse=True)
    # Chunks that keep everything are as fast as one forward pass that is computed again, which
    # does not fit unless the weights are split; both are found.
    assert fitting[0].settings["chunk_rows"] is not None
    assert not found.interrupted and found.tried == len(planner.seen) <= found.candidates


def test_what_keeps_more_than_what_does_not_fit_is_not_compiled(monkeypatch):
    planner = Planner()
    run(monkeypatch, planner)
    whole = [
        one.model.remat for one in planner.seen if (one.chunk_rows, one.mesh.fsdp) == (None, 1)
    ]
    assert "none" in whole  # the config itself
    tried = {(one.mesh.fsdp, one.chunk_rows, one.model.remat) for one in planner.seen}
    assert len(tried) == len(planner.seen)
    assert (1, 8, "none") in tried and (1, 16, "none") not in tried


def test_time_and_ctrl_c_end_it_with_what_there_is(monkeypatch):
    found = run(monkeypatch, Planner(stop_after=3))
    assert found.interrupted and len(found.plans) == 3
    found = run(monkeypatch, Planner(stop_after=4, error=TimeoutError()))
    assert not found.interrupted and len(found.plans) == 4
    assert len(run(monkeypatch, Planner(), seconds=0).plans) == 1


def test_a_variant_that_cannot_be_is_told_and_left_out(monkeypatch):
    class Refusing(Planner):
        def __call__(self, config, topology, **options):
            if config.mesh.fsdp == 8:
                raise MarvelError("fsdp=8 divides nothing")
            return super().__call__(config, topology, **options)

    told = []
    found = run(monkeypatch, Refusing(), tell=told.append)
    assert any("fsdp=8 divides nothing" in line for line in told)
    assert {one.mesh["fsdp"] for one in found.plans} == {1}


def test_a_config_that_cannot_be_planned_is_an_error(monkeypatch):
    with pytest.raises(MarvelError, match="nothing works"):
        run(monkeypatch, Planner(stop_after=0, error=MarvelError("nothing works")))


def test_other_batches_are_tried_when_asked_for(monkeypatch):
    found = run(monkeypatch, Planner(), batches=(16, 32))
    assert {one.items for one in found.plans} == {16, 32}


def test_chunks_are_smaller_than_what_they_divide(monkeypatch):
    planner = Planner()
    run(monkeypatch, planner, batches=(2,))  # an eighth of the config's: about 8 rows of its 64
    chunks = {one.chunk_rows for one in planner.seen if one.data.global_batch == 2}
    assert chunks and chunks <= {None, 1, 2, 4}
