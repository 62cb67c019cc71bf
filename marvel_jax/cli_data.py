"""`marvel data ...`: corpora to train on and to be judged by."""

from pathlib import Path
from typing import Annotated, Literal

from tyro.conf import Positional, arg
from tyro.extras import SubcommandApp

from marvel_jax.cli_flags import Json
from marvel_jax.errors import MarvelError
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


@data.command(name="check")
def data_check(
    folder: Annotated[Positional[Path], arg(help="The corpus.")],
    *,
    format: Annotated[  # noqa: A002
        str, arg(help="Its layout: mbeir, or a test set of `marvel evaluate --protocol`.")
    ] = "mbeir",
    images: Annotated[
        Literal["headers", "decode", "none"],
        arg(help="Read each picture's header and end, all of it, or none."),
    ] = "headers",
    counts: Annotated[
        Literal["auto", "published", "none"],
        arg(
            help="Compare with M-BEIR as published, with nothing, or (auto) with the manifest of a "
            "corpus made here and else as published where a set is M-BEIR's."
        ),
    ] = "auto",
    jobs: Annotated[int | None, arg(help="Processes; without it one a core.")] = None,
    out: Annotated[Path | None, arg(help="A JSON file for every problem.")] = None,
    json: Json = False,
) -> Outcome:
    """Looks for everything that is wrong with a corpus; 0 for none or notes alone, 1 for errors.

    Counts, ids that are twice or nowhere, empty and mistyped items, instructions without queries
    and queries without instructions, pictures that are missing, truncated, undecodable or extreme.
    """
    from marvel_jax.data.doctor import CheckOptions
    from marvel_jax.recipes.doctoring import check_data

    options = CheckOptions(images=images, counts=counts, jobs=jobs)
    return check_data(folder, options=options, out=out, layout=format)


@data.command(name="download")
def data_download(
    what: Annotated[Positional[Literal["mbeir", "nli"]], arg(help="Which corpus.")],
    *,
    dir: Annotated[Path, arg(help="Folder to fetch it into.")],  # noqa: A002
    only: Annotated[
        tuple[str, ...],
        arg(
            help="Parts of M-BEIR: queries, pools, qrels, instructions, images; train, val, test; "
            "sets as nights, nights_task4 or task4. Pictures come for all sets together."
        ),
    ] = (),
    unpack: Annotated[bool, arg(help="Unpack M-BEIR's pictures too: as much disk again.")] = False,
    json: Json = False,
) -> Outcome:
    """Fetches M-BEIR (169 GB with its pictures), or the sentence triplets of SimCSE, from the Hub.

    Says first how much disk that takes. Run it again after an interruption and it goes on.
    """
    from marvel_jax.recipes.downloading import download_mbeir, download_nli

    if what == "nli":
        if only or unpack:
            raise MarvelError("--only and --unpack are for mbeir; nli is one file.")
        return download_nli(dir)
    return download_mbeir(dir, only=only, unpack=unpack)
