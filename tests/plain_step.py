"""The train step in the plainest JAX: no Flax, no scan, no sharding, no Optax.

It is the yardstick: `tests/training/test_step.py` holds the real step to its values, and a
benchmark can hold it to its speed. It stays as it was first written.

Parameters are the nested dict of `marvel_jax.models.qwen2_vl.init_params`; a batch has the fields
of `marvel_jax.data.batch.Batch`. Bidirectional attention, mean pooling, stills only, float32.
"""

import jax
import jax.numpy as jnp
import numpy as np


def rms_norm(x, scale, epsilon):
    return x / jnp.sqrt(jnp.mean(x**2, axis=-1, keepdims=True) + epsilon) * scale


def layer_norm(x, scale, bias):
    x = x - x.mean(axis=-1, keepdims=True)
    return x / jnp.sqrt(jnp.mean(x**2, axis=-1, keepdims=True) + 1e-6) * scale + bias


def frequencies(count, theta):
    return 1.0 / theta ** (np.arange(count, dtype=np.float32) / count)


def rotate(x, angles):
    """x [R, S, H, E], angles [R, S, E / 2]."""
    angles = jnp.concatenate([angles, angles], axis=-1)[:, :, None]
    half = x.shape[-1] // 2
    turned = jnp.concatenate([-x[..., half:], x[..., :half]], axis=-1)
    return x * jnp.cos(angles) + turned * jnp.sin(angles)


def attention(query, key, value, segments):
    """[R, S, H, E] each; tokens see their own segment."""
    scores = jnp.einsum("rshe,rthe->rhst", query, key) / np.sqrt(query.shape[-1])
    same = segments[:, None, :, None] == segments[:, None, None, :]
    return jnp.einsum("rhst,rthe->rshe", jax.nn.softmax(jnp.where(same, scores, -1e30)), value)


