"""How many queries and candidates a corpus should have: M-BEIR's published counts, or its own."""

from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal

from marvel_jax.data.doctor_layout import local_pool_names, qrels_name
from marvel_jax.data.mbeir_sets import SETS
from marvel_jax.errors import MarvelError
from marvel_jax.files import read_json_object

CountsFrom = Literal["auto", "published", "none"]

SOURCE = (
    "M-BEIR as published: queries and pools of the sixteen test sets from mteb's descriptive "
    "statistics (Any2AnyRetrieval), the union files from the data set's repository"
)
UNION_TRAIN_QUERIES = 1_332_790
"""Rows of mbeir_union_up_train.jsonl, copies of small sets' queries counted."""
UNION_TEST_POOL = 5_609_079
"""Candidates of all sixteen test pools, which share none."""
UNION_TEST_PICTURED, UNION_TEST_TEXT = 3_152_220, 2_456_859
"""Of these, how many have a picture, and how many are text alone."""

MANIFEST = "manifest.json"
_SYNTHETIC, _EMOJI = "marvel-synthetic-mbeir", "marvel-jax emoji corpus"

_UNION_TRAIN = "query/union_train/mbeir_union_up_train.jsonl"
_UNION_TEST = "cand_pool/global/mbeir_union_test_cand_pool.jsonl"


@dataclass(frozen=True)
class Expected:
    """What should be in a corpus.

    Attributes:
      source: where the numbers are from.
      records: lines by the file's name.
      relevant: relevant candidates a query, to two digits, by the name of the qrels.
      pictured: candidates with a picture and of text alone, by the name of the pool.
      sets: the test sets that there should be, as `nights_task4`.
    """

    source: str
    records: Mapping[str, int] = field(default_factory=dict)
    relevant: Mapping[str, float] = field(default_factory=dict)
    pictured: Mapping[str, tuple[int, int]] = field(default_factory=dict)
    sets: tuple[str, ...] = ()


def expected_counts(root: Path, counts: CountsFrom) -> Expected | None:
    """What a folder should hold, or None where nothing says.

    "auto" takes the manifest of a corpus that this package made, and else the published counts if
    one of the folder's test sets is M-BEIR's.

    Raises:
      MarvelError: the manifest is not JSON, or lacks what its format has.
    """
    if counts == "none":
        return None
    if counts == "published":
        return published_counts()
    if (root / MANIFEST).is_file():
        return _from_manifest(root / MANIFEST)
    if any((root / _queries(one.full_name, "test")).is_file() for one in SETS):
        return published_counts()
    return None


def published_counts() -> Expected:
    """M-BEIR's."""
    records = {_UNION_TRAIN: UNION_TRAIN_QUERIES, _UNION_TEST: UNION_TEST_POOL}
    for one in SETS:
        records[_queries(one.full_name, "test")] = one.test_queries
        # MSCOCO alone has a pool for each split.
        with_split, without = local_pool_names(one.full_name, "test")
        records[with_split if one.name == "mscoco" else without] = one.pool
    return Expected(
        source=SOURCE,
        records=records,
        relevant={qrels_name(one.full_name, "test"): one.relevant for one in SETS},
        pictured={_UNION_TEST: (UNION_TEST_PICTURED, UNION_TEST_TEXT)},
        sets=tuple(one.full_name for one in SETS),
    )


def _from_manifest(path: Path) -> Expected | None:
    manifest = read_json_object(path)
    readers = {_SYNTHETIC: _synthetic_counts, _EMOJI: _emoji_counts}
    read = readers.get(str(manifest.get("format")))
    if read is None:
        return None
    try:
        return Expected(source=path.name, records=read(manifest))
    except (KeyError, TypeError, AttributeError) as error:
        raise MarvelError(
            f"{path} is not as {manifest['format']} writes it ({error!r}): make the corpus again, "
            "or check it without its counts, with --counts none."
        ) from error


def _synthetic_counts(manifest: Mapping[str, Any]) -> dict[str, int]:
    records = {_UNION_TRAIN: manifest["union_train"]}
    for split, count in manifest["pools"].items():
        records[f"cand_pool/global/mbeir_union_{split}_cand_pool.jsonl"] = count
    for name, counted in manifest["sets"].items():
        for split in ("train", "val", "test"):
            records[_queries(name, split)] = counted[split]
    return records


def _emoji_counts(manifest: Mapping[str, Any]) -> dict[str, int]:
    records = {}
    for task, count in manifest["training_queries"].items():
        records[_queries(f"emoji_task{task}", "train")] = count
    for task, counted in manifest["tests"].items():
        name = f"emoji_task{task}"
        records[_queries(name, "test")] = counted["queries"]
        records[local_pool_names(name, "test")[1]] = counted["pool"]
    return records


def _queries(name: str, split: str) -> str:
    return f"query/{split}/mbeir_{name}_{split}.jsonl"
