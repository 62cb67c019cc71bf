"""The commands of the pages run, in the order of the page, on a reader's data and models in little.

What cannot run in a test is listed with the reason; of everything else the exit code is 0.
"""

import re
import shutil
import socket
from collections.abc import Callable, Mapping
from typing import NamedTuple

import pytest
from starlette.testclient import TestClient
from starlette.types import ASGIApp

from marvel_jax.serving import server
from marvel_jax.serving.limits import Limits
from tests.docs import readers
from tests.docs.commands import PAGES, ROOT, Command, of_page
from tests.docs.readers import Shelf

RUN = {
    "README.md": readers.readme,
    "docs/data.md": readers.evaluator,
    "docs/search.md": readers.searcher,
    "docs/studies.md": readers.studies,
    "docs/evaluation.md": readers.evaluator,
    "docs/recipe.md": readers.recipe,
    "docs/guide_7b.md": readers.at_7b,
}
"""Pages, and what puts into a fresh folder what their readers have."""

NEEDS = {
    "docs/search.md": "scann",
    "docs/evaluation.md": "scann",
    "docs/studies.md": "matplotlib",
}
"""What must be installed for a page, where it is not for all."""

ELSEWHERE = {
    "data download": "it fetches; tests/data/test_download.py does so from a Hub of its own",
    "plan": "it takes a vendor's compiler, or the 7B's minutes; tests/plan compiles for `cpu:8`",
    "study plan": "the same; tests/studies/test_plan.py",
    "bench": "it measures, for minutes; tests/bench runs each in little",
    "train configs/qwen2_vl_7b_lora.py --layout gpu:h100:64 --workdir runs/7b": "it runs as the "
    "guide has it",
    "train configs/qwen2_vl_7b_lora.py --layout gpu:h100:64 --workdir /shared/runs/7b": "the same",
    "train configs/qwen2_vl_7b_lora.py --layout tpu:v5e:8x8": "a mesh of 64 devices; "
    "tests/parallel and tests/training have smaller ones",
    "train configs/emoji.py": "minutes; tests/recipes/test_quickstart.py trains its config",
    "run configs/umarvel_qwen2_vl_7b.py --workdir runs/tiny --size tiny": "minutes; it is the run "
    "of tests/recipes/test_umarvel_tiny.py",
    "run configs/umarvel_qwen2_vl_7b.py --workdir runs/7b-tiny --size tiny": "the same",
    "run configs/emoji_full.py": "half an hour; so runs tests/recipes/test_sizes.py, in little",
    "table configs/emoji_full.py": "the table of that run",
    "run configs/ablations": "hours, at tiny minutes; tests/recipes runs all kinds of its stages",
}
"""How commands begin that do not run here, and why."""


class Change(NamedTuple):
    """What is another in the commands that begin so: words more, or in the place of others."""

    start: str
    more: tuple[str, ...] = ()
    instead: Mapping[str, str] = {}


RAN = ("model_data", "pool_size", "dimension_type_scann")  # studies that docs/studies.md reports

CHANGES = (
    # The 7B is told and not trained.
    Change("run configs/umarvel_qwen2_vl_7b.py --workdir runs/7b --set", more=("--dry-run",)),
    Change("run configs/umarvel_qwen2_vl_7b.py --workdir runs/7b --training", more=("--dry-run",)),
    # Not published, but with a manifest that says how many there should be.
    Change("data check data/mbeir --counts published", instead={"published": "auto"}),
    Change("data check data/circo", more=("--counts", "none")),
    # The 7B's file with another model, and rows that fit its data.
    Change(
        "train configs/qwen2_vl_7b_lora.py --layout gpu:h100:64 --workdir /shared/runs/instruct",
        more=(
            *("--set", "model.source=runs/7b/distill/model", "model.adapters.rank=4", "steps=1"),
            *("data.path=data/mbeir", "data.global_batch=16", "data.row.tokens=160"),
            *("data.row.patches=64", "data.row.items=16", "embedding.max_text_tokens=32"),
            *("embedding.min_pixels=196", "embedding.max_pixels=784"),
        ),
    ),
    # Three pictures in the place of 3,000.
    Change("index PHOTOS --out runs/photos --model runs/quickstart/model", more=("--scann",)),
    # Few pairs; as many as the scores look at.
    Change(
        "evaluate MODEL --data data/M-BEIR --workdir runs/eval --reranker", more=("--top", "10")
    ),
    Change(
        "evaluate runs/7b/distill/model --data data/mbeir --workdir runs/eval --dtype bfloat16 "
        "--compute bfloat16 --reranker",
        more=("--top", "10"),
    ),
    Change("report runs/eval --tradeoff", more=("--tradeoff-queries", "2")),
    # Another server may stand at the page's port.
    Change("serve", more=("--port", "0")),
    # Two trials of seconds.
    Change("study run configs", more=("--size", "tiny", "--limit", "2")),
    Change(
        "study report", instead={f"runs/studies/{one}": f"runs/studies/{one}-tiny" for one in RAN}
    ),
    Change("study run FILE", instead={"FILE": "shares.py"}),
    Change("study schedule FILE", instead={"FILE": "shares.py"}),
)


