"""What a reranker reads: prompt bytes, tokens and lengths of pairs and lists."""

import dataclasses
import functools

import hypothesis
import numpy as np
import pytest
import tokenizers
from hypothesis import strategies as st

from marvel_jax.data.chat import ChatTokenizer, format_text
from marvel_jax.data.items import Image, Item
from marvel_jax.data.processor import EncodedItem
from marvel_jax.data.rerank import PairProcessor
from marvel_jax.data.rerank_prompts import PROMPTS
from marvel_jax.errors import MarvelError
from tests import tiny
from tests.data import samples

PICTURE = Image(samples.png(16, 24))  # 2 x 3 visual tokens
SHOWN = "<|vision_start|>" + "<|image_pad|>" * 6 + "<|vision_end|>"
SYSTEM = "<|im_start|>system\nYou are a helpful assistant.<|im_end|>\n"
ASKED = "<|im_end|>\n<|im_start|>assistant\n"
# Written out by hand from the reference, the 24 blanks counted.
RELEASED = (
    "I will provide you with a query and a candidate. Please evaluate whether the candidate"
    + 24 * " "
    + "meets the requirements of the query. If it does, respond with 'Yes'; if it doesn't, "
    "responed with 'No'."
)
RELEASED_LIST = (
    "I will provide you with a query followed by multiple candidates in the format: (1) cand1 (2) "
    "cand2, etc. Each candidate is independent of the others. "
    + 24
    * " "
    + "Evaluate each candidate against the query, and respond with the number corresponding to the "
    "candidate that best meets the requirements of the query."
)


def processor(prompt: str = "marvel", **options: object) -> PairProcessor:
    return PairProcessor(samples.chat_tokenizer(), samples.SMALL, prompt=prompt, **options)


def written(item: EncodedItem, raw: tokenizers.Tokenizer | None = None) -> str:
    """The tokens as the string that they stand for."""
    raw = raw or samples.raw_tokenizer()
    return raw.decode(item.tokens.tolist(), skip_special_tokens=False)


def pair(prompt: str, query: Item, candidate: Item, answer: bool | None = None, **options):
    made = processor(prompt, **options)
    return made.pair(made.query(query), made.candidate(candidate), answer=answer)


QUERY = Item.of(image=PICTURE, text="a pear", instruction="find it")
GOLDEN = [
    (
        "umarvel_released",
        QUERY,
        Item.of(image=PICTURE, text="apple"),
        (
            f"{SYSTEM}<|im_start|>user\n{RELEASED}Query:{SHOWN}Find it. a pear."
            f"Candidate:{SHOWN}Apple.{ASKED}"
        ),
    ),
    (
        "umarvel_released",
        Item.of(image=PICTURE, instruction="find it"),
        Item.of(image=PICTURE),
        f"{SYSTEM}<|im_start|>user\n{RELEASED}Query:{SHOWN}Find it.Candidate:{SHOWN}{ASKED}",
    ),
    (
        "umarvel_released",
        Item.of(text="is it red?"),
        Item.of(text='"no\r"'),
        f"{SYSTEM}<|im_start|>user\n{RELEASED}Query:Is it red?Candidate:No.{ASKED}",
    ),
    (
        "marvel",
        QUERY,
        Item.of(text="apple"),
        (
            "<|im_start|>system\nJudge whether the candidate is what the query asks for. Answer "
            f"Yes or No.<|im_end|>\n<|im_start|>user\nQuery:\n{SHOWN}Find it. a pear.\n"
            f"Candidate:\nApple.{ASKED}"
        ),
    ),
    (
        "true_false",
        Item.of(text="pear"),
        Item.of(image=PICTURE),
        (
            f"{SYSTEM}<|im_start|>user\nDoes the candidate answer the query? Reply with one word, "
            f"True or False.\nQuery:\nPear.\nCandidate:\n{SHOWN}{ASKED}"
        ),
    ),
]


@pytest.mark.parametrize(("prompt", "query", "candidate", "expected"), GOLDEN)
def test_a_pair_is_this_string_byte_for_byte(prompt, query, candidate, expected):
    made = pair(prompt, query, candidate)
    assert written(made.item) == expected
    assert not made.item.pooled.any()
    assert made.answer == len(made.item.tokens) - 1


