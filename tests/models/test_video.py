"""Video and interleaved items through our processor and towers, against transformers."""

import functools

import jax
import numpy as np
import pytest

from marvel_jax.data.batch import RowShape, build_rows, pack
from marvel_jax.data.items import Image, Item, Video
from marvel_jax.data.processor import EncodedItem
from marvel_jax.models import hub, qwen2_vl
from marvel_jax.video_geometry import VideoGeometry
from tests import tiny
from tests.data import videos
from tests.models import torch_reference

pytestmark = pytest.mark.peer

TOLERANCE = 1e-5
RULES = VideoGeometry(min_pixels=14 * 14, max_pixels=42 * 42)


def still(seed: int) -> Image:
    return Image(videos.frames(1, 28, 28, seed=seed)[0])


# Frames have the very size that they are cut in: no resize stands between the two.
ITEMS = {
    "video": Item.of(video=Video(videos.frames(4, 28, 42))),
    "odd": Item.of(text="a dog", video=Video(videos.frames(3, 28, 14, seed=1))),
    "interleaved": Item(
        parts=(
            "red",
            still(1),
            "dark cat",
            Video(videos.frames(2, 42, 28, seed=2)),
            still(2),
            "big",
            Video(videos.frames(4, 28, 28, seed=3)),
            "bird",
        ),
        instruction="find it",
    ),
    # More temporal patches than rows or columns, at the end: see `mrope_positions`.
    "long": Item(parts=("small", Video(videos.frames(9, 14, 14, seed=4)))),
    "text": Item.of(text="a fish"),
    "still": Item.of(image=still(3)),
}


@pytest.fixture(scope="module")
def model(tmp_path_factory):
    """Our parameters, every bias and gain of them random, and transformers' model of the same."""
    pytest.importorskip("torch")
    config = tiny.architecture()
    params = qwen2_vl.init_params(config, key=jax.random.key(0))
    rng = np.random.default_rng(0)
    params = jax.tree.map(
        lambda leaf: np.asarray(leaf) + 0.1 * rng.standard_normal(leaf.shape).astype(np.float32),
        params,
    )
    folder = tmp_path_factory.mktemp("model") / "tiny"
    hub.save(folder, config=config, params=params)
    return config, params, torch_reference.load(folder)


@pytest.fixture(scope="module")
def encoded() -> dict[str, EncodedItem]:
    processor = tiny.processor(video=RULES)
    return {name: processor(item) for name, item in ITEMS.items()}


@pytest.fixture(scope="module")
def ours(model, encoded):
    """Rows of several items each -> (visual tokens, hidden states, vectors), compiled once."""
    config, params, _ = model
    shape = RowShape(tokens=96, patches=240, items=4)

    @functools.cache
    def program():
        return jax.jit(
            lambda rows: (
                qwen2_vl.hidden_states(params, rows, config),
                qwen2_vl.embed(params, rows, config, items_per_row=4).vectors,
            )
        )

    def run(items: dict[str, EncodedItem]):
        listed = list(items.values())
        lengths = np.array([(len(one.tokens), len(one.patches)) for one in listed])
        rows, slots = build_rows(listed, pack(lengths, shape), shape, num_rows=2)
        hidden, vectors = map(np.asarray, program()(rows))
        found = {}
        for name, slot in zip(items, slots, strict=True):
            row, place = divmod(int(slot), shape.items)
            states = hidden[row][rows.segments[row] == place + 1]
            found[name] = (states, vectors.reshape(-1, vectors.shape[-1])[slot])
        return found

    return run


