"""A trained model leaves as a folder that gives the same vectors, here and in transformers."""

import dataclasses
import json
import math
import os
import re
import shutil
import subprocess
import sys
from pathlib import Path

import jax
import numpy as np
import pytest
import safetensors.numpy

from marvel_jax import cli
from marvel_jax.data.items import Item
from marvel_jax.errors import MarvelError
from marvel_jax.models import hub, lora, names, peft
from marvel_jax.models.qwen2_vl import init_params
from marvel_jax.parallel.mesh import MeshConfig, make_mesh
from marvel_jax.recipes.config_file import load_config
from marvel_jax.recipes.overrides import override
from marvel_jax.recipes.training_commands import import_checkpoint
from marvel_jax.retrieval.embedder import Embedder
from marvel_jax.settings import EmbeddingSettings
from marvel_jax.training import run_folder
from marvel_jax.training.checkpoints import read_params
from marvel_jax.training.config import TrainConfig
from marvel_jax.training.export import export_adapters, export_checkpoint
from marvel_jax.training.inputs import open_inputs, place_state
from marvel_jax.training.loop import train
from marvel_jax.training.optimizer import make_optimizer
from marvel_jax.training.state import initial_values
from tests import tiny
from tests.training import runs

ROOT = Path(__file__).parents[2]
ITEMS = [
    Item.of(text="red cat"),
    Item.of(text="a small bird, dark blue", instruction="find the picture"),
    Item.of(image=tiny.picture(3)),
    Item.of(text="but green", image=tiny.picture(4, size=(20, 40)), instruction="change it"),
]


@pytest.fixture(scope="module")
def learned(tiny_run) -> dict:
    return read_params(tiny_run / "checkpoints")[1]


@pytest.fixture(scope="module")
def adapted(tiny_config, tiny_model, tmp_path_factory) -> Path:
    """The folder of a run that trained adapters on the tiny model, in bfloat16."""
    workdir = tmp_path_factory.mktemp("runs") / "adapted"
    train(load_config(tiny_config, (*adapters_on(tiny_model), "model.dtype=bfloat16")), workdir)
    return workdir


def adapters_on(model: Path) -> tuple[str, ...]:
    lora = ("model.adapters.rank=4", "model.adapters.alpha=8")
    # Other settings than the base's, so that it shows whose are kept.
    rest = ("optimizer.learning_rate=0.05", "embedding.max_pixels=588", "steps=3")
    return (f"model.source={model}", "model.scratch=None", *lora, *rest)


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
    mesh = make_mesh(MeshConfig(data=2, fsdp=2, tensor=2))
    optimizer = make_optimizer(config.optimizer, steps=1)
    start = place_state(config, inputs, optimizer, mesh).state.params
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
    asked = load_config(tiny_config).embedding
    assert EmbeddingSettings.read(tiny_model) == asked
    written = json.loads((tiny_model / "marvel.json").read_text())
    # Defaults of video are left out: a folder of a model that knows none stays as it was.
    assert written == {k: v for k, v in dataclasses.asdict(asked).items() if k != "video"}
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


# --- runs that train a part -------------------------------------------------------------------


def test_a_run_of_adapters_saves_them_and_no_more(adapted, tiny_model):
    _, params = read_params(adapted / "checkpoints")
    assert not params.pop("model") and set(params) == {"adapters", "log_temperature"}
    moments = [name for name in runs.newest(adapted) if "mu" in name]
    assert moments and not any("token_embedding" in name for name in moments)
    base = run_folder.read_base(adapted)
    assert (base.source, len(base.weights_hash)) == (str(tiny_model), 16)


def test_adapters_are_merged_into_the_base_in_float32(adapted, tiny_model, tmp_path):
    step = export_checkpoint(adapted, tmp_path / "model")
    _, params = read_params(adapted / "checkpoints")
    base, found = hub.load(tiny_model), hub.load(tmp_path / "model")
    assert step == 3
    assert found.temperature == pytest.approx(math.exp(params["log_temperature"]), rel=1e-7)
    blocks, adapters = base.params["language"]["blocks"], params["adapters"]["language"]["blocks"]
    for name, kernel in found.params["language"]["blocks"].items():
        if "kernel" not in kernel:
            continue
        # The base ran in bfloat16; what leaves does not bear its marks.
        change = 8 / 4 * adapters[name]["a"].astype(float) @ adapters[name]["b"].astype(float)
        assert np.abs(change).max() > 1e-4
        np.testing.assert_allclose(kernel["kernel"], blocks[name]["kernel"] + change, atol=1e-7)
    np.testing.assert_array_equal(
        found.params["vision"]["patch_embed"]["kernel"],
        base.params["vision"]["patch_embed"]["kernel"],
    )


