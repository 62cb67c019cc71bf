"""The entry of a test set: ours by its name, or one that a Python file defines."""

from pathlib import Path

from marvel_jax.data.protocols import registry
from marvel_jax.data.protocols.protocol import Protocol
from marvel_jax.errors import MarvelError
from marvel_jax.recipes.config_file import run_file


def find_protocol(name: str) -> Protocol:
    """An entry by its name, or the `protocol` that a Python file defines.

    Raises:
      MarvelError: there is no such entry, or the file defines none.
    """
    if not name.endswith(".py"):
        return registry.find(name)
    found = getattr(run_file(Path(name), defines="protocol"), "protocol", None)
    if not isinstance(found, Protocol):
        raise MarvelError(
            f"{name} must define `protocol`, a Protocol; found {type(found).__name__}."
        )
    return found