@pytest.mark.parametrize("whole", [False, True])
@pytest.mark.parametrize(("answer", "word"), [(True, "Yes"), (False, "No")])
def test_the_reply_and_what_a_loss_covers_of_it(whole, answer, word):
    made = pair("umarvel_released", Item.of(text="a"), Item.of(text="b"), answer, whole_reply=whole)
    prompt = f"{SYSTEM}<|im_start|>user\n{RELEASED}Query:A.Candidate:B.{ASKED}"
    first = samples.chat_tokenizer().encode(word)[0]
    assert made.item.tokens[made.answer + 1] == first
    covered = samples.raw_tokenizer().decode(
        made.item.tokens[made.item.pooled].tolist(), skip_special_tokens=False
    )
    if whole:  # spec 5.3: the assistant's turn with its frame
        assert written(made.item) == f"{prompt}{word}<|im_end|>\n"
        assert covered == f"<|im_start|>assistant\n{word}<|im_end|>\n"
    else:
        assert made.item.pooled.sum() == 1
        assert made.item.pooled[made.answer + 1]
    assert processor("umarvel_released", whole_reply=whole).most_covered >= made.item.pooled.sum()


@pytest.mark.parametrize(
    ("prompt", "expected"),
    [
        (
            "umarvel_released",
            (
                f"{SYSTEM}<|im_start|>user\n{RELEASED_LIST}Query:Find it. a pear.Candidates:"
                f"(1) Apple.(2) {SHOWN}(3) {SHOWN}Fig!{ASKED}"
            ),
        ),
        (
            "marvel",
            (
                "<|im_start|>system\nChoose the candidate that best fits the query. Answer with "
                "its number.<|im_end|>\n<|im_start|>user\nQuery:\nFind it. a pear.\nCandidates:\n"
                f"(1) Apple.\n(2) {SHOWN}\n(3) {SHOWN}Fig!{ASKED}"
            ),
        ),
    ],
)
def test_a_list_is_this_string_byte_for_byte(prompt, expected):
    made = processor(prompt, whole_reply=True)
    items = [Item.of(text="apple"), Item.of(image=PICTURE), Item.of(image=PICTURE, text="fig!")]
    parts = [made.candidate(item, place="last" if item is items[-1] else "inner") for item in items]
    query = made.query(Item.of(text="a pear", instruction="find it"), listed=True)
    asked = made.listed(query, parts)
    assert written(asked.item) == f"{expected}Ans: ("
    assert asked.answer == len(asked.item.tokens) - 1
    told = made.listed(query, parts, answer=2)
    assert written(told.item) == f"{expected}Ans: (2)<|im_end|>\n"
    assert told.item.tokens[told.answer + 1] == made.number_ids[1]
    assert asked.answer == told.answer
    joint = samples.raw_tokenizer().encode(written(told.item), add_special_tokens=False)
    assert told.item.tokens.tolist() == joint.ids


def test_a_list_of_one_or_six_is_refused():
    made = processor()
    part = made.candidate(Item.of(text="a"), place="inner")
    for count in (1, 6):
        with pytest.raises(MarvelError, match=f"2 to 5 candidates, found {count}"):
            made.listed(made.query(Item.of(text="a"), listed=True), [part] * count)


# --- tokens --------------------------------------------------------------------------------------


TEXTS = st.text(
    st.characters(codec="utf-8", exclude_characters="<|>"), min_size=1, max_size=25
) | st.sampled_from(
    ["'s", "...", "(2)", "((", "a\n\n", "\n b", ": x", "e\u0301", "\u0301", "1.", "?)"]
)


@functools.cache
def by_tokenizer(which: str, prompt: str) -> PairProcessor:
    raw = {"qwen2": samples.raw_tokenizer, "gpt2": tiny.tokenizer}[which]()
    return PairProcessor(ChatTokenizer.from_tokenizer(raw), samples.SMALL, prompt=prompt)


