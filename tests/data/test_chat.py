import json

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from marvel_jax.data import chat
from marvel_jax.data import tokenizer as word_pieces
from marvel_jax.data.chat import ChatTokenizer, ChatTokens, format_text
from marvel_jax.data.items import Image, Item
from marvel_jax.errors import MarvelError
from tests.data import samples

PICTURE = Image("never-read.png")
MARKERS = ("<emb>", "<instruction_start>", "<instruction_end>")
WORDS = st.lists(
    st.sampled_from([*"abcZ .?!\"\r\n\t'é\u0301😀<|>", "<|im_end|>", "<emb>", "apple"]),
    max_size=20,
).map("".join)
TEXTS = WORDS.filter(lambda text: text.strip())
ITEMS = st.builds(
    lambda parts, instruction: Item(parts=tuple(parts), instruction=instruction),
    st.lists(st.one_of(TEXTS, st.just(PICTURE)), min_size=1, max_size=4),
    st.one_of(st.none(), TEXTS),
)


def render(item: Item, template: str, **options) -> ChatTokens:
    options.setdefault("image_tokens", [3] * len(item.images))
    return chat.render(item, tokenizer=samples.chat_tokenizer(), template=template, **options)


def names() -> dict[int, str]:
    special = {samples.chat_tokenizer().special(name): name for name in samples.SPECIALS}
    return special | {samples.chat_tokenizer().special(name): name for name in MARKERS}


def written(tokens: np.ndarray) -> str:
    """The tokens as text, special tokens by name."""
    pieces, plain = [], []
    for token in [*tokens.tolist(), None]:
        if token is not None and token not in names():
            plain.append(token)
            continue
        pieces.append(samples.raw_tokenizer().decode(plain, skip_special_tokens=False))
        plain = []
        pieces.append("" if token is None else names()[token])
    return "".join(pieces)


def test_marvel_is_one_user_turn() -> None:
    item = Item.of(text="green pear", image=PICTURE, instruction="find the picture")
    found = render(item, "marvel")
    assert written(found.tokens) == (
        "<|im_start|>user\nFind the picture.\n<|vision_start|><|image_pad|><|image_pad|>"
        "<|image_pad|><|vision_end|>Green pear.<|im_end|>"
    )
    assert written(found.tokens[~found.pooled]) == "Find the picture.\n"


def test_parts_keep_their_order() -> None:
    item = Item(parts=("one", PICTURE, "two", PICTURE))
    found = render(item, "marvel", image_tokens=[1, 2])
    assert written(found.tokens) == (
        "<|im_start|>user\nOne.<|vision_start|><|image_pad|><|vision_end|>Two."
        "<|vision_start|><|image_pad|><|image_pad|><|vision_end|><|im_end|>"
    )
    assert [found.tokens[start:end].tolist() for start, end in found.image_spans] == [
        [samples.chat_tokenizer().special("<|image_pad|>")] * count for count in (1, 2)
    ]


def test_an_instruction_changes_nothing_else_in_marvel() -> None:
    bare = render(Item.of(text="\n green pear", image=PICTURE), "marvel")
    led = render(Item.of(text="\n green pear", image=PICTURE, instruction="Find it."), "marvel")
    np.testing.assert_array_equal(led.tokens[led.pooled], bare.tokens)
    assert bare.pooled.all()


SYSTEM = "<|im_start|>system\nYou are a helpful assistant.<|im_end|>\n"
ANSWER = "<|im_end|>\n<|im_start|>assistant\n<emb>.<|im_end|>\n"
SHOWN = "<|vision_start|><|image_pad|><|image_pad|><|image_pad|><|vision_end|>"
ASKED = "<instruction_start>Find an image.<instruction_end>"


