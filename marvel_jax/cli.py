"""`marvel ...`: parse, call, print; what is heavy is imported by the command that needs it."""

import errno
import functools
import itertools
import json
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Annotated, Any, Literal

from tyro.conf import FlagCreatePairsOff, Positional, UseAppendAction, arg
from tyro.extras import SubcommandApp

from marvel_jax.cli_bench import bench
from marvel_jax.cli_flags import Json
from marvel_jax.cli_plan import plan
from marvel_jax.cli_run import run, table
from marvel_jax.errors import MarvelError
from marvel_jax.recipes.outcome import EXIT_ERROR, EXIT_INTERRUPTED, Outcome

ModelArg = Annotated[str, arg(help="A model: a Hugging Face folder or a Hub id.")]

_DISK_IS_FULL = (errno.ENOSPC, errno.EDQUOT, errno.EFBIG)

app = SubcommandApp()
data = SubcommandApp()
app.command(data, name="data", help="Builds a corpus.")
app.command(bench, name="bench", help="Measures loss, train step, packing, attention, encoding.")
app.command(plan)
app.command(run)
app.command(table)


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


@app.command
def train(
    config: Annotated[Positional[Path], arg(help="A Python file that defines `config`.")],
    *,
    workdir: Annotated[Path, arg(help="Folder of the run; an unfinished run in it resumes.")],
    overrides: Annotated[
        UseAppendAction[tuple[tuple[str, ...], ...]],
        arg(name="set", help="Fields to change, as: --set steps=100 model.dtype=bfloat16"),
    ] = (),
    layout: Annotated[
        str | None, arg(help="A layout that the config file defines, as gpu:h100:64.")
    ] = None,
    profile_steps: Annotated[
        str | None, arg(help="Steps to trace for xprof, as 10:12, into the run's profile/.")
    ] = None,
    peak_tflops: Annotated[
        float | None, arg(help="A device's dense peak, for MFU where it is not known.")
    ] = None,
    coordinator: Annotated[
        str | None, arg(help="HOST:PORT of process 0, where no scheduler tells it.")
    ] = None,
    num_processes: Annotated[
        int | None, arg(help="How many processes the run has; 1 = this one, whatever is told.")
    ] = None,
    process_id: Annotated[int | None, arg(help="Which of them this is, from 0.")] = None,
    join_timeout: Annotated[
        float | None, arg(help="Seconds that the processes wait for each other at the start (300).")
    ] = None,
    json: Json = False,
) -> Outcome:
    """Trains what a config describes, and writes the model as a Hugging Face folder.

    Ctrl-C and SIGTERM save before they stop (exit codes 130 and 143).
    """
    from marvel_jax.recipes.commands import run_training

    return run_training(
        config,
        workdir,
        overrides=tuple(itertools.chain.from_iterable(overrides)),
        layout=layout,
        profile_steps=profile_steps,
        peak_tflops=peak_tflops,
        coordinator=coordinator,
        num_processes=num_processes,
        process_id=process_id,
        join_timeout=join_timeout,
        voice=_voice(as_json=json),
    )


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
    adapters: Annotated[
        str | None, arg(help="Adapters of it in PEFT's layout to merge: a folder or a Hub id.")
    ] = None,
    json: Json = False,
) -> Outcome:
    """Reads a Qwen2-VL checkpoint, accounts for every weight, and writes it as a model folder."""
    from marvel_jax.recipes.commands import import_checkpoint

    return import_checkpoint(source, out=out, adapters=adapters)


@app.command
def export(
    run: Annotated[Positional[Path], arg(help="The folder of a training run.")],
    *,
    out: Annotated[Path, arg(help="Folder to write; it must not exist.")],
    adapters: Annotated[bool, arg(help="The adapters alone, as PEFT lays them out.")] = False,
    step: Annotated[int | None, arg(help="Which checkpoint; without it, the newest.")] = None,
    base: Annotated[
        str | None, arg(help="Where the model that the run started from is now, if it moved.")
    ] = None,
    json: Json = False,
) -> Outcome:
    """Writes a run's checkpoint as a Hugging Face folder that transformers loads."""
    from marvel_jax.recipes.commands import export_run

    return export_run(run, out=out, adapters=adapters, step=step, base=base)


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
    except (MarvelError, OSError, KeyboardInterrupt) as error:
        explained = _explain(error)
        if explained is None:
            raise
        _tell(explained[0], as_json=as_json)
        sys.exit(explained[1])
    except SystemExit as stop:
        if stop.code and as_json:  # tyro has told a person what is wrong with the arguments
            print(json.dumps({"error": "the arguments do not fit: see standard error."}))
        raise
    for line in outcome.lines:
        print(line)
    if as_json:
        print(json.dumps(dict(outcome.facts), ensure_ascii=False))
    sys.exit(outcome.code)


def _explain(error: BaseException) -> tuple[str, int] | None:
    """What a person is told of an error, and the exit code; None for a fault of ours."""
    if isinstance(error, MarvelError):
        return str(error), EXIT_ERROR
    if isinstance(error, KeyboardInterrupt):
        return "interrupted; run the same command again to go on.", EXIT_INTERRUPTED
    # One that is about a file that a user named, or about the disk.
    if isinstance(error, OSError) and (error.filename or error.errno in _DISK_IS_FULL):
        named = error.filename or "a file could not be written"
        return f"{named}: {error.strerror}.", EXIT_ERROR
    return None


def _tell(message: str, *, as_json: bool) -> None:
    if as_json:
        print(json.dumps({"error": message}, ensure_ascii=False))
    print(f"marvel: {message}", file=sys.stderr)


def _voice(*, as_json: bool) -> Any:
    """How one of several processes speaks when it ends: as a single one does."""
    from marvel_jax.parallel.watch import Voice

    return Voice(_explain, functools.partial(_tell, as_json=as_json), as_json=as_json)


if __name__ == "__main__":
    main()
