import io
import json
import warnings

import numpy as np
import PIL.EpsImagePlugin
import PIL.features
import PIL.Image
import PIL.ImageOps
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from marvel_jax.data import images
from marvel_jax.data.images import ImageGeometry
from marvel_jax.data.items import Image
from marvel_jax.errors import MarvelError
from tests.data import samples

SIDES = st.integers(1, 700)


def hf_processor(geometry: ImageGeometry):
    from transformers.models.qwen2_vl import image_processing_pil_qwen2_vl as module

    return module.Qwen2VLImageProcessorPil(
        patch_size=geometry.patch_size,
        merge_size=geometry.merge_size,
        temporal_patch_size=geometry.temporal_patch_size,
        min_pixels=geometry.min_pixels,
        max_pixels=geometry.max_pixels,
        do_rescale=False,
        do_normalize=False,
    )


def hf_patches(geometry: ImageGeometry, picture: PIL.Image.Image) -> tuple[np.ndarray, list]:
    found = hf_processor(geometry)(images=[picture], return_tensors="np")
    halves = found["pixel_values"].reshape(
        -1, 3, geometry.temporal_patch_size, geometry.patch_size**2
    )
    np.testing.assert_array_equal(halves[:, :, 0], halves[:, :, 1])
    return halves[:, :, 0].reshape(len(halves), -1), found["image_grid_thw"][0].tolist()


@settings(max_examples=60, deadline=None)
@given(SIDES, SIDES, st.sampled_from([ImageGeometry(), ImageGeometry(7), samples.SMALL]))
def test_patches_equal_the_hugging_face_processor(height, width, geometry) -> None:
    if max(height, width) > 200 * min(height, width):
        return
    picture = samples.picture(height, width)
    ours, grid = images.patchify(picture, geometry)
    theirs, (_, *their_grid) = hf_patches(geometry, picture)
    assert ours.dtype == np.uint8
    assert list(grid) == their_grid == list(images.grid(Image(picture), geometry))
    np.testing.assert_array_equal(ours, theirs)


@pytest.mark.parametrize(("height", "width"), [(3, 600), (600, 3), (1, 200), (1999, 10), (28, 28)])
def test_extreme_shapes_equal_the_hugging_face_processor(height: int, width: int) -> None:
    picture = samples.picture(height, width)
    ours, grid = images.patchify(picture, ImageGeometry())
    theirs, (_, *their_grid) = hf_patches(ImageGeometry(), picture)
    assert list(grid) == their_grid
    np.testing.assert_array_equal(ours, theirs)


@settings(max_examples=300, deadline=None)
@given(
    st.integers(1, 20000),
    st.integers(1, 20000),
    st.sampled_from([7, 14, 16]),
    st.integers(1, 3),
    st.integers(1, 10**5),
    st.integers(0, 10**6),
)
def test_smart_resize_equals_hugging_face(height, width, patch, merge, least, more) -> None:
    module = pytest.importorskip("transformers.models.qwen2_vl.image_processing_pil_qwen2_vl")
    geometry = ImageGeometry(patch, merge, min_pixels=least, max_pixels=least + more)
    if max(height, width) > 200 * min(height, width):
        with pytest.raises(MarvelError, match=f"{width}x{height}"):
            images.smart_resize(height, width, geometry)
        return
    assert images.smart_resize(height, width, geometry) == module.smart_resize(
        height, width, patch * merge, least, least + more
    )


def test_smart_resize_of_known_sizes() -> None:
    geometry = ImageGeometry()
    assert images.smart_resize(128, 128, geometry) == (140, 140)
    assert images.smart_resize(1080, 1920, geometry) == (336, 644)
    assert images.smart_resize(10, 10, geometry) == (56, 56)


def test_patch_coordinates_follow_the_patches() -> None:
    geometry = samples.SMALL
    rows, columns = 4, 6
    # Each pixel holds its patch's row and column, so that the patches say where they came from.
    pixels = np.zeros((rows * 4, columns * 4, 3), np.uint8)
    pixels[..., 0] = np.arange(rows * 4)[:, None] // 4
    pixels[..., 1] = np.arange(columns * 4)[None] // 4
    patches, grid = images.patchify(PIL.Image.fromarray(pixels), geometry)
    assert grid == (rows, columns)
    found = patches.reshape(-1, 3, 16)[:, :2, 0]
    np.testing.assert_array_equal(images.patch_coordinates(rows, columns, 2), found)


def encoded(picture: PIL.Image.Image, kind: str, **options) -> bytes:
    buffer = io.BytesIO()
    picture.save(buffer, kind, **options)
    return buffer.getvalue()


