"""Operations are counted as the compiler counts them, and only those that are useful work."""

import dataclasses
import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from marvel_jax.data.batch import Rows
from marvel_jax.models import lora
from marvel_jax.models.config import Qwen2VLConfig, TextConfig, VisionConfig
from marvel_jax.models.qwen2_vl import embed, init_params
from marvel_jax.training.flops import Work, count_work, peak_tflops, step_flops
from tests import tiny

# One layer a tower, so that no scan hides one from the compiler's count.
CONFIG = Qwen2VLConfig(
    vision=VisionConfig(depth=1, embed_dim=128, num_heads=2, mlp_ratio=4, patch_size=7),
    text=TextConfig(
        vocab_size=320,
        hidden_size=256,
        intermediate_size=512,
        num_hidden_layers=1,
        num_attention_heads=4,
        num_key_value_heads=2,
        mrope_section=(16, 8, 8),
    ),
    tie_word_embeddings=True,
)
# So short that attention is not cut into a scan over queries, either.
ROWS, TOKENS, PATCHES = 4, 128, 128


def full_rows() -> Rows:
    """Rows of one item and one image each, without padding."""
    tokens, patches = (ROWS, TOKENS), (ROWS, PATCHES)
    vision_index = np.full(tokens, -1, np.int32)
    vision_index[:, : PATCHES // 4] = np.arange(PATCHES // 4)
    return Rows(
        tokens=np.zeros(tokens, np.int32),
        positions=np.zeros((*tokens, 3), np.int32),
        segments=np.ones(tokens, np.int32),
        pooled=np.ones(tokens, bool),
        patches=np.zeros((*patches, 147), np.uint8),
        patch_hw=np.zeros((*patches, 2), np.int32),
        patch_segments=np.ones(patches, np.int32),
        vision_index=vision_index,
    )


@functools.cache
def weights() -> dict:
    return init_params(CONFIG, key=jax.random.key(0))


def compiled_flops(function, *args) -> float:
    return jax.jit(function).lower(*args).compile().cost_analysis()["flops"]


def ours(work: Work | None = None, **options) -> float:
    work = work or count_work(full_rows().segments, full_rows().patch_segments)
    return step_flops(CONFIG, work, queries=0, candidates=0, **options)


def value(params, rows, adapters=None, config=None):
    vectors = embed(params, rows, CONFIG, items_per_row=1, adapters=adapters, lora=config)
    return (vectors.vectors * jnp.arange(256)).sum()


def test_a_forward_pass_costs_what_the_compiler_says():
    forward = compiled_flops(value, weights(), full_rows())
    assert ours(trained=lambda path: False) == pytest.approx(forward, rel=0.02)


def test_training_everything_costs_what_the_compiler_says():
    assert ours() == pytest.approx(
        compiled_flops(jax.grad(value), weights(), full_rows()), rel=0.02
    )


def test_training_adapters_alone_costs_what_the_compiler_says():
    config = lora.LoraConfig(rank=64, alpha=64.0, dropout=0.0)
    adapters = lora.init_adapters(CONFIG, config, key=jax.random.key(1))
    gradient = jax.grad(lambda adapters, params, rows: value(params, rows, adapters, config))
    expected = compiled_flops(gradient, adapters, weights(), full_rows())
    ranks = {f"language/blocks/{name}": 64 for name in lora.LINEARS}
    # The compiler leaves out the gradient of the first layer's input: those of query, key and
    # value, by their kernels and by their adapters.
    left_out = 2.0 * ROWS * TOKENS * 256 * (256 + 128 + 128 + 3 * 64)
    found = ours(trained=lambda path: False, ranks=ranks)
    assert found - left_out == pytest.approx(expected, rel=0.02)


def test_a_frozen_vision_tower_is_passed_once_and_forward_only():
    work = Work(tokens=0, token_pairs=0, patches=1024, patch_pairs=1024 * 256)
    forward = ours(work, trained=lambda path: False)
    assert ours(work, trained=lambda path: not path.startswith("vision/")) == forward
    assert ours(work) < 3 * forward  # pixels have no gradient
    assert ours(work) > 2.9 * forward


def test_the_gradient_of_a_trained_vision_tower_passes_the_frozen_language_model():
    work = Work(tokens=1000, token_pairs=0, patches=0, patch_pairs=0)
    forward = ours(work, trained=lambda path: False)
    assert ours(work, trained=lambda path: path.startswith("vision/")) == 2 * forward
    # What only the language model learns does not make the gradient go further than it.
    images = work._replace(tokens=0, patches=1000)
    trained = ours(images, trained=lambda path: path.startswith("language/"))
    assert trained == ours(images, trained=lambda path: False)


def test_packing_and_padding_are_no_work():
    """Attention counts true lengths: an item costs the same wherever it stands."""
    alone = count_work(np.array([[1] * 40 + [0] * 24, [1] * 20 + [0] * 44]), np.zeros((2, 0)))
    packed = count_work(np.array([[1] * 40 + [2] * 20 + [0] * 4]), np.zeros((1, 0), np.int32))
    assert alone == packed == Work(60, 40**2 + 20**2, 0, 0)
    merged = count_work(np.array([[1] * 60]), np.zeros((1, 0), np.int32))
    assert ours(merged) > ours(packed)


def test_the_loss_of_a_large_batch_counts():
    work = Work(0, 0, 0, 0)
    found = step_flops(CONFIG, work, queries=1000, candidates=2000, trained=lambda path: False)
    assert found == 3 * 2 * 1000 * 2000 * 256


def test_a_causal_model_looks_at_half_of_the_pairs():
    work = Work(tokens=10_000, token_pairs=10_000**2, patches=0, patch_pairs=0)
    rest = ours(work._replace(token_pairs=0))
    attention, causal = ours(work) - rest, ours(work, causal=True) - rest
    assert causal == pytest.approx(attention / 2, rel=1e-3)


def test_operations_grow_with_depth():
    deep = dataclasses.replace(
        CONFIG,
        text=dataclasses.replace(CONFIG.text, num_hidden_layers=7),
        vision=dataclasses.replace(CONFIG.vision, depth=7),
    )
    work = count_work(full_rows().segments, full_rows().patch_segments)
    ratio = step_flops(deep, work, queries=0, candidates=0) / ours()
    assert 6 < ratio < 7  # the merger and the pixels are there once


def test_six_operations_a_parameter_and_token():
    """The rule of thumb for a trained language model, without attention between tokens."""
    tokens = 1000
    work = Work(tokens, 0, 0, 0)
    shapes = jax.tree.leaves(weights()["language"]["blocks"])
    kernels = sum(leaf.size for leaf in shapes if leaf.ndim == 3)
    assert ours(work) == pytest.approx(6 * kernels * tokens, rel=1e-6)


@pytest.mark.parametrize(
    ("kind", "peak"),
    [
        ("TPU v4", 275.0),
        ("TPU v5 lite", 197.0),
        ("TPU v5", 459.0),
        ("TPU v5p", 459.0),
        ("TPU v6 lite", 918.0),
        ("NVIDIA A100-SXM4-80GB", 312.0),
        ("NVIDIA H100 80GB HBM3", 989.4),
        ("NVIDIA H100 PCIe", 756.0),
        ("NVIDIA H200", 989.4),
        ("NVIDIA B200", 2250.0),
        ("cpu", None),
        ("a card of tomorrow", None),
    ],
)
def test_peaks_of_known_devices(kind, peak):
    assert peak_tflops(kind) == peak


def test_tiny_is_counted_without_patches():
    config = tiny.architecture()
    assert step_flops(config, Work(10, 100, 0, 0), queries=2, candidates=2) > 0


def test_texts_cost_what_causal_rows_cost_and_a_head_for_what_is_predicted():
    architecture = tiny.architecture()
    rows = Work(tokens=60, token_pairs=700, patches=0, patch_pairs=0)
    none = Work(0, 0, 0, 0)
    texts = none._replace(text_tokens=60, text_pairs=700)
    asked = texts._replace(predicted=10)
    costs = [
        step_flops(architecture, work, queries=0, candidates=0, causal=causal)
        for work, causal in ((rows, True), (texts, False), (asked, False))
    ]
    assert costs[0] == costs[1] > 0
    # Forward, and backward for the states and for the table.
    head = 3 * 2 * 10 * architecture.text.vocab_size * architecture.text.hidden_size
    assert costs[2] - costs[1] == head
