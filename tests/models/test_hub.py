"""Folders of transformers are read whole or refused, and ours are read back by transformers."""

import json
import shutil
import subprocess
import sys

import jax
import ml_dtypes
import numpy as np
import pytest
import safetensors.numpy

from marvel_jax.errors import MarvelError
from marvel_jax.models import hub, names
from tests.models import torch_reference
from tests.models.parity import CHECKPOINTS, GOLDEN, golden


def tensors(folder):
    return safetensors.numpy.load_file(folder / "model.safetensors")


def copy(folder, change=None, *, name="tied"):
    """A golden folder without its arrays, its weights changed by `change(dict)`."""
    folder.mkdir()
    shutil.copyfile(GOLDEN / name / "config.json", folder / "config.json")
    weights = tensors(GOLDEN / name)
    weights = (change(weights) or weights) if change else weights
    safetensors.numpy.save_file(weights, folder / "model.safetensors")
    return folder


def assert_same(one, other):
    one, other = names.flatten(one), names.flatten(other)
    assert one.keys() == other.keys()
    for path, array in one.items():
        assert array.dtype == other[path].dtype, path
        np.testing.assert_array_equal(array, other[path], err_msg=path)


@pytest.mark.parametrize("name", CHECKPOINTS)
@pytest.mark.parametrize("shard", [2**32, 40_000])
def test_saved_and_loaded_again_bit_for_bit(tmp_path, name, shard):
    first = hub.load(GOLDEN / name)
    target = tmp_path / "out"
    hub.save(target, config=first.config, params=first.params, max_shard_bytes=shard)
    files = sorted(path.name for path in target.glob("*.safetensors"))
    assert (len(files) > 2) == (shard == 40_000)
    assert_same(hub.load(target).params, first.params)
    # What the first file held is all there, under the same names: a head too, where untied.
    written = {key for file in files for key in safetensors.numpy.load_file(target / file)}
    assert written == set(tensors(GOLDEN / name))


def test_the_temperature_survives(tmp_path):
    first = hub.load(GOLDEN / "tied")
    assert first.temperature is None
    target = tmp_path / "out"
    hub.save(target, config=first.config, params=first.params, temperature=0.031)
    assert hub.load(target).temperature == pytest.approx(0.031, abs=1e-8)


@pytest.mark.parametrize(("attention", "causal"), [("bidirectional", False), ("causal", True)])
def test_the_folder_says_how_it_attends(tmp_path, attention, causal):
    first = hub.load(GOLDEN / "tied")
    hub.save(tmp_path / "out", config=first.config, params=first.params, attention=attention)
    config = json.loads((tmp_path / "out/config.json").read_text())
    assert config["text_config"]["is_causal"] is causal
    assert hub.load(tmp_path / "out").config.text.is_causal is causal


@pytest.mark.parametrize("dtype", [np.float16, ml_dtypes.bfloat16])
def test_half_precision_is_read_into_float32_and_written_as_it_is(tmp_path, dtype):
    half = copy(tmp_path / "half", lambda w: {k: v.astype(dtype) for k, v in w.items()})
    expected = jax.tree.map(lambda x: x.astype(dtype), hub.load(GOLDEN / "tied").params)
    read = hub.load(half).params
    assert_same(read, jax.tree.map(lambda x: x.astype(np.float32), expected))
    again = hub.load(half, dtype=dtype).params
    hub.save(tmp_path / "out", config=hub.load(half).config, params=again)
    assert tensors(tmp_path / "out")["model.norm.weight"].dtype == dtype
    assert json.loads((tmp_path / "out/config.json").read_text())["dtype"] == np.dtype(dtype).name


@pytest.mark.parametrize("prefixes", [("model.language_model.", "model.visual."), None])
def test_names_of_other_versions(tmp_path, prefixes):
    text, tower = prefixes or ("language_model.", "visual.")

    def rename(weights):
        return {
            key.replace("model.", text, 1)
            if key.startswith("model.")
            else key.replace("visual.", tower, 1): value
            for key, value in weights.items()
        }

    folder = copy(tmp_path / "renamed", rename)
    assert_same(hub.load(folder).params, hub.load(GOLDEN / "tied").params)


