"""A synthetic M-BEIR: all sixteen sets of the real one in its layout, of any size."""

import itertools
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from importlib import metadata
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from marvel_jax.data import mbeir_write, synthetic_scenes, tokenizer
from marvel_jax.data.emoji import TOKENIZER_FOLDER
from marvel_jax.data.items import TASKS
from marvel_jax.data.mbeir_sets import SETS, MbeirSet
from marvel_jax.data.synthetic_pairs import CAPTIONS_FILE as CAPTIONS_FILE
from marvel_jax.data.synthetic_pairs import NLI_FILE as NLI_FILE
from marvel_jax.data.synthetic_pairs import write_pairs
from marvel_jax.data.synthetic_scenes import Scene, Scenes
from marvel_jax.errors import MarvelError
from marvel_jax.files import atomic_folder, write_json, write_jsonl

MANIFEST = "manifest.json"

Progress = Callable[[str, int, int], None]  # (stage, done, in all)

_SPLITS = ("train", "val", "test")
# Share of the training queries that are no copies, where small sets were repeated: together they
# make the 183 thousand copies among the 1.33 million rows of the real file.
_UNIQUE = {"webqa": 0.33, "edis": 0.52, "nights": 0.32, "fashioniq": 0.32, "cirr": 0.52}
_WITH_NEGATIVES = ("webqa", "edis")
_BORROWERS = {"infoseek": "oven"}  # whose answers are answers of the other's queries too
_MOST_RELEVANT = 20
_LEAST_TRAIN, _LEAST_TEST = 8, 4
_LEAST_POOL = 12  # of a set: the protocol looks at the first ten of each pool
_TOKENIZER_TEXTS, _VOCABULARY = 5_000, 2_000
_NOUNS = {
    "visualnews": "news",
    "mscoco": "everyday",
    "fashion200k": "fashion",
    "webqa": "encyclopedia",
    "edis": "press",
    "nights": "similar",
    "oven": "object",
    "infoseek": "knowledge",
    "fashioniq": "garment",
    "cirr": "changed",
}
_WANTED = {"text": "text", "image": "picture", "image,text": "picture with its text"}


@dataclass(frozen=True)
class Size:
    """How much to make.

    `train` counts rows of the union file and `test` queries of the test split (validation has as
    many), over all sets; a query brings about `distractors` candidates that answer nothing, where
    the real pool is that large. `short_side` of a picture is in pixels (256 in the real data);
    `text` shortens texts.
    """

    train: int
    test: int
    distractors: int = 4
    short_side: int = 56
    text: float = 0.5

    def __post_init__(self) -> None:
        for field, least in (("train", 1), ("test", 1), ("distractors", 0), ("short_side", 16)):
            if getattr(self, field) < least:
                raise MarvelError(f"{field} is {getattr(self, field)}: give at least {least}.")
        if not 0 < self.text <= 1:
            raise MarvelError(f"text is {self.text}: give a share above 0, at most 1.")


SIZES: Mapping[str, Size] = {
    "tiny": Size(train=480, test=128, distractors=2, text=0.25),
    "small": Size(train=6_000, test=1_600),
    "medium": Size(train=60_000, test=8_000, distractors=8, short_side=112, text=1.0),
    "full": Size(train=1_332_790, test=190_573, distractors=28, short_side=256, text=1.0),
}


