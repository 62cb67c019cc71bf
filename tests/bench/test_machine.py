"""A figure says what it was taken on, and a person reads what a program reads."""

import json

from marvel_jax.bench.machine import lines, result


def test_the_result_says_what_it_was_taken_on_and_is_strict_json():
    found = json.loads(json.dumps(result("step", [{"pairs/s": 1.5}], repeats=3), allow_nan=False))
    assert (found["bench"], found["repeats"], found["rows"]) == ("step", 3, [{"pairs/s": 1.5}])
    machine = found["machine"]
    assert machine["devices"] == 8 and machine["platform"] == "cpu"
    assert machine["cores"] >= 1 and machine["memory_gib"] > 0
    assert {"jax", "numpy"} <= set(machine["versions"])
    assert "device_count=8" in machine["environment"]["XLA_FLAGS"]


def test_a_person_sees_every_figure_under_its_name():
    rows = [{"step": "one", "seconds": 0.25, "bytes": 1234567}, {"step": "two", "extra": "x"}]
    head, _, names, one, two, note = lines(result("loss", rows, notes=["mind the gap"]))
    assert head.startswith("loss on 8 x cpu")
    assert names.split() == ["step", "seconds", "bytes", "extra"]
    assert one.split() == ["one", "0.25", "1,234,567", "-"]
    assert two.split() == ["two", "-", "-", "x"]
    assert note == "mind the gap"


def test_figures_compiled_for_other_devices_say_so():
    head, *_ = lines(result("loss", [], compiled_for="gpu:h100:8"))
    assert head.endswith("compiled for gpu:h100:8")
