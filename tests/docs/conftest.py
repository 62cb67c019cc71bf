"""`marvel` run in this process, as in tests/cli."""

from tests.cli.conftest import marvel

__all__ = ["marvel"]
