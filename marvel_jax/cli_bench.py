"""`marvel bench ...`: what is measured, and with which options."""

import itertools
from pathlib import Path
from typing import Annotated, Any, Literal

from tyro.conf import Positional, UseAppendAction, arg
from tyro.extras import SubcommandApp

from marvel_jax.cli_flags import Json
from marvel_jax.recipes.outcome import Outcome

bench = SubcommandApp()


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
        Path | None,
        arg(help="The run whose step it is; without one, the quickstart's of width 256."),
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

    options = step.StepOptions(
        config=_run(config, overrides),
        items=items,
        chunks=chunks,
        mini_batch=mini_batch,
        repeats=repeats,
        peers=not no_peers,
    )
    return _measured(step.run(options))


@bench.command(name="depth")
def bench_depth(
    *,
    config: Annotated[
        Path | None,
        arg(help="The run whose step it is; without one, the quickstart's of width 256."),
    ] = None,
    overrides: Annotated[
        UseAppendAction[tuple[tuple[str, ...], ...]],
        arg(name="set", help="Fields to change, as: --set data.global_batch=64"),
    ] = (),
    layers: Annotated[tuple[int, ...], arg(help="Layers of both towers.")] = (4, 28),
    repeats: Annotated[int, arg(help="Timed repeats, in turns; the median counts.")] = 3,
    json: Json = False,
) -> Outcome:
    """Size of the train step's program and seconds to compile it, by the depth of the model."""
    from marvel_jax.bench import depth

    options = depth.DepthOptions(config=_run(config, overrides), layers=layers, repeats=repeats)
    return _measured(depth.run(options))


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


@bench.command(name="attention")
def bench_attention(
    *,
    tower: Annotated[
        tuple[Literal["language 2B", "language 7B", "vision", "tiny"], ...] | None,
        arg(help="Whose heads."),
    ] = None,
    kernel: Annotated[
        tuple[Literal["xla", "xla, inputs kept", "pallas", "cudnn"], ...] | None,
        arg(help="Those of them that the platform has."),
    ] = None,
    rows: Annotated[int | None, arg(help="Rows of a call.")] = None,
    length: Annotated[int | None, arg(help="Tokens of a row.")] = None,
    item: Annotated[int | None, arg(help="Tokens of an item, about.")] = None,
    dtype: Annotated[Literal["float32", "bfloat16"] | None, arg(help="Of the heads.")] = None,
    repeats: Annotated[int | None, arg(help="Timed repeats; the median counts.")] = None,
    json: Json = False,
) -> Outcome:
    """Milliseconds, useful TFLOP/s and MiB of attention in packed rows, by kernel.

    What is left out depends on the platform: a processor gets fewer and shorter rows.
    """
    import dataclasses

    import jax

    from marvel_jax.bench import attention

    given = {
        "tower": tower,
        "kernel": kernel,
        "rows": rows,
        "length": length,
        "item": item,
        "dtype": dtype,
        "repeats": repeats,
    }
    chosen: dict[str, Any] = {name: value for name, value in given.items() if value is not None}
    options = dataclasses.replace(attention.defaults(jax.default_backend()), **chosen)
    return _measured(attention.run(options))


@bench.command(name="encode")
def bench_encode(
    *,
    architecture: Annotated[
        str, arg(help="small, tiny, a published model's Hub id, or a folder with a config.json.")
    ] = "small",
    items: Annotated[int, arg(help="Items of M-BEIR's mix of lengths.")] = 128,
    shrink: Annotated[int, arg(help="Divides their lengths, for tiny models.")] = 1,
    dtype: Annotated[Literal["float32", "bfloat16"], arg(help="Of weights and matmuls.")] = (
        "float32"
    ),
    row_tokens: Annotated[
        tuple[int, ...], arg(help="Tokens of a row; without any, as `marvel encode` chooses.")
    ] = (),
    batch_tokens: Annotated[int, arg(help="Tokens of a forward pass on a device.")] = 4096,
    kernel: Annotated[
        tuple[Literal["auto", "xla", "pallas", "cudnn"], ...], arg(help="Of the attention.")
    ] = ("auto",),
    repeats: Annotated[int, arg(help="Timed repeats; the median counts.")] = 3,
    torch: Annotated[
        bool, arg(help="Measure transformers too, on batches sorted by length.")
    ] = False,
    seed: Annotated[int, arg(help="Of the weights and the items.")] = 0,
    json: Json = False,
) -> Outcome:
    """Items/s, tokens/s and MFU of encoding, by row size and kernel, with random weights.

    On all devices. From packed rows in host memory to vectors in host memory.
    """
    import os

    if torch:  # both share the accelerator
        os.environ.setdefault("XLA_PYTHON_CLIENT_PREALLOCATE", "false")
    from marvel_jax.bench import encode
    from marvel_jax.bench.encode_items import EncodeOptions

    options = EncodeOptions(
        architecture=architecture,
        items=items,
        shrink=shrink,
        dtype=dtype,
        row_tokens=row_tokens,
        batch_tokens=batch_tokens,
        kernel=kernel,
        repeats=repeats,
        torch=torch,
        seed=seed,
    )
    return _measured(encode.run(options))


