"""Every command in the pages is one that this version takes, with fields and files that exist."""

import itertools
import re
from pathlib import Path

import pytest

from marvel_jax.recipes.config_file import load_config, open_config
from marvel_jax.recipes.recipe import load_recipe
from marvel_jax.studies.study import load_study
from tests.docs.commands import PAGES, ROOT, Asked, Command, commands, lines, parse

COMMANDS = commands()


def name(command: Command) -> str:
    return str(command)[:110]


def test_the_commands_are_found():
    pages = {one.page for one in COMMANDS}
    assert {"README.md", "docs/guide_7b.md", "docs/search.md", "launch/README.md"} <= pages
    assert len(COMMANDS) > 80
    with pytest.raises(SystemExit):
        parse(("evaluate", "MODEL", "--data", "D", "--workdir", "W", "--re-ranker", "R"))
    asked = parse(("search", "C", "--text", "a cat", "--k", "3"))
    assert asked.name == "search" and asked.values["k"] == 3 and asked.values["what"] == "C"


@pytest.mark.parametrize("command", COMMANDS, ids=name)
def test_the_command_line_takes_it(command):
    parse(command.words)


def config_of(asked: Asked) -> Path | None:
    """The shipped file that a command reads, if it is one."""
    path = Path(str(asked.values.get("config", asked.values.get("file", ""))))
    return path if path.parts[:1] == ("configs",) else None


@pytest.mark.parametrize(
    "command",
    [one for one in COMMANDS if one.words[0] in ("train", "plan", "run", "table", "study")],
    ids=name,
)
def test_its_config_has_the_fields_and_layouts_that_it_names(command, monkeypatch):
    monkeypatch.chdir(ROOT)
    asked = parse(command.words)
    path = config_of(asked)
    if path is None:
        return
    changes = tuple(itertools.chain.from_iterable(asked.values.get("overrides", ())))
    trainings = tuple(itertools.chain.from_iterable(asked.values.get("training", ())))
    if asked.name == "train":
        load_config(path, changes, layout=asked.values["layout"])
    elif asked.name == "plan":
        layout = asked.values["layout"]
        load_config(path, changes, layout=layout)
        if layout is None and not asked.values["search"]:
            named = set(asked.values["topology"])
            # A page that shows no layout means the one of the topology's own name.
            assert named <= set(open_config(path).layouts), named
    elif asked.name.startswith("study "):
        study = load_study(path, size=asked.values["size"])
        for task in study.tasks():
            recipe = study.recipe(task).with_trainings(trainings)
            if asked.values.get("stage"):
                recipe.stage(asked.values["stage"])
    else:
        recipe = load_recipe(path).with_settings(changes)
        if trainings:
            recipe = recipe.with_trainings(trainings)
        for field in ("start", "only"):
            if asked.values.get(field):
                recipe.stage(asked.values[field])


def test_the_files_of_the_checkout_that_pages_name_exist():
    inside = re.compile(r"(?<![\w/.])(?:\./)?((?:configs|launch|docs)/[\w./-]*\w)")
    for page in PAGES:
        for line in lines(page):
            for path in inside.findall(line):
                assert (ROOT / path).exists(), (page.name, line)


def test_links_between_pages_lead_somewhere():
    for page in PAGES:
        text = re.sub(r"^```.*?^```$", "", page.read_text(encoding="utf-8"), flags=re.M | re.S)
        for target, anchor in re.findall(r"\]\((?!https?:)([^)#\s]*)(?:#([^)\s]*))?\)", text):
            there = (page.parent / target).resolve() if target else page
            assert there.exists(), f"{page.name}: {target}"
            if anchor:
                titles = re.findall(r"^#+ (.*)$", there.read_text(encoding="utf-8"), re.M)
                slugs = {re.sub(r"[^\w -]", "", one.lower()).replace(" ", "-") for one in titles}
                assert anchor in slugs, f"{page.name}: {target}#{anchor}"
