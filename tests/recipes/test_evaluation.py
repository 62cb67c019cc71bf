"""An evaluation uses what is there, and says what it leaves out."""

import pytest

from marvel_jax.data.mbeir import MbeirFolder
from marvel_jax.errors import MarvelError
from marvel_jax.recipes import evaluation
from marvel_jax.recipes.evaluation import Ticker, evaluate_embedder, score_table
from marvel_jax.retrieval.embedder import Embedder
from marvel_jax.retrieval.scann_index import ScannIndex, ScannUnavailableError


def evaluate(tiny_model, tiny_corpus, workdir, **options):
    embedder = Embedder.from_pretrained(tiny_model)
    return evaluate_embedder(embedder, MbeirFolder(tiny_corpus), workdir=workdir, seed=0, **options)


def test_without_scann_the_scores_are_there_and_it_is_said(
    tiny_model, tiny_corpus, tmp_path, monkeypatch
):
    def unavailable(*args, **options):
        raise ScannUnavailableError("ScaNN cannot be loaded: it has wheels for Linux only.")

    monkeypatch.setattr(ScannIndex, "build", unavailable)
    monkeypatch.setattr(ScannIndex, "open", unavailable)
    for _ in range(2):
        said: list[str] = []
        found = evaluate(tiny_model, tiny_corpus, tmp_path, say=said.append)
        assert found.evaluation.approximate is None and len(found.evaluation.sets) == 3
        assert sum("wheels for Linux only" in line for line in said) == 1
        (tmp_path / "index").mkdir(exist_ok=True)  # one that came from another machine


def test_any_other_fault_of_an_index_is_an_error(tiny_model, tiny_corpus, tmp_path):
    (tmp_path / "index").mkdir()
    with pytest.raises(MarvelError, match=r"index/manifest\.json does not exist"):
        evaluate(tiny_model, tiny_corpus, tmp_path)


def test_the_table_has_a_line_a_task_with_chance_and_the_untrained_model_beside_it(
    tiny_model, tiny_corpus, tmp_path
):
    found = evaluate(tiny_model, tiny_corpus, tmp_path, scann=False).evaluation
    title, *rows, mean = score_table(found, untrained=found)
    assert title.split()[-2:] == ["chance", "untrained"]
    assert [row.split()[0] for row in rows] == ["t->i", "i->t", "(i,t)->i"]
    first = found.sets[0].local_pool
    assert f"{first.hit[5].mean:.3f} [" in rows[0] and f"{first.chance[5]:.4f}" in rows[0]
    assert f"local {found.mean_local.mean:.3f}" in mean


def test_progress_is_a_line_now_and_then(monkeypatch):
    now = [0.0]
    monkeypatch.setattr(evaluation.time, "perf_counter", lambda: now[0])
    said: list[str] = []
    ticker = Ticker(said.append, "candidates", every=5)
    for second in range(1, 13):
        now[0] = second
        ticker(second * 100, 1600)
    assert said == [
        "  500 of 1,600 candidates, 100/s, 11 s left",
        "  1,000 of 1,600 candidates, 100/s, 6 s left",
    ]
