"""Python files that define a run: `config`, and `layouts` of it for named machines."""

import importlib.util
import sys
from pathlib import Path
from types import ModuleType
from typing import Any, NamedTuple

from marvel_jax.errors import MarvelError
from marvel_jax.recipes.overrides import override
from marvel_jax.training.config import TrainConfig


class ConfigFile(NamedTuple):
    """What a file defines. A layout is changes in the form of `--set`, by a topology's name."""

    path: Path
    config: TrainConfig
    layouts: dict[str, tuple[str, ...]]

    def laid_out(self, layout: str) -> TrainConfig:
        """The config with a layout of the file.

        Raises:
          MarvelError: there is none of this name, or the config refuses its changes.
        """
        if layout not in self.layouts:
            known = ", ".join(self.layouts) or "none"
            raise MarvelError(f"{self.path} has no layout {layout!r}; it has {known}.")
        try:
            return override(self.config, self.layouts[layout])
        except MarvelError as error:
            raise MarvelError(f"{self.path}, layouts[{layout!r}]: {error}") from error


def load_config(
    path: Path, overrides: tuple[str, ...] = (), *, layout: str | None = None
) -> TrainConfig:
    """The `config` that a Python file defines, with a layout of it and then with fields changed.

    Raises:
      MarvelError: the file is missing, fails, or defines no TrainConfig or not this layout; or an
        override names no field or has a value of another type.
    """
    opened = open_config(path)
    config = opened.config if layout is None else opened.laid_out(layout)
    return override(config, overrides)


def open_config(path: Path) -> ConfigFile:
    """Runs a config file.

    Raises:
      MarvelError: it is missing, fails, or defines no TrainConfig, or its layouts are none.
    """
    module = run_file(path, defines="config")
    config = getattr(module, "config", None)
    if not isinstance(config, TrainConfig):
        found = type(config).__name__
        recipe = " (`recipe` is for `marvel run`)" if hasattr(module, "recipe") else ""
        raise MarvelError(f"{path} must define `config`, a TrainConfig; found {found}{recipe}.")
    return ConfigFile(path, config, _layouts(path, getattr(module, "layouts", {})))


def run_file(path: Path, *, defines: str) -> ModuleType:
    """Runs a Python file and returns it as a module; `defines` is what it is run for.

    Raises:
      MarvelError: it is missing or fails.
    """
    if not path.is_file():
        raise MarvelError(f"{path} does not exist: give a Python file that defines `{defines}`.")
    spec = importlib.util.spec_from_file_location(f"marvel_config_{path.stem}", path)
    if spec is None or spec.loader is None:
        raise MarvelError(f"{path} is not a Python file.")
    module = importlib.util.module_from_spec(spec)
    sys.modules[module.__name__] = module  # dataclasses of its own look themselves up there
    try:
        spec.loader.exec_module(module)
    except MarvelError as error:
        raise MarvelError(f"{path}: {error}") from error
    except Exception as error:
        raise MarvelError(f"{path} fails: {type(error).__name__}: {error}") from error
    return module


def _layouts(path: Path, found: Any) -> dict[str, tuple[str, ...]]:
    good = isinstance(found, dict) and all(
        isinstance(name, str)
        and isinstance(changes, tuple | list)
        and all(isinstance(change, str) for change in changes)
        for name, changes in found.items()
    )
    if not good:
        raise MarvelError(
            f"{path}: `layouts` maps a topology's name to changes as of --set, for example "
            '{"gpu:h100:8": ("mesh.fsdp=8", "chunk_rows=4")}.'
        )
    return {name: tuple(changes) for name, changes in found.items()}
