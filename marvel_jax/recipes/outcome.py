"""What a command returns to the terminal."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

EXIT_ERROR = 1
EXIT_INTERRUPTED = 130
EXIT_TERMINATED = 143


@dataclass(frozen=True)
class Outcome:
    """Facts for `--json`, lines for a person, and the exit code."""

    facts: Mapping[str, Any]
    lines: Sequence[str]
    code: int = 0
