"""`marvel ...`: parse, call, print; what is heavy is imported by the command that needs it."""

import itertools
import json
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Annotated, NoReturn

from tyro.conf import FlagCreatePairsOff, Positional, UseAppendAction, arg
from tyro.extras import SubcommandApp

from marvel_jax.errors import MarvelError
from marvel_jax.recipes.outcome import EXIT_ERROR, EXIT_INTERRUPTED, Outcome

Json = Annotated[bool, arg(help="Print one JSON object as the last line of standard output.")]
ModelArg = Annotated[str, arg(help="A model: a Hugging Face folder or a Hub id.")]

app = SubcommandApp()
data = SubcommandApp()
app.command(data, name="data", help="Builds a corpus.")


@app.command
def quickstart(
    *,
    workdir: Annotated[Path, arg(help="Folder of the run.")] = Path("runs/quickstart"),
    seed: Annotated[int, arg(help="Seeds the corpus's split, weights, data order.")] = 0,
    short: Annotated[bool, arg(help="A tiny run of every stage, to see that all works.")] = False,
    json: Json = False,
) -> Outcome:
    """Corpus, training, encoding, ScaNN, evaluation and a report, end to end on real pictures.

    Run it again after an interruption and it goes on where it stopped.
    """
    from marvel_jax.recipes.quickstart import run_quickstart

    return run_quickstart(workdir, seed=seed, short=short)


@data.command(name="emoji")
def data_emoji(
    *,
    out: Annotated[Path, arg(help="Folder to write; it must not exist.")],
    seed: Annotated[int, arg(help="Decides what is held out.")] = 0,
    json: Json = False,
) -> Outcome:
    """Builds the emoji corpus: pictures, names in 14 languages, eight tasks, M-BEIR and TFDS."""
    from marvel_jax.recipes.commands import build_emoji

    return build_emoji(out, seed=seed)


@app.command
def train(
    config: Annotated[Positional[Path], arg(help="A Python file that defines `config`.")],
    *,
    workdir: Annotated[Path, arg(help="Folder of the run; an unfinished run in it resumes.")],
    overrides: Annotated[
        UseAppendAction[tuple[tuple[str, ...], ...]],
        arg(name="set", help="Fields to change, as: --set steps=100 model.dtype=bfloat16"),
    ] = (),
    json: Json = False,
) -> Outcome:
    """Trains what a config describes, and writes the model as a Hugging Face folder."""
    from marvel_jax.recipes.commands import run_training

    return run_training(config, workdir, overrides=tuple(itertools.chain.from_iterable(overrides)))


@app.command
def encode(
    model: Annotated[Positional[str], arg(help="A Hugging Face folder or a Hub id.")],
    *,
    pool: Annotated[Path, arg(help="An M-BEIR folder, or a jsonl of id, text, image.")],
    out: Annotated[Path, arg(help="The vector store to write.")],
    json: Json = False,
) -> Outcome:
    """Embeds every candidate of a pool into a vector store; a killed run goes on."""
    from marvel_jax.recipes.commands import encode_pool

    return encode_pool(model, pool=pool, out=out)


@app.command
def index(
    store: Annotated[Positional[Path], arg(help="A vector store.")],
    *,
    out: Annotated[Path, arg(help="The ScaNN index to write.")],
    json: Json = False,
) -> Outcome:
    """Builds a ScaNN index over a vector store."""
    from marvel_jax.recipes.commands import build_index

    return build_index(store, out=out)


@app.command
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
    from marvel_jax.recipes.commands import search_store

    return search_store(
        model, store=store, index=index, text=text, image=image, instruction=instruction, k=k
    )


@app.command
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
    from marvel_jax.recipes.commands import evaluate_model

    return evaluate_model(model, data=data, workdir=workdir, seed=seed, scann=not exact_only)


@app.command(name="import")
def import_model(
    source: Annotated[Positional[str], arg(help="A Hugging Face folder or a Hub id.")],
    *,
    out: Annotated[Path, arg(help="Folder to write; it must not exist.")],
    json: Json = False,
) -> Outcome:
    """Reads a Qwen2-VL checkpoint, accounts for every weight, and writes it as a model folder."""
    from marvel_jax.recipes.commands import import_checkpoint

    return import_checkpoint(source, out=out)


@app.command
def export(
    run: Annotated[Positional[Path], arg(help="The folder of a training run.")],
    *,
    out: Annotated[Path, arg(help="Folder to write; it must not exist.")],
    json: Json = False,
) -> Outcome:
    """Writes a run's newest checkpoint as a Hugging Face folder that transformers loads."""
    from marvel_jax.recipes.commands import export_run

    return export_run(run, out=out)


def main(args: Sequence[str] | None = None) -> None:
    """Runs one command; exits 0 only if it succeeded, 130 if interrupted, 2 on wrong arguments."""
    args = list(sys.argv[1:] if args is None else args)
    as_json = "--json" in args
    try:
        outcome: Outcome = app.cli(
            prog="marvel",
            description="Universal multimodal retrieval in JAX.",
            args=args,
            config=(FlagCreatePairsOff,),
        )
    except MarvelError as error:
        _fail(str(error), EXIT_ERROR, as_json=as_json)
    except OSError as error:
        if error.filename is None:  # not about a file that a user named
            raise
        _fail(f"{error.filename}: {error.strerror}.", EXIT_ERROR, as_json=as_json)
    except KeyboardInterrupt:
        message = "interrupted; run the same command again to go on."
        _fail(message, EXIT_INTERRUPTED, as_json=as_json)
    except SystemExit as stop:
        if stop.code and as_json:  # tyro has told a person what is wrong with the arguments
            print(json.dumps({"error": "the arguments do not fit: see standard error."}))
        raise
    for line in outcome.lines:
        print(line)
    if as_json:
        print(json.dumps(dict(outcome.facts), ensure_ascii=False))
    sys.exit(outcome.code)


def _fail(message: str, code: int, *, as_json: bool) -> NoReturn:
    if as_json:
        print(json.dumps({"error": message}, ensure_ascii=False))
    print(f"marvel: {message}", file=sys.stderr)
    sys.exit(code)


if __name__ == "__main__":
    main()
