"""What became of a collection's entries since the version before."""

from collections import Counter
from collections.abc import Mapping
from typing import NamedTuple


class Changes(NamedTuple):
    """Counts of entries. Moved: the same content under another id."""

    added: int
    changed: int
    removed: int
    moved: int
    unchanged: int

    @property
    def any(self) -> bool:
        """Whether there is a difference."""
        return any((self.added, self.changed, self.removed, self.moved))

    def told(self) -> str:
        """In words."""
        named = ((count, name) for name, count in self._asdict().items() if count)
        return ", ".join(f"{count:,} {name}" for count, name in named) or "nothing"


def compare(before: Mapping[str, str], now: Mapping[str, str]) -> Changes:
    """Compares contents by id. An id that went and one that came with its content are one move."""
    kept = [id for id in now if id in before]
    changed = sum(before[id] != now[id] for id in kept)
    went = Counter(content for id, content in before.items() if id not in now)
    came = Counter(content for id, content in now.items() if id not in before)
    moved = (went & came).total()
    return Changes(
        added=came.total() - moved,
        changed=changed,
        removed=went.total() - moved,
        moved=moved,
        unchanged=len(kept) - changed,
    )
