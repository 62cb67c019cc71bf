"""The command lines that the pages show, taken apart and given to the real parser."""

import functools
import re
import shlex
from collections.abc import Iterator
from pathlib import Path
from typing import Any, NamedTuple

from tyro.conf import FlagCreatePairsOff
from tyro.extras import SubcommandApp

from marvel_jax import cli

ROOT = Path(__file__).parents[2]
PAGES = (ROOT / "README.md", *sorted((ROOT / "docs").glob("*.md")), ROOT / "launch" / "README.md")

_BLOCK = re.compile(r"^```(\w*)\n(.*?)^```$", re.MULTILINE | re.DOTALL)
_SHELL = ("", "sh", "bash")
_MARVEL = ("marvel", ".venv/bin/marvel")
_ENDS = {"&&", "||", "|", ";", ">", "<", "&", "(", ")"}


class Command(NamedTuple):
    """A line of `marvel` as a page has it: the words behind `marvel`."""

    page: str
    words: tuple[str, ...]

    def __str__(self) -> str:
        return f"{self.page}: marvel {' '.join(self.words)}"


class Asked(NamedTuple):
    """What a command would have been called with."""

    name: str
    values: dict[str, Any]


def commands() -> list[Command]:
    """All of them, each once, in the order of the pages."""
    return list(dict.fromkeys(one for page in PAGES for one in of_page(page)))


def parse(words: tuple[str, ...]) -> Asked:
    """Gives the words to the real parser; nothing runs. Wrong ones exit as `marvel` does."""
    asked: Asked = _recording(cli.app).cli(
        prog="marvel", args=list(words), config=(FlagCreatePairsOff,)
    )
    return asked


def lines(page: Path) -> Iterator[str]:
    """The lines of a page's shell blocks, those that go on put together."""
    for language, block in _BLOCK.findall(page.read_text(encoding="utf-8")):
        if language in _SHELL:
            yield from re.sub(r"\\\n\s*", " ", block).splitlines()


def of_page(page: Path) -> Iterator[Command]:
    """A page's, in its order, also those that it gives twice."""
    for line in lines(page):
        lexer = shlex.shlex(line, posix=True, punctuation_chars=True)
        lexer.whitespace_split = True
        try:
            words = list(lexer)
        except ValueError:  # a text of several lines, or a tree of folders: no command of ours
            continue
        found: list[str] | None = None
        for word in [*words, ";"]:
            if found is None and word in _MARVEL:
                found = []
            elif found is not None and word in _ENDS:
                yield Command(page.relative_to(ROOT).as_posix(), tuple(found))
                found = None
            elif found is not None:
                found.append(word)
        # What the launch scripts hand on to `marvel train` and `marvel quickstart`.
        bare = [word for word in words if word not in _ENDS]
        for script, skipped, command in (
            ("launch/slurm.sbatch", 0, "train"),
            ("launch/tpu_vm train", 2, "train"),
        ):
            start = script.split()
            for place in range(len(bare) - len(start)):
                if bare[place : place + len(start)] == start:
                    given = bare[place + len(start) + skipped :]
                    given = [word for word in given if word != "--dry-run"]
                    if "--workdir" in given:
                        yield Command(page.relative_to(ROOT).as_posix(), (command, *given))


@functools.cache
def _recording(app: SubcommandApp, prefix: str = "") -> SubcommandApp:
    """The same commands with the same arguments, of which each only tells that it was called."""
    twin = SubcommandApp()
    for name, spec in app._subcommands.items():
        if isinstance(spec.target, SubcommandApp):
            twin.command(_recording(spec.target, f"{prefix}{name} "), name=name)
            continue
        twin.command(_recorder(spec.target, f"{prefix}{name}"), name=name)
    return twin


def _recorder(function: Any, name: str) -> Any:
    @functools.wraps(function)
    def record(*args: Any, **values: Any) -> Asked:
        assert not args
        return Asked(name, values)

    return record
