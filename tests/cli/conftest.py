"""`marvel ...` run in this process, and what its commands made, for the tests beside this file."""

import json
from collections.abc import Callable
from pathlib import Path
from typing import NamedTuple

import pytest


class Ran(NamedTuple):
    code: int
    out: str
    err: str

    @property
    def json(self) -> dict:
        """The one object of `--json`: the last line, and the only one of its kind."""
        *before, last = self.out.splitlines()
        assert not any(line.startswith("{") for line in before)
        return json.loads(last, parse_constant=pytest.fail)


Marvel = Callable[..., Ran]


@pytest.fixture
def marvel(capsys) -> Marvel:
    from marvel_jax import cli

    def run(*args: object) -> Ran:
        capsys.readouterr()
        with pytest.raises(SystemExit) as stop:
            cli.main([str(arg) for arg in args])
        return Ran(int(stop.value.code or 0), *capsys.readouterr())

    return run


@pytest.fixture(scope="module")
def made(tmp_path_factory, tiny_model, tiny_corpus) -> Path:
    """A folder with the store of the corpus's pool and its index; not to be changed."""
    from marvel_jax.recipes.encoding import encode_pool
    from marvel_jax.recipes.searching import build_index

    folder = tmp_path_factory.mktemp("made")
    encode_pool(str(tiny_model), pool=tiny_corpus, out=folder / "store")
    build_index(folder / "store", out=folder / "index")
    return folder


@pytest.fixture
def failing(marvel) -> Callable[..., str]:
    """Runs a command that must fail for a reason that a person can mend; returns the message."""

    def run(*args: object) -> str:
        ran = marvel(*args, "--json")
        assert ran.code == 1, ran
        assert "Traceback" not in ran.err
        return ran.json["error"]

    return run
