"""Long questions look for a picture: the dialogues of VisDial, the stories of VIST."""

from pathlib import Path

from marvel_jax.data.items import Image, Item, Part
from marvel_jax.data.protocols.protocol import Answers, Metric, Protocol, SetData, Size, Test
from marvel_jax.data.protocols.reading import Record, picture, read_record, texts
from marvel_jax.errors import MarvelError

FIND_BY_DIALOG = "Find me an everyday image that matches the given dialog."
FIND_LAST = (
    "I will provide you with a series of images and captions from a story, and I need you to "
    "retrieve the image corresponding to the last caption."
)

_ENDINGS = (".jpg", ".png", ".gif")


def read_visdial(root: Path) -> SetData:
    """visdial_1.0_val.json: all ten rounds of a dialogue look for its picture."""
    data = read_record(root / "visdial_1.0_val.json").object("data")
    questions, answers = data.values("questions"), data.values("answers")
    dialogs, images = [], []
    for one in data.records("dialogs"):
        id = one.id("image_id")
        rounds = [
            f"Q: {_at(questions, said, 'question')}? A: {_at(answers, said, 'answer')}."
            for said in one.records("dialog")
        ]
        dialogs.append((id, " ".join(rounds)))
        path = root / "VisualDialog_val2018" / f"VisualDialog_val2018_{id:>012}.jpg"
        images.append(picture(path, id=id))
    return SetData(
        {"dialogs": texts(dialogs, instruction=FIND_BY_DIALOG), "images": images},
        (Test("val", "dialogs", "images", [Answers((id,)) for id, _ in dialogs]),),
    )


def _at(sentences: list[object], said: Record, name: str) -> object:
    number = said.number(name)
    if not 0 <= number < len(sentences):
        raise MarvelError(
            f"{said.where}: {name} is {number}, but there are {len(sentences)} of them."
        )
    return sentences[number]


def read_vist(root: Path) -> SetData:
    """*.json of stories: captions and pictures in turn, and a last caption that looks for its own.

    The pictures of a story that were shown are left out of what it ranks.
    """
    files = sorted(root.glob("*.json"))
    if len(files) != 1:
        raise MarvelError(
            f"{root} holds {len(files)} .json files; expected one, val.story-in-sequence.json."
        )
    stories: dict[str, list[Record]] = {}
    for place, wrapped in enumerate(read_record(files[0]).values("annotations")):
        where = f"{files[0]}, annotations, entry {place}"
        if not isinstance(wrapped, list) or len(wrapped) != 1:
            raise MarvelError(f"{where}: expected a list of one object, found {wrapped!r:.80}.")
        one = Record(wrapped[0], where)
        stories.setdefault(one.id("story_id"), []).append(one)
    folder = root / "images"
    there = {path.name for path in folder.iterdir()} if folder.is_dir() else set()
    queries, answers = [], []
    images: dict[str, Item] = {}

    def image(id: str) -> Path:
        named = (f"{id}{ending}" for ending in _ENDINGS)
        return folder / next((name for name in named if name in there), f"{id}.jpg")

    for story, told in stories.items():
        told.sort(key=lambda one: one.number("worker_arranged_photo_order"))
        ids = [one.id("photo_flickr_id") for one in told]
        images |= {id: picture(image(id), id=id) for id in ids}
        parts: list[Part] = []
        for one, id in zip(told[:-1], ids, strict=False):
            parts += [one.text("text"), Image(image(id))]
        parts.append(told[-1].text("text"))
        queries.append(Item(tuple(parts), instruction=FIND_LAST, id=story))
        shown = tuple(id for id in dict.fromkeys(ids[:-1]) if id != ids[-1])
        answers.append(Answers((ids[-1],), shown=shown))
    return SetData(
        {"stories": queries, "images": list(images.values())},
        (Test("last", "stories", "images", answers),),
    )


VISDIAL = Protocol(
    name="visdial",
    title="VisDial 1.0, val",
    read=read_visdial,
    metric=Metric(),
    source="visualdialog.org",
    layout=("visdial_1.0_val.json", "VisualDialog_val2018/"),
    sizes={"val": Size(2064, 2064)},
)
VIST = Protocol(
    name="vist",
    title="VIST",
    read=read_vist,
    metric=Metric(),
    source="visionandlanguage.net/VIST",
    layout=("val.story-in-sequence.json", "images/"),
)
