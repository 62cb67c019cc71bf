"""Counts of a corpus against those expected of it."""

from collections.abc import Iterator

import numpy as np

from marvel_jax.data.doctor_layout import Layout, LayoutFile
from marvel_jax.data.doctor_lines import POSITIVE, LineFacts
from marvel_jax.data.doctor_problems import Kind, Problem
from marvel_jax.data.mbeir_counts import Expected


def file_counts(
    expected: Expected,
    file: LayoutFile,
    facts: LineFacts | None,
    *,
    records: int,
    queries: int | None,
) -> Iterator[Problem]:
    """Lines, modalities of a pool, and relevant candidates a query.

    `records` are the file's lines; `queries`, of qrels, how many there are to answer.
    """
    said = f"{expected.source.partition(':')[0]} has"
    wanted = expected.records.get(file.name)
    if wanted is not None and records != wanted:
        message = f"{records:,} lines; {said} {wanted:,}"
        yield Problem(Kind.WRONG_COUNT, file.name, None, None, message)
    if facts is None:
        return
    pictured = expected.pictured.get(file.name)
    if pictured is not None and records == wanted:
        texts = facts.modalities["text"]
        there = (sum(facts.modalities.values()) - texts, texts)
        if there != pictured:
            message = (
                f"{there[0]:,} candidates with a picture and {there[1]:,} of text alone; "
                f"{said} {pictured[0]:,} and {pictured[1]:,}"
            )
            yield Problem(Kind.WRONG_COUNT, file.name, None, None, message)
    relevant = expected.relevant.get(file.name)
    if relevant is not None and queries:
        mean = int(np.sum(facts.link_kinds == POSITIVE)) / queries
        if f"{mean:.2f}" != f"{relevant:.2f}":
            message = f"{mean:.2f} relevant candidates a query; {said} {relevant:.2f}"
            yield Problem(Kind.OTHER_RELEVANT, file.name, None, None, message)


def absent_files(expected: Expected, layout: Layout) -> Iterator[Problem]:
    """Sets and files that are expected and not there. What the layout misses is not told again."""
    there = {file.set for file in layout.files if file.split == "test"}
    absent = [name for name in expected.sets if name not in there]
    for name in absent:
        message = f"the set {name} is not there"
        yield Problem(Kind.MISSING_SET, f"query/test/mbeir_{name}_test.jsonl", None, None, message)
    known = {file.name for file in layout.files} | {problem.file for problem in layout.problems}
    for name in sorted(set(expected.records) - known):
        if not any(f"mbeir_{one}_" in name for one in absent):
            message = f"not there; {expected.source.partition(':')[0]} has it"
            yield Problem(Kind.MISSING_FILE, name, None, None, message)
