"""What a client of the API gets."""

import base64
import io
import threading

import PIL.Image
import pytest

from tests.serving import fakes


def ask(client, **request):
    return client.post("/api/search", json=request)


def ids(answer):
    assert answer.status_code == 200, answer.text
    return [hit["id"] for hit in answer.json()["hits"]]


def test_words_a_picture_and_both_find_what_is_alike(serve, red):
    client = serve()
    assert ids(ask(client, text="a green lime"))[0] == "text/2"
    assert ids(ask(client, image=red))[0].startswith("a/apple")
    assert ids(ask(client, image="data:image/png;base64," + red))[0].startswith("a/apple")
    both = ask(
        client,
        text="the sea at night",
        image=base64.b64encode(fakes.picture((20, 30, 180))).decode(),
    )
    assert ids(both)[0] == "b/sea.png"
    by_address = client.get("/api/search", params={"text": "a green lime", "k": 2})
    assert ids(by_address) == ids(ask(client, text="a green lime", k=2))


def test_recall_is_not_measured_where_it_is_not_asked_for(serve):
    answer = ask(serve(), text="red apple", method="scann", compare=False).json()
    assert answer["recall"] is None and answer["hits"]


def test_an_answer_says_ranks_costs_and_shares(serve):
    answer = ask(serve(), text="red apple", k=4, method="scann", instruction="Find it.").json()
    assert [hit["rank"] for hit in answer["hits"]] == [1, 2, 3, 4]
    scores = [hit["score"] for hit in answer["hits"]]
    assert scores == sorted(scores, reverse=True)
    assert answer["recall"] == 0.9 and answer["method"] == "scann"
    assert answer["dimension"] == fakes.WIDTH and answer["instruction"] == "Find it."
    assert answer["batch"] == 1 and answer["search_ms"] == 1.5 and answer["rerank_ms"] is None
    kinds = [hit["kind"] for hit in answer["hits"]]
    assert answer["shares"] == {
        kind: kinds.count(kind) / 4 for kind in ("text", "image", "image,text")
    }


def test_the_instruction_reaches_the_model_and_a_blank_one_does_not(serve):
    embedder = fakes.FakeEmbedder()
    client = serve(embedder=embedder)
    ask(client, text="x", instruction="Find a picture.")
    ask(client, text="x", instruction="   ")
    told = [item.instruction for batch in embedder.batches[-2:] for item in batch]
    assert told == ["Find a picture.", None]


def test_the_kind_that_is_sought_is_the_only_one_found(serve):
    for kind in ("text", "image", "image,text"):
        hits = ask(serve(), text="red", kind=kind).json()["hits"]
        assert hits and {hit["kind"] for hit in hits} == {kind}


def test_more_like_this_leaves_the_entry_and_its_copies_out(serve, red):
    client = serve()
    found = ids(ask(client, like="a/apple.png", k=3))
    assert len(found) == 3 and not {"a/apple.png", "a/apple again.png"} & set(found)
    apart = ids(ask(client, like="a/apple.png", k=3, collapse=False))
    assert apart[0] == "a/apple again.png"
    assert ids(ask(client, like="a/lime.png", image=red))[0].startswith("a/apple")


def test_copies_are_folded_under_the_best(serve):
    hits = ask(serve(), text="red", kind="image").json()["hits"]
    (folded,) = [hit for hit in hits if hit["copies"]]
    assert {folded["id"], folded["copies"][0]["id"]} == {"a/apple.png", "a/apple again.png"}
    apart = ask(serve(), text="red", kind="image", collapse=False).json()["hits"]
    assert len(apart) == len(hits) + 1


def test_the_reranker_reads_the_first_and_tells_how_ranks_moved(serve):
    client = serve(reranker=fakes.FakeReranker(), rerank_depth=3)
    before = ids(ask(client, text="apple", k=5))
    answer = ask(client, text="apple", k=5, rerank=True)
    assert ids(answer) == [*before[:3][::-1], *before[3:]]
    hits = answer.json()["hits"]
    assert [hit["previous_rank"] for hit in hits] == [3, 2, 1, 4, 5]
    assert [hit["rerank_score"] for hit in hits] == [0.9, 0.5, 0.1, None, None]
    assert answer.json()["rerank_ms"] is not None


@pytest.mark.parametrize(
    ("request_", "status", "code"),
    [
        ({}, 422, "empty"),
        ({"text": "  "}, 422, "empty"),
        ({"text": "x", "k": 0}, 422, "invalid"),
        ({"text": "x", "k": 101}, 422, "too_many"),
        ({"text": "x" * 20_001}, 422, "too_long"),
        ({"text": "x", "instruction": "x" * 1001}, 422, "too_long"),
        ({"text": "\ud800"}, 422, "bad_text"),
        ({"text": "x", "kind": "video"}, 422, "invalid"),
        ({"text": "x", "dimension": 7}, 422, "no_dimension"),
        ({"text": "x", "dimension": 8, "method": "scann"}, 422, "no_dimension"),
        ({"text": "x", "rerank": True}, 422, "no_reranker"),
        ({"text": "x", "unknown": 1}, 422, "invalid"),
        ({"image": "no base64!"}, 422, "bad_image"),
        ({"image": base64.b64encode(b"no picture").decode()}, 422, "bad_image"),
        ({"like": "nothing"}, 404, "unknown_id"),
        ({"like": "\udfff"}, 404, "unknown_id"),
        ({"text": "broken"}, 422, "bad_image"),
    ],
)
def test_what_cannot_be_answered_is_refused_in_one_shape(serve, request_, status, code):
    import json

    answer = serve().post(
        "/api/search", content=json.dumps(request_), headers={"content-type": "application/json"}
    )
    assert (answer.status_code, answer.json()["code"]) == (status, code)
    assert set(answer.json()) == {"error", "code"} and answer.json()["error"].endswith(".")