@pytest.mark.parametrize("kind", ["PNG", "JPEG", "WEBP", "GIF"])
@pytest.mark.parametrize("mode", ["RGB", "L", "RGBA", "P"])
def test_any_file_and_mode_becomes_what_hugging_face_makes_of_it(kind: str, mode: str) -> None:
    picture = samples.picture(20, 30).convert(mode)
    if kind == "JPEG" and mode in ("RGBA", "P"):
        pytest.skip("JPEG has no such mode")
    stored = encoded(picture, kind)
    loaded = images.load_image(Image(stored))
    assert loaded.mode == "RGB"
    theirs, _ = hf_patches(samples.SMALL, PIL.Image.open(io.BytesIO(stored)))
    np.testing.assert_array_equal(images.patchify(loaded, samples.SMALL)[0], theirs)


@pytest.mark.parametrize("orientation", range(1, 9))
@pytest.mark.parametrize("kind", ["PNG", "JPEG", "WEBP"])
def test_a_turned_photo_is_upright_and_its_header_says_so(kind: str, orientation: int) -> None:
    exif = PIL.Image.Exif()
    exif[0x0112] = orientation
    stored = encoded(samples.picture(20, 30), kind, exif=exif)
    expected = PIL.ImageOps.exif_transpose(PIL.Image.open(io.BytesIO(stored))).convert("RGB")
    loaded = images.load_image(Image(stored))
    np.testing.assert_array_equal(np.asarray(loaded), np.asarray(expected))
    assert images.image_size(Image(stored)) == (loaded.height, loaded.width)


def test_every_kind_of_source_gives_the_same_patches(tmp_path) -> None:
    picture = samples.picture(33, 21)
    path = tmp_path / "a.png"
    picture.save(path)
    expected = images.patchify(picture, samples.SMALL)[0]
    for source in (path, str(path), path.read_bytes(), picture, np.asarray(picture)):
        image = Image(source)
        assert images.image_size(image) == (33, 21)
        np.testing.assert_array_equal(
            images.patchify(images.load_image(image), samples.SMALL)[0], expected
        )


def test_size_reads_the_header_only() -> None:
    stored = samples.png(300, 200)
    assert images.image_size(Image(stored[:100])) == (300, 200)


@pytest.mark.parametrize("kind", images.FORMATS)
def test_every_format_that_is_named_is_read(kind: str) -> None:
    if kind == "AVIF" and not PIL.features.check("avif"):
        pytest.skip("this Pillow has no AVIF")
    loaded = images.load_image(Image(encoded(samples.picture(20, 30), kind)))
    assert loaded.mode == "RGB" and loaded.size == (30, 20)


@pytest.mark.parametrize("kind", ["EPS", "PPM"])
def test_no_other_format_is_opened_whatever_the_file_is_called(tmp_path, kind, monkeypatch) -> None:
    """Pillow gives an EPS to Ghostscript, which runs what stands in it."""

    def ran(*args, **options):
        pytest.fail("a program is run")

    monkeypatch.setattr(PIL.EpsImagePlugin, "Ghostscript", ran)
    path = tmp_path / "photo.png"
    path.write_bytes(encoded(samples.picture(20, 30), kind))
    for source in (path, path.read_bytes()):
        for read in (images.load_image, images.image_size):
            with pytest.raises(MarvelError, match=r"of a format that is read \(JPEG, PNG"):
                read(Image(source))


@pytest.mark.parametrize(
    ("content", "message"),
    [(b"no image", "not an image"), (samples.png(64, 64)[:-2000], "decoded"), (None, "not exist")],
)
def test_a_bad_file_is_one_error_with_id_and_path(tmp_path, content, message) -> None:
    path = tmp_path / "broken.png"
    if content is not None:
        path.write_bytes(content)
    with pytest.raises(MarvelError, match=r"Item 9:4: image .*broken\.png .*" + message):
        images.load_image(Image(path), item_id="9:4")


def test_a_picture_too_large_to_be_honest_is_an_error(monkeypatch) -> None:
    monkeypatch.setattr(PIL.Image, "MAX_IMAGE_PIXELS", 100)
    with warnings.catch_warnings(), pytest.raises(MarvelError, match=r"a\.png"):
        images.load_image(Image(samples.png(64, 64), name="a.png"))


def test_a_bomb_is_refused_by_its_header_before_a_pixel_is_decoded(monkeypatch) -> None:
    stored = samples.png(64, 64)
    monkeypatch.setattr(images, "MOST_PIXELS", 64 * 64)
    assert images.load_image(Image(stored)).size == (64, 64)
    monkeypatch.setattr(images, "MOST_PIXELS", 64 * 64 - 1)
    monkeypatch.setattr(PIL.Image.Image, "load", lambda self: pytest.fail("pixels are decoded"))
    for read in (images.load_image, images.image_size):
        with pytest.raises(
            images.ImageError, match=r"Item 9:1: .*a\.png .*64x64 pixels, more"
        ) as info:
            read(Image(stored, name="a.png"), item_id="9:1")
        assert info.value.file == "a.png" and "64x64" in info.value.reason


