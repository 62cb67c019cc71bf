"""Adapters come and go in peft's layout without loss, and what we cannot express is refused."""

import json
import types

import jax
import ml_dtypes
import numpy as np
import pytest
import safetensors
import safetensors.numpy
from hypothesis import given
from hypothesis import strategies as st

from marvel_jax.errors import MarvelError
from marvel_jax.models import hub, lora, names, peft, qwen2_vl
from marvel_jax.models.lora import LINEARS, LoraConfig
from tests.models import torch_reference
from tests.models.parity import GOLDEN, golden
from tests.models.samples import build_rows, small_config

CONFIG = small_config()
CLASSES = ("Qwen2VLForConditionalGeneration", "Qwen2VLModel")
WEIGHTS, DESCRIBED = "adapter_model.safetensors", "adapter_config.json"


def adapting(*linears, **options):
    return LoraConfig(
        **{"rank": 3, "alpha": 7.5, "targets": f"language/blocks/({'|'.join(linears)})", **options}
    )


def random_adapters(config, options, *, seed=0):
    rng = np.random.default_rng(seed)
    shapes = lora.adapter_shapes(config, options)
    return names.nest(
        {path: 0.2 * rng.standard_normal(shape, np.float32) for path, shape in shapes.items()}
    )


def saved(folder, *, options=None, described=None, change=None, **saving):
    """A folder of adapters, fields of its config replaced and its tensors changed."""
    options = options or adapting("query", "down")
    adapters = random_adapters(CONFIG, options)
    peft.save_adapters(folder, adapters, CONFIG, options, base="owner/base", **saving)
    if described:
        fields = json.loads((folder / DESCRIBED).read_text())
        (folder / DESCRIBED).write_text(json.dumps({**fields, **described}))
    if change:
        tensors = safetensors.numpy.load_file(folder / WEIGHTS)
        safetensors.numpy.save_file(change(tensors) or tensors, folder / WEIGHTS)
    return folder


def assert_same(one, other):
    one, other = names.flatten(one), names.flatten(other)
    assert one.keys() == other.keys()
    for path, array in one.items():
        assert array.dtype == np.float32
        np.testing.assert_array_equal(array, other[path], err_msg=path)


@given(
    linears=st.sets(st.sampled_from(LINEARS), min_size=1),
    rank=st.integers(1, 5),
    alpha=st.floats(1e-3, 1e4),
    dropout=st.floats(0, 0.99),
    temperature=st.none() | st.floats(1e-4, 100),
    model_class=st.sampled_from(CLASSES),
)
def test_what_is_saved_is_loaded_again_to_the_bit(
    tmp_path_factory, linears, rank, alpha, dropout, temperature, model_class
):
    ordered = [linear for linear in LINEARS if linear in linears]
    options = adapting(*ordered, rank=rank, alpha=alpha, dropout=dropout)
    adapters = random_adapters(CONFIG, options)
    folder = tmp_path_factory.mktemp("adapters") / "out"
    peft.save_adapters(
        folder,
        jax.tree.map(jax.numpy.asarray, adapters),
        CONFIG,
        options,
        base="owner/base",
        temperature=temperature,
        model_class=model_class,
    )
    loaded = peft.load_adapters(folder, CONFIG)
    assert_same(loaded.params, adapters)
    assert (loaded.lora, loaded.temperature) == (options, temperature)


@pytest.mark.parametrize("place", ["model.", "model.language_model.", "language_model."])
@pytest.mark.parametrize("dtype", [np.float32, np.float16, ml_dtypes.bfloat16])
def test_names_of_every_version_are_read_in_every_precision(tmp_path, place, dtype):
    def change(tensors):
        return {
            key.replace("model.language_model.", place, 1)
            if "base_model.model.model." in key
            else key: value.astype(dtype)
            for key, value in tensors.items()
        }

    folder = saved(tmp_path / "out", change=change)
    stored = safetensors.numpy.load_file(folder / WEIGHTS)
    assert f"base_model.model.{place}layers.0.self_attn.q_proj.lora_A.weight" in stored
    adapters = random_adapters(CONFIG, adapting("query", "down"))
    rounded = jax.tree.map(lambda x: x.astype(dtype).astype(np.float32), adapters)
    assert_same(peft.load_adapters(folder, CONFIG).params, rounded)


@pytest.mark.parametrize(
    "fields",
    [
        {"target_modules": ["self_attn.q_proj", "mlp.down_proj"]},
        {"target_modules": r".*language_model.*\.(q_proj|down_proj)"},
        {"target_modules": r"model\.layers\.\d+\.(self_attn\.q_proj|mlp\.down_proj)"},
        {"target_modules": ["q_proj", "down_proj", "v_proj"], "exclude_modules": ["v_proj"]},
        {"task_type": "CAUSAL_LM", "peft_version": "99", "revision": "main"},
        {"init_lora_weights": "gaussian", "a_field_of_the_future": None},
    ],
)
def test_the_ways_of_peft_to_name_targets(tmp_path, fields):
    loaded = peft.load_adapters(saved(tmp_path / "out", described=fields), CONFIG)
    assert loaded.lora == adapting("query", "down", dropout=loaded.lora.dropout)


