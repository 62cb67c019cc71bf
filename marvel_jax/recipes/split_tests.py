"""Validation on a corpus without any: a third of the test queries fits, the others judge.

What read the validation split reads the first third of the test split, and what searches, scores
or judges test queries has the other two thirds: no query is in both.
"""

import dataclasses
from collections.abc import Sequence
from typing import Any, TypeVar

from marvel_jax.recipes.stages import Fuse, Judged, Recall, Score, Stage, Subset, inputs

FITTED, JUDGED = "stand-in-val", "stand-in-test"
"""The stages that make the two."""

_SHARE = 1 / 3
_Reader = TypeVar("_Reader", bound=Recall | Score | Subset | Judged)


def with_split_tests(stages: Sequence[Stage], corpus: str, *, most: int) -> list[Stage]:
    """The stages, two more before them where one reads a validation split; `corpus` has none.

    The two parts have at most `most` queries of a set. An `Evaluate` stays as it is: it fits
    nothing, so all test queries may judge.
    """
    if not any(_reads_validation(stage) for stage in stages):
        return list(stages)
    changed = [_changed(stage, corpus) for stage in stages]
    read = {text for stage in changed for text in inputs(stage).values()}
    before = [
        Subset(FITTED, corpus, split="test", last=_SHARE, most=most),
        Subset(JUDGED, corpus, split="test", first=_SHARE, most=most),
    ]
    return [*(one for one in before if f"{one.name}.mbeir" in read), *changed]


def _reads_validation(stage: Any) -> bool:
    judged = [*stage.validation.values(), *stage.test.values()] if isinstance(stage, Fuse) else []
    return any(getattr(one, "split", None) == "val" for one in (stage, *judged))


def _changed(stage: Stage, corpus: str) -> Stage:
    if isinstance(stage, Fuse):
        return dataclasses.replace(
            stage,
            validation={pool: _split(one, corpus) for pool, one in stage.validation.items()},
            test={pool: _split(one, corpus) for pool, one in stage.test.items()},
        )
    if isinstance(stage, Recall | Score | Subset):
        return _split(stage, corpus)
    return stage


def _split(reader: _Reader, corpus: str) -> _Reader:
    """A part of the corpus is one of the right third already."""
    if reader.split not in ("val", "test"):
        return reader
    place = FITTED if reader.split == "val" else JUDGED
    data = f"{place}.mbeir" if reader.data == corpus else reader.data
    return dataclasses.replace(reader, split="test", data=data)