@pytest.mark.parametrize(
    ("item", "user"),
    [
        (Item.of(text="a green pear "), "A green pear."),
        (Item.of(text='"is it?"'), "Is it?"),
        (Item.of(image=PICTURE), SHOWN),
        (Item.of(image=PICTURE, text="pear"), SHOWN + "Pear."),
        (Item.of(text="a pear", instruction="find an image"), ASKED + " a pear."),
        (Item.of(text=' "a\r pear" ', instruction="find an image"), ASKED + '  "a pear.'),
        (Item.of(image=PICTURE, instruction="find an image"), SHOWN + ASKED + "."),
        (Item.of(image=PICTURE, text="x!", instruction="find an image"), SHOWN + ASKED + " x!"),
    ],
)
def test_released_template_token_by_token(item: Item, user: str) -> None:
    expected = f"{SYSTEM}<|im_start|>user\n{user}{ANSWER}"
    tokenizer = samples.raw_tokenizer()
    found = render(item, "umarvel_released")
    assert written(found.tokens) == expected
    assert found.tokens.tolist() == reference_tokens(expected)
    masked = written(found.tokens[~found.pooled])
    assert masked == (ASKED if item.instruction else "")
    prompted = render(item, "umarvel_released", generation_prompt=True)
    assert prompted.tokens.tolist() == reference_tokens(expected + "<|im_start|>assistant\n")
    assert prompted.pooled[len(found.tokens) :].all()
    assert tokenizer.token_to_id("<emb>") is None  # our copy did not touch the original


def reference_tokens(text: str) -> list[int]:
    """What transformers does: the markers are added to the tokenizer, the whole text encoded."""
    full = type(samples.raw_tokenizer()).from_str(samples.raw_tokenizer().to_str())
    full.add_tokens(list(MARKERS))
    return full.encode(text, add_special_tokens=False).ids


QWEN2_VL_TEMPLATE = (
    "{% for message in messages %}{% if loop.first and message['role'] != 'system' %}"
    "<|im_start|>system\nYou are a helpful assistant.<|im_end|>\n{% endif %}"
    "<|im_start|>{{ message['role'] }}\n{% for content in message['content'] %}"
    "{% if content['type'] == 'image' %}<|vision_start|><|image_pad|><|vision_end|>"
    "{% else %}{{ content['text'] }}{% endif %}{% endfor %}<|im_end|>\n{% endfor %}"
    "{% if add_generation_prompt %}<|im_start|>assistant\n{% endif %}"
)


@settings(max_examples=60, deadline=None)
@given(TEXTS.filter(lambda text: "<" not in text), st.booleans(), st.booleans())
def test_released_template_equals_apply_chat_template(text, shown, prompt) -> None:
    import transformers

    content = [{"type": "image"}] * shown + [{"type": "text", "text": format_text(text)}]
    messages = [
        {"role": "user", "content": content},
        {"role": "assistant", "content": [{"type": "text", "text": "<emb>."}]},
    ]
    fast = hf_tokenizer(transformers)
    expected = fast.apply_chat_template(
        messages, tokenize=True, add_generation_prompt=prompt, return_dict=False
    )
    item = Item.of(text=text, image=PICTURE if shown else None)
    options = {"image_tokens": [1] * shown, "generation_prompt": prompt}
    assert render(item, "umarvel_released", **options).tokens.tolist() == expected


def hf_tokenizer(transformers):
    fast = transformers.PreTrainedTokenizerFast(
        tokenizer_object=type(samples.raw_tokenizer()).from_str(samples.raw_tokenizer().to_str()),
        chat_template=QWEN2_VL_TEMPLATE,
    )
    fast.add_tokens(list(MARKERS))
    return fast


@pytest.mark.parametrize(
    ("item", "expected"),
    [
        (Item.of(text="a pear"), f"{SYSTEM}<|im_start|>user\na pear"),
        (Item.of(text="\n\na pear"), f"{SYSTEM}<|im_start|>user\n\n\na pear"),
        (
            Item.of(text="a pear", image=PICTURE, instruction="Find an image."),
            f"<|im_start|>system\nFind an image.<|im_end|>\n<|im_start|>user\n{SHOWN}a pear",
        ),
    ],
)
def test_gme_token_by_token(item: Item, expected: str) -> None:
    expected += "<|im_end|>\n<|im_start|>assistant\n<|endoftext|>"
    found = render(item, "gme")
    assert found.tokens.tolist() == reference_tokens(expected)
    assert names()[int(found.tokens[found.pooled][-1])] == "<|endoftext|>"
    assert written(found.tokens[~found.pooled]) == (item.instruction or "")


