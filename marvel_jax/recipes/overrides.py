"""`--set optimizer.learning_rate=1e-3`: fields of a configuration changed by name."""

import ast
import dataclasses
import types
import typing
from collections.abc import Sequence
from typing import Any, TypeVar

from marvel_jax.errors import MarvelError

_Config = TypeVar("_Config")
# Name -> text, or the changes to that field's own fields.
_Changes = dict[str, Any]


def override(config: _Config, settings: Sequence[str]) -> _Config:
    """A frozen dataclass with the fields that `a.b=value` names replaced, all at once.

    Values are written as in Python, text without quotes: steps=100, model.dtype=bfloat16,
    data.task_weights={0: 2, 3: 1}, model.source=None.

    Raises:
      MarvelError: a setting is not NAME=VALUE, names no field or the same field twice, has a value
        of another type, or the result is refused by the config itself.
    """
    changes: _Changes = {}
    for setting in settings:
        name, equals, text = setting.partition("=")
        *parents, last = name.strip().replace("-", "_").split(".")
        if not equals or not last:
            raise MarvelError(f"--set {setting}: expected NAME=VALUE, as in steps=100.")
        branch = changes
        for parent in parents:
            branch = branch.setdefault(parent, {})
            if not isinstance(branch, dict):
                raise MarvelError(f"--set {setting}: {parent} is set as a whole too.")
        if last in branch:
            raise MarvelError(f"--set {setting}: {name} is set twice.")
        branch[last] = text.strip()
    return _replace(config, changes, "")


def _replace(config: Any, changes: _Changes, prefix: str) -> Any:
    hints = typing.get_type_hints(type(config))
    known = [field.name for field in dataclasses.fields(config)]
    values = {}
    for name, change in changes.items():
        path = f"{prefix}{name}"
        if name not in known:
            raise MarvelError(f"--set {path}: no such field; there are {', '.join(known)}.")
        if isinstance(change, str):
            values[name] = _parse(change, hints[name], path)
            continue
        current = getattr(config, name)
        if current is None:
            current = _defaults(hints[name])
        if not dataclasses.is_dataclass(current):
            raise MarvelError(f"--set {path}.{next(iter(change))}: {path} is {current!r}.")
        values[name] = _replace(current, change, f"{path}.")
    return dataclasses.replace(config, **values)


def _defaults(hint: Any) -> Any:
    """What an optional part is before its fields are set: model.adapters.rank=8 asks for one."""
    kinds: tuple[Any, ...] = typing.get_args(hint)
    for kind in kinds:
        if dataclasses.is_dataclass(kind) and all(map(_has_default, dataclasses.fields(kind))):
            return typing.cast(Any, kind)()
    return None


def _has_default(field: dataclasses.Field[Any]) -> bool:
    missing = dataclasses.MISSING
    return field.default is not missing or field.default_factory is not missing


def _parse(text: str, hint: Any, path: str) -> Any:
    """The text as a value of the type `hint`."""
    try:
        value = ast.literal_eval(text)
    except (ValueError, SyntaxError):
        value = text
    for candidate in (value, text):  # "2" may be meant as text
        fits, converted = _convert(candidate, hint)
        if fits:
            return converted
    raise MarvelError(f"--set {path}={text}: expected {_spell(hint)}.")


def _convert(value: Any, hint: Any) -> tuple[bool, Any]:
    """(does it fit, the value): a whole number fits where a float is asked, a list for a tuple."""
    origin, arguments = typing.get_origin(hint), typing.get_args(hint)
    if origin in (typing.Union, types.UnionType):
        found = [_convert(value, one) for one in arguments]
        return next((one for one in found if one[0]), (False, None))
    if origin is typing.Literal:
        return value in arguments, value
    if origin is dict and isinstance(value, dict):
        keys = [_convert(key, arguments[0]) for key in value]
        values = [_convert(one, arguments[1]) for one in value.values()]
        pairs = zip(keys, values, strict=True)
        return all(fits for fits, _ in keys + values), {key[1]: one[1] for key, one in pairs}
    if origin is tuple and isinstance(value, list | tuple):
        kinds = arguments[:1] * len(value) if arguments[-1] is Ellipsis else arguments
        if len(kinds) != len(value):
            return False, None
        parts = [_convert(one, kind) for one, kind in zip(value, kinds, strict=True)]
        return all(fits for fits, _ in parts), tuple(part for _, part in parts)
    if hint is float and type(value) is int:
        return True, float(value)
    # By exact type: True is no number.
    return type(value) is hint, value


def _spell(hint: Any) -> str:
    """A type in words: `int`, `float | None`, `one of float32, bfloat16`."""
    if typing.get_origin(hint) is typing.Literal:
        return f"one of {', '.join(map(str, typing.get_args(hint)))}"
    if typing.get_origin(hint) in (typing.Union, types.UnionType):
        return " | ".join(map(_spell, typing.get_args(hint)))
    if dataclasses.is_dataclass(hint):
        return f"its fields one by one ({', '.join(one.name for one in dataclasses.fields(hint))})"
    return "None" if hint is type(None) else getattr(hint, "__name__", str(hint))
