"""Texts for the next-token loss: what is supervised, who gets which, and what is refused."""

import json

import numpy as np
import pytest

from marvel_jax.data.chat import ChatTokenizer
from marvel_jax.data.retention import TextStream
from marvel_jax.errors import MarvelError
from tests import tiny
from tests.training.objectives import talk

TOKENIZER = ChatTokenizer.from_tokenizer(tiny.tokenizer())


def stream(path=None, **changes) -> TextStream:
    options = {"per_step": 8, "max_tokens": 64, "seed": 3}
    return TextStream(path or talk.path(), TOKENIZER, **(options | changes))


def decoded(ids) -> str:
    told = "".join(tiny.tokenizer().id_to_token(int(one)) for one in ids)
    return told.replace("Ċ", "\n").replace("Ġ", " ")


def test_the_replies_of_a_conversation_are_supervised_and_all_of_a_text():
    texts = stream()
    chat, plain = texts.encode(0), texts.encode(1)
    assert decoded(chat.tokens).startswith("<|im_start|>system\nbig<|im_end|>\n<|im_start|>user\n")
    reply = json.loads(talk.path().read_text().splitlines()[0])["messages"][2]["content"]
    assert decoded(chat.tokens[chat.pooled]) == f"{reply}<|im_end|>"
    assert plain.pooled.all() and decoded(plain.tokens).endswith("<|endoftext|>")
    assert (chat.positions == np.arange(len(chat.tokens))[:, None]).all()


def test_a_step_has_the_same_texts_on_any_number_of_shards():
    whole = stream().rows(5, range(1), num_shards=1)
    parts = [stream(chunk=3).rows(5, range(n, n + 1), num_shards=2) for n in range(2)]
    # A shard's four rows are filled up to six, a multiple of three.
    assert all(len(part.rows.tokens) == 6 for part in parts)
    joined = np.concatenate([part.rows.tokens[:4] for part in parts])
    np.testing.assert_array_equal(joined, whole.rows.tokens)
    assert all((part.rows.segments[4:] == 0).all() for part in parts)
    keys = whole.item_key.reshape(-1, 2)
    assert len(np.unique(keys, axis=0)) == 8  # no text twice
    again = stream().rows(6, range(1), num_shards=1)
    assert (again.rows.tokens != whole.rows.tokens).any()
    with pytest.raises(MarvelError, match=r"retention.texts=8 does not divide among 3 .* use 9"):
        stream().rows(5, range(3), num_shards=3)


def test_what_is_too_long_is_cut():
    cut, whole = stream(max_tokens=7).encode(0), stream().encode(0)
    np.testing.assert_array_equal(cut.tokens, whole.tokens[:7])


def test_all_bad_lines_are_told_together(tmp_path):
    path = tmp_path / "texts.jsonl"
    lines = [
        {"text": "a"},
        {"text": " "},
        {"text": "a", "messages": []},
        {"messages": [{"role": "user", "content": "a"}]},
        {"messages": [{"role": "robot", "content": "a"}]},
        {"messages": "a"},
    ]
    path.write_text("".join(json.dumps(line) + "\n" for line in lines))
    with pytest.raises(MarvelError) as refused:
        stream(path)
    for number in range(2, 7):
        assert f"line {number}" in str(refused.value)
    path.write_text('{"text": "a"}\n')
    with pytest.raises(MarvelError, match=r"has 1 texts, but a step takes 8: lower retention"):
        stream(path)
