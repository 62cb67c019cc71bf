"""`marvel data ...`: corpora to train on and to be judged by."""

from pathlib import Path
from typing import Annotated

from tyro.conf import Positional, arg
from tyro.extras import SubcommandApp

from marvel_jax.cli_flags import Json
from marvel_jax.recipes.outcome import Outcome

data = SubcommandApp()


@data.command(name="emoji")
def data_emoji(
    *,
    out: Annotated[Path, arg(help="Folder to write; it must not exist.")],
    seed: Annotated[int, arg(help="Decides what is held out.")] = 0,
    json: Json = False,
) -> Outcome:
    """Builds the emoji corpus: pictures, names in 14 languages, eight tasks, M-BEIR and TFDS."""
    from marvel_jax.recipes.corpora import build_emoji

    return build_emoji(out, seed=seed)


@data.command(name="make-mbeir")
def data_make_mbeir(
    out: Annotated[Positional[Path], arg(help="Folder to write; it must not exist.")],
    *,
    size: Annotated[
        str, arg(help="tiny, small, medium, full, or a number of training queries.")
    ] = "tiny",
    seed: Annotated[int, arg(help="Draws scenes, texts and pictures.")] = 0,
    with_pairs: Annotated[
        bool, arg(help="Sentence triplets and captioned pictures beside it.")
    ] = False,
    json: Json = False,
) -> Outcome:
    """Makes a synthetic M-BEIR: all sixteen sets in the real layout, of any size, for dry runs."""
    from marvel_jax.recipes.corpora import make_mbeir

    return make_mbeir(out, size=size, seed=seed, with_pairs=with_pairs)
