"""`marvel evaluate` again: what is there is used, what is of something else is not."""

import shutil
from functools import partial
from pathlib import Path

import pytest

from marvel_jax.data.mbeir import MbeirFolder
from marvel_jax.errors import MarvelError
from marvel_jax.recipes import evaluation
from marvel_jax.retrieval import evaluation_folder, protocols, retrieval_sets
from marvel_jax.retrieval.embedder import Embedder
from marvel_jax.retrieval.rerank import Reranker
from marvel_jax.retrieval.store import VectorStore
from tests.recipes.evaluate_command.asked import WHOLE, evaluate


def test_a_second_run_makes_nothing_again(ran, model, corpus, monkeypatch):
    workdir, first = ran

    def fail(*args, **options):
        pytest.fail("something is made again")

    monkeypatch.setattr(Embedder, "encode", fail)
    monkeypatch.setattr(Reranker, "score", fail)
    monkeypatch.setattr(retrieval_sets, "top_k", fail)
    monkeypatch.setattr(protocols, "_approximate", fail)
    before = written(workdir)
    again = evaluate(model, corpus, workdir, scann=True, reranker=model, **WHOLE)
    assert again.facts == first.facts
    assert written(workdir) == before and len(before) == 8 + 3


def written(workdir: Path) -> dict[str, tuple[int, int]]:
    """The files of results; one that is written again is another file."""
    files = [*(workdir / "rankings").iterdir(), *workdir.glob("*.json")]
    names = {"paraphrases.json"}
    states = {file.name: file.stat() for file in files if file.name not in names}
    return {name: (state.st_ino, state.st_mtime_ns) for name, state in states.items()}


def test_a_command_that_asks_for_less_keeps_what_was_found_before(ran, model, corpus, tmp_path):
    workdir, first = ran
    shutil.copytree(workdir, tmp_path / "run")
    again = evaluate(model, corpus, tmp_path / "run", scann=True, held_out=WHOLE["held_out"])
    assert again.facts == first.facts
    folder, before = (evaluation_folder.read(path) for path in (tmp_path / "run", workdir))
    assert folder.about["reranker"] == before.about["reranker"] is not None
    assert folder.rankings("emoji_task0").reranked.keys() == {"reranked", "fused"}
    commands = folder.about["commands"]
    assert [("--all-instructions" in one, "--reranker" in one) for one in commands] == [
        (False, False),
        (True, False),
        (False, True),
    ]
    # What is of other answers is not kept.
    layout = tmp_path / "corpus"
    shutil.copytree(corpus, layout)
    (file,) = (layout / "qrels" / "test").glob("*task0_*")
    lines = file.read_text().splitlines(keepends=True)
    first_query = lines[0].split()[0]
    other = next(line.split()[2] for line in lines if line.split()[0] != first_query)
    file.write_text("".join(lines) + " ".join([first_query, "0", other, "1", "0"]) + "\n")
    left = evaluate(model, layout, tmp_path / "run", held_out=WHOLE["held_out"])
    assert {"paraphrases", "reranked"}.isdisjoint(left.facts)
    folder = evaluation_folder.read(tmp_path / "run")
    assert folder.about["reranker"] is None and not folder.rankings("emoji_task4").reranked


def test_another_seed_encodes_queries_only(ran, model, corpus, tmp_path, monkeypatch):
    workdir, _ = ran
    shutil.copytree(workdir, tmp_path / "run")
    encoded = []
    encode = Embedder.encode

    def counted(self, items, **options):
        items = list(items)
        encoded.extend(item.instruction for item in items)
        return encode(self, items, **options)

    monkeypatch.setattr(Embedder, "encode", counted)
    before = evaluation_folder.read(tmp_path / "run").rankings("emoji_task0").origin
    evaluate(model, corpus, tmp_path / "run", seed=5)
    assert encoded and None not in encoded
    folder = evaluation_folder.read(tmp_path / "run")
    assert folder.about["seed"] == 5 and folder.about["reranker"] is None
    assert folder.rankings("emoji_task0").origin != before
    assert folder.rankings("emoji_task0").reranked == {}


