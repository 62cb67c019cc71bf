"""The corpus's tokenizer: loses nothing, and is a Qwen2-VL tokenizer to others."""

import unicodedata

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from marvel_jax.data import tokenizer
from marvel_jax.errors import MarvelError

TEXTS = ("thumbs up", "pouce vers le haut", "엄지", "拇指向上", "большой палец вверх") * 20
TRAINED = tokenizer.train(TEXTS, vocabulary=400)


@given(st.text())
@settings(max_examples=200, deadline=None)
def test_any_text_comes_back(text):
    # The library reads special tokens out of the text; those are tested below.
    if not any(token in text for token in tokenizer.SPECIAL_TOKENS):
        ids = TRAINED.encode(text).ids
        assert TRAINED.decode(ids) == unicodedata.normalize("NFC", text)


def test_special_tokens_are_one_id_each_behind_the_vocabulary():
    size = TRAINED.get_vocab_size()
    assert size <= 400
    ids = TRAINED.encode("".join(tokenizer.SPECIAL_TOKENS)).ids
    assert ids == list(range(size - len(tokenizer.SPECIAL_TOKENS), size))


def test_training_is_deterministic():
    assert tokenizer.train(TEXTS, vocabulary=400).to_str() == TRAINED.to_str()


def test_frequent_words_become_one_token():
    assert len(TRAINED.encode("pouce").ids) == 1
    assert len(TRAINED.encode("thumbs up").ids) == 2


def test_transformers_loads_the_folder_to_the_same_ids(tmp_path):
    import transformers

    tokenizer.save(TRAINED, tmp_path)
    loaded = transformers.AutoTokenizer.from_pretrained(tmp_path)
    assert type(loaded).__name__.startswith("Qwen2Tokenizer")
    assert len(loaded) == TRAINED.get_vocab_size()
    assert (loaded.eos_token, loaded.pad_token) == ("<|im_end|>", "<|endoftext|>")
    for text in (
        "<|im_start|>user\n<|vision_start|><|image_pad|><|vision_end|>Thumbs up.<|im_end|>",
        "it's 2024, cafe\u0301\n\n  엄지 👍🏽",
    ):
        assert loaded(text)["input_ids"] == TRAINED.encode(text).ids
        assert tokenizer.load(tmp_path).encode(text).ids == TRAINED.encode(text).ids


def test_digits_stand_alone_and_words_take_their_blank_as_in_qwen2():
    pieces = TRAINED.pre_tokenizer.pre_tokenize_str("it's 2024 ok!\n x")
    assert [piece for piece, _ in pieces] == [
        "it", "'s", "Ġ", "2", "0", "2", "4", "Ġok", "!Ċ", "Ġx",
    ]  # fmt: skip


def test_bad_input_is_named(tmp_path):
    with pytest.raises(MarvelError, match="alone need 270"):
        tokenizer.train(TEXTS, vocabulary=200)
    with pytest.raises(MarvelError, match="does not exist"):
        tokenizer.load(tmp_path)
    (tmp_path / "tokenizer.json").write_text("{}")
    with pytest.raises(MarvelError, match="cannot be read as a tokenizer"):
        tokenizer.load(tmp_path)
    import tokenizers

    tokenizers.Tokenizer(tokenizers.models.BPE()).save(str(tmp_path / "tokenizer.json"))
    with pytest.raises(MarvelError, match=r"lacks the special tokens <\|endoftext\|>"):
        tokenizer.load(tmp_path)
