"""MMEB's 36 evaluation sets: each query ranks its own list, of which the first is right.

The files are those into which U-MARVEL converts them, M-BEIR's lines in a folder a set.
"""

from pathlib import Path

from marvel_jax.data.items import Item
from marvel_jax.data.json_lines import JsonLines
from marvel_jax.data.protocols.protocol import Answers, Metric, Protocol, SetData, Size, Test
from marvel_jax.data.protocols.reading import Record, read_record
from marvel_jax.errors import MarvelError

KINDS: dict[str, tuple[str, ...]] = {
    "classification": (
        *("VOC2007", "N24News", "SUN397", "ImageNet-1K", "HatefulMemes"),
        *("ObjectNet", "Country211", "Place365", "ImageNet-A", "ImageNet-R"),
    ),
    "vqa": (
        *("OK-VQA", "A-OKVQA", "DocVQA", "InfographicsVQA", "ChartQA", "Visual7W"),
        *("ScienceQA", "GQA", "TextVQA", "VizWiz"),
    ),
    "retrieval": (
        *("MSCOCO_i2t", "MSCOCO_t2i", "VisDial", "CIRR", "VisualNews_i2t", "VisualNews_t2i"),
        *("NIGHTS", "WebQA", "Wiki-SS-NQ", "FashionIQ", "OVEN", "EDIS"),
    ),
    "grounding": ("MSCOCO", "RefCOCO", "RefCOCO-Matching", "Visual7W-Pointing"),
}
SETS = tuple(name for names in KINDS.values() for name in names)
OUT_OF_DISTRIBUTION = (
    *("ObjectNet", "Country211", "Place365", "ImageNet-A", "ImageNet-R"),
    *("ScienceQA", "GQA", "TextVQA", "VizWiz"),
    *("Wiki-SS-NQ", "FashionIQ", "OVEN", "EDIS"),
    *("RefCOCO", "RefCOCO-Matching", "Visual7W-Pointing"),
)
"""Of which nothing is in MMEB's training data."""


def read_mmeb(root: Path) -> SetData:
    """NAME/NAME_query.jsonl and NAME/NAME_candidate.jsonl of those sets that are there."""
    there = [name for name in SETS if (root / name).is_dir()]
    if not there:
        raise MarvelError(f"{root} holds none of MMEB's 36 folders ({SETS[0]}, {SETS[1]}, ...).")
    instructions = read_record(root / "data_instruction.json")
    collections: dict[str, list[Item]] = {}
    tests = []
    for name in there:
        candidates = [
            _item(one, "did", "txt", "img_path", root)
            for one in _lines(root / name / f"{name}_candidate.jsonl")
        ]
        # A list names a thousand candidates: each name is kept once and not a thousand times.
        known = {str(item.id): str(item.id) for item in candidates}
        instruction = _instruction(instructions, name)
        queries, answers = [], []
        for one in _lines(root / name / f"{name}_query.jsonl"):
            item = _item(one, "qid", "query_txt", "query_img_path", root)
            queries.append(item.with_instruction(instruction))
            listed = tuple(dict.fromkeys(known.get(id, id) for id in one.ids("candidates")))
            if len(listed) < 2:
                raise MarvelError(
                    f"{one.where}: candidates names {len(listed)}, expected 2 or more."
                )
            answers.append(Answers(listed[:1], gallery=listed))
        collections |= {f"{name} queries": queries, f"{name} candidates": candidates}
        tests.append(Test(name, f"{name} queries", f"{name} candidates", answers))
    return SetData(collections, tuple(tests))


def _lines(path: Path) -> list[Record]:
    lines = JsonLines(path)
    return [Record(value, lines.where(place)) for place, value in enumerate(lines)]


def _item(one: Record, id: str, text: str, image: str, root: Path) -> Item:
    words, path = one.optional_text(text), one.optional_text(image)
    if words is None and path is None:
        raise MarvelError(f"{one.where}: {one.id(id)} has neither {text} nor {image}.")
    return Item.of(text=words, image=root / "eval_images" / path if path else None, id=one.id(id))


def _instruction(instructions: Record, name: str) -> str:
    # The file's keys are those of the training sets, where they have one.
    key = name if name in instructions.value else name.replace("-", "_")
    return instructions.object(key).text("qry_instruction")


MMEB = Protocol(
    name="mmeb",
    title="MMEB, 36 sets",
    read=read_mmeb,
    metric=Metric(cuts=(1,), word="hit"),
    source="Hugging Face, TIGER-Lab/MMEB-eval, converted as by U-MARVEL",
    layout=(
        "NAME/NAME_query.jsonl",
        "NAME/NAME_candidate.jsonl",
        "data_instruction.json",
        "eval_images/",
    ),
    sizes={name: Size(1000) for name in SETS},
    groups={
        **KINDS,
        "in distribution": tuple(name for name in SETS if name not in OUT_OF_DISTRIBUTION),
        "out of distribution": OUT_OF_DISTRIBUTION,
        "mean": SETS,
    },
    own_galleries=True,
)