def test_what_fails_after_the_search_loses_none_of_it(ran, model, corpus, tmp_path, monkeypatch):
    workdir, first = ran
    run = tmp_path / "run"
    run.mkdir()
    for name in ("store", "queries"):
        shutil.copytree(workdir / name, run / name)

    def fail(*_, **__):
        raise MarvelError("something after the search")

    local: list[int] = []
    top_k = retrieval_sets.top_k

    def searched(queries, store, k, *, most, subset=None):
        if subset is None or len(local) == most:
            raise MarvelError("something in the search")
        local.append(len(subset))
        return top_k(queries, store, k, subset=subset)

    for most in (3, 8):  # in the fourth set's own pool, and then in the pool of everything
        with monkeypatch.context() as patched:
            patched.setattr(retrieval_sets, "top_k", partial(searched, most=most))
            with pytest.raises(MarvelError, match="in the search"):
                evaluate(model, corpus, run)
        assert len(local) == most  # no pool is searched twice
    with monkeypatch.context() as patched:
        patched.setattr(evaluation, "evaluate", fail)
        with pytest.raises(MarvelError, match="after the search"):
            evaluate(model, corpus, run)
    with pytest.raises(MarvelError, match="holds no finished evaluation"):
        evaluation_folder.read(run)
    monkeypatch.setattr(retrieval_sets, "top_k", lambda *_, **__: pytest.fail("searched again"))
    again = evaluate(model, corpus, run)
    assert again.facts["mean_global"] == first.facts["mean_global"]
    assert again.facts["mean_local"] == first.facts["mean_local"]


def test_pictures_that_cannot_be_read_count_as_never_found(model, corpus, tmp_path):
    other, workdir = tmp_path / "corpus", tmp_path / "run"
    shutil.copytree(corpus, other)
    layout = MbeirFolder(other)
    one = next(one for one in layout.test_sets() if one.name == "emoji_task4")
    answers = [id for query in one.queries for id in one.qrels[query.id]]
    source = layout.judged_source("test")
    broken = source.candidates[source.candidate_index(answers[0])].item.images[0].source
    Path(str(broken)).write_bytes(b"no picture")
    pictured = next(one for one in layout.test_sets() if one.name == "emoji_task3")
    shown = next(iter(pictured.queries)).item.images[0].source
    Path(str(shown)).write_bytes(b"no picture")
    with pytest.raises(MarvelError, match="pictures that cannot be used"):
        evaluate(model, other, workdir, dtype="bfloat16", dimension=16)
    found = evaluate(model, other, workdir, dtype="bfloat16", dimension=16, tolerate=30)
    folder = evaluation_folder.read(workdir)
    store = VectorStore.open(folder.store_path)
    lacking = len(layout.pool("test")) - len(store)
    assert 0 < folder.about["missing"] == lacking and folder.about["dtype"] == "bfloat16"
    assert store.dimension == folder.about["dimension"] == 16
    assert {scores["name"]: scores["missing"] for scores in found.facts["sets"]}[one.name] > 0
    beyond = [rows for rows in folder.rankings(one.name).relevant if (rows >= len(store)).any()]
    assert beyond
    # A query whose picture is broken has no results.
    nothing = sum(
        int((folder.rankings(name).retrieved.local_pool.indices == -1).all(axis=1).sum())
        for name in folder.sets
    )
    listed = [len(path.read_text().splitlines()) for path in workdir.glob("queries/*/*.jsonl")]
    assert nothing == sum(listed) > 0


def test_a_store_of_another_pool_is_refused(ran, model, corpus, tmp_path):
    workdir, _ = ran
    other = tmp_path / "corpus"
    shutil.copytree(corpus, other, symlinks=True)
    pool = other / "cand_pool" / "global" / "mbeir_union_test_cand_pool.jsonl"
    pool.write_text("".join(pool.read_text().splitlines(keepends=True)[:-1]))
    with pytest.raises(MarvelError, match="source_hash"):
        evaluate(model, other, workdir)
