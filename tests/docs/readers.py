"""What a reader of a page has by the time of its commands, in little: models, corpora, photos.

Everything stands under the name that the page uses, so that its commands run as they are written.
"""

import re
import shutil
from pathlib import Path
from typing import NamedTuple

from marvel_jax.collection.build import BuildOptions
from marvel_jax.data import mbeir_synthetic
from marvel_jax.recipes.collecting import index_collection
from marvel_jax.recipes.evaluate_command import evaluate_model
from marvel_jax.recipes.stage_runs import run_stage
from marvel_jax.recipes.stages import Base
from marvel_jax.settings import EmbeddingSettings
from marvel_jax.video_geometry import VideoGeometry
from tests import tiny
from tests.data import videos
from tests.docs.commands import ROOT
from tests.protocol_folders import FIXTURES, put, put_lines

_SMALLEST = mbeir_synthetic.Size(train=1, test=1, distractors=0, short_side=28, text=0.25)


class Shelf(NamedTuple):
    """Made once for all pages, and not to be changed.

    model: of random weights, an embedder and a reranker, with vectors of 128 numbers.
    mbeir: all sixteen sets, of four test queries each.
    other: an evaluation of the model on them, of another seed than the pages' own.
    collection: of a few photos and texts.
    """

    model: Path
    mbeir: Path
    other: Path
    collection: Path


def fill(folder: Path) -> Shelf:
    """Makes what the pages share."""
    mbeir = folder / "M-BEIR"
    mbeir_synthetic.build(mbeir, size=_SMALLEST)
    architecture = tiny.architecture(hidden_size=128, mrope_section=(8, 4, 4))
    run_stage(Base("base", str(mbeir), architecture, max_pixels=28 * 28), folder / "base", print)
    model = folder / "base" / "model"
    evaluate_model(str(model), data=mbeir, workdir=folder / "other", seed=1, scann=False)
    photos(folder / "photos")
    index_collection(
        folder / "photos", out=folder / "collection", model=str(model), options=BuildOptions()
    )
    return Shelf(model, mbeir, folder / "other", folder / "collection")


def link(place: str, target: Path) -> None:
    """Puts something that is there already under the name that the page has for it."""
    path = Path(place)
    path.parent.mkdir(parents=True, exist_ok=True)
    path.symlink_to(target)


def checkout() -> None:
    """The files of the checkout that pages name."""
    for name in ("configs", "launch"):
        link(name, ROOT / name)


def photos(root: Path) -> None:
    """Pictures and texts of one's own, with the names that docs/search.md has."""
    for number, name in enumerate(("2024/cat.jpg", "holiday/beach.jpg", "holiday/sea.jpg")):
        picture(root / name, number)
    put(root / "names" / "oak.txt", "an oak")
    put(root / "names" / "elm.txt", "an elm")


def picture(path: Path, seed: int) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(tiny.picture(seed))


def readme(shelf: Shelf) -> None:
    evaluator(shelf)
    searcher(shelf)


def searcher(shelf: Shelf) -> None:
    """A quickstart that is done, photos, and queries of one's own, as docs/search.md has them."""
    link("runs/quickstart/model", shelf.model)
    link("runs/quickstart/collection", shelf.collection)
    photos(Path("PHOTOS"))
    picture(Path("house.jpg"), 7)
    picture(Path("unknown.jpg"), 8)
    page = ROOT / "docs" / "search.md"
    (queries,) = (one for one in blocks(page, "json") if '"relevant"' in one)
    put(Path("labelled.jsonl"), queries)
    answered = [{"text": "an oak", "kind": "text", "relevant": ["names/oak.txt"]}]
    put_lines(Path("runs/quickstart/labelled.jsonl"), answered)


def evaluator(shelf: Shelf) -> None:
    """M-BEIR, another run on it, a test set of docs/evaluation.md and its own."""
    for name in ("MODEL", "RERANKER"):
        link(name, shelf.model)
    link("data/M-BEIR", shelf.mbeir)
    link("runs/other", shelf.other)
    FIXTURES["circo"].write(Path("data/circo"))
    (code,) = (one for one in blocks(ROOT / "docs" / "evaluation.md", "python"))
    put(Path("products.py"), code)
    for number in range(3):
        picture(Path(f"data/products/pictures/{number}.png"), number)
    put(Path("data/products/products.csv"), "id,file\na,0.png\nb,1.png\nc,2.png\n")
    put(Path("data/products/questions.csv"), "id,question,products\n1,red?,a b\n2,blue?,c\n")


def stores(shelf: Shelf) -> None:
    """Stores of candidates and of queries, as evaluations leave them."""
    link("STORE", shelf.other / "store")
    link("QUERY_STORE", shelf.other / "queries" / "seed-1" / "nights_task4")


def at_7b(shelf: Shelf) -> None:
    """What the recipe would have made, with other weights."""
    link("data/mbeir", shelf.mbeir)
    for stage in ("distill", "reranker-plus"):
        link(f"runs/7b/{stage}/model", shelf.model)
    link("runs/eval-instruct", shelf.other)
    photos(Path("PHOTOS"))


def recipe(shelf: Shelf) -> None:
    """Data from outside, and runs of which one stage has been evaluated."""
    link("big/M-BEIR", shelf.mbeir)
    put(Path("big/nli_for_simcse.csv"), "sent0,sent1,hard_neg\na,b,c\n")
    put(Path("big/cc3m.json"), [])
    for scored in ("runs/tiny/evaluate-instruct", "runs/negatives/evaluate-before"):
        link(f"{scored}/scores.json", shelf.other / "scores.json")


_STUDY = """\
from marvel_jax.recipes.recipe import Recipe
from marvel_jax.recipes.stages import Subset
from marvel_jax.studies.axes import Axis
from marvel_jax.studies.study import Metric, Study

study = tiny = Study(
    base=Recipe((Subset("part", "data/M-BEIR", last=0.5),)),
    axes=(Axis("share", "part.last", (0.25, 0.5, 0.75)),),
    seeded=("part.seed",),
    metrics=(Metric("seconds", better="lower"),),
)
"""


def studies(shelf: Shelf) -> None:
    """A study of one's own, of stages that take no time."""
    link("data/M-BEIR", shelf.mbeir)
    put(Path("shares.py"), _STUDY)
    Path("runs").mkdir()


def inputs(shelf: Shelf) -> None:
    """The lines of docs/inputs.md as a pool and one of them as a query, and the files they name.

    The model reads videos as small as its pictures, as the page says how.
    """
    shutil.copytree(shelf.model, "MODEL")
    small = VideoGeometry(min_pixels=14 * 14, max_pixels=28 * 28)
    put(Path("MODEL/marvel.json"), EmbeddingSettings.read(Path("MODEL"), video=small).to_dict())
    (lines,) = blocks(ROOT / "docs" / "inputs.md", "json")
    put(Path("FILE.jsonl"), lines)
    put(Path("FILE.json"), lines.splitlines()[1])
    for number, name in enumerate(("bag", "a", "b", "frame1", "frame2")):
        picture(Path(f"{name}.jpg"), number)
    Path("clip.mp4").write_bytes(videos.encoded(videos.frames(20)))


def blocks(page: Path, language: str) -> list[str]:
    """The blocks of a language in a page."""
    text = page.read_text(encoding="utf-8")
    return re.findall(rf"^```{language}\n(.*?)^```$", text, re.MULTILINE | re.DOTALL)
