"""The checks of a device pass where it is right, and say so where it is not."""

import json
import subprocess
import sys
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from marvel_jax.bench import accelerator_checks, accelerator_steps, kernels
from marvel_jax.bench.accelerator_checks import OutOfTimeError, Shape
from marvel_jax.models.kernels import XLA, Kernel

ROOT = Path(__file__).parents[2]


def forever() -> float:
    return 60.0


@pytest.fixture
def found(monkeypatch):
    """The rows of one small shape with XLA as the kernel, computed by `wrong(attend)`."""

    def run(wrong=lambda attend: attend, types=("float32", "bfloat16")):
        right = kernels.attend
        judge = accelerator_checks._xla  # computed before anything is wrong
        monkeypatch.setattr(accelerator_checks, "QUICK_SHAPES", (Shape(4, 2, 16, 40),))
        monkeypatch.setattr(kernels, "available", lambda quick: [XLA])
        monkeypatch.setattr(kernels, "types_of", lambda kernel: types)

        def judged(*args):
            with monkeypatch.context() as patched:
                patched.setattr(kernels, "attend", right)
                return judge(*args)

        monkeypatch.setattr(accelerator_checks, "_xla", judged)
        monkeypatch.setattr(kernels, "attend", wrong(right))
        return list(accelerator_checks.kernels(quick=True, seconds_left=forever))

    return run


def test_a_right_kernel_passes_in_both_types(found):
    rows = found()
    assert [(row["dtype"], row["causal"]) for row in rows] == [
        (dtype, causal) for dtype in ("float32", "bfloat16") for causal in ("no", "yes")
    ]
    assert all(row["ok"] for row in rows)
    assert rows[0]["output_error"] < 1e-6 < rows[2]["output_error"]


def _ignore_segments(attend):
    def run(*heads, segments, **options):
        return attend(*heads, segments=jnp.ones_like(segments), **options)

    return run


def _other_order(attend):
    return lambda *heads, causal, **options: attend(*heads, causal=not causal, **options)


def _nan_at_padding(attend):
    def run(*heads, segments, **options):
        mixed = attend(*heads, segments=segments, **options)
        return jnp.where(segments[..., None, None] > 0, mixed, jnp.nan)

    return run


def _coarse(attend):
    """Right but for a factor that bfloat16 hides and float32 does not."""
    return lambda *heads, **options: attend(*heads, **options) * (1 + 2e-4)


def _fail(attend):
    def run(*heads, **options):
        raise RuntimeError("too much shared memory")

    return run


def test_float32_is_asked_for_in_full_and_bfloat16_as_it_is(found):
    """By default a TPU rounds float32 before it multiplies."""
    asked = []

    def noting(attend):
        def run(*heads, **options):
            asked.append((str(heads[0].dtype), jax.config.jax_default_matmul_precision))
            return attend(*heads, **options)

        return run

    assert all(row["ok"] for row in found(noting))
    assert set(asked) == {("float32", "highest"), ("bfloat16", None)}


@pytest.mark.parametrize("wrong", [_ignore_segments, _other_order, _nan_at_padding])
def test_a_wrong_kernel_does_not_pass(found, wrong):
    assert not any(row["ok"] for row in found(wrong, types=("float32",)))


def test_float32_has_to_be_float32(found):
    assert [row["ok"] for row in found(_coarse)] == [False, False, True, True]


def test_a_kernel_that_does_not_compile_is_told_and_the_next_is_tried(found):
    rows = found(_fail, types=("float32",))
    assert len(rows) == 2 and not any(row["ok"] for row in rows)
    assert all("too much shared memory" in row["failed"] for row in rows)


def test_both_pallas_kernels_are_checked_without_their_hardware():
    """As a CPU runs it, of one type and shape; `models/kernels` has the tests of the kernels."""
    names = [(kernel.name, kernel.interpret) for kernel in kernels.available(quick=True)]
    assert names == [("pallas_gpu", True), ("splash", True)]
    for kernel in kernels.available(quick=True):
        row = accelerator_checks._kernel_errors(
            kernel, Shape(2, 1, 16, 32), dtype="float32", causal=False
        )
        assert row["ok"], (kernel, row)


def test_cudnn_gets_rows_of_one_item():
    cudnn = Kernel("cudnn")
    assert kernels.needs_one_item(cudnn) and kernels.types_of(cudnn) == ("bfloat16",)
    assert not kernels.needs_one_item(Kernel("splash"))


