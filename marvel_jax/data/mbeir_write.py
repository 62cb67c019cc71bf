"""Writing the M-BEIR layout, and its ids as single integers."""

import json
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

from marvel_jax.errors import MarvelError
from marvel_jax.files import write_text

# From the M-BEIR code: ids "dataset:number" as dataset * range + number.
QUERY_RANGE = 500_000
CANDIDATE_RANGE = 10_000_000


def hash_query_id(qid: str) -> int:
    """`3:17` as 3 * 500,000 + 17, M-BEIR's integer for a query.

    Raises:
      MarvelError: the id is not "dataset:number", or the number does not fit.
    """
    return _hash_id(qid, QUERY_RANGE)


def hash_candidate_id(did: str) -> int:
    """`3:17` as 3 * 10,000,000 + 17, M-BEIR's integer for a candidate.

    Raises:
      MarvelError: the id is not "dataset:number", or the number does not fit.
    """
    return _hash_id(did, CANDIDATE_RANGE)


def unhash_query_id(value: int) -> str:
    """The inverse of `hash_query_id`."""
    return "{}:{}".format(*divmod(value, QUERY_RANGE))


def unhash_candidate_id(value: int) -> str:
    """The inverse of `hash_candidate_id`."""
    return "{}:{}".format(*divmod(value, CANDIDATE_RANGE))


def _hash_id(id: str, size: int) -> int:
    dataset, _, number = id.partition(":")
    if not dataset.isdigit() or not number.isdigit() or int(number) >= size:
        raise MarvelError(f'Expected an id "dataset:number" with number < {size}, found {id!r}.')
    return int(dataset) * size + int(number)


def query_record(
    id: str,
    *,
    task: int,
    text: str | None,
    image: str | None,
    positives: Sequence[str],
    negatives: Sequence[str] = (),
    source: Mapping[str, Any] | None = None,
) -> dict[str, Any]:
    """A query's line. `image` is relative to the layout's root."""
    return {
        "qid": id,
        "query_txt": text,
        "query_img_path": image,
        "query_modality": _modality(text, image),
        "query_src_content": _source(source),
        "pos_cand_list": list(positives),
        "neg_cand_list": list(negatives),
        "task_id": task,
    }


def candidate_record(
    id: str, *, text: str | None, image: str | None, source: Mapping[str, Any] | None = None
) -> dict[str, Any]:
    """A candidate's line. `image` is relative to the layout's root."""
    return {
        "did": id,
        "txt": text,
        "img_path": image,
        "modality": _modality(text, image),
        "src_content": _source(source),
    }


def write_queries(
    root: Path, dataset: str, *, task: int, split: str, records: Sequence[dict[str, Any]]
) -> None:
    """Writes query/{split}/... and the qrels that say the same as the positives."""
    name = f"mbeir_{dataset}_task{task}_{split}"
    _write_lines(root / "query" / split / f"{name}.jsonl", records)
    qrels = "".join(
        f"{record['qid']} 0 {did} 1 {task}\n"
        for record in records
        for did in record["pos_cand_list"]
    )
    write_text(root / "qrels" / split / f"{name}_qrels.txt", qrels)


def write_local_pool(
    root: Path,
    dataset: str,
    *,
    task: int,
    records: Iterable[dict[str, Any]],
    split: str | None = None,
) -> None:
    """Writes cand_pool/local/mbeir_{dataset}_task{task}_cand_pool.jsonl.

    With `split`, as MSCOCO alone has it, that stands before "cand_pool".
    """
    name = f"mbeir_{dataset}_task{task}_{f'{split}_' if split else ''}cand_pool.jsonl"
    _write_lines(root / "cand_pool" / "local" / name, records)


def write_union_pool(root: Path, *, split: str, records: Iterable[dict[str, Any]]) -> None:
    """Writes cand_pool/global/mbeir_union_{split}_cand_pool.jsonl."""
    _write_lines(root / "cand_pool" / "global" / f"mbeir_union_{split}_cand_pool.jsonl", records)


def write_instructions(
    root: Path,
    *,
    dataset: int,
    name: str,
    instructions: Mapping[tuple[str, str], Sequence[str]],
) -> None:
    """Writes instructions/query_instructions.tsv for one data set."""
    write_instruction_table(
        root,
        [
            InstructionRow(asks, wants, name, dataset, tuple(prompts))
            for (asks, wants), prompts in instructions.items()
        ],
    )


class InstructionRow(NamedTuple):
    """The prompts of one kind of query of one data set."""

    query_modality: str
    candidate_modality: str
    name: str
    dataset: int
    prompts: tuple[str, ...]


def write_instruction_table(root: Path, rows: Sequence[InstructionRow]) -> None:
    """Writes instructions/query_instructions.tsv."""
    width = max(len(row.prompts) for row in rows)
    header = ["query_modality", "cand_modality", "dataset_name", "dataset_id"]
    lines = ["\t".join(header + [f"prompt_{i}" for i in range(1, width + 1)])]
    for asks, wants, name, dataset, prompts in rows:
        lines.append("\t".join([asks, wants, name, str(dataset), *prompts]))
    write_text(root / "instructions" / "query_instructions.tsv", "\n".join(lines) + "\n")


def _modality(text: str | None, image: str | None) -> str:
    return ",".join(word for word, part in (("image", image), ("text", text)) if part)


def _source(source: Mapping[str, Any] | None) -> str | None:
    return None if source is None else json.dumps(source, ensure_ascii=False)


def _write_lines(path: Path, records: Iterable[dict[str, Any]]) -> None:
    encode = json.JSONEncoder(ensure_ascii=False).encode
    write_text(path, "".join(encode(record) + "\n" for record in records))
