"""Every message that docs/troubleshooting.md quotes is still one of the package's."""

import ast
import re
from collections.abc import Iterator
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
PAGE = ROOT / "docs" / "troubleshooting.md"
QUOTED = re.findall(r"^> (.*)$", PAGE.read_text(encoding="utf-8"), re.MULTILINE)
GAP = "\0"


def literals() -> Iterator[str]:
    """The texts in the package's sources, a gap for every value that is put in."""
    for path in (ROOT / "marvel_jax").rglob("*.py"):
        for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
            if isinstance(node, ast.JoinedStr):
                parts = (one.value if isinstance(one, ast.Constant) else GAP for one in node.values)
                yield "".join(map(str, parts))
            elif isinstance(node, ast.Constant) and isinstance(node.value, str):
                yield node.value


TEXTS = tuple(dict.fromkeys(literals()))


def test_there_is_something_to_check():
    assert len(QUOTED) >= 30 and len(set(QUOTED)) == len(QUOTED)
    assert not is_said("… has no such words, and never had.")


@pytest.mark.parametrize("message", QUOTED)
def test_the_package_still_says_it(message):
    assert is_said(message), f"no text of the package has the fixed words of: {message}"


def is_said(message: str) -> bool:
    """Whether one text has all the fixed words in this order; a quotation may leave out its end."""
    fixed = [re.escape(part) for part in message.split("…")]
    assert max(map(len, fixed)) >= 15, f"too few fixed words to tell it by: {message}"
    pattern = re.compile(".*?".join(fixed), re.DOTALL)
    return any(pattern.search(text) for text in TEXTS)
