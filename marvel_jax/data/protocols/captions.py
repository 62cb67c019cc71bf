"""Pictures and their captions, each sought by the other: Flickr30K, COCO, ShareGPT4V, Urban1K."""

from pathlib import Path

from marvel_jax.data.protocols.protocol import Metric, Protocol, SetData, Size
from marvel_jax.data.protocols.reading import captioned, read_lines, read_records, read_texts
from marvel_jax.errors import MarvelError

FIND_IMAGE = "Find me an everyday image that matches the given caption."
FIND_CAPTION = "Find an image caption describing the following everyday image."

_PER_IMAGE = 5


def _numbered(root: Path, *, texts: str, images: str, instruction: str | None) -> SetData:
    """Pictures 0.png, 1.png, ... of which each has five captions of a list, one after another."""
    captions = read_texts(root / texts)
    if len(captions) % _PER_IMAGE:
        raise MarvelError(
            f"{root / texts}: {len(captions)} captions; expected {_PER_IMAGE} for each picture."
        )
    return captioned(
        [(str(n), root / images / f"{n}.png") for n in range(len(captions) // _PER_IMAGE)],
        [(str(n), text, str(n // _PER_IMAGE)) for n, text in enumerate(captions)],
        asks_images=instruction,
    )


def read_flickr30k(root: Path) -> SetData:
    """flickr_text.json, images/."""
    return _numbered(root, texts="flickr_text.json", images="images", instruction=FIND_IMAGE)


def read_coco(root: Path) -> SetData:
    """coco_text.json, coco_images/; nobody has an instruction."""
    return _numbered(root, texts="coco_text.json", images="coco_images", instruction=None)


def read_sharegpt4v(root: Path) -> SetData:
    """datas_for_validation.json with a caption for each picture of val_data/."""
    records = read_records(root / "datas_for_validation.json")
    pairs = [(str(n), one.text("image_name"), one.text("caption")) for n, one in enumerate(records)]
    return captioned(
        [(n, root / "val_data" / name) for n, name, _ in pairs],
        [(n, caption, n) for n, _, caption in pairs],
        asks_images=FIND_IMAGE,
    )


def read_urban1k(root: Path) -> SetData:
    """image/N.jpg and the first line of caption/N.txt; pictures have the instruction, always."""
    found = sorted((root / "caption").glob("*.txt"), key=lambda path: (len(path.stem), path.stem))
    if not found:
        raise MarvelError(f"{root / 'caption'} holds no .txt file.")
    captions = []
    for path in found:
        lines = read_lines(path)
        if not lines:
            raise MarvelError(f"{path} is empty: expected a caption in its first line.")
        captions.append((path.stem, lines[0], path.stem))
    return captioned(
        [(path.stem, root / "image" / f"{path.stem}.jpg") for path in found],
        captions,
        asks_captions=FIND_CAPTION,
        shown_images=FIND_CAPTION,
    )


_EVAL = "Hugging Face, code-kunkun/LamRA_Eval"

FLICKR30K = Protocol(
    name="flickr30k",
    title="Flickr30K, test 1K",
    read=read_flickr30k,
    metric=Metric(),
    source=_EVAL,
    layout=("images/0.png ...", "flickr_text.json"),
    sizes={"t2i": Size(5000, 1000), "i2t": Size(1000, 5000)},
)
COCO = Protocol(
    name="coco",
    title="COCO 5K",
    read=read_coco,
    metric=Metric(),
    source=_EVAL,
    layout=("coco_images/0.png ...", "coco_text.json"),
    sizes={"t2i": Size(25_000, 5000), "i2t": Size(5000, 25_000)},
)
SHAREGPT4V = Protocol(
    name="sharegpt4v",
    title="ShareGPT4V 1K",
    read=read_sharegpt4v,
    metric=Metric(),
    source=_EVAL,
    layout=("datas_for_validation.json", "val_data/"),
    sizes={"t2i": Size(1000, 1000), "i2t": Size(1000, 1000)},
)
URBAN1K = Protocol(
    name="urban1k",
    title="Urban1K",
    read=read_urban1k,
    metric=Metric(),
    source="Hugging Face, BeichenZhang/Urban1k",
    layout=("image/1.jpg ...", "caption/1.txt ..."),
    sizes={"t2i": Size(1000, 1000), "i2t": Size(1000, 1000)},
)
