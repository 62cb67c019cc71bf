"""What a stage reads: fields of certain names, wherever they are in it."""

import dataclasses
from collections.abc import Callable
from typing import Any, TypeVar

INPUTS = frozenset(
    (
        *("model", "source", "data", "path", "images", "tokenizer", "mined", "teacher"),
        *("lists", "scores"),
    )
)
"""Fields that hold inputs, wherever they are."""

CACHES = frozenset({"vectors"})
"""Outputs that only save work: another stage's may be missing, and their content does not count."""

_Stage = TypeVar("_Stage")


def inputs(stage: Any, *, caches: bool = False) -> dict[str, str]:
    """What a stage reads: the field ("config.data.mined") and what stands in it.

    With `caches` also what it would use if it were there.
    """
    found: dict[str, str] = {}
    wanted = INPUTS | CACHES if caches else INPUTS

    def note(field: str, text: str) -> str:
        if _is_input(field, wanted):
            found[field] = text
        return text

    _walk(stage, "", note)
    return found


def with_inputs(stage: _Stage, change: Callable[[str], Any]) -> _Stage:
    """The stage with every input, cache or not, replaced."""

    def replace(field: str, text: str) -> Any:
        return change(text) if _is_input(field, INPUTS | CACHES) else text

    return _walk(stage, "", replace)


def _is_input(field: str, names: frozenset[str]) -> bool:
    # "teacher" is a file in the data, but what is made of its scores in a DistillationConfig.
    *parents, last = field.split(".")
    return last.partition("[")[0] in names and "distillation" not in parents


def _walk(value: Any, field: str, visit: Callable[[str, str], Any]) -> Any:
    """A copy of nested dataclasses with what `visit` makes of each text in them."""
    if isinstance(value, str):
        return visit(field, value)
    if dataclasses.is_dataclass(value) and not isinstance(value, type):
        prefix = f"{field}." if field else ""
        values = {
            one.name: getattr(value, one.name) for one in dataclasses.fields(value) if one.init
        }
        changed = {
            name: made
            for name, old in values.items()
            if (made := _walk(old, prefix + name, visit)) is not old
        }
        return dataclasses.replace(value, **changed) if changed else value
    if isinstance(value, tuple) and any(map(_holds_text, value)):
        return tuple(_walk(one, f"{field}[{n}]", visit) for n, one in enumerate(value))
    if isinstance(value, dict) and any(map(_holds_text, value.values())):
        return {key: _walk(one, f"{field}[{key}]", visit) for key, one in value.items()}
    return value


def _holds_text(value: Any) -> bool:
    return isinstance(value, str) or dataclasses.is_dataclass(value)
