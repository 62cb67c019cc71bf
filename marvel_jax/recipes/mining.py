"""What `marvel mine` does: encode a training source's queries and pool, mine, and say what came."""

from collections.abc import Sequence
from pathlib import Path
from typing import Any, Literal

from rich.console import Console

from marvel_jax.data.mbeir import MbeirFolder
from marvel_jax.data.teacher import read_teacher
from marvel_jax.errors import MarvelError
from marvel_jax.files import hash_files
from marvel_jax.models import hub
from marvel_jax.recipes.evaluation import Ticker, open_or_build
from marvel_jax.recipes.outcome import Outcome
from marvel_jax.recipes.strategies import strategies_of
from marvel_jax.retrieval.embedder import Embedder
from marvel_jax.retrieval.encode import encode_candidates, encode_queries
from marvel_jax.retrieval.mining import DistinctQueries, MiningConfig, mine
from marvel_jax.training.inputs import hash_weights


def mine_negatives(
    model: str,
    *,
    data: Path,
    out: Path,
    split: str,
    pool: Literal["global", "local"],
    preset: str,
    settings: Sequence[str],
    teacher: Path | None,
    by_content: bool,
    chosen_only: bool,
    scann: bool,
    seed: int,
    workdir: Path | None,
) -> Outcome:
    """Mines hard negatives for the queries of a split of an M-BEIR folder.

    The vectors are kept in `workdir`, where another mining with the same model finds them; without
    one they lie beside `out`.

    Raises:
      MarvelError: `out` exists, an option is not known or does not go with another, or what
        `retrieval.mining.mine` refuses.
    """
    say = Console(stderr=True).print
    config = MiningConfig(
        strategies=strategies_of(preset, settings),
        pool=pool,
        copies="content" if by_content else "ids",
        record="chosen" if chosen_only else "all",
        seed=seed,
    )
    if out.exists():
        raise MarvelError(f"{out} exists already: choose another file, or remove it.")
    if scann and pool == "local":
        raise MarvelError("--scann searches the whole pool: leave it out with --pool local.")
    if config.strategies.asks_teacher and teacher is None:
        raise MarvelError("teacher_above needs a reranker's scores: give --teacher FILE.")
    source = MbeirFolder(data).source(split)
    scores = read_teacher(teacher, source) if teacher is not None else None
    embedder = Embedder.from_pretrained(model)
    vectors = workdir or out.with_name(f"{out.stem}-vectors")
    queries = DistinctQueries(source)
    say(f"encoding {len(source.candidates):,} candidates")
    candidate_store = encode_candidates(
        embedder,
        source.candidates,
        vectors / "pool",
        source_hash=hash_files(*(file.path for file in source.candidates.files)),
        progress=Ticker(say, "candidates"),
    )
    say(f"encoding {len(queries):,} queries")
    query_store = encode_queries(
        embedder,
        queries,
        source.instructions,
        vectors / f"queries-seed-{seed}",
        seed=seed,
        source_hash=hash_files(*(file.path for file in source.queries.files)),
        progress=Ticker(say, "queries"),
    )
    index = open_or_build(vectors / "index", candidate_store, say=say) if scann else None
    say("searching and choosing")
    manifest = mine(
        source,
        out,
        queries=query_store,
        pool=candidate_store,
        config=config,
        made_by={
            **embedder.manifest_fields(),
            "weights_hash": hash_weights(hub.resolve(model)),
            "model": model,
        },
        index=index,
        teacher=scores,
        progress=Ticker(say, "queries"),
    )
    counts = manifest["counts"]
    facts = {"out": str(out), "content_hash": manifest["content_hash"], **counts}
    return Outcome(facts, count_lines(out, counts))


def count_lines(out: Path, counts: dict[str, Any]) -> list[str]:
    """How many of each, for a person."""
    lines = [f"{'task':<8}{'queries':>9}{'negatives':>11}{'fewer':>7}{'none':>6}  kept, dropped"]
    for task, one in counts["by_task"].items():
        reasons = ", ".join(f"{name} {count:,}" for name, count in one["reasons"].items())
        lines.append(
            f"{task:<8}{one['queries']:>9,}{one['negatives']:>11,}"
            f"{one['queries_with_fewer']:>7,}{one['queries_with_none']:>6,}  {reasons}"
        )
    lines.append(
        f"{out}: {counts['negatives']:,} negatives for {counts['queries']:,} queries, "
        f"{counts['queries_with_fewer']:,} with fewer than asked for"
    )
    if counts["queries_with_none"]:
        lines.append(
            f"{counts['queries_with_none']:,} queries have no negative, so no training will take "
            "this file: allow a higher similarity, look deeper, or leave fill=pool."
        )
    return lines
