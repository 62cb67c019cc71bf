"""A config.json in either layout is read to the same model, and a wrong one is refused."""

import json

import pytest

from marvel_jax.errors import MarvelError
from marvel_jax.models.config import Qwen2VLConfig
from marvel_jax.preprocessor import CLIP_MEAN
from tests.models.parity import CHECKPOINTS, GOLDEN
from tests.models.samples import small_config

# What the hub's own files of the 2B model say: flat, with the old names.
FLAT_2B = {
    "model_type": "qwen2_vl",
    "attention_dropout": 0.0,
    "bos_token_id": 151643,
    "eos_token_id": 151645,
    "vision_start_token_id": 151652,
    "vision_end_token_id": 151653,
    "image_token_id": 151655,
    "video_token_id": 151656,
    "hidden_act": "silu",
    "hidden_size": 1536,
    "initializer_range": 0.02,
    "intermediate_size": 8960,
    "max_position_embeddings": 32768,
    "num_attention_heads": 12,
    "num_hidden_layers": 28,
    "num_key_value_heads": 2,
    "rms_norm_eps": 1e-06,
    "rope_theta": 1000000.0,
    "sliding_window": 32768,
    "tie_word_embeddings": True,
    "use_sliding_window": False,
    "vision_config": {
        "depth": 32,
        "embed_dim": 1280,
        "mlp_ratio": 4,
        "num_heads": 16,
        "in_chans": 3,
        "hidden_size": 1536,
        "patch_size": 14,
        "spatial_merge_size": 2,
        "spatial_patch_size": 14,
        "temporal_patch_size": 2,
    },
    "rope_scaling": {"type": "mrope", "mrope_section": [16, 24, 24]},
    "vocab_size": 151936,
}


def test_the_published_flat_layout_and_the_nested_one_say_the_same():
    config = Qwen2VLConfig.from_dict(FLAT_2B)
    assert config.text.head_dim == 128
    assert config.text.rms_norm_eps == 1e-6
    assert config.text.mrope_section == (16, 24, 24)
    assert config.vision.merged_size == 5120
    assert config.tie_word_embeddings
    nested = json.loads(json.dumps(config.to_dict()))
    assert "hidden_size" not in nested
    assert Qwen2VLConfig.from_dict(nested) == config


@pytest.mark.parametrize("name", CHECKPOINTS)
def test_what_transformers_wrote_survives(name):
    config = Qwen2VLConfig.from_folder(GOLDEN / name)
    assert Qwen2VLConfig.from_dict(config.to_dict()) == config
    assert config.text.is_causal
    assert config.vision.image_mean == CLIP_MEAN


def test_pixel_statistics_come_from_the_preprocessor(tmp_path):
    (tmp_path / "config.json").write_text(json.dumps(FLAT_2B))
    values = {"image_mean": [0.5, 0.5, 0.5], "image_std": [0.25, 0.25, 0.25]}
    (tmp_path / "preprocessor_config.json").write_text(json.dumps(values))
    vision = Qwen2VLConfig.from_folder(tmp_path).vision
    assert (vision.image_mean, vision.image_std) == ((0.5,) * 3, (0.25,) * 3)


def changed(field, value):
    *parents, leaf = field.split(".")
    values = json.loads(json.dumps(FLAT_2B))
    inner = values
    for parent in parents:
        inner = inner[parent]
    if value is None:
        del inner[leaf]
    else:
        inner[leaf] = value
    return values


@pytest.mark.parametrize(
    ("field", "value", "message"),
    [
        ("model_type", "qwen2_5_vl", "model_type.*qwen2_5_vl"),
        ("hidden_size", None, "hidden_size"),
        ("vision_config", None, "vision_config"),
        ("vision_config.depth", None, "vision_config.depth"),
        ("vision_config.hidden_size", 2048, "2048.*1536"),
        ("vision_config.hidden_act", "gelu", "vision_config.hidden_act.*gelu"),
        ("use_sliding_window", True, "use_sliding_window"),
        ("rms_norm_eps", None, "rms_norm_eps"),
        ("rope_scaling", {"type": "yarn"}, "yarn"),
        ("rope_scaling.mrope_section", [16, 16, 16], r"mrope_section.*\[16, 24, 24\]"),
        ("num_attention_heads", 11, "num_attention_heads is 11.*8 would work"),
        ("num_key_value_heads", 5, "num_key_value_heads is 5.*4 would work"),
        ("num_hidden_layers", 0, "num_hidden_layers.*positive.*0"),
        ("vision_config.num_heads", 640, "num_heads"),
    ],
)
def test_a_model_that_this_is_not_is_refused_by_file_and_field(tmp_path, field, value, message):
    (tmp_path / "config.json").write_text(json.dumps(changed(field, value)))
    with pytest.raises(MarvelError, match=message) as error:
        Qwen2VLConfig.from_folder(tmp_path)
    assert str(tmp_path / "config.json") in str(error.value)


def test_the_example_in_the_message_works():
    with pytest.raises(MarvelError) as error:
        small_config(hidden_size=64, mrope_section=(1, 1, 1))
    section = json.loads("[" + str(error.value).rsplit("[", 1)[1].rstrip("."))
    assert small_config(hidden_size=64, mrope_section=tuple(section))
