"""A pair's logits depend on the pair alone, and are those of transformers on the same prompt."""

import dataclasses
import functools
import json
from pathlib import Path

import jax
import numpy as np
import pytest

from marvel_jax.data import tokenizer
from marvel_jax.data.chat import ChatTokenizer
from marvel_jax.data.items import Image, Item
from marvel_jax.data.rerank import PairProcessor
from marvel_jax.errors import MarvelError
from marvel_jax.models import hub, lora, peft
from marvel_jax.models.qwen2_vl import init_params
from marvel_jax.reranker_settings import RerankerSettings, is_reranker
from marvel_jax.retrieval.embedder import Embedder
from marvel_jax.retrieval.rerank import Reranker
from marvel_jax.retrieval.rerank_rows import plan_units
from marvel_jax.settings import EmbeddingSettings
from tests import tiny
from tests.models.samples import Sample

LORA = lora.LoraConfig(rank=4, alpha=8.0)
PICTURES = [Image(tiny.picture(number), name=f"p{number}") for number in range(5)]


@functools.cache
def raw_tokenizer():
    texts = ["Query Candidate Yes No True False user system assistant", *tiny.WORDS]
    return tokenizer.train(4 * texts, vocabulary=420)


@functools.cache
def architecture(*, tied: bool = True):
    chat = ChatTokenizer.from_tokenizer(raw_tokenizer())
    made = tiny.architecture(vocab_size=420)
    return dataclasses.replace(
        made,
        tie_word_embeddings=tied,
        image_token_id=chat.special("<|image_pad|>"),
        video_token_id=chat.special("<|video_pad|>"),
        vision_start_token_id=chat.special("<|vision_start|>"),
        vision_end_token_id=chat.special("<|vision_end|>"),
        bos_token_id=None,
        eos_token_id=None,
    )


@functools.cache
def params(*, tied: bool = True):
    if not tied:
        width, words = architecture().text.hidden_size, architecture().text.vocab_size
        head = np.random.default_rng(4).normal(size=(width, words)).astype(np.float32)
        return params() | {"lm_head": {"kernel": 0.1 * head}}
    return jax.device_get(init_params(architecture(), key=jax.random.key(2)))


@functools.cache
def adapters():
    drawn = lora.init_adapters(architecture(), LORA, key=jax.random.key(3))
    return jax.tree.map(lambda leaf: np.asarray(leaf) + np.float32(0.05), drawn)


@functools.cache
def reranker(**options) -> Reranker:
    chat = ChatTokenizer.from_tokenizer(raw_tokenizer())
    processor = PairProcessor(chat, tiny.processor().geometry)
    return Reranker(params(), architecture(), processor, **options)


@functools.cache
def pairs() -> list[tuple[Item, Item]]:
    """Four queries with text, picture or both, and up to six candidates of any kind each."""
    queries = [
        Item.of(text="red cat", instruction="find it"),
        Item.of(image=PICTURES[0], instruction="name it"),
        Item.of(text="but blue", image=PICTURES[1]),
        Item.of(text="fish " * 9),
    ]
    candidates = [
        Item.of(text="red cat"),
        Item.of(image=PICTURES[2]),
        Item.of(text="bird " * 12),
        Item.of(text="dog", image=PICTURES[3]),
        Item.of(image=[PICTURES[4], PICTURES[0]]),
        Item.of(text="small"),
    ]
    return [
        (query, candidate)
        for number, query in enumerate(queries)
        for candidate in candidates[number % 2 :]
    ]


@functools.cache
def scores():
    return reranker().score(pairs())


def save(folder: Path, *, tied: bool = True, settings: dict | None = None) -> Path:
    """A reranker's folder as an export writes it."""
    tokenizer.save(raw_tokenizer(), folder.parent / "tokenizer")
    given = {"min_pixels": 196, "max_pixels": 784}
    hub.save(
        folder,
        config=architecture(tied=tied),
        params=params(tied=tied),
        attention="causal",
        tokenizer_from=folder.parent / "tokenizer",
        documents={
            "preprocessor_config.json": tiny.processor().geometry.to_preprocessor_dict(),
            "marvel.json": RerankerSettings(**given).to_dict() if settings is None else settings,
        },
    )
    return folder


# --- what a logit depends on ---------------------------------------------------------------------


def test_logits_are_raw_float32_and_differ():
    found = scores()
    assert found.yes.dtype == found.no.dtype == np.float32
    assert found.yes.shape == (len(pairs()),)
    assert len(np.unique(np.round(found.yes - found.no, 5))) == len(pairs())
    odds = found.yes.astype(np.float64) - found.no
    np.testing.assert_allclose(found.p_yes, 1 / (1 + np.exp(-odds)), rtol=1e-12)