def test_adapters_leave_alone_too(adapted, tiny_model, tmp_path):
    export_adapters(adapted, tmp_path / "adapters")
    found = peft.load_adapters(tmp_path / "adapters", hub.load(tiny_model).config)
    _, params = read_params(adapted / "checkpoints")
    jax.tree.map(np.testing.assert_array_equal, found.params, params["adapters"])
    assert (found.lora.rank, found.lora.alpha) == (4, 8)
    assert found.temperature == pytest.approx(math.exp(params["log_temperature"]), rel=1e-6)
    described = json.loads((tmp_path / "adapters/adapter_config.json").read_text())
    assert described["base_model_name_or_path"] == str(tiny_model)


def test_adapters_that_left_alone_come_back_as_the_whole_model(adapted, tiny_model, tmp_path):
    export_adapters(adapted, tmp_path / "adapters")
    # The message that refuses them alone names the command that takes them.
    with pytest.raises(MarvelError, match=r"import MODEL --adapters .* --out DIR") as refused:
        Embedder.from_pretrained(tmp_path / "adapters")
    _, *command = re.search("`(.*)`", str(refused.value)).group(1).split()
    places = {"MODEL": str(tiny_model), "DIR": str(tmp_path / "merged")}
    with pytest.raises(SystemExit) as stop:
        cli.main([places.get(word, word) for word in command])
    assert not stop.value.code
    export_checkpoint(adapted, tmp_path / "model")
    for file in (tmp_path / "model").iterdir():
        assert (tmp_path / "merged" / file.name).read_bytes() == file.read_bytes(), file.name


def test_adapters_of_others_keep_the_temperature_and_settings_of_the_base(tiny_model, tmp_path):
    base = hub.load(tiny_model)
    config = lora.LoraConfig(rank=2, alpha=3, targets="language/blocks/gate")
    shapes = lora.adapter_shapes(base.config, config)
    rng = np.random.default_rng(7)
    drawn = {path: rng.normal(size=shape).astype(np.float32) for path, shape in shapes.items()}
    peft.save_adapters(tmp_path / "a", names.nest(drawn), base.config, config, base="unknown/base")
    import_checkpoint(str(tiny_model), out=tmp_path / "out", adapters=str(tmp_path / "a"))
    found = hub.load(tmp_path / "out")
    assert found.temperature == base.temperature
    for name in ("marvel.json", "preprocessor_config.json"):
        assert (tmp_path / "out" / name).read_bytes() == (tiny_model / name).read_bytes()
    before, after = names.flatten(base.params), names.flatten(found.params)
    gate = "language/blocks/gate"
    change = 3 / 2 * drawn[f"{gate}/a"].astype(float) @ drawn[f"{gate}/b"].astype(float)
    changed = after.pop(f"{gate}/kernel")
    np.testing.assert_allclose(changed, before.pop(f"{gate}/kernel") + change, rtol=1e-6, atol=1e-6)
    jax.tree.map(np.testing.assert_array_equal, after, before)


def test_an_older_checkpoint_can_be_chosen(tiny_run, tmp_path):
    assert export_checkpoint(tiny_run, tmp_path / "six", step=6) == 6
    _, params = read_params(tiny_run / "checkpoints", step=6)
    found = hub.load(tmp_path / "six").params
    jax.tree.map(np.testing.assert_array_equal, found, params["model"])
    with pytest.raises(MarvelError, match=r"no checkpoint of step 3: there are 6, 8"):
        export_checkpoint(tiny_run, tmp_path / "three", step=3)


def test_there_are_no_adapters_in_a_run_of_everything(tiny_run, tmp_path):
    with pytest.raises(MarvelError, match="trained no adapters: export the whole model"):
        export_adapters(tiny_run, tmp_path / "out")


def test_a_base_that_has_moved_or_changed_is_told(adapted, tiny_model, tiny_config, tmp_path):
    moved = tmp_path / "moved"
    shutil.copytree(tiny_model, moved)
    run = tmp_path / "run"
    shutil.copytree(adapted, run)
    base = run_folder.read_base(run)
    run_folder.write_base(run, base._replace(source=str(tmp_path / "gone")))
    with pytest.raises(MarvelError, match=r"gone does not exist.* If it has moved, give --base"):
        export_checkpoint(run, tmp_path / "out")
    assert export_checkpoint(run, tmp_path / "out", base=str(moved)) == 3
    weights = safetensors.numpy.load_file(moved / "model.safetensors")
    weights["model.norm.weight"] = weights["model.norm.weight"] + 1e-6
    safetensors.numpy.save_file(weights, moved / "model.safetensors", metadata={"format": "pt"})
    with pytest.raises(MarvelError, match=r"moved is not the model that .* was trained on"):
        export_checkpoint(run, tmp_path / "other", base=str(moved))
    resumed = load_config(tiny_config, (*adapters_on(moved), "model.dtype=bfloat16"))
    with pytest.raises(MarvelError, match=r"other settings \(weights\): weights was"):
        train(resumed, run)


