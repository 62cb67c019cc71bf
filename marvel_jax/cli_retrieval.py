"""`marvel encode | index | search | mine | evaluate`: what a trained model is used for."""

import itertools
from pathlib import Path
from typing import Annotated, Literal

from tyro.conf import Positional, UseAppendAction, arg

from marvel_jax.cli_flags import Json
from marvel_jax.recipes.outcome import Outcome


def encode(
    model: Annotated[Positional[str], arg(help="A Hugging Face folder or a Hub id.")],
    *,
    pool: Annotated[Path, arg(help="An M-BEIR folder, or a jsonl of id, text, image.")],
    out: Annotated[Path, arg(help="The vector store to write.")],
    json: Json = False,
) -> Outcome:
    """Embeds every candidate of a pool into a vector store; a killed run goes on."""
    from marvel_jax.recipes.encoding import encode_pool

    return encode_pool(model, pool=pool, out=out)


def index(
    store: Annotated[Positional[Path], arg(help="A vector store.")],
    *,
    out: Annotated[Path, arg(help="The ScaNN index to write.")],
    json: Json = False,
) -> Outcome:
    """Builds a ScaNN index over a vector store."""
    from marvel_jax.recipes.searching import build_index

    return build_index(store, out=out)


def search(
    model: Annotated[Positional[str], arg(help="The model that made the store.")],
    *,
    store: Annotated[Path, arg(help="A vector store.")],
    index: Annotated[Path | None, arg(help="A ScaNN index of it; without one, exact.")] = None,
    text: Annotated[str | None, arg(help="The query's text.")] = None,
    image: Annotated[Path | None, arg(help="The query's picture.")] = None,
    instruction: Annotated[str | None, arg(help="What to look for.")] = None,
    k: Annotated[int, arg(help="How many to return.")] = 10,
    json: Json = False,
) -> Outcome:
    """Searches a store by text, picture or both."""
    from marvel_jax.recipes.searching import search_store

    return search_store(
        model, store=store, index=index, text=text, image=image, instruction=instruction, k=k
    )


def mine(
    model: Annotated[Positional[str], arg(help="A Hugging Face folder or a Hub id.")],
    *,
    data: Annotated[Path, arg(help="An M-BEIR folder.")],
    out: Annotated[Path, arg(help="The .jsonl to write, its manifest beside it.")],
    split: Annotated[str, arg(help="Whose queries and pool.")] = "train",
    pool: Annotated[
        Literal["global", "local"],
        arg(help="All candidates, or those of the query's data set and the modality asked for."),
    ] = "global",
    preset: Annotated[
        str,
        arg(
            help="filtered (similarity up to 0.7, the best 5), unfiltered, positive_aware, "
            "modality_aware (MM-Embed) or umarvel_two_strategy."
        ),
    ] = "filtered",
    overrides: Annotated[
        UseAppendAction[tuple[tuple[str, ...], ...]],
        arg(name="set", help="Its fields, as: --set threshold=0.6 k=3 9:0.pick=pool"),
    ] = (),
    teacher: Annotated[
        Path | None, arg(help="A reranker's scores, for --set teacher_above=0.5.")
    ] = None,
    ids_only: Annotated[bool, arg(help="Tell copies by their ids, not by content.")] = False,
    chosen_only: Annotated[bool, arg(help="Write only what is chosen.")] = False,
    scann: Annotated[bool, arg(help="Search with ScaNN instead of exactly.")] = False,
    seed: Annotated[int, arg(help="Of the draws and of each query's instruction.")] = 0,
    workdir: Annotated[
        Path | None, arg(help="Folder of the vectors; without one, beside --out.")
    ] = None,
    json: Json = False,
) -> Outcome:
    """Mines hard negatives for the training queries, and says why each was kept or dropped.

    Run it again after an interruption and it goes on where it stopped.
    """
    from marvel_jax.recipes.mining import mine_negatives

    return mine_negatives(
        model,
        data=data,
        out=out,
        split=split,
        pool=pool,
        preset=preset,
        settings=tuple(itertools.chain.from_iterable(overrides)),
        teacher=teacher,
        by_content=not ids_only,
        chosen_only=chosen_only,
        scann=scann,
        seed=seed,
        workdir=workdir,
    )


def evaluate(
    model: Annotated[Positional[str], arg(help="A Hugging Face folder or a Hub id.")],
    *,
    data: Annotated[Path, arg(help="An M-BEIR folder.")],
    workdir: Annotated[Path, arg(help="Folder for the vectors, the index and the scores.")],
    seed: Annotated[int, arg(help="Chooses each query's instruction.")] = 0,
    exact_only: Annotated[bool, arg(help="Leave out ScaNN, shown beside exact search.")] = False,
    json: Json = False,
) -> Outcome:
    """Scores a model with the M-BEIR protocol, on local pools and on the global one."""
    from marvel_jax.recipes.evaluate_command import evaluate_model

    return evaluate_model(model, data=data, workdir=workdir, seed=seed, scann=not exact_only)