def test_sharing_the_query_changes_nothing():
    """One prefix for all candidates of a query, against every pair as a whole."""
    assert reranker().share_queries
    alone = reranker(share_queries=False).score(pairs())
    np.testing.assert_allclose(scores().yes, alone.yes, rtol=0, atol=1e-5)
    np.testing.assert_allclose(scores().no, alone.no, rtol=0, atol=1e-5)


@pytest.mark.parametrize("share", [True, False])
def test_a_servers_few_shapes_do_not_change_a_logit(share):
    found = reranker(share_queries=share).score(pairs(), steady=3)
    np.testing.assert_allclose(found.yes, scores().yes, rtol=0, atol=1e-5)
    np.testing.assert_allclose(found.no, scores().no, rtol=0, atol=1e-5)


def test_neither_order_nor_batch_size_change_a_logit():
    order = np.random.default_rng(0).permutation(len(pairs()))
    found = reranker().score([pairs()[place] for place in order], batch_tokens=1)
    np.testing.assert_allclose(found.yes, scores().yes[order], rtol=0, atol=1e-5)
    np.testing.assert_allclose(found.no, scores().no[order], rtol=0, atol=1e-5)


def test_a_candidates_instruction_is_not_read():
    asked = [(query, candidate.with_instruction("x")) for query, candidate in pairs()]
    np.testing.assert_allclose(reranker().score(asked).yes, scores().yes, rtol=0, atol=1e-5)


def test_the_queries_prefix_is_computed_once():
    """Fifty candidates of 20 tokens behind a query of 100: some 1,100 tokens, and not 6,000."""
    prefixes, branches = np.array([[100, 0]]), np.tile([[20, 0]], (50, 1))
    sizes = {}
    for share in (True, False):
        plan = plan_units(
            prefixes,
            branches,
            np.zeros(50, int),
            np.arange(50),
            share=share,
            batch_tokens=4096,
            merge_area=4,
        )
        assert sorted(pair for unit in plan.units for pair in unit.pairs) == list(range(50))
        assert (plan.lengths <= [plan.shape.tokens, plan.shape.patches]).all()
        sizes[share] = int(plan.lengths[:, 0].sum())
    assert sizes[False] == 6000
    assert sizes[True] <= 2000


# --- transformers --------------------------------------------------------------------------------


@pytest.mark.peer
def test_transformers_gives_a_saved_reranker_the_same_logits(tmp_path):
    pytest.importorskip("torch")
    from tests.models import torch_reference
    from tests.models.record_answers import answer_logits

    folder = save(tmp_path / "model", tied=False)
    ours = Reranker.from_pretrained(folder)
    asked = [pairs()[place] for place in (6, 7, 10, 12)]  # with a picture at least
    found = ours.score(asked)
    model = torch_reference.load(folder)
    processor = ours.processor
    for number, (query, candidate) in enumerate(asked):
        parts = processor.query(query), processor.candidate(candidate)
        item = processor.pair(*parts).item
        grids = tuple((2 * high, 2 * wide) for part in parts for high, wide in part.grids)
        image = architecture().image_token_id
        sample = Sample("pair", item.tokens, item.pooled, grids, item.patches, image)
        expected = answer_logits(model, sample, processor.answer_ids)[-1]
        np.testing.assert_allclose(
            [found.yes[number], found.no[number]], expected, rtol=0, atol=1e-5
        )


# --- lists ---------------------------------------------------------------------------------------


def test_a_list_has_a_logit_for_each_of_its_candidates():
    query = pairs()[0][0]
    candidates = [candidate for _, candidate in pairs()[:5]]
    lists = [(query, candidates), (pairs()[-1][0], candidates[:2]), (query, candidates[::-1])]
    found = reranker().choose(lists)
    assert [len(one) for one in found] == [5, 2, 5]
    for one, again in zip(found, reranker().choose(lists[::-1])[::-1], strict=True):
        np.testing.assert_allclose(one, again, rtol=0, atol=1e-5)
    assert np.abs(found[0] - found[2]).max() > 1e-4  # another order is another list
    assert reranker().choose([]) == []
    with pytest.raises(MarvelError, match="found 1"):
        reranker().choose([(query, candidates[:1])])


# --- adapters and folders ------------------------------------------------------------------------


