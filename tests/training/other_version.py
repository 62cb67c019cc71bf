"""`marvel ...` on a host with another numpy: python -m tests.training.other_version train ..."""

import importlib.metadata
import sys

from marvel_jax import cli

_real = importlib.metadata.version


def _version(name: str) -> str:
    return "0.0.1" if name == "numpy" else _real(name)


if __name__ == "__main__":
    importlib.metadata.version = _version  # type: ignore[assignment]
    cli.main(sys.argv[1:])
