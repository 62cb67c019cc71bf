"""`kill -9` of `marvel encode` and `marvel index` behind a shard: the next run keeps what is there.

An encode ends with the bytes of one that was never killed. ScaNN's own training differs from build
to build, so an index ends with the shards that were whole as they were, and finds what there is.
"""

import os
import signal
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
from vector_stores import random_unit, write_store

from marvel_jax.files import hash_files
from marvel_jax.retrieval.scann_index import ScannIndex

ROOT = Path(__file__).parents[2]
PATIENCE = 300  # seconds until a child is given up

# A run to its end, and one whose process is killed as soon as a shard is written.
PROGRAM = """\
import contextlib, os, signal, sys
from marvel_jax import cli
from marvel_jax.retrieval.scann_folder import IndexFolder
from marvel_jax.retrieval.store_writer import StoreWriter

whole, killed, *command = sys.argv[1:]
with contextlib.suppress(SystemExit):
    cli.main([*command, "--out", whole])
write, shard = StoreWriter.write, IndexFolder.shard

def write_and_die(self, number, *given, **more):
    write(self, number, *given, **more)
    if number == 1:
        os.kill(os.getpid(), signal.SIGKILL)

@contextlib.contextmanager
def shard_and_die(self, number, **more):
    with shard(self, number, **more) as part:
        yield part
    if number == 1:
        os.kill(os.getpid(), signal.SIGKILL)

StoreWriter.write, IndexFolder.shard = write_and_die, shard_and_die
cli.main([*command, "--out", killed])
"""


def run(*command: object) -> subprocess.CompletedProcess:
    return subprocess.run(
        [sys.executable, *map(str, command)],
        cwd=ROOT,
        env={**os.environ, "XLA_FLAGS": "--xla_force_host_platform_device_count=1"},
        capture_output=True,
        text=True,
        timeout=PATIENCE,
    )


def content(folder: Path) -> dict[str, str]:
    return {
        str(file.relative_to(folder)): hash_files(file)
        for file in folder.rglob("*")
        if file.is_file()
    }


def killed_and_run_again(tmp_path: Path, *command: object) -> tuple[Path, Path, set[str]]:
    """The whole output, the resumed one, and the files that the killed process wrote of it."""
    whole, killed = tmp_path / "whole", tmp_path / "killed"
    first = run("-c", PROGRAM, whole, killed, *command)
    assert first.returncode == -signal.SIGKILL, first.stderr
    assert not killed.exists()
    (partial,) = (path for path in tmp_path.iterdir() if "killed" in path.name and path.is_dir())
    left = {
        path.relative_to(partial): path.stat().st_mtime_ns
        for path in partial.rglob("*")
        if path.is_file()
    }
    again = run("-m", "marvel_jax.cli", *command, "--out", killed)
    assert again.returncode == 0, again.stderr
    kept = {
        str(name)
        for name, changed in left.items()
        if (killed / name).is_file() and (killed / name).stat().st_mtime_ns == changed
    }
    return whole, killed, kept


def test_a_killed_encode_ends_with_the_bytes_of_one_that_was_not(tiny_model, tiny_corpus, tmp_path):
    command = ("encode", tiny_model, "--pool", tiny_corpus, "--shard-rows", 16)
    whole, killed, kept = killed_and_run_again(tmp_path, *command)
    assert content(whole) == content(killed)
    assert {"vectors-00000.npy", "vectors-00001.npy"} <= kept
    assert len(list(whole.glob("vectors-*"))) > 2


def test_a_killed_index_keeps_its_whole_shards_and_finds_what_there_is(tmp_path):
    pytest.importorskip("scann", reason="ScaNN has wheels for Linux only")
    store = write_store(tmp_path / "store", random_unit(6000, 24), shard_rows=2500)
    # GiB in which 2,100 vectors are built: three shards.
    command = ("index", tmp_path / "store", "--memory", 0.00135)
    whole, killed, kept = killed_and_run_again(tmp_path, *command)
    wanted, found = ({name for name in content(path) if "/" in name} for path in (whole, killed))
    assert found == wanted
    assert {name.partition("/")[0] for name in wanted} == {f"shard-0000{n}" for n in range(3)}
    assert {name for name in wanted if name[:11] in ("shard-00000", "shard-00001")} <= kept
    rows = np.arange(0, 6000, 40)
    top = ScannIndex.open(killed, store).search(store.vectors(rows), 1)
    np.testing.assert_array_equal(top.indices[:, 0], rows)
