import dataclasses
import html.parser
import json
import re
import xml.etree.ElementTree as ElementTree

import numpy as np
import pytest
from invented_report import TRANSLATIONS, invent
from vector_stores import random_unit, write_store

from marvel_jax.data.items import Image, Item
from marvel_jax.errors import MarvelError
from marvel_jax.retrieval.exact import TopK
from marvel_jax.retrieval.protocols import RetrievalSet
from marvel_jax.retrieval.report import Curve, Hit, pick_examples
from marvel_jax.retrieval.report_charts import chart
from marvel_jax.retrieval.report_page import render, write_report

VOID = {"meta", "img", "link", "br", "hr", "input"}


class Page(html.parser.HTMLParser):
    """Every tag with its attributes; fails on a tag that is not closed where it should be."""

    def __init__(self, text):
        super().__init__()
        self.tags, self.open, self.text = [], [], ""
        self.feed(text)
        assert self.open == []

    def handle_starttag(self, tag, attributes):
        self.tags.append((tag, dict(attributes)))
        if tag not in VOID:
            self.open.append(tag)

    def handle_startendtag(self, tag, attributes):
        self.tags.append((tag, dict(attributes)))

    def handle_endtag(self, tag):
        assert self.open.pop() == tag

    def handle_data(self, data):
        self.text += data

    def all(self, tag):
        return [attributes for found, attributes in self.tags if found == tag]


@pytest.fixture(scope="module")
def report(tmp_path_factory):
    return invent(tmp_path_factory.mktemp("report"))


@pytest.fixture(scope="module")
def page(report):
    return Page(render(report))


def test_the_page_stands_alone_and_needs_no_script(report, page):
    assert page.all("script") == page.all("link") == page.all("iframe") == []
    for _, attributes in page.tags:
        for name in ("src", "href"):
            assert attributes.get(name, "#").startswith(("data:image/", "#"))
    style = re.search(r"<style>(.*?)</style>", render(report), re.S).group(1)
    assert "url(" not in style and "@import" not in style
    assert not re.search(r"https?://", render(report))


def test_everyone_can_read_it(page):
    assert page.all("html") == [{"lang": "en"}]
    assert all(image["alt"] for image in page.all("img"))
    assert all(header.get("scope") in ("col", "row") for header in page.all("th"))
    charts = [svg for svg in page.all("svg") if "aria-hidden" not in svg]
    assert len(charts) == 2 and all("step" in svg["aria-label"] for svg in charts)


def test_every_score_interval_and_baseline_is_on_the_page(report, page):
    for now, before in zip(report.evaluation.sets, report.untrained.sets, strict=True):
        for value in (*now.local_pool.hit[5], *now.global_pool.hit[5], *before.local_pool.hit[5]):
            assert re.search(rf"\b{100 * value:.1f}\b" if value < 0.9995 else "100%", page.text)
    assert "10.4%" in page.text  # chance of 5 in 48
    assert page.text.count("evaluated only") == 3  # two tasks and the explanation
    assert "One of four paraphrases" in page.text
    assert "7 min 41 s" in page.text
    assert "./launch/quickstart --seed 0" in page.text


def test_right_answers_are_marked_by_words_too(report, page):
    examples = [example for some in report.examples.values() for example in some]
    right = sum(hit.right for example in examples for hit in example.hits)
    missed = sum(not any(hit.right for hit in example.hits) for example in examples)
    marked = [item for item in page.all("li") if item["class"] == "hit right"]
    heroes = 2  # both tasks of the top of the page have a right answer
    assert right > 0 and missed > 0
    assert page.text.count("✓ right") >= right + heroes + 1
    assert page.text.count("✓ right") == len(marked) + 1
    assert page.text.count("Not among these 5.") == missed


def test_texts_of_the_corpus_cannot_break_the_page(report):
    nasty = '<script>alert("x")</script></style>&'
    name = report.evaluation.sets[0].name
    example = report.examples[name][0]
    hit = Hit("x", Item.of(text=nasty), 0.5, False)
    changed = dataclasses.replace(
        example, query=Item.of(text=nasty, instruction=nasty), hits=(hit,)
    )
    page = Page(render(dataclasses.replace(report, title=nasty, examples={name: [changed]})))
    assert page.all("script") == []
    assert page.text.count(nasty) >= 4


def test_right_to_left_names_keep_their_direction(page):
    assert TRANSLATIONS[1] in page.text
    assert all(span["dir"] == "auto" for span in page.all("span") if span.get("class") == "text")


def test_large_photographs_are_shrunk(report, tmp_path):
    import PIL.Image

    noise = np.random.default_rng(0).integers(0, 255, (1500, 2000, 3), dtype=np.uint8)
    PIL.Image.fromarray(noise).save(tmp_path / "photo.png")
    name = report.evaluation.sets[0].name
    hit = Hit("x", Item.of(image=tmp_path / "photo.png"), 0.5, False)
    example = dataclasses.replace(report.examples[name][0], hits=(hit,) * 5)
    few = dataclasses.replace(report, examples={name: [example] * 4})
    assert len(render(few)) < 3_000_000 * 20 / 160  # of 8 tasks x 4 examples x 5 pictures
    assert "photo.png" in json.dumps(few.to_dict())


