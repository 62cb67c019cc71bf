"""`marvel ...`: parse, call, print; what is heavy is imported by the command that needs it."""

import errno
import itertools
import json
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Annotated, Any, Literal, NoReturn

from tyro.conf import FlagCreatePairsOff, Positional, UseAppendAction, arg
from tyro.extras import SubcommandApp

from marvel_jax.errors import MarvelError
from marvel_jax.recipes.outcome import EXIT_ERROR, EXIT_INTERRUPTED, Outcome

Json = Annotated[bool, arg(help="Print one JSON object as the last line of standard output.")]
ModelArg = Annotated[str, arg(help="A model: a Hugging Face folder or a Hub id.")]

_DISK_IS_FULL = (errno.ENOSPC, errno.EDQUOT, errno.EFBIG)

app = SubcommandApp()
data = SubcommandApp()
bench = SubcommandApp()
app.command(data, name="data", help="Builds a corpus.")
app.command(bench, name="bench", help="Measures the loss, the train step or the packing.")


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
    profile_steps: Annotated[
        str | None, arg(help="Steps to trace for xprof, as 10:12, into the run's profile/.")
    ] = None,
    peak_tflops: Annotated[
        float | None, arg(help="A device's dense peak, for MFU where it is not known.")
    ] = None,
    coordinator: Annotated[
        str | None, arg(help="HOST:PORT of process 0, for a run of several processes.")
    ] = None,
    num_processes: Annotated[int | None, arg(help="How many processes the run has.")] = None,
    process_id: Annotated[int | None, arg(help="Which of them this is, from 0.")] = None,
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
        profile_steps=profile_steps,
        peak_tflops=peak_tflops,
        coordinator=coordinator,
        num_processes=num_processes,
        process_id=process_id,
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


@bench.command(name="loss")
def bench_loss(
    *,
    batch: Annotated[tuple[int, ...], arg(help="Queries in the global batch.")] = (1024, 4096),
    width: Annotated[tuple[int, ...], arg(help="Numbers in a vector.")] = (768,),
    implementation: Annotated[
        tuple[Literal["dense", "gather", "ring"], ...], arg(help="Ways to compute it.")
    ] = ("dense", "gather", "ring"),
    hard_negatives: Annotated[int, arg(help="Hard negatives of each query.")] = 0,
    known_positives: Annotated[int, arg(help="Ids of known positives of each query.")] = 8,
    symmetric: Annotated[bool, arg(help="Both directions.")] = False,
    tile: Annotated[int, arg(help="Similarities exist in tiles of so many rows.")] = 1024,
    repeats: Annotated[int, arg(help="Timed repeats; the median counts.")] = 5,
    compile_for: Annotated[
        str | None, arg(help="Only compile, for a topology that need not be here: gpu:h100:8.")
    ] = None,
    fake_devices: Annotated[
        int | None, arg(help="Split this machine's processor into so many devices.")
    ] = None,
    json: Json = False,
) -> Outcome:
    """Bytes and seconds of the loss, value and gradient, by batch, width and implementation."""
    from marvel_jax.bench import loss

    options = loss.Options(
        batch=batch,
        width=width,
        implementation=implementation,
        hard_negatives=hard_negatives,
        known_positives=known_positives,
        symmetric=symmetric,
        tile=tile,
        repeats=repeats,
        compile_for=compile_for,
        fake_devices=fake_devices,
    )
    return _measured(loss.run(options))


@bench.command(name="step")
def bench_step(
    *,
    config: Annotated[
        Path | None, arg(help="The run whose step it is; without one, the quickstart's.")
    ] = None,
    overrides: Annotated[
        UseAppendAction[tuple[tuple[str, ...], ...]],
        arg(name="set", help="Fields to change, as: --set data.global_batch=64"),
    ] = (),
    items: Annotated[
        Literal["emoji", "mbeir", "corpus"],
        arg(help="The config's own corpus, or invented items with the lengths of another."),
    ] = "emoji",
    chunks: Annotated[int, arg(help="In how many parts GradCache encodes the rows.")] = 4,
    mini_batch: Annotated[int, arg(help="Of torch's cached loss.")] = 32,
    repeats: Annotated[int, arg(help="Timed repeats, in turns; the median counts.")] = 10,
    no_peers: Annotated[bool, arg(help="Leave out the plain step and torch.")] = False,
    json: Json = False,
) -> Outcome:
    """Pairs/s, padding and memory of a train step, GradCache on and off, beside its peers.

    The peers are the plain step in tests/ and, where torch is installed, transformers on the same
    weights and items: plain InfoNCE and a cached loss.
    """
    from marvel_jax.bench import step
    from marvel_jax.recipes.commands import load_config
    from marvel_jax.recipes.emoji import train_config
    from marvel_jax.recipes.overrides import override

    changes = tuple(itertools.chain.from_iterable(overrides))
    quickstart = "data/emoji"  # where configs/emoji.py has its corpus
    run = load_config(config, changes) if config else override(train_config(quickstart), changes)
    options = step.StepOptions(
        config=run,
        items=items,
        chunks=chunks,
        mini_batch=mini_batch,
        repeats=repeats,
        peers=not no_peers,
    )
    return _measured(step.run(options))


@bench.command(name="pack")
def bench_pack(
    *,
    items: Annotated[tuple[int, ...], arg(help="Items of a data shard.")] = (120, 480, 1920),
    shards: Annotated[tuple[int, ...], arg(help="Data shards.")] = (1, 2, 4, 8, 16, 32, 64),
    row_tokens: Annotated[int | None, arg(help="Tokens of a row.")] = None,
    row_patches: Annotated[int | None, arg(help="Patches of a row.")] = None,
    row_items: Annotated[int | None, arg(help="Items of a row at most.")] = None,
    hard_negatives: Annotated[int, arg(help="Hard negatives of each query.")] = 0,
    chunk_rows: Annotated[int, arg(help="Row counts are multiples of it.")] = 1,
    steps: Annotated[int, arg(help="Batches to plan.")] = 10,
    seed: Annotated[int, arg(help="Of the lengths and the order.")] = 0,
    json: Json = False,
) -> Outcome:
    """How full the rows are on M-BEIR's mix of lengths, and what planning a step takes."""
    from marvel_jax.bench import pack
    from marvel_jax.data.batch import RowShape

    row = pack.MBEIR_ROW
    options = pack.PackOptions(
        items=items,
        shards=shards,
        row=RowShape(
            tokens=row.tokens if row_tokens is None else row_tokens,
            patches=row.patches if row_patches is None else row_patches,
            items=row.items if row_items is None else row_items,
        ),
        hard_negatives=hard_negatives,
        chunk_rows=chunk_rows,
        steps=steps,
        seed=seed,
    )
    return _measured(pack.run(options))


def _measured(found: dict[str, Any]) -> Outcome:
    """A benchmark's figures, for a program and for a person."""
    from marvel_jax.bench.machine import lines

    return Outcome(found, lines(found))


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
        if error.filename is None and error.errno not in _DISK_IS_FULL:
            raise  # not about a file that a user named
        named = error.filename or "a file could not be written"
        _fail(f"{named}: {error.strerror}.", EXIT_ERROR, as_json=as_json)
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