def evaluated_otherwise(_: Shelf) -> None:
    """A pool is encoded before its evaluation: another story than the evaluations above it."""
    shutil.move("runs/eval", "runs/eval-float32")


MEANWHILE: Mapping[tuple[str, str], Callable[[Shelf], None]] = {
    ("docs/evaluation.md", "encode MODEL"): evaluated_otherwise,
    ("docs/evaluation.md", "index STORE"): readers.stores,
}
"""What comes to be in the reader's folder before a command, other than by commands."""


def begins(command: Command, start: str) -> bool:
    return " ".join(command.words).startswith(start)


def elsewhere(command: Command) -> bool:
    return any(begins(command, start) for start in ELSEWHERE)


def in_little(command: Command) -> list[str]:
    """The words with their changes, and places on all hosts' disks in the reader's folder."""
    words = list(command.words)
    for change in CHANGES:
        if begins(command, change.start):
            words = [change.instead.get(word, word) for word in words] + list(change.more)
    return [re.sub(r"^(\S*=)?/(?=shared|runs|big)", r"\1", word) for word in words]


def test_every_command_runs_here_or_is_listed_and_the_lists_are_of_the_pages():
    found = [command for page in PAGES for command in of_page(page)]
    left = [str(one) for one in found if one.page not in RUN and not elsewhere(one)]
    assert not left, "neither run nor listed with a reason"
    for start in (*ELSEWHERE, *(change.start for change in CHANGES)):
        assert any(begins(one, start) for one in found), f"no page has: marvel {start}"
    for page, start in MEANWHILE:
        assert any(one.page == page and begins(one, start) for one in found), start
    places = ("run", "a.py", "--set", "x.y=/big/z", "--out", "/other")
    assert in_little(Command("a.md", places))[3:] == ["x.y=big/z", "--out", "/other"]


@pytest.fixture(scope="module")
def shelf(tmp_path_factory) -> Shelf:
    return readers.fill(tmp_path_factory.mktemp("shelf"))


def answer_once(
    app: ASGIApp, bound: socket.socket, *, limits: Limits, started: Callable[[], None]
) -> None:
    """In the place of a server that does not end: it answers one question."""
    started()
    client = TestClient(app, base_url=server.address(bound))
    assert client.get("/api/collection").status_code == 200


@pytest.mark.slow
@pytest.mark.parametrize("page", RUN)
def test_the_commands_of_a_page_run(page, shelf, marvel, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(server, "run", answer_once)
    if page in NEEDS:
        pytest.importorskip(NEEDS[page], reason=f"{page} has commands that want it")
    readers.checkout()
    RUN[page](shelf)
    ran = 0
    for command in of_page(ROOT / page):
        if elsewhere(command):
            continue
        for (of, start), prepare in MEANWHILE.items():
            if command.page == of and begins(command, start):
                prepare(shelf)
        words = in_little(command)
        done = marvel(*words)
        assert done.code == 0, f"{page}: marvel {' '.join(words)}\n{done.out}\n{done.err}"
        assert done.out.strip(), f"{page}: marvel {' '.join(words)} says nothing"
        ran += 1
    assert ran


@pytest.mark.slow
def test_the_lines_of_the_inputs_page_are_encoded_and_found(shelf, marvel, tmp_path, monkeypatch):
    pytest.importorskip("av", reason="reading video files needs PyAV")
    monkeypatch.chdir(tmp_path)
    readers.inputs(shelf)
    page = (ROOT / "docs" / "inputs.md").read_text(encoding="utf-8")
    encode, search = ("encode", "--pool", "FILE.jsonl"), ("search", "--parts", "FILE.json")
    for words in (encode, search):
        assert f"`marvel {' '.join(words)}`" in page
    done = marvel(*encode, "MODEL", "--out", "store")
    assert done.code == 0, done
    found = marvel(*search, "MODEL", "--store", "store", "--k", "4", "--json")
    assert found.code == 0, found
    assert len(found.json["hits"]) == 4 and found.json["hits"][0]["id"] == "2"
    for code in readers.blocks(ROOT / "docs" / "inputs.md", "python"):
        if "Item(" in code:
            exec(code, {})
