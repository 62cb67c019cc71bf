"""The rerank objective: its loss against numbers written out, on any mesh, and that it learns."""

import dataclasses
import functools
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from marvel_jax.data import tokenizer
from marvel_jax.data.batch import RowShape
from marvel_jax.data.chat import ChatTokenizer
from marvel_jax.data.epoch_plan import PlanConfig
from marvel_jax.data.items import TASKS, Candidate, Item, Query
from marvel_jax.data.rerank import PairProcessor
from marvel_jax.data.rerank_batch import RerankBatch, build_rerank_batch
from marvel_jax.data.rerank_lengths import index_pairs
from marvel_jax.data.rerank_plan import Draws, Frames, RerankPlan
from marvel_jax.data.rerank_prompts import PROMPTS
from marvel_jax.models.lora import LoraConfig, init_adapters
from marvel_jax.models.qwen2_vl import head_rows, hidden_states, init_params
from marvel_jax.parallel.mesh import MeshConfig
from marvel_jax.parallel.sharding import put_batch
from marvel_jax.training.config import DataConfig, ModelConfig, TrainConfig
from marvel_jax.training.objectives.rerank import rerank_loss
from tests import tiny
from tests.data import samples
from tests.training import tiny_steps

ROW = RowShape(tokens=128, patches=0, items=4)
BATCH = 8
LORA = LoraConfig(rank=4, alpha=8.0, dropout=0.3)
WORDS = ("red", "green", "blue", "dark")


@functools.cache
def source() -> samples.ListSource:
    """What is wanted says "cat", what is not says "dog"; queries say a colour."""
    pool = [
        Candidate(f"1:{kind}{number}", Item.of(text=f"{WORDS[number % 4]} {kind} {number}"), "text")
        for kind in ("cat", "dog")
        for number in range(16)
    ]
    queries = [
        Query(
            f"1:{number}",
            Item.of(text=f"{WORDS[number % 4]} {number}"),
            TASKS[1],
            (f"1:cat{number % 16}",),
            tuple(f"1:dog{(number + k) % 16}" for k in range(4)),
            dataset=1,
        )
        for number in range(24)
    ]
    return samples.ListSource(queries, pool)


@functools.cache
def chat_tokenizer() -> ChatTokenizer:
    """One that knows the prompt's words, so that sequences are short."""
    words = PROMPTS["marvel"]
    texts = [words.system, words.list_system, "Query Candidate Candidates Yes No Ans Cat Dog"]
    texts += [f"{word} cat dog {number}" for word in WORDS for number in range(9)]
    return ChatTokenizer.from_tokenizer(tokenizer.train(4 * texts, vocabulary=450))


@functools.cache
def processor(*, whole_reply: bool = False) -> PairProcessor:
    return PairProcessor(chat_tokenizer(), tiny.processor().geometry, whole_reply=whole_reply)


def batch_of(
    step: int = 0, *, shards: int = 1, listed: int = 0, whole_reply: bool = False
) -> RerankBatch:
    made = processor(whole_reply=whole_reply)
    plan = RerankPlan(
        index_pairs(source(), made, cache=None),
        PlanConfig(BATCH, 0, ROW, chunk_rows=2, row_sizes=1),
        draws=Draws(listed=listed),
        frames=Frames.of(made, listed),
        num_shards=shards,
    )
    return build_rerank_batch(source(), made, plan.step(step), range(shards))


ARCHITECTURE = tiny.architecture(vocab_size=450)


def config_for(mesh: MeshConfig = tiny_steps.ONE, **model: Any) -> TrainConfig:
    return TrainConfig(
        data=DataConfig(path=".", global_batch=BATCH, row=ROW),
        model=ModelConfig(scratch=ARCHITECTURE, **model),
        mesh=mesh,
    )


@functools.cache
def weights(seed: int = 0, *, tied: bool = True) -> dict[str, Any]:
    architecture = dataclasses.replace(ARCHITECTURE, tie_word_embeddings=tied)
    return jax.device_get(init_params(architecture, key=jax.random.key(seed)))


def value_and_grad(
    batch: RerankBatch,
    mesh: MeshConfig = tiny_steps.ONE,
    *,
    chunk_rows: int | None = None,
    lora: LoraConfig | None = None,
) -> tuple[dict[str, float], Any]:
    """The metrics, and the gradient of what is trained."""
    config = dataclasses.replace(config_for(mesh, adapters=lora), chunk_rows=chunk_rows)
    made = tiny_steps.mesh_for(mesh)
    params: dict[str, Any] = {"model": weights()}
    frozen: dict[str, Any] = {"model": {}}
    if lora is not None:
        params, frozen = {"model": {}}, params
        drawn = init_adapters(ARCHITECTURE, lora, key=jax.random.key(1))
        params["adapters"] = jax.tree.map(lambda leaf: leaf + 0.02, drawn)
    loss = functools.partial(rerank_loss, config=config, architecture=ARCHITECTURE, mesh=made)
    run = jax.jit(jax.grad(loss, has_aux=True))
    grads, metrics = run(params, frozen, put_batch(batch, made), jnp.int32(3))
    return {name: float(value) for name, value in metrics.items()}, jax.device_get(grads)