@pytest.mark.parametrize(
    "body", [b'{"text": "\xff"}', b"[" * 100_000, b"{", b"", b'{"text": "x", "k": NaN}', b"\x00"]
)
def test_a_body_that_is_no_json_is_refused_in_the_same_shape(serve, body):
    answer = serve().post("/api/search", content=body, headers={"content-type": "application/json"})
    assert (answer.status_code, answer.json()["code"]) == (422, "invalid")
    assert set(answer.json()) == {"error", "code"}


def test_an_instruction_that_nothing_has_read_is_not_told(serve):
    client = serve(reranker=fakes.FakeReranker())
    asked = {"like": "a/apple.png", "instruction": "Find it."}
    assert ask(client, **asked).json()["instruction"] is None
    assert ask(client, **asked, text="x").json()["instruction"] == "Find it."
    assert ask(client, **asked, rerank=True).json()["instruction"] == "Find it."


def test_a_truncated_picture_an_eps_and_a_bomb_are_refused(serve, tmp_path):
    client = serve(pixels=5000)
    eps = b"%!PS-Adobe-3.0 EPSF-3.0\n%%BoundingBox: 0 0 9 9\n%%EndComments\nshowpage\n"
    whole = fakes.picture((1, 2, 3), size=(60, 60))
    for content in (whole[: len(whole) // 2], eps):
        answer = ask(client, image=base64.b64encode(content).decode())
        assert (answer.status_code, answer.json()["code"]) == (422, "bad_image")
    bomb = fakes.picture((0, 0, 0), size=(5001, 1))
    answer = ask(client, image=base64.b64encode(bomb).decode())
    assert (answer.status_code, answer.json()["code"]) == (413, "too_many_pixels")


def test_one_unusable_query_does_not_spoil_its_batch(serve):
    embedder = fakes.FakeEmbedder()
    client = serve(embedder=embedder, batch_wait_ms=0)
    warmed = len(embedder.batches)
    embedder.entered.clear()
    embedder.may_go.clear()
    answers = {}

    def send(words):
        answers[words] = ask(client, text=words).status_code

    words = ("first", "one", "broken", "two")
    threads = [threading.Thread(target=send, args=(one,)) for one in words]
    threads[0].start()
    assert embedder.entered.wait(60)
    for thread in threads[1:]:  # while the device works, they gather
        thread.start()
    fakes.until(lambda: client.service._batcher._queue.qsize() == 3)
    embedder.may_go.set()
    for thread in threads:
        thread.join()
    assert answers == {"first": 200, "one": 200, "broken": 422, "two": 200}
    assert [len(batch) for batch in embedder.batches[warmed:]] == [1, 3]


def test_entries_and_pictures_tell_no_path(serve, collection):
    client = serve()
    item = client.get("/api/item", params={"id": "b/sea.png"}).json()
    assert item == {
        "id": "b/sea.png",
        "kind": "image,text",
        "name": "name of b/sea.png",
        "text": "the sea at night",
        "image": True,
        "gone": False,
    }
    made = client.get("/api/image", params={"id": "b/sea.png"})
    assert made.headers["content-type"] == "image/webp"
    opened = PIL.Image.open(io.BytesIO(made.content))
    assert opened.format == "WEBP" and max(opened.size) <= 320
    about = client.get("/api/collection").text
    assert str(collection.folder.parent) not in about and "/secret" not in about
    for path in ("/api/item", "/api/image"):
        for id in ("../fruit/0.png", "/etc/passwd", "", str(collection.folder / "0.png")):
            assert client.get(path, params={"id": id}).status_code == 404
    assert client.get("/api/image", params={"id": "text/1"}).json()["code"] == "no_image"


def test_a_picture_that_is_gone_is_told_without_its_path(serve, collection):
    said = []
    client = serve(said=said)
    collection.entries[0].image.unlink()
    collection.entries[2].image.write_bytes(b"no picture any more")
    for id, refusal in (("a/apple.png", (404, "gone")), ("a/lime.png", (409, "changed"))):
        answer = client.get("/api/image", params={"id": id})
        assert (answer.status_code, answer.json()["code"]) == refusal
        assert str(collection.folder) not in answer.text
    assert len(said) == 2


def test_openapi_tells_of_every_route_and_refusal(serve):
    schema = serve().get("/api/openapi.json").json()
    assert set(schema["paths"]) == {
        "/api/search",
        "/api/item",
        "/api/image",
        "/api/collection",
        "/healthz",
        "/readyz",
    }
    told = schema["paths"]["/api/search"]["post"]["responses"]
    assert {"200", "404", "409", "413", "421", "422", "429", "503"} <= set(told)
    shape = told["422"]["content"]["application/json"]["schema"]
    assert shape["$ref"].endswith("/ProblemBody")