@pytest.mark.parametrize("template", chat.TEMPLATES)
def test_an_instruction_that_the_text_repeats_is_masked_only_where_it_instructs(template) -> None:
    item = Item.of(text="Find it. Find it.", instruction="Find it.")
    found = render(item, template)
    masked = np.flatnonzero(~found.pooled)
    assert (np.diff(masked) == 1).all()
    assert written(found.tokens[~found.pooled]).count("Find it.") == 1
    assert written(found.tokens[found.pooled]).count("ind it.") == 2


@pytest.mark.parametrize("template", chat.TEMPLATES)
@pytest.mark.parametrize("name", [*samples.SPECIALS, *MARKERS])
def test_text_that_spells_a_special_token_stays_text(template: str, name: str) -> None:
    plain, spelt = (
        render(Item.of(text=text, instruction=text), template) for text in ("A pear", f"A{name}")
    )
    assert np.isin(spelt.tokens, list(names())).sum() == np.isin(plain.tokens, list(names())).sum()
    assert f"A{name}" in written(spelt.tokens)


@settings(max_examples=200, deadline=None)
@given(ITEMS, st.sampled_from(chat.TEMPLATES), st.integers(1, 12))
def test_truncation_cuts_text_and_nothing_else(item, template, limit) -> None:
    whole = render(item, template, max_text_tokens=10_000)
    cut = render(item, template, max_text_tokens=limit)
    blank = render(item, template, max_text_tokens=0)
    # Without any text, all that is left is the template, the instruction and the images.
    assert len(blank.tokens) <= len(cut.tokens) <= len(blank.tokens) + limit
    assert is_subsequence(cut.tokens.tolist(), whole.tokens.tolist())
    for shortened in (cut, blank):
        np.testing.assert_array_equal(
            shortened.tokens[~shortened.pooled], whole.tokens[~whole.pooled]
        )
        special = [token for token in whole.tokens.tolist() if token in names()]
        assert [token for token in shortened.tokens.tolist() if token in names()] == special
        assert len(shortened.image_spans) == len(item.images)
        pad = samples.chat_tokenizer().special("<|image_pad|>")
        for start, end in shortened.image_spans:
            assert (shortened.tokens[start:end] == pad).all() and end - start == 3
    if len(whole.tokens) - len(blank.tokens) <= limit:
        np.testing.assert_array_equal(cut.tokens, whole.tokens)


def is_subsequence(part: list[int], whole: list[int]) -> bool:
    rest = iter(whole)
    return all(token in rest for token in part)


@settings(max_examples=100, deadline=None)
@given(ITEMS)
def test_all_is_pooled_where_there_is_no_instruction(item: Item) -> None:
    for template in chat.TEMPLATES:
        found = render(item, template)
        assert len(found.pooled) == len(found.tokens)
        told = item.instruction.strip() if template == "gme" and item.instruction else ""
        if not (told or format_text(item.instruction)):
            assert found.pooled.all()


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        (' "a pear" ', "A pear."),
        ("what?\r\n", "What?"),
        ("émile", "Émile."),
        ("ßa", "SSa."),
        ("苹果", "苹果."),
        ('""', ""),
        (None, ""),
        ("Yes!", "Yes!"),
    ],
)
def test_format_rule(text: str | None, expected: str) -> None:
    assert format_text(text) == expected


def test_markers_come_behind_the_tokenizers_own() -> None:
    tokenizer = samples.chat_tokenizer()
    full = samples.raw_tokenizer().get_vocab_size(with_added_tokens=True)
    assert tokenizer.size == full
    assert [tokenizer.special(name) for name in MARKERS] == [full, full + 1, full + 2]


def test_a_tokenizer_that_has_the_markers_keeps_their_ids() -> None:
    raw = type(samples.raw_tokenizer()).from_str(samples.raw_tokenizer().to_str())
    raw.add_tokens(["<spare>", "<emb>"])
    tokenizer = ChatTokenizer.from_tokenizer(raw)
    assert tokenizer.special("<emb>") == raw.token_to_id("<emb>")
    assert tokenizer.special("<instruction_start>") == raw.get_vocab_size()


