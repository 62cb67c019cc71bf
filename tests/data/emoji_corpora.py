"""Small emoji corpora for tests. They need the two fonts that launch/setup installs."""

from pathlib import Path

import pytest

from marvel_jax.data import emoji
from marvel_jax.data.emoji_tasks import Corpus, Sizes

SMALL = Sizes(
    train_tone=4000,
    train_tone_card=1000,
    test_picture=150,
    test_translation=60,
    test_card=40,
    test_named=60,
    test_tone=100,
    test_tone_card=40,
)
LIMIT = 420


@pytest.fixture(scope="session")
def corpus() -> Corpus:
    """About a tenth of the emoji, drawn and split, in memory."""
    return emoji.make_corpus(seed=3, limit=LIMIT, sizes=SMALL)


@pytest.fixture(scope="session")
def built(tmp_path_factory: pytest.TempPathFactory) -> emoji.Built:
    """The same corpus on disk."""
    out = tmp_path_factory.mktemp("corpora") / "emoji"
    return emoji.build(out, seed=3, limit=LIMIT, sizes=SMALL, vocabulary=2000)


@pytest.fixture(scope="session")
def folder(built: emoji.Built) -> Path:
    """The folder of `built`."""
    return built.folder
