"""A picture with a wish for change looks for another: CIRCO, GeneCIS, FashionIQ in turns."""

from pathlib import Path

from marvel_jax.data.items import Image, Item, Part
from marvel_jax.data.protocols.protocol import Answers, Metric, Protocol, SetData, Size, Test
from marvel_jax.data.protocols.reading import (
    Record,
    picture,
    read_record,
    read_records,
    read_texts,
)
from marvel_jax.errors import MarvelError

CHANGE_EVERYDAY = "I'm looking for a similar everyday image with the described changes."
CHANGE = (
    "I want you to retrieve an similar image with the described changes. Show me an image that "
    "best captures the following the described changes."
)
FOCUS = (
    "I want you to retrieve an image with the same attributes as described. Show me an image that "
    "best captures the following the same attributes."
)
CHANGE_FASHION = "Find me a similar fashion image based on the following multi-round modifications."

GENECIS_SUBSETS = ("focus_attribute", "change_attribute", "focus_object", "change_object")


def read_circo(root: Path) -> SetData:
    """annotations/{val,test}.json and all pictures of COCO's unlabeled2017.

    The answers of test are kept by its server: it becomes a submission.
    """
    info = read_record(root / "annotations" / "image_info_unlabeled2017.json")
    folder = root / "images" / "unlabeled2017"
    paths = {one.id("id"): folder / one.text("file_name") for one in info.records("images")}
    collections = {"images": [picture(path, id=id) for id, path in paths.items()]}
    tests = []
    for split in ("val", "test"):
        file = root / "annotations" / f"{split}.json"
        if split == "test" and not file.is_file():
            continue
        queries, answers = [], []
        for one in read_records(file):
            reference = one.id("reference_img_id")
            if reference not in paths:
                raise MarvelError(
                    f"{one.where}: reference_img_id is {reference}, which is no picture of "
                    f"{info.where}."
                )
            queries.append(
                picture(
                    paths[reference],
                    id=one.id("id"),
                    text=one.text("relative_caption"),
                    instruction=CHANGE_EVERYDAY,
                )
            )
            answers.append(Answers(tuple(one.ids("gt_img_ids")) if split == "val" else ()))
        collections[f"{split} queries"] = queries
        tests.append(Test(split, f"{split} queries", "images", answers))
    return SetData(collections, tuple(tests))


def read_genecis(root: Path) -> SetData:
    """annotations/NAME.json of those subsets that are there; each query has its own gallery."""
    collections: dict[str, list[Item]] = {}
    tests = []
    for name in GENECIS_SUBSETS:
        file = root / "annotations" / f"{name}.json"
        if not file.is_file():
            continue
        queries, answers = [], []
        images: dict[str, Item] = {}
        for row, one in enumerate(read_records(file)):
            places = [one.object("reference"), one.object("target"), *one.records("gallery")]
            found = [_genecis_path(root, name, row, slot, at) for slot, at in enumerate(places)]
            queries.append(
                picture(
                    found[0],
                    id=str(row),
                    text=one.text("condition"),
                    instruction=CHANGE if name.startswith("change") else FOCUS,
                )
            )
            gallery = [path.stem for path in found[1:]]
            images |= {path.stem: picture(path, id=path.stem) for path in found[1:]}
            answers.append(Answers((gallery[0],), gallery=tuple(dict.fromkeys(gallery))))
        collections[f"{name} queries"] = queries
        collections[f"{name} images"] = list(images.values())
        tests.append(Test(name, f"{name} queries", f"{name} images", answers))
    if not tests:
        wanted = ", ".join(f"{name}.json" for name in GENECIS_SUBSETS)
        raise MarvelError(f"{root / 'annotations'} holds none of {wanted}.")
    return SetData(collections, tuple(tests))


def _genecis_path(root: Path, name: str, row: int, slot: int, place: Record) -> Path:
    """A COCO picture by its id, or a crop of Visual Genome by query and slot (0: the reference)."""
    if name.endswith("object"):
        return root / "val2017" / f"{place.number('val_image_id'):012d}.jpg"
    return root / "vg" / name / f"{place.id('image_id')}_{row}_{slot}.jpg"


def read_multiturn_fashioniq(root: Path) -> SetData:
    """data/all.val.json: turns of a picture and the changes wished for, then the target."""
    images = {
        id: root / "fashioniq_images" / f"{id}.jpg"
        for id in read_texts(root / "image_splits" / "split.all.val.json")
    }
    queries, answers = [], []
    for place, one in enumerate(read_records(root / "data" / "all.val.json")):
        turns = one.values("reference")
        parts: list[Part] = []
        for turn in turns:
            match turn:
                case [_, [*wishes], str(image)] if all(isinstance(wish, str) for wish in wishes):
                    parts.append(Image(root / "fashioniq_images" / f"{image}.jpg"))
                    said = " and ".join(wish for wish in wishes if wish.strip())
                    parts += [said] if said else []
                case _:
                    raise MarvelError(
                        f"{one.where}: expected turns as [number, [texts], picture], found "
                        f"{turn!r}."
                    )
        match one.values("target"):
            case [_, str(target)]:
                answers.append(Answers((target,)))
            case target:
                raise MarvelError(
                    f"{one.where}: expected target as [kind, picture], found {target!r}."
                )
        if not parts:
            raise MarvelError(f"{one.where}: reference has no turn.")
        queries.append(Item(tuple(parts), instruction=CHANGE_FASHION, id=str(place)))
    collections = {
        "queries": queries,
        "images": [picture(path, id=id) for id, path in images.items()],
    }
    return SetData(collections, (Test("val", "queries", "images", answers),))


CIRCO = Protocol(
    name="circo",
    title="CIRCO",
    read=read_circo,
    metric=Metric(kind="average_precision", cuts=(5, 10, 25, 50), main=5, word="mAP"),
    source="github.com/miccunifi/CIRCO; pictures: COCO unlabeled2017",
    layout=(
        "annotations/val.json",
        "annotations/test.json",
        "annotations/image_info_unlabeled2017.json",
        "images/unlabeled2017/",
    ),
    sizes={"val": Size(220, 123_403), "test": Size(800, 123_403)},
    checked="annotations checked",
)
GENECIS = Protocol(
    name="genecis",
    title="GeneCIS",
    read=read_genecis,
    metric=Metric(cuts=(1, 2, 3)),
    source="github.com/facebookresearch/genecis; crops: code-kunkun/LamRA_Eval",
    layout=(
        *(f"annotations/{name}.json" for name in GENECIS_SUBSETS),
        "val2017/",
        "vg/focus_attribute/",
        "vg/change_attribute/",
    ),
    sizes={
        "focus_attribute": Size(2000, 10),
        "change_attribute": Size(2112, 15),
        "focus_object": Size(1960, 15),
        "change_object": Size(1960, 15),
    },
    groups={"mean": GENECIS_SUBSETS},
    own_galleries=True,
    checked="annotations checked",
)
MULTITURN_FASHIONIQ = Protocol(
    name="multiturn_fashioniq",
    title="Multi-turn FashionIQ",
    read=read_multiturn_fashioniq,
    metric=Metric(cuts=(5, 8, 10), main=5),
    source="github.com/yfyuan01/MultiturnFashionRetrieval; pictures: FashionIQ (as in M-BEIR)",
    layout=("data/all.val.json", "image_splits/split.all.val.json", "fashioniq_images/"),
    sizes={"val": Size(2400, 6257)},
    checked="annotations checked",
)