def reference(theirs, one: EncodedItem, *, own_positions: bool) -> np.ndarray:
    """transformers' hidden states [L, D] of the tokens and pixels that we prepared."""
    import torch
    from transformers.image_utils import OPENAI_CLIP_MEAN, OPENAI_CLIP_STD

    config = theirs.config
    tokens = torch.from_numpy(one.tokens.astype(np.int64))[None]
    kinds = (tokens == config.image_token_id).int() + 2 * (tokens == config.video_token_id).int()
    frames = one.patches.shape[1] // (3 * 7 * 7)
    values = one.patches.reshape(-1, 3, frames, 7 * 7).astype(np.float32) / 255
    values = np.repeat(values, 2 // frames, axis=2)
    mean, std = (
        np.array(v, np.float32)[:, None, None] for v in (OPENAI_CLIP_MEAN, OPENAI_CLIP_STD)
    )
    pixels = ((values - mean) / std).reshape(-1, 3 * 2 * 7 * 7)
    arguments: dict = {}
    taken = 0
    grids: dict[str, list] = {"image": [], "video": []}
    shown: dict[str, list] = {"image": [], "video": []}
    # The visual tokens, run by run: each is an image or a video.
    edges = np.flatnonzero(np.diff(kinds[0].numpy(), prepend=0, append=0))
    for start, end in zip(edges[::2], edges[1::2], strict=True):
        kind = "image" if kinds[0, start] == 1 else "video"
        count = 4 * int(end - start)
        inside = one.patch_hw[taken : taken + count]
        height, width = (inside.max(axis=0) + 1).tolist()
        grids[kind].append([count // (height * width), height, width])
        shown[kind].append(pixels[taken : taken + count])
        taken += count
    assert taken == len(pixels)
    for kind, name in (("image", "pixel_values"), ("video", "pixel_values_videos")):
        if grids[kind]:
            arguments[name] = torch.from_numpy(np.concatenate(shown[kind]))
            arguments[f"{kind}_grid_thw"] = torch.tensor(grids[kind])
    if own_positions:
        positions, _ = theirs.model.get_rope_index(
            tokens,
            kinds,
            image_grid_thw=arguments.get("image_grid_thw"),
            video_grid_thw=arguments.get("video_grid_thw"),
        )
        np.testing.assert_array_equal(positions[:, 0].T.numpy(), one.positions)
    else:
        positions = torch.from_numpy(one.positions.astype(np.int64).T.copy())[:, None]
    length = tokens.shape[1]
    with torch.no_grad():
        return (
            theirs.model(
                input_ids=tokens,
                position_ids=positions,
                attention_mask=torch.zeros((1, 1, length, length)),
                **arguments,
            )
            .last_hidden_state[0]
            .numpy()
        )


def error(found: tuple, states: np.ndarray, one: EncodedItem) -> float:
    """The larger of the relative error of the hidden states and that of the unit vector."""
    mean = states[one.pooled].astype(np.float64).mean(axis=0)
    hidden = np.abs(found[0] - states).max() / np.abs(states).max()
    return max(hidden, np.abs(found[1] - mean / np.linalg.norm(mean)).max())


def test_items_with_video_equal_transformers(model, encoded, ours):
    found = ours(encoded)
    for name, one in encoded.items():
        states = reference(model[2], one, own_positions=name != "long")
        assert error(found[name], states, one) < TOLERANCE, name


def test_parity_notices_what_may_go_wrong_with_video(model, encoded, ours):
    one = encoded["interleaved"]
    states = reference(model[2], one, own_positions=True)
    halves = one.patches.reshape(len(one.patches), 3, 2, -1)
    wrong = {
        "halves swapped": one._replace(patches=halves[:, :, ::-1].reshape(one.patches.shape)),
        "frames for channels": one._replace(
            patches=halves.swapaxes(1, 2).reshape(one.patches.shape)
        ),
        "second half lost": one._replace(
            patches=np.repeat(halves[:, :, :1], 2, axis=2).reshape(one.patches.shape)
        ),
        "frames see each other": one._replace(patch_image=np.zeros_like(one.patch_image)),
        "time stands still": one._replace(
            positions=np.concatenate([one.positions[:, 1:2], one.positions[:, 1:]], axis=1)
        ),
        "sequential": one._replace(
            positions=np.repeat(np.arange(len(one.tokens), dtype=np.int32)[:, None], 3, axis=1)
        ),
    }
    for name, changed in wrong.items():
        assert error(ours({name: changed})[name], states, one) > 20 * TOLERANCE, name


def test_values_of_a_patch_are_in_the_order_of_the_models_convolution(model):
    """The patch embedding as one Conv3d over the whole video, which knows nothing of patches."""
    import torch

    _, params, theirs = model
    pixels = videos.frames(4, 28, 42, seed=5)
    one = tiny.processor(video=RULES)(Item.of(video=Video(pixels)))
    weight = theirs.model.visual.patch_embed.proj.weight
    whole = torch.from_numpy(pixels.astype(np.float32)).permute(3, 0, 1, 2)[None]
    with torch.no_grad():
        expected = torch.nn.functional.conv3d(whole, weight, stride=weight.shape[2:])[0].numpy()
    kernel = np.asarray(params["vision"]["patch_embed"]["kernel"], np.float64)
    found = one.patches.astype(np.float64) @ kernel
    time = one.patch_image
    row, column = one.patch_hw.T
    np.testing.assert_allclose(found, expected[:, time, row, column].T, rtol=1e-4, atol=1e-3)
