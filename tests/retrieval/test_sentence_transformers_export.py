"""What sentence-transformers makes of our folder: the same vectors, or a refusal that says why."""

import dataclasses
import io
import json

import jax
import numpy as np
import PIL.Image
import pytest

from marvel_jax.data.items import Image, Item
from marvel_jax.errors import MarvelError
from marvel_jax.models import hub
from marvel_jax.models.qwen2_vl import init_params
from marvel_jax.retrieval.embedder import Embedder
from marvel_jax.retrieval.sentence_transformers_export import (
    NO_INSTRUCTION,
    export_sentence_transformers,
)
from marvel_jax.settings import EmbeddingSettings
from tests import tiny

SETTINGS = EmbeddingSettings(min_pixels=14 * 14, max_pixels=28 * 28)


@pytest.fixture(scope="module")
def model(tmp_path_factory):
    """A model folder with every bias and gain random."""
    root = tmp_path_factory.mktemp("models")
    (root / "tokenizer").mkdir()
    tiny.tokenizer().save(str(root / "tokenizer" / "tokenizer.json"))
    config = tiny.architecture()
    rng = np.random.default_rng(0)
    params = jax.tree.map(
        lambda leaf: np.asarray(leaf) + 0.1 * rng.standard_normal(leaf.shape).astype(np.float32),
        init_params(config, key=jax.random.key(0)),
    )
    hub.save(
        root / "model",
        config=config,
        params=params,
        tokenizer_from=root / "tokenizer",
        documents={
            "preprocessor_config.json": tiny.processor().geometry.to_preprocessor_dict(),
            "marvel.json": SETTINGS.to_dict(),
        },
    )
    return root / "model"


@pytest.fixture(scope="module")
def theirs(model, tmp_path_factory):
    """The exported folder in sentence-transformers."""
    library = pytest.importorskip(
        "sentence_transformers", reason="sentence-transformers is not installed"
    )
    from sentence_transformers.base.modules import transformer
    from transformers import AutoImageProcessor, AutoTokenizer, Qwen2VLProcessor
    from transformers.utils import is_torchvision_available

    folder = tmp_path_factory.mktemp("export") / "model"
    export_sentence_transformers(model, folder)
    with pytest.MonkeyPatch.context() as patched:
        if not is_torchvision_available():
            # Their processor refuses to be without its part for videos, which needs torchvision.
            def processor(path, **options):
                return Qwen2VLProcessor(
                    image_processor=AutoImageProcessor.from_pretrained(path),
                    tokenizer=AutoTokenizer.from_pretrained(path),
                    video_processor=object(),
                    chat_template=(folder / "chat_template.jinja").read_text(),
                )

            patched.setattr(Qwen2VLProcessor, "check_argument_for_proper_class", lambda *_: None)
            patched.setattr(transformer.AutoProcessor, "from_pretrained", processor)
        yield library.SentenceTransformer(str(folder), device="cpu")


def picture(seed: int, width: int) -> PIL.Image.Image:
    return PIL.Image.open(io.BytesIO(tiny.picture(seed, size=(28, width))))


@pytest.mark.peer
def test_its_vectors_are_ours(model, theirs):
    first, second = picture(0, 28), picture(1, 50)  # the second is resized
    given: dict[str, list] = {
        "texts": ["a dog", ' "red cat?"', "\nbig\r. yes", "." * 40],
        "pictures": [first, second],
        "both": [{"image": first, "text": "a dog"}, {"image": second, "text": "red"}],
    }
    ours = {
        "texts": [Item.of(text=str(text)) for text in given["texts"]],
        "pictures": [Item.of(image=first), Item.of(image=second)],
        "both": [Item.of(image=first, text="a dog"), Item.of(image=second, text="red")],
    }
    parts = [("a", first, "but", second), (second, "but", first, "a")]
    messages = [
        [
            {
                "role": "user",
                "content": [
                    {"type": "text", "text": part}
                    if isinstance(part, str)
                    else {"type": "image", "image": part}
                    for part in one
                ],
            }
        ]
        for one in parts
    ]
    ours["interleaved"] = [
        Item(parts=tuple(part if isinstance(part, str) else Image(part) for part in one))
        for one in parts
    ]
    given["interleaved"] = messages
    embedder = Embedder.from_pretrained(model)
    for name, inputs in given.items():
        expected = embedder.encode(ours[name])
        np.testing.assert_allclose(theirs.encode(inputs), expected, atol=1e-4, err_msg=name)
        # Causal attention, which it would fall back to, is far from this.
        if name == "interleaved":
            causal = Embedder.from_pretrained(model, attention="causal").encode(ours[name])
            assert np.abs(causal - expected).max() > 1e-3


@pytest.mark.peer
def test_an_instruction_is_refused_with_the_reason(theirs):
    with pytest.raises(Exception, match="leaves it out of the mean") as caught:
        theirs.encode(["a dog"], prompt="find it")
    assert str(caught.value) == NO_INSTRUCTION


def test_nothing_in_the_folder_asks_for_code_of_ours(model, tmp_path):
    export_sentence_transformers(model, tmp_path / "out")
    modules = json.loads((tmp_path / "out" / "modules.json").read_text())
    assert all(one["type"].startswith("sentence_transformers.") for one in modules)
    config = json.loads((tmp_path / "out" / "config.json").read_text())
    assert config["text_config"]["is_causal"] is False and "auto_map" not in config
    assert not list((tmp_path / "out").glob("**/*.py"))
    with pytest.raises(MarvelError, match="exists"):
        export_sentence_transformers(model, tmp_path / "out")


@pytest.mark.parametrize(
    "other", [{"template": "gme"}, {"positions": "sequential"}, {"prompt": "one_word"}]
)
def test_what_cannot_be_said_is_refused(model, tmp_path, other):
    import shutil

    shutil.copytree(model, tmp_path / "model")
    settings = dataclasses.replace(SETTINGS, **other)
    (tmp_path / "model" / "marvel.json").write_text(json.dumps(settings.to_dict()))
    with pytest.raises(MarvelError, match=f"{next(iter(other))} is "):
        export_sentence_transformers(tmp_path / "model", tmp_path / "out")
    assert not (tmp_path / "out").exists()
