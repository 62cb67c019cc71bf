import jax
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from vector_stores import exact_reference, random_unit, unit, write_store

from marvel_jax.errors import MarvelError
from marvel_jax.retrieval import exact
from marvel_jax.retrieval import store as store_module
from marvel_jax.retrieval.exact import rescore, top_k
from marvel_jax.retrieval.searcher import ExactSearcher
from marvel_jax.retrieval.store_convert import convert
from marvel_jax.retrieval.store_types import STORE_TYPES

ONE = np.eye(1, 20, dtype=np.float32)


@settings(max_examples=40, deadline=None)
@given(data=st.data())
def test_equals_a_float64_sort_with_ties_by_id(data):
    rows = data.draw(st.integers(1, 60))
    k = data.draw(st.integers(1, rows))
    rng = np.random.default_rng(data.draw(st.integers(0, 2**32 - 1)))
    # Few distinct vectors: most scores are ties, many runs are longer than the margin.
    distinct = random_unit(data.draw(st.integers(1, rows)), 5, seed=int(rng.integers(1 << 30)))
    corpus = distinct[rng.integers(len(distinct), size=rows)]
    ids = [f"{number}" for number in rng.permutation(rows)]
    queries = np.concatenate([random_unit(3, 5, seed=int(rng.integers(1 << 30))), corpus[:2]])
    scores, indices = exact_reference(queries, corpus, ids, k)
    found = top_k(queries, corpus, k, ids=ids, block=data.draw(st.sampled_from([8, 32, 64])))
    np.testing.assert_array_equal(found.scores, scores)
    np.testing.assert_array_equal(found.indices, indices)
    assert found.scores.dtype == np.float32
    assert found.indices.dtype == np.int32


@pytest.fixture(scope="module")
def stored(tmp_path_factory):
    """By type: a store of 400 vectors of which many are copies, its ids and decoded vectors."""
    rng = np.random.default_rng(3)
    corpus = random_unit(90, 20)[rng.integers(90, size=400)]
    ids = [f"c:{number}" for number in rng.permutation(400)]
    folder = tmp_path_factory.mktemp("stored")
    stores = {
        dtype: write_store(folder / dtype, corpus, ids, shard_rows=90, dtype=dtype)
        for dtype in STORE_TYPES
    }
    whole = stores["float32"]
    stores["cut"] = convert(whole, folder / "cut", dtype="int8", dimension=9)
    return {kind: (store, ids, store.vectors()) for kind, store in stores.items()}


@settings(max_examples=25, deadline=None)
@given(data=st.data())
def test_any_type_on_any_mesh_is_ranked_as_its_decoded_vectors(stored, data):
    store, ids, vectors = stored[data.draw(st.sampled_from([*STORE_TYPES, "cut"]))]
    asked = np.concatenate([random_unit(3, 20, seed=data.draw(st.integers(0, 99))), ONE])
    sizes = data.draw(st.sampled_from([None, (1,), (8,), (2, 2), (2, 1, 4)]))
    mesh = None if sizes is None else jax.make_mesh(sizes, ("data", "fsdp", "tensor")[: len(sizes)])
    rows = data.draw(st.sampled_from([None, np.arange(0, 400, 7), np.arange(133, 150)]))
    pool = np.arange(400) if rows is None else rows
    k = data.draw(st.sampled_from([1, 10, len(pool)]))
    scores, places = exact_reference(store.fit(asked), vectors[pool], [ids[row] for row in pool], k)
    found = top_k(asked, store, k, subset=rows, mesh=mesh, block=64)
    np.testing.assert_array_equal(found.indices, pool[places])
    np.testing.assert_array_equal(found.scores, scores)


def test_a_large_store_is_searched_from_pages_that_come_and_go(tmp_path, monkeypatch):
    monkeypatch.setattr(store_module, "RESIDENT_BYTES", 0)
    corpus, queries = random_unit(3000, 33), random_unit(300, 33, seed=1)
    ids = [f"c:{row}" for row in range(3000)]
    store = write_store(tmp_path / "store", corpus, ids, shard_rows=700)
    scores, indices = exact_reference(queries, corpus, ids, 5)
    found = top_k(queries, store, 5, block=256)
    np.testing.assert_array_equal(found.indices, indices)
    np.testing.assert_array_equal(found.scores, scores)


def test_a_long_run_of_equal_vectors_across_blocks_is_ordered_by_id(tmp_path):
    # 200 copies compete for 10 places, far more than the device keeps.
    corpus = random_unit(700, 16)
    corpus[100:300] = corpus[0]
    ids = [f"c:{number:04d}" for number in np.random.default_rng(1).permutation(700)]
    store = write_store(tmp_path / "store", corpus, ids, shard_rows=90)
    found = top_k(corpus[:1], store, 10, block=64)
    copies = sorted(ids[row] for row in [0, *range(100, 300)])
    assert [store.ids[int(row)] for row in found.indices[0]] == copies[:10]


@pytest.mark.parametrize("query", [np.zeros((1, 8), np.float32), random_unit(1, 8, seed=3)])
def test_however_many_vectors_are_equally_near_only_the_best_are_kept(monkeypatch, query):
    corpus = np.repeat(random_unit(1, 8, seed=3), 5000, axis=0)
    corpus[::7] = random_unit(715, 8)
    ids = [f"c:{number:04d}" for number in np.random.default_rng(1).permutation(5000)]
    scores, indices = exact_reference(query, corpus, ids, 9)
    monkeypatch.setattr(exact, "_CACHED_ELEMENTS", 1 << 10)
    dot_products, most = exact._dot_products, []

    def spied(queries, vectors):
        most.append(vectors.size)
        return dot_products(queries, vectors)

    monkeypatch.setattr(exact, "_dot_products", spied)
    found = top_k(query, corpus, 9, block=512, ids=ids)
    np.testing.assert_array_equal(found.indices, indices)
    np.testing.assert_array_equal(found.scores, scores)
    assert max(most) <= 1 << 10 and sum(most) > 4000 * 8


