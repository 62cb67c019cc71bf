"""Exit codes, `--json` and `--help`, as a shell and a program meet them."""

import re
import subprocess
import sys
from pathlib import Path

import pytest

from marvel_jax import cli
from marvel_jax.recipes import searching
from marvel_jax.retrieval.embedder import Embedder

ROOT = Path(__file__).parents[2]
GROUPS = {
    "data": ("emoji", "make-mbeir", "check", "download"),
    "study": ("run", "schedule", "plan", "report"),
    "bench": (
        "loss",
        "step",
        "depth",
        "pack",
        "attention",
        "encode",
        "search",
        "union",
        "preprocess",
        "serve",
    ),
}
COMMANDS = ("plan", "run", "table", "quickstart", "train", "encode", "index", "search", "mine")
COMMANDS += ("convert", "evaluate", "report", "import", "export", "serve")


def test_an_error_is_one_message_and_no_traceback(marvel, tmp_path):
    ran = marvel("index", tmp_path / "nothing", "--out", tmp_path / "index")
    assert ran.code == 1 and ran.out == ""
    assert ran.err.startswith("marvel: ") and "Traceback" not in ran.err
    as_json = marvel("index", tmp_path / "nothing", "--out", tmp_path / "index", "--json")
    assert as_json.code == 1
    assert f"marvel: {as_json.json['error']}" == ran.err.strip()


def test_ctrl_c_is_130_and_can_go_on(marvel, tiny_model, tiny_corpus, tmp_path, monkeypatch):
    asked = ("encode", tiny_model, "--pool", tiny_corpus, "--out", tmp_path / "store", "--json")

    def interrupt(self, *args, **options):
        raise KeyboardInterrupt

    with monkeypatch.context() as patched:
        patched.setattr(Embedder, "encode", interrupt)
        ran = marvel(*asked)
    assert ran.code == 130 and "interrupted" in ran.json["error"] and "run the same" in ran.err
    assert marvel(*asked).code == 0


def test_wrong_arguments_are_2(marvel):
    ran = marvel("search", "model", "--store", "store", "--k", "many", "--json")
    assert ran.code == 2 and "--k" in ran.err
    assert "arguments do not fit" in ran.json["error"]
    assert marvel("serch").code == 2


def test_a_fault_of_ours_keeps_its_traceback(monkeypatch, tmp_path):
    def fault(*args, **options):
        raise RuntimeError("a bug")

    monkeypatch.setattr(searching, "build_index", fault)
    with pytest.raises(RuntimeError, match="a bug"):
        cli.main(["index", str(tmp_path), "--out", str(tmp_path / "index")])


def test_every_command_has_a_help_that_loads_nothing_heavy():
    inner = [f"{group} {name}" for group, names in GROUPS.items() for name in names]
    asked = ["", *GROUPS, *COMMANDS, *inner]
    code = f"""
import sys
from marvel_jax import cli
for command in {asked!r}:
    try:
        cli.main([*command.split(), "--help"])
    except SystemExit as stop:
        assert not stop.code, (command, stop.code)
    print("=" * 8)
heavy = {{"jax", "torch", "tensorflow", "transformers", "flax", "grain", "scann"}}
print("loaded:", *sorted(heavy & set(sys.modules)))
"""
    process = subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True, cwd=ROOT, check=False
    )
    assert process.returncode == 0, process.stderr
    *helps, loaded = process.stdout.split("=" * 8)
    assert loaded.strip() == "loaded:"
    told = dict(zip(asked, helps, strict=True))
    for command, text in told.items():
        assert f"usage: marvel {command}".strip() in text
    # Those above are all that there are.
    assert named(told[""]) == {*GROUPS, *COMMANDS}
    for group, names in GROUPS.items():
        assert named(told[group]) == set(names)


def named(text: str) -> set[str]:
    """The subcommands in a usage line: {train,encode,...}, perhaps over several lines."""
    found = re.search(r"\{([^}]*)\}", text)
    assert found is not None
    return {name.strip() for name in found[1].split(",")}