def test_adapters_give_the_same_merged_or_not(tmp_path):
    folder = save(tmp_path / "model")
    peft.save_adapters(tmp_path / "lora", adapters(), architecture(), LORA, base=str(folder))
    unmerged = Reranker.from_pretrained(folder, adapters=tmp_path / "lora")
    merged = Reranker(lora.merge(params(), adapters(), LORA), architecture(), unmerged.processor)
    asked = [pairs()[place] for place in (0, 2, 5)]
    left, right = unmerged.score(asked), merged.score(asked)
    np.testing.assert_allclose(left.yes, right.yes, rtol=0, atol=1e-4 * np.abs(left.yes).max())
    plain = Reranker.from_pretrained(folder)
    assert np.abs(left.yes - scores().yes[[0, 2, 5]]).max() > 1e-3
    assert len({one.model_hash for one in (unmerged, merged, plain)}) == 3


def test_an_instruct_model_reranks_as_it_is(tmp_path):
    """A folder of others has no marvel.json: the prompt is chosen, pictures are capped."""
    folder = save(tmp_path / "model")
    (folder / "marvel.json").unlink()
    preprocessor = json.loads((folder / "preprocessor_config.json").read_text())
    preprocessor |= {"min_pixels": 3136, "max_pixels": 12_845_056}
    (folder / "preprocessor_config.json").write_text(json.dumps(preprocessor))
    found = {
        prompt: Reranker.from_pretrained(folder, prompt=prompt)
        for prompt in ("marvel", "true_false")
    }
    limits = found["marvel"].processor.geometry
    assert (limits.min_pixels, limits.max_pixels) == (3136, 235_200)
    answers = {name: one.processor.words.answers for name, one in found.items()}
    assert answers == {"marvel": ("Yes", "No"), "true_false": ("True", "False")}
    asked = [pairs()[place] for place in (0, 2, 5)]
    told = found["true_false"].score(asked)
    assert np.abs(told.yes - scores().yes[[0, 2, 5]]).max() > 1e-3


def test_settings_of_the_folder_hold_and_given_ones_win(tmp_path):
    folder = save(
        tmp_path / "model", settings=RerankerSettings("true_false", 196, 784, 77).to_dict()
    )
    assert is_reranker(folder)
    kept = Reranker.from_pretrained(folder).processor
    assert (kept.prompt, kept.max_text_tokens, kept.geometry.max_pixels) == ("true_false", 77, 784)
    given = Reranker.from_pretrained(folder, prompt="marvel", max_text_tokens=9).processor
    assert (given.prompt, given.max_text_tokens) == ("marvel", 9)


# --- refusals ------------------------------------------------------------------------------------


def test_an_embedder_and_a_reranker_are_not_taken_for_each_other(tmp_path):
    folder = save(tmp_path / "model")
    with pytest.raises(MarvelError, match="is a reranker, not an embedder"):
        Embedder.from_pretrained(folder)
    (folder / "marvel.json").write_text(json.dumps(EmbeddingSettings().to_dict()))
    with pytest.raises(MarvelError, match="is an embedder, not a reranker"):
        Reranker.from_pretrained(folder)


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"model": "reranker", "colour": 1}, "unknown field 'colour'"),
        ({"model": "reranker", "prompt": "other"}, "'other': choose one of"),
        ({"model": "reranker", "max_pixels": 1}, "max_pixels=1"),
        ({"model": "reranker", "max_text_tokens": 0}, "max_text_tokens=0"),
    ],
)
def test_broken_settings_are_refused(tmp_path, settings, message):
    with pytest.raises(MarvelError, match=message):
        Reranker.from_pretrained(save(tmp_path / "model", settings=settings))


def test_what_is_no_pair_is_refused():
    for wrong in (("red", "cat"), (Item.of(text="a"),), Item.of(text="a")):
        with pytest.raises(MarvelError, match="score takes pairs"):
            reranker().score([wrong])
    assert len(reranker().score([]).yes) == 0


def test_options_that_cannot_be_are_refused():
    processor = reranker().processor
    with pytest.raises(MarvelError, match="dtype='int8'"):
        Reranker(params(), architecture(), processor, dtype="int8")
    headless = {name: leaf for name, leaf in params(tied=False).items() if name != "lm_head"}
    with pytest.raises(MarvelError, match="lm_head"):
        Reranker(headless, architecture(tied=False), processor)


def test_an_unreadable_picture_is_named():
    bad = Item.of(image=Image(b"none", name="p.png"), id="7:1")
    with pytest.raises(MarvelError, match=r"7:1.*p\.png"):
        reranker().score([(pairs()[0][0], bad)])