def test_frozen_weights_that_the_seed_drew_are_drawn_again(tiny_config, tmp_path):
    frozen = ("model.frozen=vision/.*", "optimizer.learn_temperature=False", "steps=2")
    config = load_config(tiny_config, (*frozen, "optimizer.temperature=0.07"))
    result = train(config, tmp_path / "run")
    assert export_checkpoint(tmp_path / "run", tmp_path / "model") == 2
    found = hub.load(tmp_path / "model")
    assert found.temperature == pytest.approx(0.07, rel=1e-6)
    whole = open_inputs(config)
    _, before = initial_values(config, whole.architecture, weights=None, temperature=None)
    jax.tree.map(np.testing.assert_array_equal, found.params["vision"], before["model"]["vision"])
    trained = result.state.params["model"]["language"]["blocks"]["up"]["kernel"]
    np.testing.assert_array_equal(found.params["language"]["blocks"]["up"]["kernel"], trained)
    # Had another version drawn others, neither resume nor export would go on in silence.
    base = run_folder.read_base(tmp_path / "run")
    run_folder.write_base(tmp_path / "run", base._replace(frozen_hash="0" * 16))
    with pytest.raises(MarvelError, match="frozen weights that the seed gives"):
        train(config, tmp_path / "run")
    with pytest.raises(MarvelError, match="frozen weights that the seed gives"):
        export_checkpoint(tmp_path / "run", tmp_path / "other")


def untied(config: TrainConfig) -> TrainConfig:
    scratch = dataclasses.replace(config.model.scratch, tie_word_embeddings=False)
    return dataclasses.replace(config, model=dataclasses.replace(config.model, scratch=scratch))


ONE_PART = {
    "adapters": ("model.adapters.rank=4", "model.adapters.alpha=8"),
    "frozen": ("model.frozen=lm_head/.*",),
}


@pytest.mark.parametrize("part", ONE_PART)
def test_an_untied_head_that_the_seed_drew_and_froze_is_exported(tiny_config, tmp_path, part):
    config = untied(load_config(tiny_config, ("steps=1", "model.dtype=bfloat16")))
    config = override(config, ONE_PART[part])
    train(config, tmp_path / "run")
    export_checkpoint(tmp_path / "run", tmp_path / "model")
    drawn = init_params(open_inputs(config).architecture, key=jax.random.key(config.seed))
    found = hub.load(tmp_path / "model").params
    np.testing.assert_array_equal(found["lm_head"]["kernel"], drawn["lm_head"]["kernel"])


@pytest.fixture(scope="module")
def untied_base(tiny_model, tmp_path_factory) -> Path:
    """A model folder with a head of its own."""
    base = hub.load(tiny_model)
    config = dataclasses.replace(base.config, tie_word_embeddings=False)
    shape = (config.text.hidden_size, config.text.vocab_size)
    head = np.random.default_rng(3).normal(size=shape).astype(np.float32)
    folder = tmp_path_factory.mktemp("models") / "untied"
    params = {**base.params, "lm_head": {"kernel": head}}
    hub.save(folder, config=config, params=params, tokenizer_from=tiny_model)
    return folder


@pytest.mark.parametrize("part", ["adapters", "frozen"])
def test_a_loaded_untied_head_that_was_frozen_is_exported(tiny_config, untied_base, tmp_path, part):
    source = (f"model.source={untied_base}", "model.scratch=None", "steps=1")
    train(load_config(tiny_config, (*source, *ONE_PART[part])), tmp_path / "run")
    export_checkpoint(tmp_path / "run", tmp_path / "model")
    before = hub.load(untied_base).params["lm_head"]["kernel"]
    found = hub.load(tmp_path / "model").params
    np.testing.assert_array_equal(found["lm_head"]["kernel"], before)


def test_a_run_of_everything_leaves_without_its_base(tiny_config, untied_base, tmp_path):
    """Also where the base has no head, though its config.json says that it is untied."""
    base = hub.load(untied_base)
    headless = {name: tower for name, tower in base.params.items() if name != "lm_head"}
    start = tmp_path / "start"
    hub.save(start, config=base.config, params=headless, tokenizer_from=untied_base)
    source = (f"model.source={start}", "model.scratch=None", "steps=1")
    train(load_config(tiny_config, source), tmp_path / "run")
    shutil.rmtree(start)
    assert export_checkpoint(tmp_path / "run", tmp_path / "model") == 1
    assert "lm_head" not in hub.load(tmp_path / "model").params


@pytest.mark.peer
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
