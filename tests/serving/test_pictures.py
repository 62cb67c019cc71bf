"""A client's picture: as small as the model takes it while it waits, and the same to the model."""

import base64
import io
import threading
import time
from concurrent.futures import CancelledError

import hypothesis
import numpy as np
import PIL.Image
import pytest
from hypothesis import strategies as st

from marvel_jax.data.images import ImageGeometry, patchify
from marvel_jax.data.items import Image, Item
from marvel_jax.serving import service as services
from marvel_jax.serving.batcher import Batcher
from marvel_jax.serving.pictures import fitted
from tests.serving import fakes

MOST = 4 * 28 * 28  # pixels that the fake models take


def encoded(side):
    stream = io.BytesIO()
    PIL.Image.new("L", (side, side)).save(stream, "png")
    return base64.b64encode(stream.getvalue()).decode()


@hypothesis.settings(max_examples=25)
@hypothesis.given(
    sides=st.tuples(st.integers(1, 400), st.integers(1, 400)).filter(
        lambda sides: max(sides) <= 15 * min(sides)
    ),
    seed=st.integers(0, 99),
)
def test_a_fitted_picture_is_cut_as_the_whole_one(sides, seed):
    geometry = ImageGeometry(max_pixels=20 * 28 * 28)
    drawn = np.random.default_rng(seed).integers(0, 256, (*sides, 3), np.uint8)
    whole = PIL.Image.fromarray(drawn)
    patches, grid = patchify(fitted(whole, geometry), geometry)
    expected, expected_grid = patchify(whole, geometry)
    assert grid == expected_grid
    np.testing.assert_array_equal(patches, expected)


class Blocked:
    """Queries with a picture that come while the device is busy."""

    def __init__(self, serve, *, count, **options):
        self.embedder = fakes.FakeEmbedder()
        self.client = serve(embedder=self.embedder, batch_wait_ms=0, **options)
        self.warmed = len(self.embedder.batches)
        self.embedder.entered.clear()
        self.embedder.may_go.clear()
        self.codes = []
        self.threads = [threading.Thread(target=self.send) for _ in range(count)]
        for thread in self.threads:
            thread.start()
        assert self.embedder.entered.wait(60)

    def send(self):
        answer = self.client.post("/api/search", json={"image": encoded(600)})
        self.codes.append(answer.status_code)

    def let_go(self):
        self.embedder.may_go.set()
        for thread in self.threads:
            thread.join(60)
        return [item for batch in self.embedder.batches[self.warmed :] for item in batch]


def test_a_large_picture_waits_as_small_as_the_model_takes_it(serve):
    reranker = fakes.FakeReranker(max_pixels=9 * 28 * 28)
    blocked = Blocked(serve, count=3, reranker=reranker)
    waiting = blocked.let_go()
    assert blocked.codes == [200] * 3 and len(waiting) == 3
    for item in waiting:
        assert np.prod(item.images[0].source.size) <= MOST
    answer = blocked.client.post("/api/search", json={"image": encoded(600), "rerank": True})
    assert answer.status_code == 200
    (picture,) = reranker.queries[-1].images  # the reranker's own size, not made of the other
    assert picture.source.size == (84, 84)


def test_beyond_the_pixels_that_may_wait_none_is_decoded(serve, monkeypatch):
    decoded = []
    real = services.query_pictures

    def counting(*args, **options):
        decoded.append(1)
        return real(*args, **options)

    monkeypatch.setattr(services, "query_pictures", counting)
    blocked = Blocked(serve, count=5, waiting_pixels=2 * MOST + 1)
    under_way = blocked.client.service.metrics.under_way._value
    fakes.until(lambda: under_way.get() == 5)
    time.sleep(0.2)  # a third would be decoded by now
    assert len(decoded) == 2
    assert blocked.client.get("/api/search", params={"text": "x", "k": 999}).status_code == 422
    assert len(blocked.let_go()) == len(decoded) == 5 and blocked.codes == [200] * 5


def test_what_nobody_waits_for_any_more_is_not_kept():
    embedder = fakes.FakeEmbedder()
    embedder.may_go.clear()
    batcher = Batcher(embedder, size=4, wait_ms=0, device=threading.Lock())
    first = batcher.submit(Item.of(text="first"))
    assert embedder.entered.wait(60)
    given_up = Image(PIL.Image.new("RGB", (9, 9)), name="x")
    waiting = batcher.submit(Item.of(image=given_up))
    queued = batcher._queue
    assert waiting.cancel() and queued.qsize() == 1
    one = queued.get()
    assert one.item is None
    queued.put(one)
    embedder.may_go.set()
    batcher.close()
    assert first.result().batch == 1 and len(embedder.batches) == 1
    with pytest.raises(CancelledError):
        waiting.result()
