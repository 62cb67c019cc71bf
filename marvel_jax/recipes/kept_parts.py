"""What stands beside an evaluation's own scores, kept from one command to the next.

ScaNN's measurement, every paraphrase and a reranker are each made by some command. What one of them
found stays as long as it is of the same lists and answers, whatever the next command asks for.
"""

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from marvel_jax.files import hash_json, read_json_object, write_json
from marvel_jax.retrieval.retrieval_sets import RetrievalSet

FILE = "parts.json"
MEASURED, PARAPHRASES, RERANKED = "approximate", "paraphrases", "reranked"
"""What a folder may keep: `scores` of it, the `options` of the command that made it, and more."""


class KeptParts:
    """The parts of one evaluation, as `FILE` in its folder has them."""

    def __init__(self, workdir: Path, origin: str) -> None:
        """Reads those of this origin; those of another are no longer right.

        Raises:
          MarvelError: the file is damaged.
        """
        self._file, self._origin = workdir / FILE, origin
        found = read_json_object(self._file) if self._file.is_file() else {}
        parts: dict[str, Any] = found.get("parts", {})
        same = found.get("origin") == origin
        self._parts = parts if same else {}
        self.dropped = () if same else tuple(name for name in parts if name != MEASURED)

    def get(self, name: str) -> Mapping[str, Any] | None:
        """A part, or None."""
        return self._parts.get(name)

    def put(self, name: str, part: Mapping[str, Any]) -> None:
        """Keeps a part in the place of an earlier one; the same is not written again."""
        if (given := as_json(part)) != self.get(name):
            self._parts[name] = given
            write_json(self._file, {"origin": self._origin, "parts": self._parts})

    def drop(self, name: str) -> None:
        """Forgets a part."""
        if self._parts.pop(name, None) is not None:
            write_json(self._file, {"origin": self._origin, "parts": self._parts})


def as_json(part: Mapping[str, Any]) -> dict[str, Any]:
    """A part as it is read back: tuples have become lists."""
    found: dict[str, Any] = json.loads(json.dumps(part))
    return found


def origin_of(sets: Mapping[str, RetrievalSet], origins: Mapping[str, str], *, seed: int) -> str:
    """A hash of what all parts are of: every set's lists and right answers, and the seed."""
    answers = {name: hash_json([list(ids) for ids in one.relevant]) for name, one in sets.items()}
    return hash_json({"lists": dict(origins), "answers": answers, "seed": seed})
