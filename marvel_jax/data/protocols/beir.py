"""Any text set in BEIR's layout: corpus.jsonl, queries.jsonl and qrels/test.tsv."""

import csv
from collections.abc import Callable
from pathlib import Path

from marvel_jax.data.items import Item
from marvel_jax.data.json_lines import JsonLines
from marvel_jax.data.protocols.protocol import Answers, Metric, Protocol, SetData, Test
from marvel_jax.data.protocols.reading import Record
from marvel_jax.errors import MarvelError
from marvel_jax.lazy import LazySequence


class LineItems(LazySequence[Item]):
    """The lines of a .jsonl as items, made when they are asked for: a corpus may be large."""

    def __init__(self, path: Path, make: Callable[[Record], Item]) -> None:
        self._lines, self._make = JsonLines(path), make

    def __len__(self) -> int:
        return len(self._lines)

    def make(self, index: int) -> Item:
        """The item of a line."""
        return self._make(Record(self._lines[index], self._lines.where(index)))


def read_beir(root: Path) -> SetData:
    """The judged queries of a BEIR folder; a document of a query's own id is no result of it."""
    judged = _read_qrels(root / "qrels" / "test.tsv")
    corpus = LineItems(root / "corpus.jsonl", _document)
    lines = JsonLines(root / "queries.jsonl")
    queries, answers = [], []
    copied = {one.id for one in corpus if one.id in judged}
    for place, value in enumerate(lines):
        one = Record(value, lines.where(place))
        id = one.id("_id")
        right = judged.pop(id, None)
        if right is None:
            continue
        queries.append(Item.of(text=one.text("text"), id=id))
        shown = (id,) if id in copied else ()
        answers.append(Answers(tuple(right), shown=shown, grades=tuple(right.values())))
    if judged:
        raise MarvelError(
            f"{root / 'qrels' / 'test.tsv'}: {len(judged)} queries are not in queries.jsonl, as "
            f"{next(iter(judged))!r}."
        )
    return SetData(
        {"queries": queries, "corpus": corpus}, (Test("test", "queries", "corpus", answers),)
    )


def _document(one: Record) -> Item:
    # As BEIR's own models read it: the title, a blank, the text.
    words = [one.optional_text("title"), one.optional_text("text")]
    text = " ".join(word for word in words if word)
    if not text:
        raise MarvelError(f"{one.where}: {one.id('_id')} has neither title nor text.")
    return Item.of(text=text, id=one.id("_id"))


def _read_qrels(path: Path) -> dict[str, dict[str, int]]:
    """The grades above 0, by query and document."""
    if not path.is_file():
        raise MarvelError(f"{path} does not exist.")
    found: dict[str, dict[str, int]] = {}
    with path.open(encoding="utf-8", newline="") as stream:
        for number, row in enumerate(csv.reader(stream, delimiter="\t"), start=1):
            if number == 1 and row[:1] == ["query-id"]:
                continue
            match row:
                case [query, document, grade] if grade.strip().lstrip("-").isdigit():
                    if int(grade) > 0:
                        found.setdefault(query, {})[document] = int(grade)
                case _:
                    raise MarvelError(
                        f"{path}, line {number}: expected query, document and a whole number with "
                        f"tabs between them, found {row!r:.80}."
                    )
    if not found:
        raise MarvelError(f"{path} judges no document as relevant.")
    return found


BEIR = Protocol(
    name="beir",
    title="Any text set of BEIR's layout",
    read=read_beir,
    metric=Metric(kind="ndcg", cuts=(10, 100), main=10, word="nDCG"),
    source="github.com/beir-cellar/beir",
    layout=("corpus.jsonl", "queries.jsonl", "qrels/test.tsv"),
)