@pytest.mark.parametrize(
    ("height", "width", "refused"), [(1, 10_000, True), (49, 10_000, True), (50, 10_000, False),
                                     (1, 1, False), (200, 1, False), (201, 1, True)]
)  # fmt: skip
def test_very_wide_and_very_small_pictures(height: int, width: int, refused: bool) -> None:
    image, geometry = Image(np.zeros((height, width, 3), np.uint8), name="odd.png"), ImageGeometry()
    if refused:
        for read in (images.grid, images.PatchCache(0).patches):
            with pytest.raises(images.ImageError, match=rf"9:1: .*odd\.png.*{width}x{height}"):
                read(image, geometry, item_id="9:1")
        return
    patches, (rows, columns) = images.PatchCache(0).patches(image, geometry)
    assert len(patches) == rows * columns and (rows, columns) == images.grid(image, geometry)
    assert rows * columns * 14 * 14 <= geometry.max_pixels or min(rows, columns) == 2


@given(st.binary(max_size=64), st.integers(0, 400))
def test_any_damage_is_an_error_that_names_the_item_or_a_picture(noise: bytes, place: int) -> None:
    stored = bytearray(encoded(samples.picture(12, 9), "JPEG"))
    stored[place : place + len(noise)] = noise
    try:
        loaded = images.load_image(Image(bytes(stored), name="x.jpg"), item_id="9:1")
        assert loaded.mode == "RGB"
    except images.ImageError as error:
        assert "9:1" in str(error) and error.file == "x.jpg" and error.reason


def test_an_array_of_another_type_is_an_error() -> None:
    with pytest.raises(MarvelError, match="float64"):
        images.load_image(Image(np.zeros((4, 4, 3))))


OLD = {"min_pixels": 3136, "max_pixels": 12845056, "patch_size": 14, "merge_size": 2}
NEW = {"size": {"shortest_edge": 3136, "longest_edge": 12845056}, "patch_size": 14, "merge_size": 2}


@pytest.mark.parametrize(
    ("file", "content"),
    [
        ("preprocessor_config.json", OLD),
        ("preprocessor_config.json", NEW),
        ("preprocessor_config.json", {**NEW, **OLD}),
        ("processor_config.json", {"image_processor": NEW}),
    ],
)
def test_geometry_is_read_from_old_and_new_folders(tmp_path, file, content) -> None:
    (tmp_path / file).write_text(json.dumps(content))
    assert ImageGeometry.from_folder(tmp_path) == ImageGeometry(14, 2, 2, 3136, 12845056)


def test_geometry_survives_transformers(tmp_path) -> None:
    module = pytest.importorskip("transformers.models.qwen2_vl.image_processing_pil_qwen2_vl")
    geometry = ImageGeometry(7, 2, 2, 1000, 9000)
    (tmp_path / "preprocessor_config.json").write_text(json.dumps(geometry.to_preprocessor_dict()))
    theirs = module.Qwen2VLImageProcessorPil.from_pretrained(tmp_path)
    assert theirs.size["shortest_edge"] == 1000
    theirs.save_pretrained(tmp_path / "again")
    assert ImageGeometry.from_folder(tmp_path / "again") == geometry


def test_a_folder_without_or_with_another_preprocessor_is_refused(tmp_path) -> None:
    with pytest.raises(MarvelError, match=r"preprocessor_config\.json"):
        ImageGeometry.from_folder(tmp_path)
    (tmp_path / "preprocessor_config.json").write_text(json.dumps({"resample": 2}))
    with pytest.raises(MarvelError, match="resample is 2"):
        ImageGeometry.from_folder(tmp_path)


def test_the_cache_gives_the_same_patches_and_keeps_its_bound(tmp_path) -> None:
    one = len(images.patchify(samples.picture(32, 32), samples.SMALL)[0].tobytes())
    cache = images.PatchCache(2 * one)
    pictures = [Image(samples.png(32, 32, seed=seed)) for seed in range(4)]
    for image in pictures * 2:
        found, _ = cache.patches(image, samples.SMALL)
        expected, _ = images.patchify(images.load_image(image), samples.SMALL)
        np.testing.assert_array_equal(found, expected)
        assert cache._bytes <= 2 * one
    assert cache.patches(pictures[3], samples.SMALL)[0] is found


def test_the_cache_sees_that_a_file_changed(tmp_path) -> None:
    cache, path = images.PatchCache(1 << 20), tmp_path / "a.png"
    path.write_bytes(samples.png(32, 32, seed=1))
    before, _ = cache.patches(Image(path), samples.SMALL)
    path.write_bytes(samples.png(32, 32, seed=2) + b" ")
    after, _ = cache.patches(Image(path), samples.SMALL)
    assert not np.array_equal(before, after)
