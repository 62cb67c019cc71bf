"""A picture chooses between a true and a false caption: CC-Neg and SugarCrepe."""

from collections.abc import Sequence
from pathlib import Path

from marvel_jax.data.items import Item
from marvel_jax.data.protocols.protocol import Answers, Metric, Protocol, SetData, Size, Test
from marvel_jax.data.protocols.reading import (
    Record,
    as_records,
    picture,
    read_plain_pickle,
    texts,
)
from marvel_jax.errors import MarvelError
from marvel_jax.files import read_json

FIND_CAPTION = "Find an image caption describing the following image."
CCNEG_JUDGED = 40_000
"""The last so many of CC-Neg are its test split."""

SUGARCREPE_SIZES = {
    "add_att": 692,
    "add_obj": 2062,
    "replace_att": 788,
    "replace_obj": 1652,
    "replace_rel": 1406,
    "swap_att": 666,
    "swap_obj": 245,
}
_INSTRUCTED = ("add_att", "add_obj", "replace_att", "replace_obj")

Choice = tuple[Path, str, str]
"""A picture, what is true of it and what is not."""


def choices(
    found: Sequence[Choice], *, name: str, instruction: str | None = None
) -> tuple[dict[str, list[Item]], Test]:
    """The collections and the test of some choices; the two captions are one query's gallery."""
    captions = [
        (f"{n} {which}", text)
        for n, (_, right, wrong) in enumerate(found)
        for which, text in (("right", right), ("wrong", wrong))
    ]
    images = [
        picture(path, id=str(n), instruction=instruction) for n, (path, _, _) in enumerate(found)
    ]
    answers = [Answers((f"{n} right",), (f"{n} right", f"{n} wrong")) for n in range(len(found))]
    collections = {f"{name} images": images, f"{name} captions": texts(captions)}
    return collections, Test(name, f"{name} images", f"{name} captions", answers)


def read_ccneg(root: Path) -> SetData:
    """ccneg_preprocessed.pt, of which the last 40,000 count; commas of false captions go.

    Its paths of pictures are of the machine that made it: only their names count.
    """
    file = root / "ccneg_preprocessed.pt"
    data = Record(read_plain_pickle(file), str(file))
    paths, told = data.values("image_paths"), data.values("annotations")
    if len(paths) != len(told):
        raise MarvelError(f"{file}: {len(paths)} image_paths, but {len(told)} annotations.")
    found: list[Choice] = []
    for path, one in zip(
        paths[-CCNEG_JUDGED:], as_records(told, f"{file}, annotations")[-CCNEG_JUDGED:], strict=True
    ):
        right = one.object("json").text("caption")
        wrong = one.object("sop_data").text("negative-prompt").replace(",", "")
        found.append((root / "ccneg_images" / Path(str(path)).name, right, wrong))
    collections, test = choices(found, name="test")
    return SetData(collections, (test,))


def read_sugarcrepe(root: Path) -> SetData:
    """data/KIND.json of those kinds that are there: file, caption and false caption by number."""
    collections: dict[str, list[Item]] = {}
    tests = []
    for name in SUGARCREPE_SIZES:
        file = root / "data" / f"{name}.json"
        if not file.is_file():
            continue
        found = [
            (root / "val2017" / one.text("filename"), one.text("caption"), negative)
            for one in _listed(file)
            for negative in (one.text("negative_caption"),)
        ]
        made, test = choices(
            found, name=name, instruction=FIND_CAPTION if name in _INSTRUCTED else None
        )
        collections |= made
        tests.append(test)
    if not tests:
        wanted = ", ".join(f"{name}.json" for name in SUGARCREPE_SIZES)
        raise MarvelError(f"{root / 'data'} holds none of {wanted}.")
    return SetData(collections, tuple(tests))


def _listed(file: Path) -> list[Record]:
    """The entries of a JSON list, or of an object whose keys number them."""
    value = read_json(file)
    values = list(value.values()) if isinstance(value, dict) else value
    return as_records(values, str(file))


_ACCURACY = Metric(cuts=(1,), word="accuracy")

CCNEG = Protocol(
    name="ccneg",
    title="CC-Neg",
    read=read_ccneg,
    metric=_ACCURACY,
    source="github.com/jaisidhsingh/CoN-CLIP",
    layout=("ccneg_preprocessed.pt", "ccneg_images/"),
    sizes={"test": Size(CCNEG_JUDGED, 2)},
    own_galleries=True,
)
SUGARCREPE = Protocol(
    name="sugarcrepe",
    title="SugarCrepe",
    read=read_sugarcrepe,
    metric=_ACCURACY,
    source="github.com/RAIVNLab/sugar-crepe; pictures: COCO val2017",
    layout=(*(f"data/{name}.json" for name in SUGARCREPE_SIZES), "val2017/"),
    sizes={name: Size(count, 2) for name, count in SUGARCREPE_SIZES.items()},
    groups={"mean": tuple(SUGARCREPE_SIZES)},
    own_galleries=True,
    checked="annotations checked",
)