def test_companions_are_copied_and_the_pixels_written(tmp_path):
    first = hub.load(GOLDEN / "tied")
    source = tmp_path / "tokenizer"
    source.mkdir()
    (source / "tokenizer.json").write_text("{}")
    (source / "notes.txt").write_text("not ours")
    options = {"config": first.config, "params": first.params, "tokenizer_from": source}
    hub.save(
        tmp_path / "out", **options, documents={"preprocessor_config.json": {"min_pixels": 3136}}
    )
    assert (tmp_path / "out/tokenizer.json").read_text() == "{}"
    assert not (tmp_path / "out/notes.txt").exists()
    pixels = json.loads((tmp_path / "out/preprocessor_config.json").read_text())
    assert pixels["min_pixels"] == 3136
    assert pixels["image_mean"] == list(first.config.vision.image_mean)
    (source / "tokenizer.json").unlink()
    with pytest.raises(MarvelError, match=r"tokenizer\.json"):
        hub.save(tmp_path / "other", **options)


def test_a_folder_is_whole_or_absent(tmp_path, monkeypatch):
    first = hub.load(GOLDEN / "tied")
    target = tmp_path / "out"

    def die(*_, **__):
        raise KeyboardInterrupt

    with monkeypatch.context() as patch:
        patch.setattr(safetensors.numpy, "save_file", die)
        with pytest.raises(KeyboardInterrupt):
            hub.save(target, config=first.config, params=first.params)
    assert list(tmp_path.iterdir()) == []
    hub.save(target, config=first.config, params=first.params)
    with pytest.raises(MarvelError, match="exists"):
        hub.save(target, config=first.config, params=first.params)


def test_parameters_that_do_not_fit_are_not_written(tmp_path):
    first = hub.load(GOLDEN / "tied")
    flat = names.flatten(first.params)
    del flat["language/norm/scale"]
    flat["vision/blocks/up/bias"] = flat["vision/blocks/up/bias"][:1]
    flat["language/extra"] = np.zeros(2)
    with pytest.raises(MarvelError) as error:
        hub.save(tmp_path / "out", config=first.config, params=names.nest(flat))
    for path in ("language/norm/scale", "vision/blocks/up/bias", "language/extra"):
        assert path in str(error.value)
    assert not (tmp_path / "out").exists()


def test_a_shape_names_the_weight_both_shapes_and_the_field(tmp_path):
    def change(weights):
        weights["model.layers.1.mlp.up_proj.weight"] = np.zeros((50, 32), np.float32)

    with pytest.raises(MarvelError) as error:
        hub.load(copy(tmp_path / "bad", change))
    message = str(error.value)
    assert "model.layers.1.mlp.up_proj.weight is [50, 32], expected [48, 32]" in message
    assert "text.intermediate_size" in message
    assert str(tmp_path / "bad") in message


def test_weights_that_are_not_floats_are_refused(tmp_path):
    def change(weights):
        weights["model.norm.weight"] = np.ones(32, np.int8)

    with pytest.raises(MarvelError, match=r"model\.norm\.weight.*I8"):
        hub.load(copy(tmp_path / "bad", change))


def test_unknown_and_missing_weights_are_told_with_the_folder(tmp_path):
    def change(weights):
        weights["adapter.weight"] = weights.pop("model.norm.weight")

    with pytest.raises(MarvelError, match=r"(?s)bad.*adapter\.weight.*model\.norm\.weight"):
        hub.load(copy(tmp_path / "bad", change))


@pytest.mark.parametrize("kept", [5, 1000, -1])
def test_a_file_cut_short_is_told_with_the_way_out(tmp_path, kept):
    folder = copy(tmp_path / "bad")
    path = folder / "model.safetensors"
    path.write_bytes(path.read_bytes()[:kept])
    with pytest.raises(MarvelError, match=r"model\.safetensors is not a whole.*--force-download"):
        hub.load(folder)


def test_a_pointer_of_git_lfs_is_told(tmp_path):
    folder = copy(tmp_path / "bad")
    (folder / "model.safetensors").write_text("version https://git-lfs.github.com/spec/v1\noid 1\n")
    with pytest.raises(MarvelError, match=r"model\.safetensors is a pointer.*git lfs pull"):
        hub.load(folder)


def test_a_folder_for_a_file_and_a_file_for_a_folder_are_told(tmp_path):
    folder = copy(tmp_path / "bad")
    path = folder / "model.safetensors"
    for read in (hub.load, hub.resolve):
        with pytest.raises(MarvelError, match=f"{path} is a file: give the folder.*{folder}"):
            read(path)
        with pytest.raises(MarvelError, match=r"absent.* does not exist"):
            read(tmp_path / "absent")
    path.unlink()
    path.mkdir()
    with pytest.raises(MarvelError, match=f"{path} is a folder, where the file"):
        hub.load(folder)