def read_size(text: str) -> Size:
    """A size by its name, or by its number of training queries.

    Raises:
      MarvelError: it is neither.
    """
    if text in SIZES:
        return SIZES[text]
    if not text.isdecimal() or not int(text):
        raise MarvelError(
            f"size {text!r}: choose one of {', '.join(SIZES)}, or a number of training queries."
        )
    return Size(train=int(text), test=max(_LEAST_TEST * len(SETS), int(text) // 8))


@dataclass(frozen=True)
class Built:
    """What `build` wrote."""

    folder: Path
    manifest: dict[str, Any]


def build(
    out: Path | str,
    *,
    size: Size | None = None,
    seed: int = 0,
    with_pairs: bool = False,
    progress: Progress | None = None,
) -> Built:
    """Writes a folder in the M-BEIR layout; `out` is whole afterwards or does not exist.

    Names, ids, tasks, modalities, splits, pools (local, and global over all sets; MSCOCO's one for
    each split), instructions, qrels, the union file with copies of small sets' queries: all as in
    the real one, and in its proportions of queries, texts' lengths, pictures' shapes, answers a
    query and queries an answer. Query ids count from 1 in each split; OVEN and InfoSeek answer for
    each other, too. Queries and answers show the same scene of coloured shapes, and
    in a set no test scene is a training scene, so there is something to learn. A few queries have
    negatives (WebQA, EDIS). A tokenizer for models from scratch lies beside. `with_pairs` adds
    sentence triplets and captioned pictures. The same arguments and versions give the same files.

    Raises:
      MarvelError: `out` exists already, or the seed is negative.
    """
    size = SIZES["tiny"] if size is None else size
    if seed < 0:
        raise MarvelError(f"seed {seed} is negative: give 0 or more.")
    report: Progress = progress or (lambda stage, done, total: None)
    with atomic_folder(out) as folder:
        maker = _Maker(folder, size, seed)
        for number in range(len(SETS)):
            report("sets", number, len(SETS))
            maker.make_set(number)
        manifest = maker.finish()
        if with_pairs:
            report("pairs", 0, 1)
            manifest["pairs"] = write_pairs(
                folder,
                count=max(_LEAST_TRAIN * 4, size.train // 2),
                short_side=size.short_side,
                seed=seed,
            )
        texts = itertools.chain(
            tokenizer.TEMPLATE_TEXTS, *maker.instructions, maker.texts[:_TOKENIZER_TEXTS]
        )
        tokenizer.save(tokenizer.train(texts, vocabulary=_VOCABULARY), folder / TOKENIZER_FOLDER)
        write_json(folder / MANIFEST, manifest)
    return Built(Path(out), manifest)


class _Loan(NamedTuple):
    """A scene of one set that another asks for too: candidates of both, each in its own pool."""

    scene: Scene
    answers: list[str]  # of the lender
    records: list[dict[str, Any]]  # of the borrower


class _Maker:
    """Writes set after set and remembers what the files over all sets need."""

    def __init__(self, folder: Path, size: Size, seed: int) -> None:
        self.folder, self.size, self.seed = folder, size, seed
        self.texts: list[str] = []
        self.instructions: list[tuple[str, ...]] = []
        self._table: list[mbeir_write.InstructionRow] = []
        self._unions: dict[str, list[dict[str, Any]]] = {split: [] for split in _SPLITS}
        self._pools: dict[str, list[dict[str, Any]]] = {split: [] for split in _SPLITS}
        self._queries = {
            (one.dataset, split): itertools.count(1) for one in SETS for split in _SPLITS
        }
        self._candidates = {one.dataset: itertools.count(1) for one in SETS}
        self._pictures = itertools.count()
        self._scenes: dict[str, Scenes] = {}
        self._loans: dict[tuple[str, str], list[_Loan]] = {}
        self._counts: dict[str, dict[str, int]] = {}

    def make_set(self, number: int) -> None:
        """One task of one data set: its queries of all splits, its pools and its instructions."""
        one = SETS[number]
        wanted = self._wanted(one)
        rng = np.random.default_rng([self.seed, number, 1])
        scenes = self._scenes_of(one, rng)
        pools = {}
        for split in _SPLITS:
            queries, pools[split] = self._make_split(one, split, wanted[split], scenes, rng)
            mbeir_write.write_queries(
                self.folder, one.name, task=one.task, split=split, records=queries
            )
            self._unions[split] += self._repeated(one, queries) if split == "train" else queries
            # The real union pool of validation holds hardly more than what its queries name.
            self._pools[split] += _named(queries, pools[split]) if split == "val" else pools[split]
        if one.name == "mscoco":
            for split in ("val", "test"):
                mbeir_write.write_local_pool(
                    self.folder, one.name, task=one.task, split=split, records=pools[split]
                )
        else:
            both = pools["val"] + pools["test"]
            mbeir_write.write_local_pool(self.folder, one.name, task=one.task, records=both)
            # The local pool is shared, and so all of it is in the union pool of test.
            self._pools["test"] += pools["val"]
        self._counts[one.full_name] = {**wanted, "pool": sum(map(len, pools.values()))}
        task = TASKS[one.task]
        prompts = _prompts(one)
        self.instructions.append(prompts)
        self._table.append(
            mbeir_write.InstructionRow(
                task.query_modality, task.candidate_modality, one.name, one.dataset, prompts
            )
        )

    def finish(self) -> dict[str, Any]:
        """Writes what spans all sets; returns the manifest."""
        folder, train = self.folder / "query", self._unions["train"]
        order = np.random.default_rng([self.seed, 2]).permutation(len(train)).tolist()
        mixed = (train[place] for place in order)
        write_jsonl(folder / "union_train" / "mbeir_union_up_train.jsonl", mixed)
        write_jsonl(folder / "union_val" / "mbeir_union_val.jsonl", self._unions["val"])
        for split, records in self._pools.items():
            mbeir_write.write_union_pool(self.folder, split=split, records=records)
        mbeir_write.write_instruction_table(self.folder, self._table)
        return {
            "format": "marvel-synthetic-mbeir",
            "version": 3,
            "seed": self.seed,
            "size": vars(self.size),
            "sets": self._counts,
            "union_train": len(train),
            "pools": {split: len(records) for split, records in self._pools.items()},
            "versions": {name: metadata.version(name) for name in ("pillow", "numpy")},
        }

    def _wanted(self, one: MbeirSet) -> dict[str, int]:
        """How many queries of each split, copies not counted."""
        train = self.size.train * one.train / sum(other.train for other in SETS)
        train *= _UNIQUE.get(one.name, 1.0)
        test = self.size.test * one.test_queries / sum(other.test_queries for other in SETS)
        several = max(_LEAST_TEST, round(test))
        return {"train": max(_LEAST_TRAIN, round(train)), "val": several, "test": several}

    def _repeated(self, one: MbeirSet, queries: list[dict[str, Any]]) -> list[dict[str, Any]]:
        rows = max(len(queries), round(len(queries) / _UNIQUE.get(one.name, 1.0)))
        return list(itertools.islice(itertools.cycle(queries), rows))

    def _make_split(
        self,
        one: MbeirSet,
        split: str,
        count: int,
        scenes: Scenes,
        rng: np.random.Generator,
    ) -> tuple[list[dict[str, Any]], list[dict[str, Any]]]:
        """(query records, candidate records)."""
        sharing = _sharing(one)
        loans = self._loans.get((one.full_name, split), [])
        new = -(-count // sharing) - len(loans)
        shown = [*(loan.scene for loan in loans), *(scenes.take() for _ in range(new))]
        pool = [record for loan in loans for record in loan.records]
        answers = [[*(one["did"] for one in loan.records), *loan.answers] for loan in loans]
        for scene in shown[len(loans) :]:
            relevant = min(1 + int(rng.poisson(one.relevant - 1)), _MOST_RELEVANT)
            lent = self._lend(one, split, scene, relevant // 2, rng)
            made = [
                self._candidate(one, split, scene, rng) for _ in range(relevant - len(lent.records))
            ]
            lent.answers.extend(record["did"] for record in made)
            answers.append([*lent.answers, *(record["did"] for record in lent.records)])
            pool += made
        ratio = one.pool / one.test_queries - one.relevant / sharing
        if split == "train":  # the real training pool is hardly more than what is asked for
            ratio = min(ratio, 1)
        others = round(count * min(self.size.distractors, max(ratio, 0)))
        if split != "train":
            others = max(others, _LEAST_POOL - len(pool))
        pool += [self._candidate(one, split, scenes.take(), rng) for _ in range(others)]
        queries = []
        for number in range(count):
            group = number % len(shown)
            negatives: list[str] = []
            if one.name in _WITH_NEGATIVES and len(shown) > 2:
                negatives = [answers[(group + step) % len(shown)][0] for step in (1, 2)]
            queries.append(self._query(one, split, shown[group], answers[group], negatives, rng))
        return queries, pool

    def _scenes_of(self, one: MbeirSet, rng: np.random.Generator) -> Scenes:
        """A set's scenes; a borrower goes on with its lender's, so that none comes twice."""
        if one.name in _BORROWERS:
            return self._scenes[f"{_BORROWERS[one.name]}_task{one.task}"]
        both = [one, *filter(None, [_borrower(one)])]
        wanted = sum(sum(self._wanted(each).values()) for each in both)
        most = wanted * (2 + self.size.distractors) + 2 * _LEAST_POOL * len(both)
        return self._scenes.setdefault(one.full_name, Scenes(most, rng))

    def _lend(
        self, one: MbeirSet, split: str, scene: Scene, count: int, rng: np.random.Generator
    ) -> _Loan:
        """Candidates of another set that answer a scene too; of half its scenes, then none."""
        loan = _Loan(scene, [], [])
        borrower = _borrower(one)
        if borrower is not None and count:
            loans = self._loans.setdefault((borrower.full_name, split), [])
            asked_for = -(-self._wanted(borrower)[split] // _sharing(borrower))
            if len(loans) < -(-asked_for // 2):
                records = [self._candidate(borrower, split, scene, rng) for _ in range(count)]
                loan.records.extend(records)
                loans.append(loan)
        return loan

    def _query(
        self,
        one: MbeirSet,
        split: str,
        scene: Scene,
        positives: list[str],
        negatives: list[str],
        rng: np.random.Generator,
    ) -> dict[str, Any]:
        core = f"where is {scene}" if one.asks == "question" else str(scene)
        if one.task == 7:
            scene, core = synthetic_scenes.changed(scene, rng)
        elif one.task in (6, 8):
            core = f"what is beside the {scene.things[0].shape}"
        return mbeir_write.query_record(
            f"{one.dataset}:{next(self._queries[one.dataset, split])}",
            task=one.task,
            text=self._text(one.asks, core, rng),
            image=self._picture(one, split, scene, rng, TASKS[one.task].query_modality),
            positives=positives,
            negatives=negatives,
        )

    def _candidate(
        self, one: MbeirSet, split: str, scene: Scene, rng: np.random.Generator
    ) -> dict[str, Any]:
        return mbeir_write.candidate_record(
            f"{one.dataset}:{next(self._candidates[one.dataset])}",
            text=self._text(one.answers, str(scene), rng),
            image=self._picture(one, split, scene, rng, TASKS[one.task].candidate_modality),
        )

    def _text(self, kind: Any, core: str, rng: np.random.Generator) -> str | None:
        if kind is None:
            return None
        text = synthetic_scenes.write(kind, core, scale=self.size.text, rng=rng)
        self.texts.append(text)
        return text

    def _picture(
        self, one: MbeirSet, split: str, scene: Scene, rng: np.random.Generator, modality: str
    ) -> str | None:
        if "image" not in modality:
            return None
        path = f"mbeir_images/{one.name}/{split}/{next(self._pictures):08d}.jpg"
        (self.folder / path).parent.mkdir(parents=True, exist_ok=True)
        content = synthetic_scenes.draw(scene, short_side=self.size.short_side, rng=rng)
        (self.folder / path).write_bytes(content)
        return path


def _borrower(one: MbeirSet) -> MbeirSet | None:
    """The set of the same task whose queries this set's candidates answer too."""
    both = ((other, _BORROWERS.get(other.name)) for other in SETS if other.task == one.task)
    return next((other for other, lender in both if lender == one.name), None)


def _sharing(one: MbeirSet) -> int:
    """Queries that have the same answers."""
    return max(1, round(one.test_queries * one.relevant / one.pool))


def _named(queries: list[dict[str, Any]], pool: list[dict[str, Any]]) -> list[dict[str, Any]]:
    """The candidates that queries name."""
    named = {did for one in queries for did in one["pos_cand_list"] + one["neg_cand_list"]}
    return [record for record in pool if record["did"] in named]


def _prompts(one: MbeirSet) -> tuple[str, ...]:
    task, noun = TASKS[one.task], _NOUNS[one.name]
    asked, wanted = _WANTED[task.query_modality], _WANTED[task.candidate_modality]
    return (
        f"Find the {noun} {wanted} that belongs to this {asked}.",
        f"Which {noun} {wanted} answers the {asked}?",
        f"Pick out the {noun} {wanted} that fits the {asked}.",
        f"From the {asked}, look up the right {noun} {wanted}.",
    )
