"""A trained model leaves as a folder that gives the same vectors, here and in transformers."""

import dataclasses
import json
import math
import os
import shutil
import subprocess
import sys
from pathlib import Path

import jax
import numpy as np
import pytest

from marvel_jax.data.items import Item
from marvel_jax.errors import MarvelError
from marvel_jax.models import hub
from marvel_jax.recipes.commands import load_config
from marvel_jax.retrieval.embedder import Embedder
from marvel_jax.training.checkpoints import Checkpoints
from marvel_jax.training.export import export_checkpoint
from marvel_jax.training.inputs import open_inputs
from marvel_jax.training.state import initial_params
from tests import tiny

ROOT = Path(__file__).parents[2]
ITEMS = [
    Item.of(text="red cat"),
    Item.of(text="a small bird, dark blue", instruction="find the picture"),
    Item.of(image=tiny.picture(3)),
    Item.of(text="but green", image=tiny.picture(4, size=(20, 40)), instruction="change it"),
]


@pytest.fixture(scope="module")
def learned(tiny_run) -> dict:
    checkpoints = Checkpoints(tiny_run / "checkpoints")
    _, params = checkpoints.restore_params()
    checkpoints.close()
    return params


def test_the_folder_gives_the_vectors_of_the_trained_parameters(tiny_config, tiny_model, learned):
    config = load_config(tiny_config)
    inputs = open_inputs(config)
    in_memory = Embedder(learned["model"], inputs.architecture, inputs.processor)
    loaded = Embedder.from_pretrained(tiny_model)
    np.testing.assert_array_equal(loaded.encode(ITEMS), in_memory.encode(ITEMS))
    assert loaded.manifest_fields() == in_memory.manifest_fields()


def test_the_learned_temperature_goes_along(tiny_model, learned):
    temperature = hub.load(tiny_model).temperature
    assert temperature == pytest.approx(math.exp(learned["log_temperature"]), rel=1e-7)
    assert temperature != pytest.approx(0.05, abs=1e-6)


def test_training_goes_on_from_the_weights_and_the_temperature(tiny_config, tiny_model, learned):
    config = load_config(tiny_config, (f"model.source={tiny_model}", "model.scratch=None"))
    inputs = open_inputs(config)
    assert inputs.architecture.text.hidden_size == 32
    start = initial_params(
        inputs.architecture,
        seed=9,
        model=inputs.model,
        optimizer=config.optimizer,
        temperature=inputs.temperature,
    )
    jax.tree.map(np.testing.assert_array_equal, start["model"], learned["model"])
    assert float(start["log_temperature"]) == pytest.approx(learned["log_temperature"], abs=1e-6)


def test_another_models_tokenizer_is_refused(tiny_config, tiny_model, tmp_path):
    shutil.copytree(tiny_model, tmp_path / "model")
    tokenizer = json.loads((tmp_path / "model/tokenizer.json").read_text())
    for token in tokenizer["added_tokens"]:
        token["id"] += 5
    (tmp_path / "model/tokenizer.json").write_text(json.dumps(tokenizer))
    expected = r"/model: the tokenizer's <\|image_pad\|> is \d+, but config\.json says"
    with pytest.raises(MarvelError, match=expected):
        Embedder.from_pretrained(tmp_path / "model")
    source = (f"model.source={tmp_path / 'model'}", "model.scratch=None")
    with pytest.raises(MarvelError, match=expected):
        open_inputs(load_config(tiny_config, source))


def test_the_settings_of_the_run_are_the_settings_of_the_model(tiny_config, tiny_model):
    settings = json.loads((tiny_model / "marvel.json").read_text())
    assert settings == dataclasses.asdict(load_config(tiny_config).embedding)
    assert json.loads((tiny_model / "config.json").read_text())["text_config"]["is_causal"] is False


def test_a_run_on_eight_devices_is_exported_where_there_is_one(tiny_run, tiny_model, tmp_path):
    command = [sys.executable, "-m", "marvel_jax.cli", "export", str(tiny_run)]
    process = subprocess.run(
        [*command, "--out", str(tmp_path / "model")],
        cwd=ROOT,
        env={**os.environ, "XLA_FLAGS": ""},
        capture_output=True,
        text=True,
        check=False,
    )
    assert process.returncode == 0, process.stderr
    for file in tiny_model.iterdir():
        assert (tmp_path / "model" / file.name).read_bytes() == file.read_bytes(), file.name


def test_what_is_no_run_or_has_no_checkpoint_is_told(tiny_run, tiny_model, tmp_path):
    with pytest.raises(MarvelError, match="is not the folder of a training run"):
        export_checkpoint(tmp_path, tmp_path / "out")
    shutil.copytree(tiny_run / "blueprint", tmp_path / "run/blueprint")
    with pytest.raises(MarvelError, match="holds no checkpoint: train first"):
        export_checkpoint(tmp_path / "run", tmp_path / "out")
    with pytest.raises(MarvelError, match="exists already"):
        export_checkpoint(tiny_run, tiny_model)
    assert not (tmp_path / "out").exists()


@pytest.mark.torch
def test_transformers_loads_it_to_the_same_embeddings(tiny_model):
    torch = pytest.importorskip("torch")
    from transformers import AutoTokenizer

    from tests.models import torch_reference

    model = torch_reference.load(tiny_model)
    tokenizer = AutoTokenizer.from_pretrained(tiny_model)
    texts = ["Red cat.", "A small bird, dark blue.", "7 fish?"]
    ours = Embedder.from_pretrained(tiny_model).encode([Item.of(text=text) for text in texts])
    for text, vector in zip(texts, ours, strict=True):
        tokens = tokenizer(f"<|im_start|>user\n{text}<|im_end|>", return_tensors="pt")
        with torch.no_grad():
            # No mask: that the model looks both ways is what its config.json says.
            states = model.model(input_ids=tokens["input_ids"]).last_hidden_state[0]
        mean = states.mean(dim=0)
        np.testing.assert_allclose(vector, (mean / mean.norm()).numpy(), atol=1e-5)