@pytest.mark.parametrize("whole_reply", [False, True])
def test_the_loss_is_the_mean_cross_entropy_of_the_covered_tokens(whole_reply):
    """Each sequence alone, with logits over the whole vocabulary, in float64."""
    batch = batch_of(listed=3, whole_reply=whole_reply)
    states = jax.jit(functools.partial(hidden_states, config=ARCHITECTURE, attention="causal"))
    hidden = np.asarray(states(weights(), batch.rows), np.float64)
    head = np.asarray(head_rows(weights(), ARCHITECTURE), np.float64)
    terms, gaps = [], []
    for row, slot in np.argwhere(batch.supervised.any(axis=-1)).tolist():
        own = np.flatnonzero(batch.rows.segments[row] == slot + 1)
        for place in own[batch.rows.pooled[row, own]] - 1:
            logits = hidden[row, place] @ head.T
            target = int(batch.rows.tokens[row, place + 1])
            terms.append(np.log(np.exp(logits - logits[target]).sum()))
        if batch.judged[row, slot]:
            logits = hidden[row, batch.places[row, slot, 0]] @ head.T
            gaps.append(logits[batch.targets[row, slot, 0]] - logits[batch.other[row, slot]])
    found, _ = value_and_grad(batch)
    covered = {False: 1, True: None}[whole_reply]
    assert covered is None or len(terms) == 3 * BATCH * covered
    assert len(gaps) == 2 * BATCH
    assert found["loss"] == pytest.approx(np.mean(terms), abs=1e-5)
    assert found["logit_gap"] == pytest.approx(np.mean(gaps), abs=1e-5)
    assert found["accuracy"] == pytest.approx(np.mean(np.array(gaps) > 0))


@pytest.mark.parametrize(("lora", "chunk_rows"), [(None, None), (LORA, 2)])
def test_shards_and_chunks_change_nothing(lora, chunk_rows):
    """Four data shards, or two rows of each at a time, against one device at once."""
    expected, gradient = value_and_grad(batch_of(), lora=lora)
    mesh = MeshConfig(data=2, fsdp=2)
    found, other = value_and_grad(batch_of(shards=4), mesh, chunk_rows=chunk_rows, lora=lora)
    assert found == pytest.approx(expected, abs=1e-5)
    scale = max(float(np.abs(leaf).max()) for leaf in jax.tree.leaves(gradient))
    for left, right in zip(jax.tree.leaves(gradient), jax.tree.leaves(other), strict=True):
        np.testing.assert_allclose(left / scale, right / scale, rtol=0, atol=1e-5)


def test_an_untied_head_learns_and_the_embedding_learns_through_the_model():
    architecture = dataclasses.replace(ARCHITECTURE, tie_word_embeddings=False)
    config = config_for()
    made = tiny_steps.mesh_for(tiny_steps.ONE)
    loss = functools.partial(rerank_loss, config=config, architecture=architecture, mesh=made)
    params = {"model": weights(tied=False)}
    grads, _ = jax.jit(jax.grad(loss, has_aux=True))(
        params, {"model": {}}, put_batch(batch_of(), made), jnp.int32(0)
    )
    head = np.asarray(grads["model"]["lm_head"]["kernel"])
    yes, no = processor().answer_ids
    assert head.shape == (ARCHITECTURE.text.hidden_size, ARCHITECTURE.text.vocab_size)
    assert np.abs(head[:, [yes, no]]).max() > np.abs(np.delete(head, [yes, no], axis=1)).max()
    assert np.abs(grads["model"]["language"]["token_embedding"]).max() > 0


def test_it_learns_to_say_yes_and_no():
    """In 45 steps, from random weights, on pairs that one word of the candidate decides."""
    made = tiny_steps.mesh_for(tiny_steps.ONE)
    loss = functools.partial(rerank_loss, config=config_for(), architecture=ARCHITECTURE, mesh=made)
    optimizer = optax.adam(3e-3)

    @jax.jit
    def step(params: Any, moments: Any, batch: Any) -> Any:
        grads, metrics = jax.grad(loss, has_aux=True)(params, {"model": {}}, batch, jnp.int32(0))
        updates, moments = optimizer.update(grads, moments)
        return optax.apply_updates(params, updates), moments, metrics

    params: Any = jax.device_put({"model": weights()})
    moments = optimizer.init(params)
    history = []
    for number in range(45):  # no batch comes twice
        batch = put_batch(batch_of(number), made)
        params, moments, metrics = step(params, moments, batch)
        history.append({name: float(value) for name, value in metrics.items()})
    first, last = history[0], history[-1]
    assert first["accuracy"] < 0.8
    assert last["accuracy"] == 1.0
    assert last["logit_gap"] > 1.0
    assert last["loss"] < 0.6 < first["loss"]
