"""A small folder of every test set, written from its published layout, with scores by hand.

Pictures have one colour and texts name colours, so an embedder that sums colours (`ColourEmbedder`)
makes every cosine one that can be worked out on paper.
"""

import csv
import io
import json
import pickle
import zipfile
from collections.abc import Callable
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import PIL.Image

from marvel_jax.data.images import ImageError
from marvel_jax.data.items import Item

COLOURS = {
    "red": (1, 0, 0),
    "green": (0, 1, 0),
    "blue": (0, 0, 1),
    "yellow": (1, 1, 0),
    "cyan": (0, 1, 1),
    "magenta": (1, 0, 1),
    "white": (1, 1, 1),
}


class ColourEmbedder:
    """Sums the colours of an item's pictures and of its texts' words; instructions do not count."""

    dimension = 3
    model_hash = "colours"
    encoded = 0

    def manifest_fields(self) -> dict[str, Any]:
        return {
            "dimension": 3,
            "model_hash": self.model_hash,
            "template": "marvel",
            "attention": "bidirectional",
            "pooling": "mean",
            "positions": "sequential",
            "min_pixels": 1,
            "max_pixels": 1,
            "processor_hash": "none",
        }

    def processor(self, item: Item) -> np.ndarray:
        """What it reads of an item; an `ImageError` where a picture cannot be read."""
        return self.vector(item)

    def encode(self, items, *, on_failure=None, **_: object) -> np.ndarray:
        found = np.zeros((len(items), 3), np.float64)
        for place in range(len(items)):
            item = items[place]
            try:
                found[place] = self.vector(item)
            except ImageError as error:
                on_failure(place, error)
            self.encoded += 1
        return found.astype(np.float32)

    def vector(self, item: Item) -> np.ndarray:
        total = np.zeros(3)
        for part in item.parts:
            if isinstance(part, str):
                for word in part.lower().replace("?", " ").replace(".", " ").split():
                    total += COLOURS.get(word, (0, 0, 0))
                continue
            try:
                with PIL.Image.open(part.source) as opened:
                    total += np.asarray(opened.convert("RGB"), np.float64)[0, 0] / 255
            except OSError as error:
                reason = "it cannot be opened"
                raise ImageError(reason, file=str(part.source), reason=reason) from error
        return total / np.linalg.norm(total)


def paint(path: Path, colour: str) -> None:
    """A picture of one colour; PNG whatever its name, so that its colour is exact."""
    path.parent.mkdir(parents=True, exist_ok=True)
    pixels = np.full((28, 28, 3), 255, np.uint8) * np.array(COLOURS[colour], np.uint8)
    PIL.Image.fromarray(pixels).save(path, "png")


def put(path: Path, value: object) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    text = value if isinstance(value, str) else json.dumps(value)
    path.write_text(text, encoding="utf-8")


def put_lines(path: Path, rows: list[dict[str, Any]]) -> None:
    put(path, "".join(json.dumps(row) + "\n" for row in rows))


def flickr30k(root: Path) -> None:
    for number, colour in enumerate(("red", "green")):
        paint(root / "images" / f"{number}.png", colour)
    put(root / "flickr_text.json", ["red"] * 4 + ["green"] * 6)


def coco(root: Path) -> None:
    for number, colour in enumerate(("red", "green")):
        paint(root / "coco_images" / f"{number}.png", colour)
    put(root / "coco_text.json", ["green"] * 5 + ["red"] * 5)


def sharegpt4v(root: Path) -> None:
    captions = {"red": "red", "green": "green", "blue": "green"}
    for colour in captions:
        paint(root / "val_data" / f"sa_{colour}.jpg", colour)
    put(
        root / "datas_for_validation.json",
        [{"image_name": f"sa_{name}.jpg", "caption": text} for name, text in captions.items()],
    )


def urban1k(root: Path) -> None:
    for number, colour, other in ((1, "red", "green"), (2, "green", "blue"), (10, "blue", "red")):
        paint(root / "image" / f"{number}.jpg", colour)
        put(root / "caption" / f"{number}.txt", f"{colour}\n{other} {other} {other}\n")


def circo(root: Path) -> None:
    colours = {1: "red", 2: "yellow", 3: "green", 4: "blue"}
    for id, colour in colours.items():
        paint(root / "images" / "unlabeled2017" / f"{id:012}.jpg", colour)
    info = [{"id": id, "file_name": f"{id:012}.jpg"} for id in colours]
    put(root / "annotations" / "image_info_unlabeled2017.json", {"images": info})
    asked = {"shared_concept": "a colour"}
    val = [
        {"id": 0, "reference_img_id": 1, "relative_caption": "green", "gt_img_ids": [2, 1]},
        {"id": 1, "reference_img_id": 4, "relative_caption": "green", "gt_img_ids": [2]},
    ]
    put(root / "annotations" / "val.json", [one | asked for one in val])
    test = [{"id": 7, "reference_img_id": 1, "relative_caption": "red"} | asked]
    put(root / "annotations" / "test.json", test)


