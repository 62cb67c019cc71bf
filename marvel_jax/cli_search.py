"""`marvel index | search`: of vector stores and of collections."""

from pathlib import Path
from typing import Annotated, Literal

from tyro.conf import Positional, arg

from marvel_jax.cli_flags import Json
from marvel_jax.recipes.outcome import Outcome


def index(
    what: Annotated[
        Positional[Path],
        arg(
            help="A vector store; or with --model a folder of pictures and text files, a jsonl of "
            "id, text, image or parts, or an M-BEIR folder or pool."
        ),
    ],
    *,
    out: Annotated[Path, arg(help="The ScaNN index or the collection to write or bring up to.")],
    model: Annotated[
        str | None, arg(help="Make a searchable collection, embedded by this model.")
    ] = None,
    captions: Annotated[
        bool, arg(help="Of a folder: PICTURE.txt is the caption of PICTURE.png, one entry.")
    ] = False,
    root: Annotated[
        tuple[Path, ...], arg(help="Other folders that the collection's pictures may be in.")
    ] = (),
    labelled: Annotated[
        Path | None, arg(help="Queries and their answers to keep with it, for --judge.")
    ] = None,
    again: Annotated[
        bool,
        arg(
            help="Make it anew: of another model or source, with another --compute or without an "
            "option that it was made with."
        ),
    ] = False,
    tolerate: Annotated[
        int, arg(help="Files that may fail; the collection is made without them in any case.")
    ] = 0,
    scann: Annotated[bool, arg(help="A ScaNN index of the collection, however small.")] = False,
    dimensions: Annotated[
        tuple[int, ...] | None, arg(help="Widths to search it in besides the whole vectors'.")
    ] = None,
    compute: Annotated[
        Literal["float32", "bfloat16"] | None,
        arg(help="What the collection's model computes in; float32 for a new one."),
    ] = None,
    batch_tokens: Annotated[int, arg(help="Tokens of a forward pass on a device.")] = 4096,
    target_recall: Annotated[
        float | None, arg(help="Tune the setting until so much of the exact ten is found: 0.99.")
    ] = None,
    queries: Annotated[
        Path | None,
        arg(help="A store of queries to tune with; without one, vectors of the store, perturbed."),
    ] = None,
    memory: Annotated[
        float | None,
        arg(help="GiB that building may take, else 0.7 of what is free; more goes into shards."),
    ] = None,
    leaves: Annotated[int | None, arg(help="Leaves of a shard, instead of the rule's.")] = None,
    search_leaves: Annotated[int | None, arg(help="Leaves looked at for a query.")] = None,
    reorder: Annotated[int | None, arg(help="Candidates scored again exactly.")] = None,
    json: Json = False,
) -> Outcome:
    """Builds a ScaNN index over a vector store, or a collection; a killed run goes on.

    A collection that is there is brought up to date: only new content is encoded, and an option
    left out is as it was made with. What cannot be used is listed in it.
    """
    if model is not None:
        from marvel_jax.collection.build import BuildOptions
        from marvel_jax.recipes.collecting import index_collection
        from marvel_jax.recipes.searching import refuse_unused

        refuse_unused(
            {
                "--target-recall": target_recall,
                "--queries": queries,
                "--memory": memory,
                "--leaves": leaves,
                "--search-leaves": search_leaves,
                "--reorder": reorder,
            },
            of="the index of a vector store, not for a collection",
        )
        options = BuildOptions(
            # A flag that is not given is left out: it is then as the collection has it.
            roots=root or None,
            captions=captions or None,
            again=again,
            scann=scann or None,
            dimensions=dimensions,
            compute=compute,
            batch_tokens=batch_tokens,
        )
        return index_collection(
            what, out=out, model=model, options=options, labelled=labelled, tolerate=tolerate
        )
    from marvel_jax.recipes.searching import build_index, refuse_unused
    from marvel_jax.retrieval.scann_config import ScannConfig

    refuse_unused(
        {
            "--captions": captions,
            "--root": root,
            "--labelled": labelled,
            "--again": again,
            "--tolerate": tolerate or None,
            "--scann": scann,
            "--dimensions": dimensions,
            "--compute": compute,
        },
        of="a collection, made with --model",
    )
    return build_index(
        what,
        out=out,
        config=ScannConfig(leaves=leaves, search_leaves=search_leaves, reorder=reorder),
        memory_gb=memory,
        target_recall=target_recall,
        queries=queries,
    )


def search(
    what: Annotated[
        Positional[str], arg(help="A collection; or with --store, the model that made the store.")
    ],
    *,
    store: Annotated[Path | None, arg(help="A vector store.")] = None,
    index: Annotated[Path | None, arg(help="A ScaNN index of it; without one, exact.")] = None,
    text: Annotated[str | None, arg(help="The query's text.")] = None,
    image: Annotated[Path | None, arg(help="The query's picture.")] = None,
    video: Annotated[Path | None, arg(help="The query's video.")] = None,
    parts: Annotated[
        Path | None,
        arg(
            help='A JSON file of the query, for any order: {"parts": [{"image": "a.jpg"}, "but"]}.'
        ),
    ] = None,
    instruction: Annotated[
        str | None, arg(help='What to look for; in a collection, by --kind if left out; "": none.')
    ] = None,
    k: Annotated[int, arg(help="How many to return.")] = 10,
    like: Annotated[
        str | None, arg(help="An entry of the collection, in place of a query.")
    ] = None,
    kind: Annotated[
        Literal["text", "image", "image,text"] | None, arg(help="What to find in a collection.")
    ] = None,
    method: Annotated[Literal["exact", "scann"], arg(help="How to search a collection.")] = "exact",
    dimension: Annotated[int | None, arg(help="Compare so many numbers of the vectors.")] = None,
    copies: Annotated[bool, arg(help="Show near-duplicates one by one, too.")] = False,
    sheet: Annotated[Path | None, arg(help="Draw the results into this picture.")] = None,
    judge: Annotated[
        Path | None, arg(help="Score the collection on this jsonl of queries and their answers.")
    ] = None,
    json: Json = False,
) -> Outcome:
    """Searches a collection or a store by text, picture or both; a store also by video."""
    if store is None:
        from marvel_jax.recipes import collecting
        from marvel_jax.recipes.searching import refuse_unused

        refuse_unused(
            {"--index": index, "--video": video, "--parts": parts},
            of="a vector store, named by --store beside its model",
        )
        if judge is not None:
            return collecting.judge_collection(
                Path(what), judge, method=method, dimension=dimension
            )
        asked = collecting.Asked(
            text=text,
            image=image,
            like=like,
            instruction=instruction,
            kind=kind,
            k=k,
            method=method,
            dimension=dimension,
            collapse=not copies,
        )
        return collecting.search_collection(Path(what), asked, sheet=sheet)
    from marvel_jax.recipes.searching import refuse_unused, search_store

    refuse_unused(
        {
            "--like": like,
            "--kind": kind,
            "--method": None if method == "exact" else method,
            "--dimension": dimension,
            "--copies": copies,
            "--sheet": sheet,
            "--judge": judge,
        },
        of="a search in a collection, without --store",
    )
    return search_store(
        what,
        store=store,
        index=index,
        text=text,
        image=image,
        instruction=instruction,
        k=k,
        video=video,
        parts=parts,
    )
