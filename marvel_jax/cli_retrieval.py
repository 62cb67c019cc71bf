"""`marvel encode | convert | mine | evaluate | report`: what a trained model is used for."""

import itertools
from pathlib import Path
from typing import Annotated, Literal

from tyro.conf import Positional, UseAppendAction, arg

from marvel_jax.cli_flags import Json
from marvel_jax.recipes.outcome import Outcome


def encode(
    model: Annotated[Positional[str], arg(help="A Hugging Face folder or a Hub id.")],
    *,
    pool: Annotated[
        Path, arg(help="An M-BEIR folder, or a jsonl of id, text, image, video or parts.")
    ],
    out: Annotated[Path, arg(help="The vector store to write.")],
    dtype: Annotated[
        Literal["float32", "bfloat16", "int8", "binary"], arg(help="Of the stored vectors.")
    ] = "float32",
    dimension: Annotated[
        int | None, arg(help="Keep so many numbers of each vector, of unit norm again.")
    ] = None,
    compute: Annotated[
        Literal["float32", "bfloat16"], arg(help="What the model computes in.")
    ] = "float32",
    batch_tokens: Annotated[int, arg(help="Tokens of a forward pass on a device.")] = 4096,
    shard_rows: Annotated[int, arg(help="Items a shard: what a kill may cost.")] = 16384,
    tolerate: Annotated[
        int, arg(help="Items with unreadable pictures that the store may lack; they are listed.")
    ] = 0,
    process_id: Annotated[
        int | None, arg(help="Which process this is, from 0; a scheduler tells it, too.")
    ] = None,
    num_processes: Annotated[
        int | None, arg(help="Processes that encode this pool into this store, each its shards.")
    ] = None,
    json: Json = False,
) -> Outcome:
    """Embeds every candidate of a pool into a vector store; a killed run goes on.

    On all devices of the process. Items of the same content are encoded once a shard. A picture
    that cannot be read is listed in OUT.failures.jsonl, and all others go on.
    """
    from marvel_jax.recipes.encoding import EncodingOptions, encode_pool

    options = EncodingOptions(
        dtype=dtype,
        dimension=dimension,
        compute=compute,
        batch_tokens=batch_tokens,
        shard_rows=shard_rows,
        tolerate=tolerate,
        process_id=process_id,
        num_processes=num_processes,
    )
    return encode_pool(model, pool=pool, out=out, options=options)


