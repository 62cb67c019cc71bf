"""A report about a run that never was, with all that a page can show.

As a script it writes the page, to look at: `python tests/retrieval/invented_report.py FOLDER`.
"""

import sys
import tempfile
from pathlib import Path

import numpy as np
import PIL.Image
import PIL.ImageDraw
from vector_stores import random_unit, unit, write_store

from marvel_jax.data.items import Image, Item
from marvel_jax.retrieval.protocols import (
    ApproximateScores,
    Evaluation,
    RetrievalSet,
    evaluate,
)
from marvel_jax.retrieval.report import Curve, Report, pick_examples
from marvel_jax.retrieval.scann_index import Speed

TASKS = ("t->i", "t->t", "t->(i,t)", "i->t", "i->i", "(i,t)->t", "(i,t)->i", "(i,t)->(i,t)")
COLOURS = {
    "red": "#e11d48",
    "orange": "#f97316",
    "yellow": "#facc15",
    "green": "#22c55e",
    "blue": "#3b82f6",
    "violet": "#8b5cf6",
    "brown": "#92400e",
    "black": "#111827",
}
SHAPES = ("circle", "square", "triangle", "ring", "star", "bar")
NAMES = [f"{colour} {shape}" for colour in COLOURS for shape in SHAPES]
INSTRUCTION = "Find what is meant."
TRANSLATIONS = ("cercle rouge", "دائرة حمراء", "красный круг", "红色圆圈", "κόκκινος κύκλος")


def picture(name: str) -> PIL.Image.Image:
    colour, shape = name.split()
    image = PIL.Image.new("RGB", (128, 128), "white")
    draw, fill = PIL.ImageDraw.Draw(image), COLOURS[colour]
    if shape == "circle":
        draw.ellipse((18, 18, 110, 110), fill=fill)
    elif shape == "square":
        draw.rectangle((22, 22, 106, 106), fill=fill)
    elif shape == "triangle":
        draw.polygon([(64, 16), (114, 108), (14, 108)], fill=fill)
    elif shape == "ring":
        draw.ellipse((18, 18, 110, 110), outline=fill, width=20)
    elif shape == "bar":
        draw.rectangle((12, 48, 116, 80), fill=fill)
    else:
        angles = np.arange(10) * np.pi / 5 - np.pi / 2
        radii = np.where(np.arange(10) % 2, 24, 54)
        points = zip(64 + radii * np.cos(angles), 64 + radii * np.sin(angles), strict=True)
        draw.polygon([(float(x), float(y)) for x, y in points], fill=fill)
    return image


def item(side: str, name: str, *, instruction: str | None = None) -> Item:
    text, image = name, Image(picture(name), name=name)
    if name == NAMES[0]:
        text = TRANSLATIONS[1]
    parts = {"t": {"text": text}, "i": {"image": image}}.get(side, {"text": text, "image": image})
    return Item.of(**parts, instruction=instruction)


def invent(
    folder: Path, *, seed: int = 0, report_title: str = "Any words or pictures find any"
) -> Report:
    """Scores that come from noisy copies of the right answers, so that they are all sorts."""
    rng = np.random.default_rng(seed)
    ids = [f"{side}:{name}" for side in ("i", "t", "(i,t)") for name in NAMES]
    corpus = random_unit(len(ids), 16)
    store = write_store(folder / f"store{seed}", corpus, ids)
    sets, after, before = [], {}, {}
    for number, task in enumerate(TASKS):
        side = task.split("->")[1]
        pool = [name for name in ids if name.split(":")[0] == side]
        targets = rng.integers(len(pool), size=300)
        rows = corpus[[ids.index(pool[target]) for target in targets]]
        modality = {"t": "text", "i": "image"}.get(side, "image,text")
        queries = [f"q{number}:{place}" for place in range(300)]
        sets.append(
            RetrievalSet(
                f"emoji_task{number}",
                task,
                5,
                modality,
                queries,
                [[pool[target]] for target in targets],
                pool,
            )
        )
        noise = rng.normal(size=(300, 16))
        after[sets[-1].name] = unit(rows + (0.15 + 0.09 * number) * noise)
        before[sets[-1].name] = unit(rows + 2.5 * noise)
    options = {"instruction_choice": "One of four paraphrases for each query, drawn with seed 0."}
    scored = evaluate(sets, after, store, modality_of=lambda key: "image", **options)
    approximate = ApproximateScores(
        description="148 leaves, 100 searched, 512 scored again exactly",
        build_seconds=1.4,
        recall=0.9934,
        recall_by_set={},
        speed=Speed(0.103, 0.0553),
        exact_speed=Speed(4.57, 0.124),
    )
    scored = Evaluation(**{**vars(scored), "approximate": approximate})
    examples = {}
    for number, one in enumerate(sets):
        source = one.task.split("->")[0]

        def query(place: int, one: RetrievalSet = one, source: str = source) -> Item:
            name = one.relevant[place][0].split(":")[1]
            if source == "(i,t)":  # another shape's picture, and the colour it should have
                colour, shape = name.split()
                other = item("i", f"{'blue' if colour != 'blue' else 'red'} {shape}")
                return Item((*other.parts, f"in {colour}"), instruction=INSTRUCTION)
            return item(source, name, instruction=INSTRUCTION)

        examples[one.name] = pick_examples(
            one,
            scored.rankings[one.name].local_pool,
            store,
            query=query,
            candidate=lambda key: item(*key.split(":")),
            count=2,
            seed=number,
        )
    steps = np.arange(1, 601)
    loss = 5.6 * np.exp(-steps / 170) + 0.9 + 0.18 * rng.normal(size=600) * np.exp(-steps / 700)
    return Report(
        title=report_title,
        corpus="Searched here: 48 invented shapes, as pictures, as words, and as both.",
        seconds=461.0,
        evaluation=scored,
        untrained=evaluate(sets, before, store, **options),
        trained={one.name for one in sets[:6]},
        examples=examples,
        curves=[
            Curve("loss", list(zip(steps.tolist(), loss.tolist(), strict=True))),
            Curve("temperature", [(int(s), 0.05 - 0.00003 * float(s)) for s in steps]),
        ],
        facts={
            "Model": "Qwen2-VL, 4.1 M parameters, bidirectional, mean pooling",
            "Training": "600 steps of 128 pairs",
            "Seed": "0",
            "Machine": "2 CPU cores",
            "Versions": "Python 3.11, jax 0.10.2, flax 0.12.8",
        },
        commands=["./launch/quickstart --seed 0"],
    )


if __name__ == "__main__":
    from marvel_jax.retrieval.report_page import write_report

    with tempfile.TemporaryDirectory() as scratch:
        sys.stdout.write(f"{write_report(invent(Path(scratch)), sys.argv[1])}\n")