@hypothesis.given(
    which=st.sampled_from(["qwen2", "gpt2"]),
    prompt=st.sampled_from(list(PROMPTS)),
    query=TEXTS,
    candidates=st.lists(TEXTS, min_size=2, max_size=5),
    pictured=st.booleans(),
)
def test_parts_have_the_tokens_of_the_whole_string(which, prompt, query, candidates, pictured):
    """What transformers' processor does: one string, encoded as a whole."""
    made = by_tokenizer(which, prompt)
    raw = {"qwen2": samples.raw_tokenizer, "gpt2": tiny.tokenizer}[which]()
    picture = PICTURE if pictured else None
    asked = Item.of(text=query, image=picture, instruction="find it")
    items = [Item(parts=(text,)) for text in candidates]
    words = made.words

    def text(item: Item) -> str:
        shown = SHOWN if item.images else ""
        own = next((part for part in item.parts if isinstance(part, str)), "")
        return shown + format_text(f"{format_text(item.instruction)} {own}")

    frame = f"<|im_end|>\n<|im_start|>user\n{{}}Query:{words.lead}{text(asked)}{words.close}"
    one = made.pair(made.query(asked), made.candidate(items[0]))
    expected = (
        f"<|im_start|>system\n{words.system}{frame.format(words.opening)}Candidate:{words.lead}"
        f"{text(items[0])}{ASKED}"
    )
    assert one.item.tokens.tolist() == raw.encode(expected, add_special_tokens=False).ids
    parts = [made.candidate(item, place="inner") for item in items[:-1]]
    parts.append(made.candidate(items[-1], place="last"))
    several = made.listed(made.query(asked, listed=True), parts)
    listed = words.close.join(f"({n}) {text(item)}" for n, item in enumerate(items, start=1))
    expected = (
        f"<|im_start|>system\n{words.list_system}{frame.format(words.list_opening)}Candidates:"
        f"{words.lead}{listed}{ASKED}Ans: ("
    )
    assert several.item.tokens.tolist() == raw.encode(expected, add_special_tokens=False).ids
    # And lengths are sums, so that a plan needs no pair to be encoded.
    tokens = made.query_lengths(asked)[0] + made.candidate_lengths(items[0])[0]
    assert len(one.item.tokens) == made.frame_tokens() + tokens
    assert len(several.item.tokens) <= made.list_frame_tokens(len(items), reply=False) + (
        made.query_lengths(asked, listed=True)[0]
        + sum(made.candidate_lengths(item, listed=True)[0] for item in items)
    )


@pytest.mark.parametrize("answer", [True, False])
def test_lengths_count_replies_and_patches(answer):
    made = processor(whole_reply=True)
    query, candidate = Item.of(image=PICTURE), Item.of(image=PICTURE, text="a pear")
    found = made.pair(made.query(query), made.candidate(candidate), answer=answer).item
    (tokens, patches), (more, others) = made.query_lengths(query), made.candidate_lengths(candidate)
    assert len(found.tokens) == made.frame_tokens(answer=answer) + tokens + more
    assert len(found.patches) == patches + others == 48


@pytest.mark.parametrize("prompt", list(PROMPTS))
def test_long_texts_are_cut_and_nothing_of_the_prompt_is(prompt):
    long = Item.of(text="pear " * 300, instruction="find it", id="long")
    made = pair(prompt, long, long.with_instruction(None), max_text_tokens=20)
    shown = written(made.item)
    short = written(pair(prompt, Item.of(text="a"), Item.of(text="b")).item)
    head, tail = short.split("A.")[0], short.split("B.")[-1]
    assert shown.startswith(f"{head}Find it. pear pear")
    assert shown.endswith(tail)
    assert "Candidate:" in shown
    cut = processor(prompt, max_text_tokens=20)
    tokenizer = samples.chat_tokenizer()
    kept = tokenizer.prefix("Pear " + "pear " * 299, 20)
    assert len(tokenizer.encode(kept)) == 20
    assert kept in shown
    assert cut.candidate_lengths(long.with_instruction(None))[0] < 30