def test_the_files_are_whole_and_a_function_of_the_report(report, tmp_path):
    first = write_report(report, tmp_path / "a")
    second = write_report(report, tmp_path / "b")
    assert first.read_bytes() == second.read_bytes()
    assert sorted(file.name for file in (tmp_path / "a").iterdir()) == [
        "index.html",
        "report.json",
        "scores.csv",
    ]
    record = json.loads((tmp_path / "a" / "report.json").read_text())
    assert record == json.loads(json.dumps(report.to_dict()))
    assert record["evaluation"]["sets"][0]["local_pool"]["hit"]["5"]["mean"] == pytest.approx(
        report.evaluation.sets[0].local_pool.hit[5].mean
    )
    assert record["evaluation"]["approximate"]["speed"] == {"single": 0.103, "batched": 0.0553}


def test_a_report_without_baseline_index_curves_or_examples_is_still_a_page(report):
    bare = dataclasses.replace(
        report,
        untrained=None,
        examples={},
        curves=[],
        commands=[],
        evaluation=dataclasses.replace(report.evaluation, approximate=None),
    )
    text = Page(render(bare)).text
    assert "Untrained" not in text.split("How to read")[0]
    assert "Fast search" not in text
    assert bare.to_dict()["untrained"] is None


def test_pictures_and_videos_that_cannot_be_read_are_named_in_their_place(report, tmp_path):
    pytest.importorskip("av", reason="the video extra")
    name = report.evaluation.sets[0].name
    (tmp_path / "broken.avi").write_bytes(b"no video")
    items = (Item.of(image=tmp_path / "gone.png"), Item.of(video=tmp_path / "broken.avi"))
    hits = tuple(Hit(str(place), item, 0.5, False) for place, item in enumerate(items))
    example = dataclasses.replace(report.examples[name][0], hits=hits)
    page = write_report(dataclasses.replace(report, examples={name: [example]}), tmp_path / "out")
    text = page.read_text()
    assert "gone: this picture cannot be read" in text
    assert "broken: this picture cannot be read" in text


def test_names_that_no_set_has_are_refused(report):
    with pytest.raises(MarvelError, match=r"trained names.*nothing"):
        dataclasses.replace(report, trained={"nothing"})
    with pytest.raises(MarvelError, match=r"examples names.*nothing"):
        dataclasses.replace(report, examples={"nothing": ()})


@pytest.mark.parametrize(
    "values",
    [
        [5.0, 1.0],
        [0.05, 0.05, 0.05],
        [0.0, 0.0],
        [-3.0, 12_345.6],
        [1e-9, 2e-9],
        [3.0, float("nan"), 1.0],
    ],
)
def test_any_curve_stays_inside_its_axes(values):
    drawn = chart(Curve("loss", list(enumerate(values, start=10))))
    left, top, right, bottom = drawn.plot
    for path in (drawn.line, drawn.smooth):
        numbers = np.array([point.split() for point in path[1:].split("L")], float)
        assert ((numbers >= [left, top]) & (numbers <= [right, bottom])).all()
    heights = [height for height, _ in drawn.y_ticks]
    assert heights == sorted(heights, reverse=True)
    labels = [label for _, label in drawn.y_ticks]
    assert len(set(labels)) == len(labels) <= 8
    ElementTree.fromstring(f'<svg><path d="{drawn.line}"/></svg>')


def test_examples_are_drawn_by_seed_and_marked_by_the_answers(tmp_path):
    ids = [f"c:{row}" for row in range(9)]
    store = write_store(tmp_path / "store", random_unit(9, 4), ids)
    queries = [f"q:{number}" for number in range(6)]
    relevant = [[f"c:{number}", "c:8"] for number in range(6)]
    test_set = RetrievalSet("s", "t->i", 5, "image", queries, relevant, ids)
    indices = np.tile(np.array([8, 3, -1], np.int32), (6, 1))
    ranking = TopK(np.tile(np.array([0.9, 0.5, -np.inf], np.float32), (6, 1)), indices)

    def pick(seed):
        return pick_examples(
            test_set,
            ranking,
            store,
            query=lambda number: Item.of(text=f"query {number}"),
            candidate=lambda key: Item.of(text=key),
            count=3,
            seed=seed,
        )

    assert pick(0) == pick(0)
    assert {example.id for seed in range(5) for example in pick(seed)} == set(queries)
    for example in pick(0):
        number = example.id.removeprefix("q:")
        assert example.query.parts == (f"query {number}",)
        assert [(hit.id, hit.right) for hit in example.hits] == [
            ("c:8", True),
            ("c:3", number == "3"),
        ]
        assert example.num_answers == 2
        assert example.answer.parts == (f"c:{number}",)


def test_arrays_and_bytes_are_pictures_too(report):
    name = report.evaluation.sets[0].name
    grey = np.full((20, 30), 90, np.uint8)
    hit = Hit("x", Item.of(image=Image(grey, name="drawing.png")), 0.5, True)
    example = dataclasses.replace(report.examples[name][0], hits=(hit,))
    page = Page(render(dataclasses.replace(report, examples={name: [example]})))
    assert "drawing" in {image["alt"] for image in page.all("img")}