def test_the_ring_on_all_devices(monkeypatch):
    rows = list(accelerator_checks.ring(quick=True, seconds_left=forever))
    assert len(rows) == 3 and all(row["ok"] for row in rows)
    assert rows[0]["devices"] == 8 and rows[0]["loss_error"] <= rows[0]["allowed"]
    assert rows[2]["batch"] == 8 * 256 and rows[2]["width"] == 768
    monkeypatch.setattr(accelerator_checks, "RING_TEMPORARY_MIB", 0)
    monkeypatch.setattr(accelerator_checks, "_ring_error", lambda *_, **options: {})
    *_, memory = accelerator_checks.ring(quick=True, seconds_left=forever)
    assert memory["ok"] is False


def test_a_wrong_ring_does_not_pass(monkeypatch):
    from marvel_jax.losses import contrastive

    right = contrastive.info_nce

    def wrong(queries, candidates, **options):
        if options["implementation"] == "ring":  # a tenth of a per mille
            candidates = candidates * (1 + 1e-4)
        return right(queries, candidates, **options)

    monkeypatch.setattr(contrastive, "info_nce", wrong)
    assert not accelerator_checks._ring_error(8, trained=2.0, temperature=0.02)["ok"]


def test_parity_is_judged_by_the_golden_checkpoints(monkeypatch):
    from tests.models import parity

    monkeypatch.setattr(parity, "CHECKPOINTS", ("tied",))
    exact, drift = accelerator_checks.parity(quick=True, seconds_left=forever)
    assert exact["ok"] and exact["embedding_error"] <= 1e-5
    assert drift["dtype"] == "bfloat16" and 0.99 < drift["cosine"] < 1
    wrong = parity.Errors(0.0, 0.0, 2e-5, 0.0)
    monkeypatch.setattr(parity, "parity", lambda *_, **options: wrong)
    monkeypatch.setattr(accelerator_checks, "_drift", lambda *_: {})
    assert next(accelerator_checks.parity(quick=True, seconds_left=forever))["ok"] is False


@pytest.mark.parametrize("check", ["kernels", "parity", "ring"])
def test_a_check_that_is_cut_short_says_so(check):
    with pytest.raises(OutOfTimeError):
        list(getattr(accelerator_checks, check)(quick=True, seconds_left=lambda: -1.0))
    step = next(step for step in accelerator_steps.STEPS if step.name == check)
    given = accelerator_steps.Given(True, lambda: -1.0, "cpu", "cpu")
    assert [set(message) for message in accelerator_steps.messages(step, given)] == [{"late"}]


def test_messages_are_strict_json():
    def run(given):
        yield {"row": {"nan": float("nan"), "list": [np.float32(0.5)], "count": np.int64(3)}}
        raise ModuleNotFoundError("No module named 'torch'", name="torch")

    step = accelerator_steps.Step("x", 1, True, run)
    row, last = accelerator_steps.messages(step, accelerator_steps.Given(True, forever, "", ""))
    found = json.loads(json.dumps(row, allow_nan=False))
    assert found == {"row": {"nan": "nan", "list": [0.5], "count": 3}}
    assert "torch" in last["skipped"]


@pytest.mark.parametrize(
    ("error", "kind"),
    [
        (RuntimeError("RESOURCE_EXHAUSTED: Out of memory allocating"), "unfit"),
        (RuntimeError("INTERNAL: ptxas"), "error"),
        (ModuleNotFoundError("x", name="marvel_jax.gone"), "error"),
    ],
)
def test_what_does_not_fit_is_told_from_what_is_broken(error, kind):
    def run(given):
        raise error
        yield

    step = accelerator_steps.Step("x", 1, True, run)
    given = accelerator_steps.Given(True, forever, "", "")
    assert [set(message) for message in accelerator_steps.messages(step, given)] == [{kind}]


def test_a_bare_image_without_pillow_encodes_and_plans_a_step():
    """With jax, flax, optax, orbax and transformers alone, and what these bring."""
    absent = ("PIL", "tyro", "grain", "tensorflow_datasets", "scann", "emoji", "jinja2", "torch")
    code = f"""
import sys
for name in {absent!r}:
    sys.modules[name] = None
from marvel_jax.bench import accelerator, bare
assert {{"PIL", "grain", "torch"}} <= set(bare.missing()), bare.missing()
from marvel_jax.bench import lora_step, shapes
from marvel_jax.bench.accelerator_steps import STEPS, Given, messages, step_options
config, batch = lora_step.make_batch(step_options(quick=True), shapes.TINY, shards=1)
assert batch.rows.tokens.shape[1] == 128 and len(batch.query_slot) == 8
given = Given(True, lambda: 60.0, "cpu", "cpu")
for step in STEPS:
    if step.name in ("machine", "encode 2B, torch"):
        print([sorted(message) for message in messages(step, given)])
import marvel_jax.bench.encode, marvel_jax.training.step, marvel_jax.training.telemetry
"""
    done = subprocess.run(
        [sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, done.stderr
    assert done.stdout.splitlines() == ["[['facts']]", "[['skipped']]"]
