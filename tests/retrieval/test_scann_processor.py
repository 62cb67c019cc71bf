"""ScaNN's kernels are those of the processor, and each answers as the others do."""

import os
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
from vector_stores import random_unit, unit

from marvel_jax.errors import MarvelError
from marvel_jax.retrieval import scann_ops, scann_processor
from marvel_jax.retrieval.scann_config import ScannConfig

SKYLAKE = ["sse4_2", "fma", "avx", "avx2", "avx512f", "avx512dq", "avx512cd", "avx512bw"]
CONFIG = ScannConfig(kind="tree", vectors="index").resolve(4000, 24, memory=2**30)


def test_kernels_are_those_whose_instructions_the_processor_has():
    assert scann_processor.kernels(SKYLAKE) == {"avx2", "avx512"}
    assert scann_processor.kernels(set(SKYLAKE) - {"avx512bw"}) == {"avx2"}
    assert scann_processor.kernels(set(SKYLAKE) - {"fma"}) == set()
    assert scann_processor.kernels(["fp", "asimd", "sve"]) == set()


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("processor\t: 0\nflags\t\t: fpu avx2 fma\nvmx flags\t: vnmi\n\nflags\t: sse\n", "avx2"),
        ("processor\t: 0\nFeatures\t: fp asimd avx2 fma\n", ""),  # aarch64 has none of these
        ("", ""),
    ],
)
def test_instructions_are_read_as_the_system_tells_them(tmp_path, text, expected):
    (tmp_path / "cpuinfo").write_text(text)
    found = scann_processor.instructions(tmp_path / "cpuinfo")
    assert scann_processor.kernels(found) == set(expected.split())
    assert scann_processor.instructions(tmp_path / "missing") == []


def test_a_library_without_the_flags_is_left_alone(tmp_path):
    assert scann_processor.enable(Path(np._core._multiarray_umath.__file__)) == ()
    assert scann_processor.enable(tmp_path / "missing.so") == ()


def test_another_word_than_installed_is_an_error(monkeypatch, tmp_path):
    monkeypatch.setenv(scann_processor.VARIABLE, "sse4")
    with pytest.raises(MarvelError, match=r"=sse4: expected 'installed'"):
        scann_processor.enable(tmp_path / "any.so")


def in_a_process(program, *arguments, asked):
    """What it prints; ScaNN's kernels are chosen once a process."""
    known = {name: value for name, value in os.environ.items() if name != scann_processor.VARIABLE}
    asked = {scann_processor.VARIABLE: asked} if asked else {}
    ran = subprocess.run(
        [sys.executable, "-c", program, *arguments],
        env={**known, **asked},
        check=True,
        capture_output=True,
        text=True,
    )
    return ran.stdout.split()


class TestScann:
    @pytest.fixture(autouse=True)
    def _scann(self):
        pytest.importorskip("scann", reason="ScaNN has wheels for Linux only")

    def test_the_kernels_are_those_of_the_processor_as_numpy_sees_it(self):
        program = (
            "from pathlib import Path\n"
            "from marvel_jax.retrieval import scann_ops, scann_processor\n"
            "scann_ops.require()\n"
            "from scann.scann_ops.py.scann_ops_pybind import scann_pybind\n"
            "flags = scann_processor.flags(Path(scann_pybind.__file__))\n"
            "print(*[name for name, flag in flags.items() if flag.value])\n"
        )
        numpy_sees = np._core._multiarray_umath.__cpu_features__
        needed = {"avx2": ("AVX2", "FMA3"), "avx512": ("AVX512F", "AVX512DQ", "AVX512BW")}
        expected = [name for name, all_of in needed.items() if all(map(numpy_sees.get, all_of))]
        assert in_a_process(program, asked=None) == expected

    def test_an_index_of_either_wheel_or_processor_is_read_by_the_other_alike(self, tmp_path):
        rng = np.random.default_rng(0)
        centres = random_unit(60, 24)[rng.integers(60, size=4200)]
        mixed = unit(centres + 0.15 * rng.normal(size=(4200, 24))).astype(np.float32)
        vectors, queries = mixed[:4000], mixed[4000:]
        np.savez(tmp_path / "data.npz", vectors=vectors, queries=queries)
        (tmp_path / "processor").mkdir()
        scann_ops.save(scann_ops.build(vectors, CONFIG), tmp_path / "processor")

        program = (
            "import sys, numpy as np\n"
            "from pathlib import Path\n"
            "from marvel_jax.retrieval import scann_ops\n"
            "from marvel_jax.retrieval.scann_config import ScannConfig\n"
            "folder = Path(sys.argv[1])\n"
            "data = np.load(folder / 'data.npz')\n"
            "config = ScannConfig(kind='tree', vectors='index').resolve(4000, 24, memory=2**30)\n"
            "(folder / 'wheel').mkdir()\n"
            "scann_ops.save(scann_ops.build(data['vectors'], config), folder / 'wheel')\n"
            "assert scann_ops.added_kernels() == ()\n"
            "for name in 'processor', 'wheel':\n"
            "    found = scann_ops.search(\n"
            "        scann_ops.load(folder / name), data['queries'], 10, reorder=40, leaves=20)\n"
            "    np.savez(folder / f'{name}.npz', **found._asdict())\n"
        )
        in_a_process(program, str(tmp_path), asked=scann_processor.AS_INSTALLED)
        for name in "processor", "wheel":
            index = scann_ops.load(tmp_path / name)
            here = scann_ops.search(index, queries, 10, reorder=40, leaves=20)
            there = np.load(tmp_path / f"{name}.npz")
            # Sums of another order decide which of two equal codes comes first.
            assert (here.rows == there["rows"]).mean() > 0.99
            np.testing.assert_allclose(here.scores, there["scores"], atol=2e-6)