def test_all_devices_share_a_large_pool_and_one_searches_a_small_one(tmp_path, monkeypatch):
    corpus = random_unit(9000, 4)
    store = write_store(tmp_path / "store", corpus)
    best_places, devices = exact.best_places, []

    def spied(*given, mesh, **more):
        devices.append(None if mesh is None else mesh.size)
        return best_places(*given, mesh=mesh, **more)

    monkeypatch.setattr(exact, "best_places", spied)
    found = ExactSearcher(store).search(corpus[:3], 5)
    few = top_k(corpus[:3], store, 5, subset=np.arange(100))
    assert devices == [8, None]
    scores, indices = exact_reference(corpus[:3], corpus, list(store.ids), 5)
    np.testing.assert_array_equal(found.indices, indices)
    np.testing.assert_array_equal(found.scores, scores)
    assert few.indices.max() < 100


def test_neither_blocks_nor_shards_nor_order_of_rows_change_the_ranking(tmp_path):
    corpus, queries = random_unit(500, 24), random_unit(9, 24, seed=1)
    corpus[250:] = corpus[:250]
    ids = [f"c:{row}" for row in range(500)]
    expected = exact_reference(queries, corpus, ids, 12)
    order = np.random.default_rng(2).permutation(500)
    for shard_rows, block, arrangement in (
        (500, 512, slice(None)),
        (77, 32, slice(None)),
        (60, 128, order),
    ):
        path = tmp_path / f"{shard_rows}"
        shuffled = [str(name) for name in np.array(ids)[arrangement]]
        store = write_store(path, corpus[arrangement], shuffled, shard_rows=shard_rows)
        found = top_k(queries, store, 12, block=block)
        np.testing.assert_array_equal(found.scores, expected[0])
        retrieved = [[store.ids[int(row)] for row in line] for line in found.indices]
        assert retrieved == [[ids[row] for row in line] for line in expected[1]]


def test_a_subset_ranks_as_a_corpus_of_its_own(tmp_path):
    corpus, queries = random_unit(300, 8), random_unit(5, 8, seed=1)
    ids = [f"c:{row}" for row in range(300)]
    store = write_store(tmp_path / "store", corpus, ids, shard_rows=70)
    subset = np.random.default_rng(0).permutation(300)[:40]
    kept = np.sort(subset)
    scores, local = exact_reference(queries, corpus[kept], [ids[row] for row in kept], 40)
    found = top_k(queries, store, 40, subset=subset)
    np.testing.assert_array_equal(found.scores, scores)
    np.testing.assert_array_equal(found.indices, kept[local])


def test_many_queries_are_answered_as_each_alone():
    corpus, queries = random_unit(64, 4), random_unit(1500, 4, seed=1)
    together = top_k(queries, corpus, 3)
    for query in (0, 1023, 1024, 1499):
        alone = top_k(queries[query : query + 1], corpus, 3)
        np.testing.assert_array_equal(together.indices[query], alone.indices[0])
        np.testing.assert_array_equal(together.scores[query], alone.scores[0])


def test_no_queries_give_no_rankings():
    assert top_k(np.empty((0, 4), np.float32), random_unit(6, 4), 2).indices.shape == (0, 2)


def test_differences_below_float32_matmul_error_are_still_ordered():
    # Neighbours 2e-7 apart in cosine: a float32 product in another order may swap them.
    base = random_unit(1, 512)[0].astype(np.float64)
    other = random_unit(1, 512, seed=1)[0].astype(np.float64)
    steps = np.arange(120)[:, None] * 2e-7
    corpus = unit(base + steps * other)
    ids = [f"{row:03d}" for row in range(120)]
    scores, indices = exact_reference(unit(base[None]), corpus, ids, 20)
    found = top_k(unit(base[None]), corpus, 20, ids=ids)
    np.testing.assert_array_equal(found.indices, indices)
    np.testing.assert_array_equal(found.scores, scores)


def test_rescore_leaves_empty_places_at_the_end():
    corpus = random_unit(5, 4)
    found = rescore(corpus[:1], corpus, np.array([[3, -1, 0]]), k=5)
    assert found.indices[0].tolist()[0] == 0
    assert found.indices[0, 2:].tolist() == [-1, -1, -1]
    assert np.isneginf(found.scores[0, 2:]).all()


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"k": 7}, "k=7 is larger than the pool of 6"),
        ({"k": 3, "subset": np.array([1, 4])}, "k=3 is larger than the pool of 2"),
        ({"k": 0}, "at least 1"),
        ({"k": 1, "subset": np.array([5, 6])}, "rows 0 to 5"),
    ],
)
def test_impossible_requests_are_refused(arguments, message):
    with pytest.raises(MarvelError, match=message):
        top_k(random_unit(2, 4), random_unit(6, 4), **arguments)


def test_queries_of_another_model_are_refused():
    with pytest.raises(MarvelError, match=r"\(2, 3\).*dimension 4"):
        top_k(random_unit(2, 3), random_unit(6, 4), 1)
    with pytest.raises(MarvelError, match="Query 1 is not finite"):
        top_k(np.array([[1.0, 0.0], [np.nan, 0.0]]), random_unit(6, 2), 1)


def test_a_pool_and_ids_of_different_lengths_are_refused():
    with pytest.raises(MarvelError, match="5 ids for 6 vectors"):
        top_k(random_unit(2, 4), random_unit(6, 4), 1, ids=list("abcde"))
