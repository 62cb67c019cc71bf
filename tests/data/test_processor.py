import json

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from marvel_jax.data import chat, images
from marvel_jax.data.images import ImageGeometry
from marvel_jax.data.items import Image, Item
from marvel_jax.data.processor import Processor, mrope_positions
from marvel_jax.errors import MarvelError
from tests.data import samples

IMAGES = st.builds(
    lambda height, width: Image(samples.picture(height, width)),
    st.integers(4, 60),
    st.integers(4, 60),
)
ITEMS = st.builds(
    lambda parts, instruction: Item(parts=tuple(parts), instruction=instruction),
    st.lists(
        st.one_of(st.sampled_from(["a pear", "green", "x " * 30]), IMAGES), min_size=1, max_size=4
    ),
    st.sampled_from([None, "find the picture."]),
)


@settings(max_examples=80, deadline=None)
@given(ITEMS, st.sampled_from(chat.TEMPLATES))
def test_an_encoded_item_is_consistent(item: Item, template: str) -> None:
    processor = samples.processor(template=template, max_text_tokens=20)
    found = processor(item)
    length, patches = len(found.tokens), len(found.patches)
    assert processor.lengths(item) == (length, patches)
    assert found.positions.shape == (length, 3)
    assert found.pooled.shape == found.vision_index.shape == (length,)
    assert found.patches.shape == (patches, 48) and found.patches.dtype == np.uint8
    # Merged tokens are counted in order, exactly where the image tokens stand.
    pad = processor.tokenizer.special("<|image_pad|>")
    np.testing.assert_array_equal(found.vision_index >= 0, found.tokens == pad)
    visual = found.vision_index[found.vision_index >= 0]
    np.testing.assert_array_equal(visual, np.arange(patches // 4))
    # Each image brings its own patches, numbered from 0.
    start = 0
    for number, image in enumerate(item.images):
        cut, (rows, columns) = images.patchify(images.load_image(image), processor.geometry)
        stop = start + len(cut)
        np.testing.assert_array_equal(found.patches[start:stop], cut)
        np.testing.assert_array_equal(
            found.patch_hw[start:stop], images.patch_coordinates(rows, columns, 2)
        )
        assert (found.patch_image[start:stop] == number).all()
        start = stop
    assert start == patches
    for field in (found.tokens, found.positions, found.patch_hw, found.patch_image):
        assert field.dtype == np.int32


@st.composite
def layouts(draw) -> tuple[int, list[tuple[int, int]], list[tuple[int, int]]]:
    """A sequence of texts and images: length, image spans, merged grids."""
    cursor, spans, grids = draw(st.integers(1, 9)), [], []
    for _ in range(draw(st.integers(0, 4))):
        height, width = draw(st.integers(1, 9)), draw(st.integers(1, 9))
        spans.append((cursor, cursor + height * width))
        grids.append((height, width))
        cursor += height * width + draw(st.integers(1, 9))
    return cursor, spans, grids


def test_positions_of_a_recorded_layout() -> None:
    # two text tokens, an image of 2 x 3 merged tokens, two text tokens
    assert mrope_positions(10, [(2, 8)], [(2, 3)]).tolist() == [
        [0, 0, 0],
        [1, 1, 1],
        [2, 2, 2],
        [2, 2, 3],
        [2, 2, 4],
        [2, 3, 2],
        [2, 3, 3],
        [2, 3, 4],
        [5, 5, 5],
        [6, 6, 6],
    ]


@pytest.fixture(scope="module")
def rope_index():
    """transformers' own positions, as a function of a layout."""
    torch = pytest.importorskip("torch")
    from transformers.models.qwen2_vl import modeling_qwen2_vl as modeling
    from transformers.models.qwen2_vl.configuration_qwen2_vl import Qwen2VLConfig

    model = object.__new__(modeling.Qwen2VLModel)
    torch.nn.Module.__init__(model)
    model.config = Qwen2VLConfig(vision_config={"spatial_merge_size": 2})

    def positions(length: int, spans: list, grids: list) -> np.ndarray:
        kinds = torch.zeros((1, length), dtype=torch.int32)
        for start, end in spans:
            kinds[0, start:end] = 1
        thw = torch.tensor([[1, 2 * height, 2 * width] for height, width in grids]).reshape(-1, 3)
        found, _ = model.get_rope_index(
            torch.zeros((1, length), dtype=torch.long),
            mm_token_type_ids=kinds,
            image_grid_thw=thw,
            attention_mask=torch.ones((1, length)),
        )
        return found[:, 0].T.numpy()

    return positions


@pytest.mark.peer
@settings(max_examples=80, deadline=None)
@given(layout=layouts())
def test_positions_equal_transformers(rope_index, layout) -> None:
    np.testing.assert_array_equal(mrope_positions(*layout), rope_index(*layout))


def test_sequential_positions_count_tokens_on_every_axis() -> None:
    found = samples.processor(positions="sequential")(
        Item.of(text="a pear", image=samples.picture(30, 40))
    )
    expected = np.repeat(np.arange(len(found.tokens))[:, None], 3, axis=1)
    np.testing.assert_array_equal(found.positions, expected)


def test_the_cache_does_not_change_an_item() -> None:
    item = Item.of(text="a pear", image=[samples.png(20, 30), samples.png(30, 20)])
    plain, cached = samples.processor(), samples.processor(cache_bytes=1 << 20)
    for _ in range(2):
        for ours, theirs in zip(cached(item), plain(item), strict=True):
            np.testing.assert_array_equal(ours, theirs)
    assert cached.fingerprint == plain.fingerprint


def test_the_fingerprint_tells_what_matters_apart() -> None:
    variants = [
        samples.processor(),
        samples.processor(template="gme"),
        samples.processor(template="umarvel_released"),
        samples.processor(template="umarvel_released", generation_prompt=True),
        samples.processor(positions="sequential"),
        samples.processor(max_text_tokens=7),
        samples.processor(geometry=ImageGeometry()),
    ]
    assert len({one.fingerprint for one in variants}) == len(variants)
    assert samples.processor().fingerprint == samples.processor().fingerprint


def test_only_the_released_template_adds_markers() -> None:
    size = samples.chat_tokenizer().size
    assert samples.processor().marker_ids == {}
    assert samples.processor(template="umarvel_released").marker_ids == {
        "<emb>": size,
        "<instruction_start>": size + 1,
        "<instruction_end>": size + 2,
    }


def write_folder(folder, *, patch: int = 4) -> None:
    samples.raw_tokenizer().save(str(folder / "tokenizer.json"))
    geometry = samples.SMALL.to_preprocessor_dict()
    (folder / "preprocessor_config.json").write_text(json.dumps(geometry))
    vision = {"patch_size": patch, "spatial_merge_size": 2, "temporal_patch_size": 2}
    (folder / "config.json").write_text(json.dumps({"vision_config": vision}))


def test_a_processor_is_read_from_a_folder(tmp_path) -> None:
    write_folder(tmp_path)
    found = Processor.from_folder(tmp_path, template="gme", positions="sequential")
    expected = samples.processor(template="gme", positions="sequential")
    assert found.fingerprint == expected.fingerprint
    smaller = Processor.from_folder(tmp_path, max_pixels=512)
    assert smaller.geometry == ImageGeometry(4, 2, 2, 64, 512)


def test_a_folder_that_contradicts_itself_is_refused(tmp_path) -> None:
    write_folder(tmp_path, patch=14)
    with pytest.raises(MarvelError, match=r"vision_config\.patch_size is 14.* patch_size 4"):
        Processor.from_folder(tmp_path)


def test_bad_options_and_images_are_told(tmp_path) -> None:
    with pytest.raises(MarvelError, match="mrope, sequential"):
        samples.processor(positions="absolute")
    with pytest.raises(MarvelError, match="choose one of marvel"):
        samples.processor(template="chatml")
    broken = Item.of(image=tmp_path / "none.png", id="7:1")
    for read in (samples.processor(), samples.processor().lengths):
        with pytest.raises(MarvelError, match=r"7:1.*none\.png"):
            read(broken)
    thin = Item.of(image=samples.picture(1, 300), id="7:2")
    for read in (samples.processor(), samples.processor().lengths):
        with pytest.raises(MarvelError, match=r"7:2.*300x1"):
            read(thin)