def test_rank_stabilised_scaling_gives_the_same_scale(tmp_path):
    folder = saved(tmp_path / "out", described={"use_rslora": True})
    assert peft.load_adapters(folder, CONFIG).lora.scale == pytest.approx(7.5 / 3**0.5, rel=1e-15)


@pytest.mark.parametrize(
    "fields",
    [
        {"peft_type": "LOHA"},
        {"bias": "lora_only"},
        {"lora_bias": True},
        {"use_dora": True},
        {"rank_pattern": {"q_proj": 8}},
        {"alpha_pattern": {"q_proj": 8}},
        {"modules_to_save": ["lm_head"]},
        {"layers_to_transform": 0},
        {"layers_to_transform": [0, 1]},
        {"fan_in_fan_out": True},
        {"trainable_token_indices": [1, 2]},
        {"init_lora_weights": "pissa"},
        {"use_something_new": True},
        {"r": 0},
        {"lora_alpha": "8"},
        {"lora_dropout": 1.0},
    ],
    ids=lambda fields: next(iter(fields)),
)
def test_what_we_cannot_express_is_refused_by_its_field(tmp_path, fields):
    folder = saved(tmp_path / "out", described=fields)
    with pytest.raises(MarvelError) as error:
        peft.load_adapters(folder, CONFIG)
    for field, value in fields.items():
        assert f"{field} is {json.dumps(value)}" in str(error.value)
    assert str(folder / DESCRIBED) in str(error.value)


def test_all_fields_are_told_at_once(tmp_path):
    folder = saved(tmp_path / "out", described={"use_dora": True, "bias": "all"})
    with pytest.raises(MarvelError, match=r'(?s)bias is "all".*use_dora is true.*merge_and_unload'):
        peft.load_adapters(folder, CONFIG)


def test_targets_outside_of_the_seven_linears_are_refused(tmp_path):
    folder = saved(tmp_path / "out", described={"target_modules": ["fc1", "qkv"]})
    with pytest.raises(MarvelError, match=r'target_modules is \["fc1", "qkv"\].*down_proj'):
        peft.load_adapters(folder, CONFIG)


def test_one_error_lists_every_tensor(tmp_path):
    layer = "base_model.model.model.language_model.layers"

    def change(tensors):
        del tensors[f"{layer}.1.self_attn.q_proj.lora_B.weight"]
        tensors[f"{layer}.0.self_attn.q_proj.lora_A.weight"] = np.zeros((4, 32), np.float32)
        tensors["base_model.model.model.visual.blocks.0.attn.qkv.lora_A.weight"] = np.zeros(3)
        other = f"{layer}.0.mlp.down_proj.lora_A.weight"
        tensors[other.replace("model.language_model.", "model.")] = tensors[other]
        tensors[f"{layer}.1.mlp.down_proj.lora_A.weight"] = np.zeros((3, 48), np.int8)

    # Of v_proj, which the config says is adapted, the file holds nothing.
    targets = {"target_modules": ["q_proj", "v_proj", "down_proj"]}
    folder = saved(tmp_path / "out", change=change, described=targets)
    with pytest.raises(MarvelError) as error:
        peft.load_adapters(folder, CONFIG)
    message = str(error.value)
    for part in (
        f"missing: {layer}.1.self_attn.q_proj.lora_B.weight",
        f"missing: {layer}.0.self_attn.v_proj.lora_A.weight",
        f"{layer}.0.self_attn.q_proj.lora_A.weight is [4, 32], expected [3, 32]",
        "unknown: base_model.model.model.visual.blocks.0.attn.qkv.lora_A.weight",
        "twice: base_model.model.model.layers.0.mlp.down_proj.lora_A.weight and",
        f"{layer}.1.mlp.down_proj.lora_A.weight is of type I8",
        str(folder / WEIGHTS),
    ):
        assert part in message


def test_adapters_that_do_not_fit_are_not_written(tmp_path):
    adapters = random_adapters(CONFIG, adapting("query"))
    with pytest.raises(MarvelError, match="language/blocks/down/a"):
        peft.save_adapters(
            tmp_path / "out", adapters, CONFIG, adapting("query", "down"), base="owner/base"
        )
    with pytest.raises(MarvelError, match="model_class 'Qwen2VL' is unknown"):
        saved(tmp_path / "out", model_class="Qwen2VL")
    assert not (tmp_path / "out").exists()


