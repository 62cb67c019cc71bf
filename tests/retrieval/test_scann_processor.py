import os
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
from vector_stores import random_unit

from marvel_jax.errors import MarvelError
from marvel_jax.retrieval import scann_ops, scann_processor
from marvel_jax.retrieval.scann_config import ScannConfig

SKYLAKE = ["sse4_2", "fma", "avx", "avx2", "avx512f", "avx512dq", "avx512cd", "avx512bw"]
CONFIG = ScannConfig(kind="tree", vectors="index").resolve(4000, 24, memory=2**30)


def test_kernels_are_those_whose_instructions_the_processor_has():
    assert scann_processor.usable(SKYLAKE) == {"avx2", "avx512"}
    assert scann_processor.usable(set(SKYLAKE) - {"avx512bw"}) == {"avx2"}
    assert scann_processor.usable(set(SKYLAKE) - {"fma"}) == set()
    assert scann_processor.usable(["fp", "asimd", "sve"]) == set()  # aarch64


def test_a_library_without_the_flags_is_left_alone(tmp_path):
    assert scann_processor.enable(Path(np._core._multiarray_umath.__file__)) == ()
    assert scann_processor.enable(tmp_path / "missing.so") == ()


def test_another_word_than_installed_is_an_error(monkeypatch, tmp_path):
    monkeypatch.setenv(scann_processor.VARIABLE, "sse4")
    with pytest.raises(MarvelError, match=r"=sse4: expected 'installed'"):
        scann_processor.enable(tmp_path / "any.so")


class TestScann:
    @pytest.fixture(autouse=True)
    def _scann(self):
        pytest.importorskip("scann", reason="ScaNN has wheels for Linux only")

    def test_what_the_processor_has_is_used(self):
        scann_ops.require()
        assert set(scann_ops.instructions()) == scann_processor.usable(scann_processor._processor())

    def test_an_index_of_the_one_is_read_by_the_other_and_answers_alike(self, tmp_path):
        rng = np.random.default_rng(0)
        centres = random_unit(60, 24)
        mixed = centres[rng.integers(60, size=4200)] + 0.15 * rng.normal(size=(4200, 24))
        mixed = (mixed / np.linalg.norm(mixed, axis=1, keepdims=True)).astype(np.float32)
        vectors, queries = mixed[:4000], mixed[4000:]
        np.savez(tmp_path / "data.npz", vectors=vectors, queries=queries)
        (tmp_path / "ours").mkdir()
        scann_ops.save(scann_ops.build(vectors, CONFIG), tmp_path / "ours")

        program = (
            "import sys, numpy as np\n"
            "from pathlib import Path\n"
            "from marvel_jax.retrieval import scann_ops\n"
            "from marvel_jax.retrieval.scann_config import ScannConfig\n"
            "folder = Path(sys.argv[1])\n"
            "data = np.load(folder / 'data.npz')\n"
            "config = ScannConfig(kind='tree', vectors='index').resolve(4000, 24, memory=2**30)\n"
            "(folder / 'theirs').mkdir()\n"
            "scann_ops.save(scann_ops.build(data['vectors'], config), folder / 'theirs')\n"
            "assert scann_ops.instructions() == ()\n"
            "for name in 'ours', 'theirs':\n"
            "    found = scann_ops.search(\n"
            "        scann_ops.load(folder / name), data['queries'], 10, reorder=40, leaves=20)\n"
            "    np.savez(folder / f'{name}.npz', **found._asdict())\n"
        )
        subprocess.run(
            [sys.executable, "-c", program, str(tmp_path)],
            env={**os.environ, scann_processor.VARIABLE: scann_processor.AS_INSTALLED},
            check=True,
        )
        for name in "ours", "theirs":
            here = scann_ops.search(
                scann_ops.load(tmp_path / name), queries, 10, reorder=40, leaves=20
            )
            there = np.load(tmp_path / f"{name}.npz")
            same = here.rows == there["rows"]
            assert same.mean() > 0.99  # sums of another order decide ties of codes
            np.testing.assert_allclose(here.scores, there["scores"], atol=2e-6)