@hypothesis.given(text=st.text(max_size=30), tokens=st.integers(0, 12))
def test_a_cut_text_is_a_prefix_that_fits(text, tokens):
    tokenizer = samples.chat_tokenizer()
    kept = tokenizer.prefix(text, tokens)
    assert text.startswith(kept)
    assert len(tokenizer.encode(kept)) <= tokens or kept == text
    if len(tokenizer.encode(text)) <= tokens:
        assert kept == text


def test_special_tokens_in_a_text_stay_text():
    made = pair("marvel", Item.of(text="<|im_end|>"), Item.of(text="<|image_pad|>"))
    specials = [samples.chat_tokenizer().special(one) for one in ("<|im_end|>", "<|image_pad|>")]
    assert [int((made.item.tokens == one).sum()) for one in specials] == [2, 0]


def test_positions_and_pictures_follow_each_other():
    made = pair("marvel", QUERY, Item.of(image=PICTURE)).item
    index = made.vision_index[made.vision_index >= 0]
    assert index.tolist() == list(range(12))
    assert made.patch_image.tolist() == [0] * 24 + [1] * 24
    first, second = np.flatnonzero(np.diff(made.vision_index >= 0, prepend=False))[::2]
    # A picture of 2 x 3 visual tokens takes three positions, whatever its six tokens.
    for start in (first, second):
        base = made.positions[start]
        np.testing.assert_array_equal(made.positions[start : start + 6, 0], base[0])
        assert made.positions[start + 6].tolist() == [base[0] + 3] * 3
    assert (np.diff(made.positions[-6:], axis=0) == 1).all()


# --- branches ------------------------------------------------------------------------------------


def test_branches_are_the_pairs_with_their_prefix_once():
    made = processor()
    query = made.query(QUERY)
    items = [Item.of(text="apple"), Item.of(image=PICTURE), Item.of(image=PICTURE, text="fig")]
    pairs = [made.pair(query, made.candidate(item)) for item in items]
    found = made.branched(query, [made.candidate(item) for item in items])
    prefix = made.head_tokens + len(query.tokens)
    for number, one in enumerate(pairs, start=1):
        own = (found.branches == 0) | (found.branches == number)
        assert found.branches[:prefix].sum() == 0
        np.testing.assert_array_equal(found.item.tokens[own], one.item.tokens)
        np.testing.assert_array_equal(found.item.positions[own], one.item.positions)
        place = found.answers[number - 1]
        assert own[: place + 1].sum() - 1 == one.answer
        shown = found.item.vision_index[own]
        seen = [found.item.patches[24 * k : 24 * (k + 1)] for k in range(3)]
        pictures = [seen[index // 6] for index in shown[shown >= 0][::6]]
        if pictures:
            np.testing.assert_array_equal(np.concatenate(pictures), one.item.patches)
    assert len(found.item.patches) == 72  # the query's picture once
    assert found.item.patch_image.tolist() == [0] * 24 + [1] * 24 + [2] * 24


# --- refusals ------------------------------------------------------------------------------------


def test_an_unknown_prompt_is_refused():
    with pytest.raises(MarvelError, match="'other': choose one of marvel, umarvel_released"):
        processor("other")


def test_answers_that_begin_alike_are_refused(monkeypatch):
    alike = dataclasses.replace(PROMPTS["marvel"], answers=("Nay", "No"))
    monkeypatch.setitem(PROMPTS, "marvel", alike)
    with pytest.raises(MarvelError, match="Nay and No with the same token"):
        processor()


def test_an_unreadable_picture_is_named():
    bad = Item.of(image=Image(b"none", name="p.png"), id="7:1")
    with pytest.raises(MarvelError, match=r"7:1.*p\.png"):
        processor().candidate(bad)


def test_the_fingerprint_tells_what_changes_a_pair():
    made = [
        processor(),
        processor("true_false"),
        processor(max_text_tokens=9),
        processor(whole_reply=True),
        PairProcessor(samples.chat_tokenizer(), dataclasses.replace(samples.SMALL, max_pixels=512)),
    ]
    assert len({one.fingerprint for one in made}) == len(made)
    assert processor().fingerprint == processor(cache_bytes=1).fingerprint
