"""Limits, hosts, headers, the queue, health and metrics."""

import threading

import pytest

from marvel_jax.errors import MarvelError
from marvel_jax.serving.limits import Limits, TokenBuckets
from tests.serving import fakes


def test_a_bucket_gives_its_burst_and_then_its_rate():
    now = [0.0]
    buckets = TokenBuckets(rate=2.0, burst=3.0, clock=lambda: now[0])
    assert [buckets.wait("a", 1) for _ in range(3)] == [0, 0, 0]
    assert buckets.wait("a", 1) == pytest.approx(0.5)
    assert buckets.wait("b", 1) == 0
    now[0] = 0.5
    assert buckets.wait("a", 1) == 0 and buckets.wait("a", 1) > 0
    now[0] = 100.0
    assert [buckets.wait("a", 1) == 0 for _ in range(4)] == [True, True, True, False]


def test_limits_that_cannot_be_are_refused():
    with pytest.raises(MarvelError, match="queue=0"):
        Limits(queue=0)


def test_too_many_searches_are_429_and_say_when_to_come_again(serve):
    client = serve(rate=0.5, burst=2)
    codes = [client.get("/api/search", params={"text": "x"}).status_code for _ in range(3)]
    assert codes == [200, 200, 429]
    last = client.get("/api/search", params={"text": "x"})
    assert 1 <= int(last.headers["retry-after"]) <= 2 and last.json()["code"] == "too_many"
    assert client.get("/healthz").status_code == 200


def test_a_large_body_is_refused_before_and_while_it_is_read(serve):
    client = serve(body_bytes=1000)
    assert client.post("/api/search", json={"text": "x" * 2000}).status_code == 413

    def pieces():  # no Content-Length
        for _ in range(100):
            yield b" " * 100

    answer = client.post(
        "/api/search", content=pieces(), headers={"content-type": "application/json"}
    )
    assert (answer.status_code, answer.json()["code"]) == (413, "too_large")


@pytest.mark.parametrize(
    ("host", "status"),
    [
        ("127.0.0.1:8765", 200),
        ("localhost:9", 200),
        ("[::1]:8765", 200),
        ("192.168.1.7", 200),
        ("search.lab", 200),
        ("evil.example", 421),
        ("127.0.0.1.evil.example", 421),
        ("localhost.evil.example:8765", 421),
        ("", 421),
        ("[::1", 421),
    ],
)
def test_only_its_own_names_reach_it(serve, host, status):
    client = serve(hosts=["search.lab"])
    assert client.get("/api/collection", headers={"host": host}).status_code == status


def test_pages_of_other_sites_may_not_ask(serve):
    client = serve()
    for origin, status in (
        ("http://127.0.0.1:8765", 200),
        ("http://evil.example", 403),
        ("null", 403),
        ("http://[", 403),
        ("", 403),
    ):
        answer = client.post("/api/search", json={"text": "x"}, headers={"origin": origin})
        assert answer.status_code == status
    plain = client.post(
        "/api/search", content='{"text": "x"}', headers={"content-type": "text/plain"}
    )
    assert plain.status_code == 422


def test_a_length_of_thousands_of_digits_is_only_too_large(serve):
    answer = serve().post("/api/search", content=b"{}", headers={"content-length": "9" * 5000})
    assert (answer.status_code, answer.json()["code"]) == (413, "too_large")


def test_a_fault_of_the_guard_is_an_answer_like_any_other(serve, monkeypatch):
    from marvel_jax.serving import guard

    monkeypatch.setattr(guard, "_host_name", lambda host: 1 // 0)
    answer = serve().get("/api/collection")
    assert (answer.status_code, answer.json()["code"]) == (500, "fault")
    assert answer.headers["x-content-type-options"] == "nosniff"


def test_every_answer_keeps_a_browser_strict(serve):
    client = serve()
    for path in (
        "/",
        "/app.js",
        "/picture.js",
        "/api/collection",
        "/nothing",
        "/api/image?id=a/lime.png",
    ):
        headers = client.get(path).headers
        policy = headers["content-security-policy"]
        assert "default-src 'none'" in policy and "script-src 'self'" in policy
        assert "unsafe" not in policy and headers["x-content-type-options"] == "nosniff"


def test_unknown_pages_and_methods_have_the_same_shape(serve):
    client = serve()
    for answer, status in (
        (client.get("/../etc/passwd"), 404),
        (client.get("/page/app.js"), 404),
        (client.get("/docs"), 404),
        (client.delete("/api/search"), 405),
    ):
        assert answer.status_code == status and set(answer.json()) == {"error", "code"}


def under_way(client):
    return client.service.metrics.under_way._value.get()


def test_beyond_the_queue_a_client_is_told_to_come_again(serve):
    embedder = fakes.FakeEmbedder()
    client = serve(embedder=embedder, queue=2, batch_wait_ms=0)
    embedder.entered.clear()
    embedder.may_go.clear()
    codes = []

    def send():
        codes.append(client.post("/api/search", json={"text": "x"}).status_code)

    threads = [threading.Thread(target=send) for _ in range(2)]
    for thread in threads:
        thread.start()
    assert embedder.entered.wait(30)
    fakes.until(lambda: under_way(client) == 2)
    refused = client.post("/api/search", json={"text": "x"})
    assert (refused.status_code, refused.json()["code"]) == (429, "busy")
    assert refused.headers["retry-after"] == "1"
    embedder.may_go.set()
    for thread in threads:
        thread.join()
    assert codes == [200, 200]


def test_queries_that_come_while_the_device_works_go_together(serve):
    embedder = fakes.FakeEmbedder()
    client = serve(embedder=embedder, batch_wait_ms=0, batch=8)
    warmed = len(embedder.batches)
    embedder.entered.clear()
    embedder.may_go.clear()
    threads = [
        threading.Thread(target=client.get, args=(f"/api/search?text=word{number}",))
        for number in range(5)
    ]
    threads[0].start()
    assert embedder.entered.wait(30)
    for thread in threads[1:]:
        thread.start()
    fakes.until(lambda: under_way(client) == 5)
    embedder.may_go.set()
    for thread in threads:
        thread.join()
    sizes = [len(batch) for batch in embedder.batches[warmed:]]
    assert sizes[0] == 1 and sum(sizes) == 5 and max(sizes) > 1


def test_slow_answers_are_given_up(serve):
    client = serve(embedder=fakes.FakeEmbedder(seconds=0.5), seconds=0.2)
    answer = client.post("/api/search", json={"text": "x"})
    assert (answer.status_code, answer.json()["code"]) == (503, "slow")


def test_health_readiness_and_metrics(serve):
    embedder = fakes.FakeEmbedder()
    embedder.may_go.clear()
    client = serve(embedder=embedder, wait=False)
    assert client.get("/healthz").json() == {"status": "ok"}
    assert client.get("/readyz").status_code == 503
    embedder.may_go.set()
    fakes.until(lambda: client.get("/readyz").status_code == 200)
    client.get("/api/search", params={"text": "x"})
    client.get("/wp-admin.php")
    told = client.get("/metrics").text
    assert 'marvel_requests_total{route="/api/search",status="200"} 1.0' in told
    assert 'marvel_stage_seconds_count{stage="embed"}' in told and "marvel_entries 9.0" in told
    assert "wp-admin" not in told


def test_a_server_that_has_ended_says_so_at_once(serve):
    client = serve()
    client.service.close()
    answer = client.post("/api/search", json={"text": "red apple"})
    assert (answer.status_code, answer.json()["code"]) == (503, "closed")