def test_bad_requests_are_told(tmp_path) -> None:
    item = Item.of(text="pear")
    with pytest.raises(MarvelError, match="choose one of marvel"):
        render(item, "chatml")
    with pytest.raises(MarvelError, match="generation prompt"):
        render(item, "marvel", generation_prompt=True)
    with pytest.raises(MarvelError, match=r"tokenizer\.json"):
        ChatTokenizer.from_folder(tmp_path)
    (tmp_path / "tokenizer.json").write_text("{}")
    with pytest.raises(MarvelError, match=r"tokenizer\.json"):
        ChatTokenizer.from_folder(tmp_path)
    other = json.loads(samples.raw_tokenizer().to_str())
    other["added_tokens"] = []
    with pytest.raises(MarvelError, match=r"<\|im_start\|>"):
        samples.processor().__class__(ChatTokenizer(other))


# --- options for ablations ---------------------------------------------------------------------


@settings(max_examples=100, deadline=None)
@given(ITEMS, st.sampled_from(chat.TEMPLATES), st.integers(1, 12))
def test_a_pooled_instruction_changes_the_mask_alone(item, template, limit) -> None:
    masked = render(item, template, max_text_tokens=limit)
    pooled = render(item, template, max_text_tokens=limit, instruction="pooled")
    without = render(item, template, max_text_tokens=limit, instruction="none")
    np.testing.assert_array_equal(pooled.tokens, masked.tokens)
    assert pooled.image_spans == masked.image_spans and pooled.pooled.all()
    assert masked.pooled.all() == np.array_equal(masked.tokens, without.tokens)


@settings(max_examples=100, deadline=None)
@given(ITEMS, st.sampled_from(chat.TEMPLATES))
def test_no_instruction_is_an_item_without_one(item, template) -> None:
    found = render(item, template, instruction="none")
    expected = render(item.with_instruction(None), template)
    np.testing.assert_array_equal(found.tokens, expected.tokens)
    np.testing.assert_array_equal(found.pooled, expected.pooled)


@pytest.mark.parametrize("template", ["marvel", "umarvel_released"])
@pytest.mark.parametrize(
    ("item", "before", "asked"),
    [
        (Item.of(text="a pear"), "A pear.", "sentence"),
        (Item.of(image=PICTURE), "", "image"),
        (Item.of(text="a pear", image=PICTURE), "A pear.", "image and sentence"),
    ],
)
def test_a_compression_prompt_ends_the_users_turn(template, item, before, asked) -> None:
    found = render(item, template, prompt="one_word")
    prompt = f"{before}\nSummarize above {asked} in one word: "
    assert f"{prompt}<|im_end|>" in written(found.tokens)
    assert found.pooled[-10:].all()


def test_text_and_prompt_are_encoded_as_one_string() -> None:
    """A full stop and the line end behind it may be one token, as they are in Qwen2-VL's."""
    trained = word_pieces.train(["A pear.\nSummarize"] * 9, vocabulary=300)
    whole = trained.encode("user\nA pear.\nSummarize above sentence in one word: ").ids
    parts = trained.encode("user\nA pear.").ids + trained.encode("\nSummarize").ids
    assert whole[: len(parts)] != parts
    found = chat.render(
        Item.of(text="a pear"),
        tokenizer=ChatTokenizer.from_tokenizer(trained),
        template="marvel",
        image_tokens=[],
        prompt="one_word",
    )
    assert found.tokens[1:-1].tolist() == whole


@settings(max_examples=100, deadline=None)
@given(ITEMS, st.sampled_from(["marvel", "umarvel_released"]), st.integers(0, 6))
def test_truncation_leaves_the_prompt_whole(item, template, limit) -> None:
    plain = render(item, template, max_text_tokens=limit)
    asked = render(item, template, max_text_tokens=limit, prompt="one_word")
    assert "in one word: <|im_end|>" in written(asked.tokens)
    np.testing.assert_array_equal(asked.tokens[~asked.pooled], plain.tokens[~plain.pooled])
    assert len(asked.tokens) > len(plain.tokens)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"prompt": "two_words"}, "prompt is 'two_words': choose one of none, one_word"),
        ({"instruction": "hidden"}, "instruction is 'hidden': choose one of masked, pooled, none"),
        ({"template": "gme", "prompt": "one_word"}, "'gme' has no prompt"),
    ],
)
def test_unknown_options_are_refused(options, message) -> None:
    with pytest.raises(MarvelError, match=message):
        render(Item.of(text="a"), **{"template": "marvel", **options})
