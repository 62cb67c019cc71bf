"""Models of others embed as their own code does: held against independent replicas in torch."""

from pathlib import Path
from typing import Any

import numpy as np
import pytest

from marvel_jax.data.items import Item
from marvel_jax.retrieval.embedder import Embedder
from tests.data import samples

pytestmark = pytest.mark.peer

TOLERANCE = 1e-5
UMARVEL = {"template": "umarvel_released", "positions": "sequential"}
GME = {"template": "gme", "positions": "sequential", "attention": "causal", "pooling": "last"}


@pytest.fixture(scope="module")
def replicas():
    pytest.importorskip("torch")
    from tests.retrieval import torch_replicas

    return torch_replicas


@pytest.fixture(scope="module")
def folder(replicas, tmp_path_factory) -> Path:
    from transformers import PreTrainedTokenizerFast

    copied = type(samples.raw_tokenizer()).from_str(samples.raw_tokenizer().to_str())
    folder = tmp_path_factory.mktemp("models") / "random"
    replicas.write_model(folder, PreTrainedTokenizerFast(tokenizer_object=copied), seed=0)
    return folder


@pytest.fixture(scope="module")
def contents(replicas) -> list[Any]:
    """Texts that the format rule changes, pictures that must be resized, with and without asking.

    The first three have lengths of their own, so the replica pads; the last has no text but its
    instruction.
    """
    made = replicas.Content
    wide, tall, small = (samples.picture(*size, seed=n) for n, size in enumerate(SIZES))
    return [
        made(text='"a green pear" '),
        made(picture=wide),
        made(text="the same, but red\r", picture=tall, instruction="find an everyday image"),
        made(text="is it an apple?", instruction="Find the picture that shows it."),
        made(picture=small, instruction="find an image caption"),
    ]


SIZES = ((30, 61), (70, 25), (9, 12))


def items(contents) -> list[Item]:
    return [
        Item.of(text=one.text, image=one.picture, instruction=one.instruction) for one in contents
    ]


@pytest.mark.parametrize("generation_prompt", [False, True], ids=["off", "on"])
def test_u_marvels_released_embedding(replicas, folder, contents, generation_prompt):
    expected = replicas.UMarvel(folder).vectors(contents, generation_prompt=generation_prompt)
    ours = Embedder.from_pretrained(folder, generation_prompt=generation_prompt, **UMARVEL)
    np.testing.assert_allclose(ours.encode(items(contents)), expected, rtol=0, atol=TOLERANCE)


def test_gmes_embedding(replicas, folder, contents):
    expected = replicas.Gme(folder).vectors(contents)
    ours = Embedder.from_pretrained(folder, **GME).encode(items(contents))
    np.testing.assert_allclose(ours, expected, rtol=0, atol=TOLERANCE)


@pytest.mark.parametrize(
    ("settings", "others"),
    [
        (UMARVEL, ({"generation_prompt": True}, {"positions": "mrope"}, {"attention": "causal"})),
        (GME, ({"positions": "mrope"}, {"attention": "bidirectional"}, {"pooling": "mean"})),
    ],
    ids=["umarvel", "gme"],
)
def test_a_setting_that_is_not_theirs_would_show(folder, contents, settings, others):
    """The agreement above holds because of these settings, and not whatever they are."""
    theirs = Embedder.from_pretrained(folder, **settings).encode(items(contents))
    for changes in others:
        found = Embedder.from_pretrained(folder, **settings | changes).encode(items(contents))
        assert np.abs(theirs - found).max() > 100 * TOLERANCE, changes