def test_other_things_given_for_adapters_say_the_way_out(tmp_path):
    with pytest.raises(MarvelError, match=r"no adapter_config\.json.*this holds a model"):
        peft.load_adapters(GOLDEN / "tied", CONFIG)
    folder = saved(tmp_path / "out")
    with pytest.raises(MarvelError, match=r"is a file: give the folder that holds it"):
        peft.load_adapters(folder / WEIGHTS, CONFIG)
    with pytest.raises(MarvelError, match=r"holds adapters, not a model.*base_model_name_or_path"):
        hub.load(folder)
    whole = (folder / WEIGHTS).read_bytes()
    (folder / WEIGHTS).write_bytes(whole[:-7])
    with pytest.raises(MarvelError, match=r"is not a whole safetensors file.*--force-download"):
        peft.load_adapters(folder, CONFIG)
    (folder / WEIGHTS).rename(folder / "adapter_model.bin")
    with pytest.raises(MarvelError, match=r"adapter_model\.bin: pickles can run any code"):
        peft.load_adapters(folder, CONFIG)


def test_documents_are_written_beside(tmp_path):
    folder = saved(tmp_path / "out", documents={"extra.json": {"pooling": "mean"}})
    assert json.loads((folder / "extra.json").read_text()) == {"pooling": "mean"}
    described = json.loads((folder / DESCRIBED).read_text())
    assert described["base_model_name_or_path"] == "owner/base"
    assert described["target_modules"] == ["q_proj", "down_proj"]


# Against the library itself.

ALL = LoraConfig(rank=4, alpha=6.0, dropout=0.1)
SOME = adapting("query", "value", "out", "up", rank=2, alpha=3.0)


def transformers_model(model_class):
    """(the base as peft is given it, what torch_reference takes)."""
    import torch
    import transformers

    model = getattr(transformers, model_class).from_pretrained(
        GOLDEN / "tied", dtype=torch.float32, attn_implementation="eager"
    )
    model.eval()
    inner = types.SimpleNamespace(model=model, config=model.config)
    return model, model if model_class == CLASSES[0] else inner


def assert_same_states(model, params, **adapted):
    """Hidden states of pictures and text in transformers and here, adapters on and off."""
    base = golden("tied")
    for name in ("text", "both"):
        sample = base.samples[name]
        theirs = torch_reference.hidden_states(
            model, sample, attention="bidirectional", positions="mrope"
        )
        ours = qwen2_vl.hidden_states(
            params, build_rows([[sample]]), base.config, attention="bidirectional", **adapted
        )[0]
        plain = base.arrays[f"{name}/bidirectional/mrope"]
        scale = np.abs(theirs).max()
        # The adapters are large enough to matter: or this test would pass without them.
        assert np.abs(theirs - plain).max() > 0.1 * scale
        np.testing.assert_allclose(ours, theirs, rtol=0, atol=1e-5 * scale)


@pytest.mark.peer
@pytest.mark.parametrize("options", [ALL, SOME], ids=["all", "some"])
@pytest.mark.parametrize("model_class", CLASSES)
def test_the_library_loads_ours_to_the_same_states(tmp_path, model_class, options, recwarn):
    library = pytest.importorskip("peft")
    base = golden("tied")
    adapters = random_adapters(base.config, options)
    peft.save_adapters(
        tmp_path / "out",
        adapters,
        base.config,
        options,
        base=str(GOLDEN / "tied"),
        temperature=0.03,
        model_class=model_class,
    )
    model, reference = transformers_model(model_class)
    wrapped = library.PeftModel.from_pretrained(model, str(tmp_path / "out"))
    assert not [w for w in recwarn if "adapter" in str(w.message)]  # Missing keys only warn.
    assert_same_states(reference, base.params, adapters=adapters, lora=options)
    # What it writes itself has the names that we wrote.
    wrapped.save_pretrained(tmp_path / "theirs")
    stored = [safetensors.numpy.load_file(tmp_path / f / WEIGHTS) for f in ("out", "theirs")]
    assert stored[0].keys() == stored[1].keys()
    # Merged there, merged here, and adapted there and merged here: all the same.
    merged = lora.merge(base.params, adapters, options)
    assert_same_states(reference, merged)
    wrapped.merge_and_unload()
    assert_same_states(reference, merged)


@pytest.mark.peer
@pytest.mark.parametrize("rslora", [False, True])
@pytest.mark.parametrize("model_class", CLASSES)
def test_we_load_the_librarys_to_the_same_states(tmp_path, model_class, rslora):
    library = pytest.importorskip("peft")
    import torch

    base = golden("tied")
    model, reference = transformers_model(model_class)
    options = library.LoraConfig(
        r=4,
        lora_alpha=6,
        lora_dropout=0.1,
        use_rslora=rslora,
        target_modules=["q_proj", "k_proj", "gate_proj", "down_proj"],
        task_type="FEATURE_EXTRACTION",
    )
    wrapped = library.get_peft_model(model, options).eval()
    with torch.no_grad():
        torch.manual_seed(0)
        for name, weight in wrapped.named_parameters():
            if "lora_" in name:
                weight.normal_(0, 0.2)
    wrapped.save_pretrained(tmp_path / "theirs")
    loaded = peft.load_adapters(tmp_path / "theirs", base.config)
    assert loaded.lora == adapting(
        "query", "key", "gate", "down", rank=4, alpha=12.0 if rslora else 6.0, dropout=0.1
    )
    assert loaded.temperature is None
    assert_same_states(reference, base.params, adapters=loaded.params, lora=loaded.lora)