def convert(
    store: Annotated[Positional[Path], arg(help="A vector store.")],
    *,
    out: Annotated[Path, arg(help="The vector store to write.")],
    dtype: Annotated[
        Literal["bfloat16", "int8", "binary"] | None, arg(help="Of its vectors; none keeps it.")
    ] = None,
    dimension: Annotated[
        int | None, arg(help="Keep so many numbers of each vector, of unit norm again.")
    ] = None,
    json: Json = False,
) -> Outcome:
    """Writes a vector store again in fewer bytes a vector; a killed run goes on."""
    from marvel_jax.recipes.storing import convert_store

    return convert_store(store, out=out, dtype=dtype, dimension=dimension)


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
    data: Annotated[Path, arg(help="An M-BEIR folder; with --protocol, the set's folder.")],
    workdir: Annotated[Path, arg(help="Folder for vectors, index, rankings and scores.")],
    protocol: Annotated[
        str | None,
        arg(
            help="Another test set than M-BEIR: flickr30k, circo, mmeb, beir, ... (an unknown name "
            "lists them), or a Python file that defines `protocol`."
        ),
    ] = None,
    seed: Annotated[int, arg(help="Chooses each query's instruction.")] = 0,
    exact_only: Annotated[bool, arg(help="Leave out ScaNN, shown beside exact search.")] = False,
    all_instructions: Annotated[
        bool, arg(help="Also every paraphrase of each instruction: mean and spread.")
    ] = False,
    held_out: Annotated[
        tuple[str, ...],
        arg(
            help="Sets that the model never trained on, averaged by themselves: nights_task4, "
            "oven, task8; or published, U-MARVEL's five."
        ),
    ] = (),
    reranker: Annotated[
        str | None, arg(help="A reranker or an instruct model; its scores come beside.")
    ] = None,
    top: Annotated[int, arg(help="Results of each query that are reranked.")] = 50,
    weights: Annotated[
        str | None,
        arg(help="The fusion.json of a `marvel run`, or the cosine's share (without: 0.5)."),
    ] = None,
    fit_split: Annotated[
        str | None, arg(help="Fit the weights on this split's queries, e.g. val; never on test.")
    ] = None,
    prompt: Annotated[
        str | None, arg(help="The reranker's prompt; without one, that of its marvel.json.")
    ] = None,
    dtype: Annotated[
        Literal["float32", "bfloat16", "int8", "binary"], arg(help="Of the stored candidates.")
    ] = "float32",
    dimension: Annotated[
        int | None, arg(help="Keep so many numbers of each candidate's vector, of unit norm again.")
    ] = None,
    compute: Annotated[
        Literal["float32", "bfloat16"], arg(help="What model and reranker compute in.")
    ] = "float32",
    tolerate: Annotated[
        int, arg(help="Items with unreadable pictures; they are listed and count as never found.")
    ] = 0,
    json: Json = False,
) -> Outcome:
    """Scores a model with the M-BEIR protocol, on local pools and the global one; or on --protocol.

    Run it again after an interruption and it goes on; another seed encodes only the queries.
    """
    from marvel_jax.recipes.evaluate_command import evaluate_model, with_reranker

    if protocol is not None:
        from marvel_jax.recipes.protocol_command import evaluate_on

        unused = {
            "--exact-only": exact_only,
            "--all-instructions": all_instructions,
            "--held-out": held_out,
            "--fit-split": fit_split,
        }
        return evaluate_on(
            model,
            protocol=protocol,
            data=data,
            workdir=workdir,
            seed=seed,
            dtype=dtype,
            dimension=dimension,
            compute=compute,
            tolerate=tolerate,
            reranker=with_reranker(
                reranker, top=top, weights=weights, fit_split=None, prompt=prompt
            ),
            unused=[flag for flag, value in unused.items() if value],
        )
    return evaluate_model(
        model,
        data=data,
        workdir=workdir,
        seed=seed,
        scann=not exact_only,
        held_out=held_out,
        dtype=dtype,
        dimension=dimension,
        compute=compute,
        tolerate=tolerate,
        all_instructions=all_instructions,
        reranker=with_reranker(
            reranker, top=top, weights=weights, fit_split=fit_split, prompt=prompt
        ),
    )


def report(
    workdir: Annotated[Positional[Path], arg(help="What `marvel evaluate --workdir` left.")],
    *,
    against: Annotated[
        Path | None, arg(help="Another such folder of the same data, to test the difference.")
    ] = None,
    out: Annotated[
        Path | None, arg(help="The report's folder; by default evaluation-report/ in WORKDIR.")
    ] = None,
    data: Annotated[Path | None, arg(help="The M-BEIR folder, if it has moved since.")] = None,
    tradeoff: Annotated[
        bool, arg(help="Also score smaller stores: dimension x type x search. Takes a while.")
    ] = False,
    tradeoff_queries: Annotated[int, arg(help="Queries of each set for that, at most.")] = 500,
    shown: Annotated[int, arg(help="Successes and failures of each set to show.")] = 2,
    seed: Annotated[int, arg(help="Of resamples, swaps and draws.")] = 0,
    json: Json = False,
) -> Outcome:
    """Explains an evaluation: a page, JSON and CSV, with intervals, modality obedience, copies,
    published scores beside ours, and searches that went well and that did not.
    """
    from marvel_jax.recipes.reporting import report_evaluation

    return report_evaluation(
        workdir,
        against=against,
        out=out,
        data=data,
        tradeoff=tradeoff,
        tradeoff_queries=tradeoff_queries,
        shown=shown,
        seed=seed,
    )
