"""The table of instructions against the kinds of queries that there are."""

from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import NamedTuple

from marvel_jax.data.doctor_layout import INSTRUCTIONS
from marvel_jax.data.doctor_lines import InstructionKey
from marvel_jax.data.doctor_problems import Kind, Problem


class Use(NamedTuple):
    """How many queries are of a kind, and where the first one is."""

    queries: int
    file: str
    line: int


def check_instructions(root: Path, used: Mapping[InstructionKey, Use]) -> Iterator[Problem]:
    """Lines that cannot be read or repeat one, kinds without a line, lines without a query."""
    path = root / INSTRUCTIONS
    if not path.is_file():
        return
    table: dict[InstructionKey, int] = {}
    for number, raw in enumerate(path.read_bytes().splitlines(), start=1):
        if number == 1 or not raw.strip():
            continue
        key = _key(raw)
        if key is None:
            yield Problem(
                Kind.BROKEN_INSTRUCTION,
                INSTRUCTIONS,
                number,
                None,
                "expected tab-separated query modality, candidate modality, data set name, data "
                f"set id and at least one prompt, found {raw[:200]!r}",
            )
        elif key in table:
            message = f"{_named(key)} has instructions already, on line {table[key]}"
            yield Problem(Kind.BROKEN_INSTRUCTION, INSTRUCTIONS, number, None, message)
        else:
            table[key] = number
    for key, use in used.items():
        if key not in table:
            message = f"{use.queries:,} queries ask {_named(key)}, which has no line in it"
            yield Problem(
                Kind.MISSING_INSTRUCTION,
                INSTRUCTIONS,
                None,
                None,
                f"{message}; the first is in {use.file}, line {use.line}",
            )
    for key, number in table.items():
        if key not in used:
            message = f"no query asks {_named(key)}"
            yield Problem(Kind.UNUSED_INSTRUCTION, INSTRUCTIONS, number, None, message)


def _key(raw: bytes) -> InstructionKey | None:
    try:
        columns = raw.decode("utf-8").split("\t")
    except UnicodeDecodeError:
        return None
    prompts = [prompt for prompt in columns[4:] if prompt.strip()]
    if len(columns) < 5 or not columns[3].strip().isdecimal() or not prompts:
        return None
    return int(columns[3]), columns[0].strip(), columns[1].strip()


def _named(key: InstructionKey) -> str:
    dataset, asks, wants = key
    return f"data set {dataset} from {asks} to {wants}"