def genecis(root: Path) -> None:
    for id, colour in ((5, "red"), (6, "yellow"), (7, "blue")):
        paint(root / "val2017" / f"{id:012}.jpg", colour)

    def at(id: int) -> dict[str, int]:
        return {"val_image_id": id}

    change = [
        {"reference": at(5), "target": at(6), "gallery": [at(5), at(7)], "condition": "green"},
        # The target is as near as another: that does not count as found first.
        {"reference": at(7), "target": at(5), "gallery": [at(7)], "condition": "red"},
    ]
    put(root / "annotations" / "change_object.json", change)
    for slot, colour in enumerate(("red", "red", "green")):
        paint(root / "vg" / "focus_attribute" / f"9_0_{slot}.jpg", colour)
    crop = {"image_id": 9, "instance_bbox": [0, 0, 5, 5]}
    focus = [{"reference": crop, "target": crop, "gallery": [crop], "condition": "red"}]
    put(root / "annotations" / "focus_attribute.json", focus)


def visdial(root: Path) -> None:
    for id, colour in ((1, "red"), (2, "green")):
        paint(root / "VisualDialog_val2018" / f"VisualDialog_val2018_{id:012}.jpg", colour)
    said = [[{"question": 0, "answer": 1}], [{"question": 1, "answer": 0}]]
    dialogs = [{"image_id": id, "dialog": rounds} for id, rounds in zip((1, 2), said, strict=True)]
    data = {
        "questions": ["is it red", "is it blue"],
        "answers": ["no", "yes, red"],
        "dialogs": dialogs,
    }
    put(root / "visdial_1.0_val.json", {"data": data})


def multiturn_fashioniq(root: Path) -> None:
    for id, colour in zip("abcdefg", ("red", "green", "blue", *list(COLOURS)[3:]), strict=True):
        paint(root / "fashioniq_images" / f"{id}.jpg", colour)
    put(root / "image_splits" / "split.all.val.json", list("abcdefg"))
    sessions = [
        {"target": ["dress", "d"], "reference": [[0, ["green", ""], "a"]]},
        {"target": ["dress", "c"], "reference": [[0, ["more", "green"], "a"], [1, ["so"], "b"]]},
    ]
    put(root / "data" / "all.val.json", sessions)


def vist(root: Path) -> None:
    told = (
        ("s1", "p2", "green", 1, "green"),
        ("s1", "p1", "cyan", 0, "cyan"),
        ("s1", "p3", " ".join(["blue"] * 9), 2, "blue"),
        ("s2", "q1", "yellow", 0, "yellow"),
        ("s2", "q2", "red", 1, "white"),
        ("s3", "r1", "cyan", 0, "magenta"),
    )
    annotations = []
    for story, photo, text, order, colour in told:
        paint(root / "images" / f"{photo}.{'png' if photo == 'q2' else 'jpg'}", colour)
        one = {"story_id": story, "photo_flickr_id": photo, "text": text}
        annotations.append([one | {"worker_arranged_photo_order": order}])
    put(root / "val.story-in-sequence.json", {"annotations": annotations})


def ccneg(root: Path, data: object = None) -> None:
    found = (
        ("red", "red", "not, red, but, green"),
        ("green", "blue", "green"),
        # Without the comma as near as the true one: that is no choice.
        ("red", "red green", "red, blue"),
    )
    for number, (colour, _, _) in enumerate(found):
        paint(root / "ccneg_images" / f"{number}.jpg", colour)
    told = {
        "image_paths": [f"/elsewhere/cc3m/{number}.jpg" for number in range(len(found))],
        "annotations": [
            {"json": {"caption": right}, "sop_data": {"negative-prompt": wrong}}
            for _, right, wrong in found
        ],
    }
    with zipfile.ZipFile(root / "ccneg_preprocessed.pt", "w") as archive:
        archive.writestr("ccneg/data.pkl", pickle.dumps(told if data is None else data, protocol=2))
        archive.writestr("ccneg/version", "3\n")


def sugarcrepe(root: Path) -> None:
    for colour in ("red", "green"):
        paint(root / "val2017" / f"{colour}.jpg", colour)

    def one(colour: str, right: str, wrong: str) -> dict[str, str]:
        return {"filename": f"{colour}.jpg", "caption": right, "negative_caption": wrong}

    added = [one("red", "red", "green"), one("green", "red", "green")]
    put(root / "data" / "add_att.json", {str(n): value for n, value in enumerate(added)})
    put(root / "data" / "swap_obj.json", [one("green", "green", "red")])


