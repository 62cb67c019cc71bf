"""`marvel study plan`: every point on every topology, and why some cannot be."""

import dataclasses
from typing import Any

import pytest

from marvel_jax.errors import MarvelError
from marvel_jax.plan import compile as planning
from marvel_jax.plan.planned import Planned
from marvel_jax.recipes.config_file import load_config
from marvel_jax.recipes.recipe import Recipe
from marvel_jax.recipes.stages import Evaluate, Subset, Train
from marvel_jax.studies.axes import Axis
from marvel_jax.studies.plan import plan_study, standalone, table
from marvel_jax.studies.study import Metric, Study, load_study
from marvel_jax.training.config import ModelConfig
from tests.studies.test_shipped import STUDIES


@pytest.fixture
def study(tiny_config) -> Study:
    """A chain of two trainings; a batch of 1 cannot be."""
    config = load_config(tiny_config)
    again = dataclasses.replace(
        config,
        model=ModelConfig(source="first.model"),
        data=dataclasses.replace(config.data, path="half.mbeir"),
    )
    return Study(
        base=Recipe(
            (
                Subset("half", "data.mbeir", last=0.5),
                Train("first", config),
                Train("again", again),
                Evaluate("evaluate", "again.model", "data.mbeir"),
            ),
            {"mbeir": "/nowhere"},
        ),
        axes=(
            Axis("batch", "again.config.data.global_batch", (1, 16, 32)),
            Axis("steps", "again.config.steps", (10, 40)),
        ),
        metrics=(Metric("mean local"),),
    )


def compiled(config: Any, topology: str, **options: Any) -> Planned:
    """A plan whose figures follow from the batch; 32 pairs do not fit."""
    batch = config.data.global_batch
    if topology == "gpu:none:8":
        raise MarvelError("gpu:none:8: there is no chip 'none'.")
    return Planned(
        topology=topology,
        stage="train",
        device="a device",
        devices=8,
        hosts=1,
        mesh={},
        kernel="",
        loss="",
        settings={},
        items=batch,
        rows=1,
        row_counts=[1],
        row={},
        token_fill=1,
        patch_fill=1,
        lengths="",
        memory_bytes=20 << 30,
        needed_bytes=batch << 30,
        fits=batch <= 20,
        weight_bytes=0,
        moment_bytes=0,
        batch_bytes=0,
        useful_flops=batch * 1e15,
        step_seconds=float(batch),
        mfu=0.5,
    )


def test_every_point_has_its_figures_or_its_reason(study, monkeypatch):
    calls = []

    def counted(config, topology, **options):
        calls.append((topology, config.data.global_batch))
        return compiled(config, topology, **options)

    monkeypatch.setattr(planning, "plan", counted)
    rows = list(plan_study(study, ["gpu:h100:8", "gpu:none:8"]))
    assert len(rows) == 12
    # Another number of steps is no other program.
    assert [call for call in calls if call[0] == "gpu:h100:8"] == [
        ("gpu:h100:8", 16),
        ("gpu:h100:8", 32),
    ]
    by_point = {(one.topology, *one.point.values()): one.to_dict() for one in rows}
    good = by_point["gpu:h100:8", 16, 40]
    assert good["flops"] == 40 * 16e15 and good["reason"] is None
    assert good["hours"] == pytest.approx(40 * 16 / 3600)
    assert good["device_hours"] == pytest.approx(8 * 40 * 16 / 3600)
    assert "global_batch=1" in by_point["gpu:h100:8", 1, 10]["reason"]
    assert "32.0 GiB of the 20.0 GiB" in by_point["gpu:h100:8", 32, 10]["reason"]
    assert "no chip 'none'" in by_point["gpu:none:8", 16, 10]["reason"]
    lines = table(rows)
    assert any("10 of 12 points cannot be run so" in line for line in lines)
    assert sum("NO" in line for line in lines) == 2


def test_a_stage_of_a_chain_is_planned_with_the_model_it_starts_from(study):
    config = standalone(study.base, "again")
    first = study.base.stage("first").config
    assert config.model.scratch == first.model.scratch and config.model.source is None
    with pytest.raises(MarvelError, match="made by a run"):
        standalone(study.base, "again", lengths="corpus")
    with pytest.raises(MarvelError, match="kind Subset"):
        standalone(study.base, "half")


def test_a_layout_of_the_topology_is_taken(study, monkeypatch):
    seen = []
    monkeypatch.setattr(
        planning, "plan", lambda config, *a, **o: seen.append(config) or compiled(config, *a)
    )
    list(plan_study(study, ["cpu:8"], trainings=["chunk_rows=2", "mesh.fsdp=4"]))
    assert {(one.chunk_rows, one.mesh.fsdp) for one in seen} == {(2, 4)}


def test_a_tiny_step_is_compiled_for_two_devices():
    tiny = load_study(STUDIES / "model_data.py", size="tiny")
    width, compute = tiny.axes
    axes = (
        dataclasses.replace(width, values=(32,)),
        dataclasses.replace(compute, values=(4.24e9,)),  # operations of eight steps
    )
    (row,) = plan_study(dataclasses.replace(tiny, axes=axes), ["cpu:2"])
    assert row.reason is None and row.planned is not None and row.steps == 8
    assert row.to_dict()["devices"] == 2 and row.to_dict()["flops"] > 8e6
