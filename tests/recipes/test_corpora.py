"""`marvel data make-mbeir`: what it says, what it writes, and what it refuses."""

import json

import pytest

from marvel_jax import cli
from marvel_jax.data.mbeir import MbeirFolder


def run(capsys, *args):
    with pytest.raises(SystemExit) as stop:
        cli.main([*map(str, args)])
    return stop.value.code, capsys.readouterr()


def test_a_synthetic_mbeir_is_made_and_counted(tmp_path, capsys):
    out = tmp_path / "mbeir"
    code, said = run(capsys, "data", "make-mbeir", out, "--size", 200, "--with-pairs", "--json")
    assert code == 0
    *lines, facts = said.out.strip().splitlines()
    facts = json.loads(facts)
    source = MbeirFolder(out).source("train")
    assert facts["training_queries"] == len(source.queries)
    assert facts["pools"]["train"] == len(source.candidates)
    assert facts["pairs"] == {"nli": 100, "captions": 100}
    assert "16 sets" in lines[0] and "nli_for_simcse.csv" in lines[-1]
    code, said = run(capsys, "data", "make-mbeir", out)
    assert code == 1 and "exists already" in said.err
    code, said = run(capsys, "data", "make-mbeir", tmp_path / "b", "--size", "vast")
    assert code == 1 and "choose one of tiny, small, medium, full, or a number" in said.err
    assert not (tmp_path / "b").exists()
