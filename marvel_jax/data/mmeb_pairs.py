"""MMEB's training pairs, as U-MARVEL converts them: M-BEIR's lines, an instruction a data set."""

from collections.abc import Iterator
from functools import cached_property
from pathlib import Path
from typing import Any

from marvel_jax.data.items import Candidate, Image, Item
from marvel_jax.data.json_lines import JsonLines
from marvel_jax.data.pairs import Pair
from marvel_jax.data.protocols.reading import Record, read_record
from marvel_jax.data.records import IdTable, Records
from marvel_jax.errors import MarvelError
from marvel_jax.files import hash_bytes, hash_files

TRAINING_SETS = (
    *("VOC2007", "N24News", "SUN397", "ImageNet_1K", "HatefulMemes"),
    *("OK-VQA", "A-OKVQA", "DocVQA", "InfographicsVQA", "ChartQA", "Visual7W"),
    *("MSCOCO_i2t", "MSCOCO_t2i", "VisDial", "CIRR", "VisualNews_i2t", "VisualNews_t2i"),
    *("NIGHTS", "WebQA"),
    # It counts four times in the converter's list, so its ids have any of four numbers.
    *("MSCOCO", "MSCOCO", "MSCOCO", "MSCOCO"),
)
"""By the number before the colon of an id; 20 different ones."""


class MmebPairs:
    """The pairs of mmeb_union_query.jsonl, candidates of mmeb_union_candidate.jsonl.

    The instruction is the data set's `qry_instruction` of data_instruction.json. Paths of pictures
    count from `images`, default the folder itself.

    Raises:
      MarvelError: a file is missing, or an id of a candidate occurs twice; later, a line is broken,
        or names a candidate or a data set that is not there.
    """

    def __init__(self, root: Path | str, *, images: Path | str | None = None) -> None:
        self.root = Path(root)
        self._images = self.root if images is None else Path(images)
        self._instructions = read_record(self.root / "data_instruction.json")
        self._lines = JsonLines(self.root / "mmeb_union_query.jsonl")
        pool = JsonLines(self.root / "mmeb_union_candidate.jsonl")
        self._pool = Records([pool], self._candidate)
        self._places = IdTable(self._pool, "did")

    def __len__(self) -> int:
        return len(self._lines)

    def __getitem__(self, index: int) -> Pair:
        return self._pair(Record(self._lines[index], self.where(index)))

    def __iter__(self) -> Iterator[Pair]:
        for index, line in enumerate(self._lines):
            yield self._pair(Record(line, self.where(index)))

    def where(self, index: int) -> str:
        """File and line of a pair."""
        return self._lines.where(index) if index < len(self) else str(self._lines.path)

    @cached_property
    def fingerprint(self) -> str:
        """A hash of the three files."""
        instructions = self.root / "data_instruction.json"
        paths: list[Path | str] = [self._lines.path, *self._places.paths, instructions]
        return hash_bytes(b"mmeb", hash_files(*paths).encode())

    def _pair(self, one: Record) -> Pair:
        query = self._item(one, "query_txt", "query_img_path")
        dataset = one.id("qid").partition(":")[0]
        if not dataset.isdigit() or int(dataset) >= len(TRAINING_SETS):
            raise MarvelError(
                f"{one.where}: qid {one.id('qid')!r} begins with no number of a training set, 0 to "
                f"{len(TRAINING_SETS) - 1}."
            )
        found = self._instructions.object(TRAINING_SETS[int(dataset)])
        return Pair(
            query=query,
            positives=self._of(one, "pos_cand_list"),
            negatives=self._of(one, "neg_cand_list") if one.value.get("neg_cand_list") else (),
            instructions=(found.text("qry_instruction"),),
        )

    def _of(self, one: Record, field: str) -> tuple[Item, ...]:
        items = []
        for id in one.ids(field):
            place = self._places.find(id)
            if place is None:
                raise MarvelError(
                    f"{one.where}: {field} names {id!r}, which is not in {self._places.paths[0]}."
                )
            items.append(self._pool[place].item)
        return tuple(items)

    def _candidate(self, value: dict[str, Any], where: str) -> Candidate:
        one = Record(value, where)
        item = self._item(one, "txt", "img_path")
        return Candidate(one.id("did"), item, item.modality)

    def _item(self, one: Record, text: str, image: str) -> Item:
        words, path = one.optional_text(text), one.optional_text(image)
        if words is None and path is None:
            raise MarvelError(f"{one.where}: there is neither {text} nor {image}.")
        return Item.of(text=words, image=Image(self._images / path) if path else None)
