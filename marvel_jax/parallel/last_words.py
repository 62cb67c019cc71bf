"""Says why a process of a run ended, where it could not say so itself. Run as a program.

JAX's C++ part aborts a process as soon as the coordinating one is gone, and `kill -9` leaves no
time for words either. This small child holds one end of a pipe: when the other end goes without a
farewell, it speaks. It imports nothing but the standard library.
"""

import json
import socket
import sys
from typing import Any

_SECONDS_TO_REACH = 5.0


def main() -> None:
    """Reads JSON lines: first what to know, later {"bye": true} if all was said."""
    told: dict[str, Any] = {}
    for line in sys.stdin:
        told |= json.loads(line)
    if not told or "bye" in told:
        return
    if told["is_first"] or _answers(*told["address"]):
        cause = (
            f"{told['me']} ended without a word of its own: it was killed, ran out of memory or "
            "crashed"
        )
    else:
        cause = f"{told['me']} stops, because {told['first']}, which coordinates the run, is gone"
    message = f"{cause}. {told['advice']}"
    if told["json"]:
        sys.stdout.write(json.dumps({"error": message}) + "\n")
    sys.stderr.write(f"marvel: {message}\n")


def _answers(host: str, port: int) -> bool:
    try:
        socket.create_connection((host, port), timeout=_SECONDS_TO_REACH).close()
    except OSError:
        return False
    return True


if __name__ == "__main__":
    main()