def msrvtt(root: Path) -> None:
    rows = [("video7", "red"), ("video9", "magenta")]
    stream = io.StringIO()
    writer = csv.writer(stream)
    writer.writerow(["key", "vid_key", "video_id", "sentence"])
    for number, (id, sentence) in enumerate(rows):
        writer.writerow([f"ret{number}", f"msr{number}", id, sentence])
    put(root / "annotations" / "MSRVTT_JSFUSION_test.csv", stream.getvalue())
    for id, colour in (("video7", "red"), ("video9", "green")):
        paint(root / "videos" / f"{id}.mp4", colour)


def msvd(root: Path) -> None:
    put(root / "test_list.txt", "one_0_5\ntwo_1_7\n")
    told = {"one_0_5": [["a", "red", "dog"], ["green"]], "two_1_7": [["green"]], "of_train": []}
    (root / "raw-captions.pkl").write_bytes(pickle.dumps(told, protocol=2))
    for id, colour in (("one_0_5", "red"), ("two_1_7", "green")):
        paint(root / "YouTubeClips" / f"{id}.avi", colour)


def mmeb(root: Path) -> None:
    paint(root / "eval_images" / "VOC" / "0.jpg", "red")
    paint(root / "eval_images" / "OVEN" / "1.jpg", "green")
    sets = {
        "VOC2007": (
            [
                ("0:0", None, "VOC/0.jpg", ["0:0", "0:1"]),
                ("0:1", None, "VOC/0.jpg", ["0:1", "0:0"]),
            ],
            [("0:0", "red", None), ("0:1", "blue", None)],
        ),
        "OVEN": (
            [("30:0", "red", "OVEN/1.jpg", ["30:0", "30:1", "30:2"])],
            [("30:0", "yellow", None), ("30:1", "red", "OVEN/1.jpg"), ("30:2", "blue", None)],
        ),
        "N24News": (
            [("1:0", "red", None, ["1:0", "1:1"])],
            [("1:0", "red", None), ("1:1", "blue", None)],
        ),
    }
    for name, (queries, candidates) in sets.items():
        put_lines(
            root / name / f"{name}_query.jsonl",
            [
                {"qid": id, "query_txt": text, "query_img_path": image, "candidates": listed}
                for id, text, image, listed in queries
            ],
        )
        put_lines(
            root / name / f"{name}_candidate.jsonl",
            [{"did": id, "txt": text, "img_path": image} for id, text, image in candidates],
        )
    put(
        root / "data_instruction.json",
        {name: {"qry_instruction": f"Ask {name}."} for name in sets},
    )


def beir(root: Path) -> None:
    corpus = [
        ("d1", "red", ""),
        ("d2", "red", "green"),
        ("d3", "", "blue"),
        ("d4", "", "blue green"),
    ]
    put_lines(
        root / "corpus.jsonl",
        [{"_id": id, "title": title, "text": text} for id, title, text in corpus],
    )
    queries = [("q1", "red"), ("d3", "blue"), ("unjudged", "green")]
    put_lines(root / "queries.jsonl", [{"_id": id, "text": text} for id, text in queries])
    judged = "query-id\tcorpus-id\tscore\nq1\td1\t1\nq1\td2\t2\nq1\td3\t0\nd3\td4\t1\n"
    put(root / "qrels" / "test.tsv", judged)


class Fixture(NamedTuple):
    """How a folder is written, what it scores, how it is broken and what is then said."""

    write: Callable[[Path], None]
    scores: dict[str, dict[str, float]]
    spoil: Callable[[Path], None]
    refusal: str


def _edit(file: str, old: str, new: str) -> Callable[[Path], None]:
    def spoil(root: Path) -> None:
        text = (root / file).read_text(encoding="utf-8")
        assert old in text
        put(root / file, text.replace(old, new, 1))

    return spoil


