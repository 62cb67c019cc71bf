"""mteb's tasks run on our embedder: text, pictures and both, with each task's instruction."""

import io
from types import SimpleNamespace

import jax
import numpy as np
import PIL.Image
import pytest

from marvel_jax.data.items import Item
from marvel_jax.errors import MarvelError
from marvel_jax.models.qwen2_vl import init_params
from marvel_jax.retrieval.embedder import Embedder
from marvel_jax.retrieval.mteb_encoder import MtebEncoder
from tests import tiny


@pytest.fixture(scope="module")
def embedder():
    config = tiny.architecture()
    return Embedder(init_params(config, key=jax.random.key(0)), config, tiny.processor())


def picture(seed: int) -> PIL.Image.Image:
    return PIL.Image.open(io.BytesIO(tiny.picture(seed))).convert("RGB")


def task(**fields):
    given = {"name": "T", "type": "Retrieval", "prompt": {"query": "find it"}}
    return SimpleNamespace(**(given | fields))


def encode(encoder, batches, **options):
    return encoder.encode(
        batches, hf_split="test", hf_subset="default", **({"task_metadata": task()} | options)
    )


def test_batches_become_items_in_order(embedder):
    encoder = MtebEncoder(embedder)
    batches = [
        {"text": ["a dog", "a cat"], "image": [picture(0), picture(1)]},
        {"text": ["a fish", ""], "image": [None, picture(2)]},
        {"text": ["red"], "title": ["not read: it is in the text"]},
    ]
    expected = [
        Item.of(text="a dog", image=picture(0)),
        Item.of(text="a cat", image=picture(1)),
        Item.of(text="a fish"),
        Item.of(image=picture(2)),
        Item.of(text="red"),
    ]
    led = encode(encoder, batches, prompt_type="query")
    np.testing.assert_allclose(led, embedder.encode(expected, instruction="find it"), atol=1e-5)
    plain = encode(encoder, batches, prompt_type="document")
    np.testing.assert_allclose(plain, embedder.encode(expected), atol=1e-5)
    assert np.abs(led - plain).max() > 1e-4


def test_our_own_instructions_come_before_the_tasks(embedder):
    encoder = MtebEncoder(embedder, instructions={"T": "by name", "STS": "by type"})
    assert encoder.instruction(task(), "query") == "by name"
    assert encoder.instruction(task(name="U", type="STS")) == "by type"
    assert encoder.instruction(task(name="U"), "query") == "find it"
    assert encoder.instruction(task(name="U", prompt="say it")) == "say it"
    assert encoder.instruction(task(), "document") is None


def test_what_is_not_read_is_refused(embedder):
    for batch, message in (({"audio": [1]}, "holds audio"), ({"other": ["a"]}, "neither text nor")):
        with pytest.raises(MarvelError, match=message):
            encode(MtebEncoder(embedder), [batch], prompt_type="query")
    with pytest.raises(MarvelError, match="organisation/model"):
        MtebEncoder(embedder, name="mine")


@pytest.mark.peer
def test_a_task_of_mteb_gives_the_score_of_our_own_ranking(embedder):
    mteb = pytest.importorskip("mteb", reason="mteb is not installed")
    from datasets import Dataset
    from mteb.abstasks.retrieval import AbsTaskRetrieval
    from mteb.abstasks.retrieval_dataset_loaders import RetrievalSplitData
    from mteb.abstasks.task_metadata import TaskMetadata

    count = 8
    words = list(tiny.WORDS[:count])

    class Fused(AbsTaskRetrieval):
        metadata = TaskMetadata(
            name="FusedLocal",
            description="Texts with pictures, asked for by texts with other pictures.",
            reference="https://example.org",
            dataset={"path": "none", "revision": "none"},
            type="Any2AnyRetrieval",
            category="it2it",
            modalities=["text", "image"],
            eval_splits=["test"],
            eval_langs=["eng-Latn"],
            main_score="hit_rate_at_1",
            prompt={"query": "find the dog"},
        )

        def load_data(self, num_proc=None, **options):
            self.dataset = {
                "default": {
                    "test": RetrievalSplitData(
                        queries=Dataset.from_dict(
                            {
                                "id": [f"q{n}" for n in range(count)],
                                "text": words,
                                "image": [picture(n) for n in range(count)],
                            }
                        ),
                        corpus=Dataset.from_dict(
                            {
                                "id": [f"d{n}" for n in range(count)],
                                "text": words,
                                "image": [picture(n + n % 2) for n in range(count)],
                            }
                        ),
                        relevant_docs={f"q{n}": {f"d{n}": 1} for n in range(count)},
                        top_ranked=None,
                    )
                }
            }
            self.data_loaded = True

    encoder = MtebEncoder(embedder)
    result = mteb.evaluate(encoder, Fused(), cache=None, show_progress_bar=False, co2_tracker=False)
    scores = result.task_results[0].scores["test"][0]
    queries = [Item.of(text=words[n], image=picture(n)) for n in range(count)]
    documents = [Item.of(text=words[n], image=picture(n + n % 2)) for n in range(count)]
    found = embedder.encode(queries, instruction="find the dog") @ embedder.encode(documents).T
    right = (found.argmax(axis=1) == np.arange(count)).mean()
    assert scores["recall_at_1"] == pytest.approx(right, abs=1e-5)
    rank = (found > np.diag(found)[:, None]).sum(axis=1)
    assert scores["ndcg_at_10"] == pytest.approx((1 / np.log2(rank + 2)).mean(), abs=1e-5)
    assert right > 0  # and the ranking says something