@bench.command(name="preprocess")
def bench_preprocess(
    *,
    width: Annotated[int, arg(help="Of the pictures, in pixels.")] = 396,
    height: Annotated[int, arg(help="Of the pictures, in pixels.")] = 265,
    pictures: Annotated[int, arg(help="Pictures a lap.")] = 64,
    repeats: Annotated[int, arg(help="Timed repeats, in turns; the median counts.")] = 9,
    seed: Annotated[int, arg(help="Of the pixels.")] = 0,
    json: Json = False,
) -> Outcome:
    """Milliseconds from a decoded picture to patches, beside transformers' processor.

    Decoding is not counted. The floor is the resize alone, which is Pillow's in both.
    """
    from marvel_jax.bench import preprocess

    options = preprocess.PreprocessOptions(
        width=width, height=height, pictures=pictures, repeats=repeats, seed=seed
    )
    return _measured(preprocess.run(options))


@bench.command(name="search")
def bench_search(
    *,
    rows: Annotated[int, arg(help="Vectors of the corpus.")] = 1_000_000,
    dimension: Annotated[int, arg(help="Numbers in a vector.")] = 768,
    queries: Annotated[int, arg(help="Of one batch.")] = 2000,
    recall: Annotated[tuple[float, ...], arg(help="Recall@10 to reach.")] = (0.95, 0.99),
    spread: Annotated[
        float, arg(help="Of the clusters: with more, neighbours lie in more leaves.")
    ] = 0.8,
    threads: Annotated[int | None, arg(help="Of each contender; else all cores.")] = None,
    repeats: Annotated[int, arg(help="Turns in which the best of each are timed.")] = 7,
    no_peers: Annotated[bool, arg(help="Leave out FAISS.")] = False,
    peers: Annotated[
        tuple[str, ...], arg(help="FAISS's indexes to measure, by name; none: all.")
    ] = (),
    workdir: Annotated[
        Path | None, arg(help="Keeps corpus and index for another run; else a temporary folder.")
    ] = None,
    seed: Annotated[int, arg(help="Of the vectors.")] = 0,
    json: Json = False,
) -> Outcome:
    """ScaNN's queries/s at a given recall beside FAISS's best, on invented clustered vectors.

    The peers, where faiss is installed: IVF-Flat, IVF-PQ-fastscan (plain and of residuals)
    with refinement, HNSW32, each over a grid of settings; build time and memory beside.
    """
    from rich.console import Console

    from marvel_jax.bench import faiss_peers, search

    options = search.SearchOptions(
        rows=rows,
        dimension=dimension,
        queries=queries,
        recall=recall,
        spread=spread,
        threads=threads,
        repeats=repeats,
        peers=() if no_peers else peers or faiss_peers.NAMES,
        workdir=workdir,
        seed=seed,
    )
    return _measured(search.run(options, say=Console(stderr=True, highlight=False).print))


@bench.command(name="union")
def bench_union(
    *,
    workdir: Annotated[
        Path, arg(help="Folder of the store, the index and the figures; a killed run goes on.")
    ] = Path("runs/bench-union"),
    scale: Annotated[float, arg(help="Of the true 5.6M candidates and 190k queries; up to 1.")] = (
        0.1
    ),
    dimension: Annotated[int, arg(help="Numbers in a vector.")] = 1536,
    recall: Annotated[float, arg(help="Recall@10 that the index is tuned to.")] = 0.95,
    sample: Annotated[int, arg(help="Queries that are searched exactly, too.")] = 1000,
    memory: Annotated[float, arg(help="GiB that building a shard of the index may take.")] = 4.0,
    seed: Annotated[int, arg(help="Of the vectors.")] = 0,
    json: Json = False,
) -> Outcome:
    """Search over invented vectors in the shape of M-BEIR's union pool: speed, recall, memory.

    A bfloat16 store on disk; ScaNN for every query, exact search for a sample of them.
    """
    from rich.console import Console

    from marvel_jax.bench import union

    options = union.UnionOptions(
        workdir=workdir,
        scale=scale,
        dimension=dimension,
        target_recall=recall,
        sample=sample,
        memory=memory,
        seed=seed,
    )
    return _measured(union.run(options, say=Console(stderr=True, highlight=False).print))


@bench.command(name="serve")
def bench_serve(
    collection: Annotated[Positional[Path], arg(help="What `marvel index FOLDER` made.")],
    *,
    clients: Annotated[int, arg(help="That ask at once.")] = 8,
    seconds: Annotated[float, arg(help="Of load.")] = 60.0,
    bare_seconds: Annotated[float, arg(help="Of bare calls.")] = 15.0,
    k: Annotated[int, arg(help="Results of a query.")] = 10,
    json: Json = False,
) -> Outcome:
    """Latency, queries/s and memory of `marvel serve` under load, beside bare calls.

    The server is a process of its own on loopback; bare is one encode and one search at a time.
    """
    from rich.console import Console

    from marvel_jax.bench import serve

    options = serve.ServeOptions(
        collection=collection, clients=clients, seconds=seconds, bare_seconds=bare_seconds, k=k
    )
    return _measured(serve.run(options, say=Console(stderr=True, highlight=False).print))


def _run(config: Path | None, overrides: tuple[tuple[str, ...], ...]) -> Any:
    """The run of a config file, or a wider quickstart's, with its changes."""
    from marvel_jax.recipes.config_file import load_config
    from marvel_jax.recipes.emoji import train_config
    from marvel_jax.recipes.overrides import override

    changes = tuple(itertools.chain.from_iterable(overrides))
    if config:
        return load_config(config, changes)
    # Where configs/emoji.py has its corpus; so wide that products are what takes the time.
    return override(train_config("data/emoji", width=256), changes)


def _measured(found: dict[str, Any]) -> Outcome:
    """A benchmark's figures, for a program and for a person."""
    from marvel_jax.bench.machine import lines

    return Outcome(found, lines(found))