def test_a_missing_shard_is_told(tmp_path):
    first = hub.load(GOLDEN / "tied")
    target = tmp_path / "out"
    hub.save(target, config=first.config, params=first.params, max_shard_bytes=100_000)
    next(target.glob("model-00002*")).unlink()
    with pytest.raises(MarvelError, match="model-00002-of"):
        hub.load(target)


def test_pickles_are_never_opened(tmp_path):
    folder = copy(tmp_path / "pickled")
    (folder / "model.safetensors").rename(folder / "pytorch_model.bin")
    with pytest.raises(MarvelError, match=r"pytorch_model\.bin.*pickles"):
        hub.load(folder)
    (folder / "pytorch_model.bin").unlink()
    with pytest.raises(MarvelError, match=r"no model\.safetensors"):
        hub.load(folder)


def test_a_folder_resolves_to_itself_and_what_cannot_be_had_is_told(tmp_path, monkeypatch):
    assert hub.resolve(tmp_path) == tmp_path
    with pytest.raises(MarvelError, match="does not exist"):
        hub.resolve(tmp_path / "absent")
    monkeypatch.setenv("HF_HUB_CACHE", str(tmp_path))
    with pytest.raises(MarvelError, match=r"nobody/nothing.*HF_HUB_OFFLINE"):
        hub.resolve("nobody/nothing")


@pytest.mark.parametrize(
    ("raised", "told"),
    [
        ("Got: ConnectError: refused.\nAn error happened. Check.", "(ConnectError: refused)."),
        ("Repository Not Found for url: x.\nPlease", "(Repository Not Found for url: x)."),
        ("", "(OSError)."),
    ],
)
def test_why_the_hub_failed_is_told_in_one_sentence(monkeypatch, raised, told):
    import huggingface_hub

    def fail(*_, **__):
        raise OSError(raised)

    monkeypatch.setattr(huggingface_hub, "snapshot_download", fail)
    with pytest.raises(MarvelError) as error:
        hub.resolve("owner/model")
    message = str(error.value)
    assert f"could not be had from the Hugging Face Hub {told} Check the name" in message
    assert "Got:" not in message
    assert "\n" not in message


def test_a_hub_id_asks_for_no_pickles(tmp_path, monkeypatch):
    import huggingface_hub

    asked = {}

    def snapshot(name, **options):
        asked.update(options, name=name)
        return str(tmp_path)

    monkeypatch.setattr(huggingface_hub, "snapshot_download", snapshot)
    assert hub.resolve("owner/model") == tmp_path
    assert asked["name"] == "owner/model"
    wanted = asked["allow_patterns"]
    assert {"config.json", "*.safetensors", "tokenizer.json"} <= set(wanted)
    assert not any(pattern.endswith((".bin", ".pt", "*")) for pattern in wanted)


def test_neither_torch_nor_transformers_is_imported():
    code = "import sys, marvel_jax.models.hub, marvel_jax.models.qwen2_vl\n"
    code += "assert not {'torch', 'transformers', 'tensorflow'} & set(sys.modules)"
    subprocess.run([sys.executable, "-c", code], check=True)


@pytest.mark.peer
@pytest.mark.parametrize("name", ["tied", "untied"])
@pytest.mark.parametrize("attention", ["bidirectional", "causal"])
def test_transformers_loads_our_folder_to_the_same_states(tmp_path, name, attention):
    pytest.importorskip("torch")
    first = golden(name)
    target = tmp_path / "out"
    host = jax.tree.map(np.asarray, first.params)
    hub.save(
        target,
        config=first.config,
        params=host,
        attention=attention,
        temperature=0.04,
        max_shard_bytes=100_000,
    )
    model = torch_reference.load(target)
    for sample in first.samples.values():
        # No mask is given: the folder's config.json alone says how to attend.
        states = torch_reference.hidden_states(
            model, sample, attention=attention, positions="mrope", mask=False
        )
        expected = first.arrays[f"{sample.name}/{attention}/mrope"]
        atol = 1e-5 * np.abs(expected).max()
        np.testing.assert_allclose(states, expected, rtol=0, atol=atol)