def vision(params, rows, config):
    v = config.vision
    mean = np.repeat(v.image_mean, v.patch_size**2)
    std = np.repeat(v.image_std, v.patch_size**2)
    pixels = (rows.patches.astype(jnp.float32) / 255.0 - mean) / std
    kernel = params["patch_embed"]["kernel"].reshape(3, v.temporal_patch_size, -1, v.embed_dim)
    x = pixels @ kernel.sum(axis=1).reshape(-1, v.embed_dim)
    angles = (rows.patch_hw[..., None] * frequencies(v.head_dim // 4, v.rope_theta)).reshape(
        *rows.patch_hw.shape[:2], -1
    )
    heads = (*x.shape[:2], v.num_heads, v.head_dim)
    for layer in range(v.depth):
        p = jax.tree.map(lambda leaf, layer=layer: leaf[layer], params["blocks"])
        y = layer_norm(x, p["attention_norm"]["scale"], p["attention_norm"]["bias"])
        qkv = jnp.einsum("rsd,dkh->rskh", y, p["qkv"]["kernel"]) + p["qkv"]["bias"]
        query, key, value = (qkv[:, :, i].reshape(heads) for i in range(3))
        y = attention(rotate(query, angles), rotate(key, angles), value, rows.patch_segments)
        x = x + y.reshape(x.shape) @ p["out"]["kernel"] + p["out"]["bias"]
        y = layer_norm(x, p["mlp_norm"]["scale"], p["mlp_norm"]["bias"])
        y = y @ p["up"]["kernel"] + p["up"]["bias"]
        y = y * jax.nn.sigmoid(1.702 * y)
        x = x + y @ p["down"]["kernel"] + p["down"]["bias"]
    p = params["merger"]
    x = layer_norm(x, p["norm"]["scale"], p["norm"]["bias"])
    x = x.reshape(x.shape[0], -1, v.embed_dim * v.spatial_merge_size**2)
    x = x @ p["up"]["kernel"] + p["up"]["bias"]
    x = 0.5 * x * (1 + jax.lax.erf(x / np.sqrt(2.0)))
    return x @ p["down"]["kernel"] + p["down"]["bias"]


def embed(params, rows, config, items_per_row):
    t = config.text
    language = params["language"]
    x = language["token_embedding"][rows.tokens]
    if rows.patches.shape[1]:
        visual = vision(params["vision"], rows, config)
        here = rows.vision_index[..., None]
        x = jnp.where(here >= 0, jnp.take_along_axis(visual, jnp.maximum(here, 0), axis=1), x)
    half = t.head_dim // 2
    angles = rows.positions[..., np.repeat([0, 1, 2], t.mrope_section)]
    angles = angles * frequencies(half, t.rope_theta)
    shape = (*x.shape[:2], -1, t.head_dim)
    group = t.num_attention_heads // t.num_key_value_heads
    for layer in range(t.num_hidden_layers):
        p = jax.tree.map(lambda leaf, layer=layer: leaf[layer], language["blocks"])
        y = rms_norm(x, p["attention_norm"]["scale"], t.rms_norm_eps)
        query, key, value = (
            (y @ p[name]["kernel"] + p[name]["bias"]).reshape(shape)
            for name in ("query", "key", "value")
        )
        key, value = jnp.repeat(key, group, axis=2), jnp.repeat(value, group, axis=2)
        y = attention(rotate(query, angles), rotate(key, angles), value, rows.segments)
        x = x + y.reshape(x.shape) @ p["out"]["kernel"]
        y = rms_norm(x, p["mlp_norm"]["scale"], t.rms_norm_eps)
        gate = y @ p["gate"]["kernel"]
        y = gate * jax.nn.sigmoid(gate) * (y @ p["up"]["kernel"])
        x = x + y @ p["down"]["kernel"]
    x = rms_norm(x, language["norm"]["scale"], t.rms_norm_eps)
    vectors = []
    for item in range(1, items_per_row + 1):
        counted = ((rows.segments == item) & rows.pooled)[..., None]
        vectors.append((x * counted).sum(axis=1) / jnp.maximum(counted.sum(axis=1), 1))
    vectors = jnp.stack(vectors, axis=1)
    return vectors / jnp.sqrt(jnp.maximum((vectors**2).sum(-1, keepdims=True), 1e-24))


def loss(params, batch, config, items_per_row):
    """InfoNCE of one data shard; params is {"model": ..., "log_temperature": ...}."""
    vectors = embed(params["model"], batch.rows, config, items_per_row)
    vectors = vectors.reshape(-1, vectors.shape[-1])
    queries, candidates = vectors[batch.query_slot], vectors[batch.candidate_slot]
    logits = queries @ candidates.T / jnp.exp(params["log_temperature"])
    own = batch.own_positive[:, None] == jnp.arange(len(candidates))
    known = (batch.positive_ids[:, :, None] == batch.candidate_id[None, None]).all(-1)
    known = (known & batch.positive_valid[:, :, None]).any(1)
    logits = jnp.where(own | ~known, logits, -1e30)
    return jnp.mean(jax.nn.logsumexp(logits, axis=1) - (logits * own).sum(axis=1))


def adamw(params, grads, moments, step, *, rate, b1, b2, eps, clip):
    """One update, without weight decay; moments is (first, second), step counts from 0."""
    norm = jnp.sqrt(sum((g**2).sum() for g in jax.tree.leaves(grads)))
    grads = jax.tree.map(lambda g: g * jnp.minimum(1.0, clip / norm), grads)
    first = jax.tree.map(lambda m, g: b1 * m + (1 - b1) * g, moments[0], grads)
    second = jax.tree.map(lambda m, g: b2 * m + (1 - b2) * g**2, moments[1], grads)

    def update(p, m, v):
        m, v = m / (1 - b1 ** (step + 1)), v / (1 - b2 ** (step + 1))
        return p - rate * m / (jnp.sqrt(v) + eps)

    return jax.tree.map(update, params, first, second), (first, second)


def train_step(params, moments, batch, step, *, config, items_per_row, rate, b1, b2, eps, clip):
    """(params, moments, loss) after one step; under `jit`, config and both betas are static."""
    value, grads = jax.value_and_grad(loss)(params, batch, config, items_per_row)
    options = {"rate": rate, "b1": b1, "b2": b2, "eps": eps, "clip": clip}
    params, moments = adamw(params, grads, moments, step, **options)
    return params, moments, value
