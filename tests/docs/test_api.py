"""docs/api.md is what the docstrings say."""

import importlib
import runpy
from pathlib import Path

import marvel_jax

ROOT = Path(__file__).parents[2]


def test_the_page_is_up_to_date():
    made = runpy.run_path(str(ROOT / "docs" / "make_api.py"))
    found = (ROOT / "docs" / "api.md").read_text(encoding="utf-8")
    assert found == made["page"](), "docs/api.md is out of date: python docs/make_api.py"
    listed = {name for part in made["PARTS"].values() for names in part.values() for name in names}
    assert set(marvel_jax.__all__) <= listed


def test_every_name_of_the_page_can_be_imported_from_where_it_says():
    made = runpy.run_path(str(ROOT / "docs" / "make_api.py"))
    for part in made["PARTS"].values():
        for module, names in part.items():
            for name in names:
                one = getattr(importlib.import_module(f"marvel_jax.{module}"), name)
                assert one.__module__ == f"marvel_jax.{module}"
                assert one.__doc__, f"{module}.{name} says nothing of itself"