THIRD = 1 / 3
LOG3 = float(np.log2(3))
FIXTURES: dict[str, Fixture] = {
    # Caption 4 is of the first picture and names the second's colour; among equal ones the lower
    # id stands first, so the second picture finds it and not its own.
    "flickr30k": Fixture(
        flickr30k,
        {"t2i": {"R@1": 0.9, "R@5": 1, "R@10": 1}, "i2t": {"R@1": 0.5, "R@5": 1, "R@10": 1}},
        lambda root: put(root / "flickr_text.json", ["red"] * 9),
        "flickr_text.json: 9 captions; expected 5",
    ),
    "coco": Fixture(
        coco,
        {"t2i": {"R@1": 0, "R@5": 1, "R@10": 1}, "i2t": {"R@1": 0, "R@5": 0, "R@10": 1}},
        _edit("coco_text.json", '"green"', "5"),
        "coco_text.json, entry 0: expected a text, found 5",
    ),
    "sharegpt4v": Fixture(
        sharegpt4v,
        {
            "t2i": {"R@1": 2 / 3, "R@5": 1, "R@10": 1},
            "i2t": {"R@1": 2 / 3, "R@5": 1, "R@10": 1},
        },
        _edit("datas_for_validation.json", "image_name", "image"),
        "datas_for_validation.json, entry 0: expected image_name as a text, found None",
    ),
    "urban1k": Fixture(
        urban1k,
        {"t2i": {"R@1": 1, "R@5": 1, "R@10": 1}, "i2t": {"R@1": 1, "R@5": 1, "R@10": 1}},
        lambda root: put(root / "caption" / "2.txt", "\n"),
        r"2\.txt is empty",
    ),
    # Red and green make yellow: both answers first. Blue and green are nearer to cyan than yellow.
    "circo": Fixture(
        circo,
        {"val": dict.fromkeys(("mAP@5", "mAP@10", "mAP@25", "mAP@50"), (1 + THIRD) / 2)},
        _edit("annotations/val.json", "[2, 1]", "[2, 99]"),
        "val: 1 candidates that it names are not among the 4 images: '99'",
    ),
    "genecis": Fixture(
        genecis,
        {
            "focus_attribute": {"R@1": 1, "R@2": 1, "R@3": 1},
            "change_object": {"R@1": 0.5, "R@2": 1, "R@3": 1},
        },
        _edit("annotations/change_object.json", '"target"', '"goal"'),
        "change_object.json, entry 0, target: expected an object, found NoneType",
    ),
    "visdial": Fixture(
        visdial,
        {"val": {"R@1": 0.5, "R@5": 1, "R@10": 1}},
        _edit("visdial_1.0_val.json", '"answer": 1', '"answer": 5'),
        "dialog, entry 0: answer is 5, but there are 2",
    ),
    # The second: red, then green twice, is seventh nearest to blue.
    "multiturn_fashioniq": Fixture(
        multiturn_fashioniq,
        {"val": {"R@5": 0.5, "R@8": 1, "R@10": 1}},
        _edit("data/all.val.json", '[0, ["green", ""], "a"]', '["green", "a"]'),
        r"all.val.json, entry 0: expected turns as \[number, \[texts\], picture\]",
    ),
    # The second finds its own only without its first picture. The third is nearest to five others,
    # the last of them as near as its own.
    "vist": Fixture(
        vist,
        {"last": {"R@1": 2 / 3, "R@5": 2 / 3, "R@10": 1}},
        _edit("val.story-in-sequence.json", "photo_flickr_id", "photo"),
        "annotations, entry 0: expected photo_flickr_id as an id, found None",
    ),
    "ccneg": Fixture(
        ccneg,
        {"test": {"accuracy": THIRD}},
        lambda root: ccneg(root, {"image_paths": Path("x"), "annotations": []}),
        "ccneg_preprocessed.pt: it holds pathlib.*, and only plain data is read",
    ),
    "sugarcrepe": Fixture(
        sugarcrepe,
        {"add_att": {"accuracy": 0.5}, "swap_obj": {"accuracy": 1}},
        _edit("data/swap_obj.json", "negative_caption", "negative"),
        "swap_obj.json, entry 0: expected negative_caption as a text, found None",
    ),
    "msrvtt": Fixture(
        msrvtt,
        {"t2v": {"R@1": 0.5, "R@5": 1, "R@10": 1}},
        _edit("annotations/MSRVTT_JSFUSION_test.csv", "sentence", "caption"),
        "expected columns video_id, sentence, found key, vid_key, video_id, caption",
    ),
    "msvd": Fixture(
        msvd,
        {"t2v": {"R@1": 2 / 3, "R@5": 1, "R@10": 1}},
        _edit("test_list.txt", "one_0_5", "one_0_6"),
        "raw-captions.pkl: expected sentences of 'one_0_6', found None",
    ),
    "mmeb": Fixture(
        mmeb,
        {"VOC2007": {"hit@1": 0.5}, "N24News": {"hit@1": 1}, "OVEN": {"hit@1": 0}},
        _edit("VOC2007/VOC2007_query.jsonl", '["0:0", "0:1"]', '["0:0", "0:7"]'),
        "VOC2007: 1 candidates that it names are not among the 2 VOC2007 candidates: '0:7'",
    ),
    # q1: grade 1 first, grade 2 second. d3: the document of its own id is left out.
    "beir": Fixture(
        beir,
        {"test": dict.fromkeys(("nDCG@10", "nDCG@100"), ((1 + 2 / LOG3) / (2 + 1 / LOG3) + 1) / 2)},
        _edit("qrels/test.tsv", "q1\td1\t1", "q1\td1\tgood"),
        "test.tsv, line 2: expected query, document and a whole number",
    ),
}
