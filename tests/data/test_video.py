"""Which frames of a video are read, how large, what their patches are, and what is refused."""

import dataclasses
import math

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from marvel_jax.data import images, video, video_file
from marvel_jax.data.images import ImageError, ImageGeometry
from marvel_jax.data.items import Image, Item, Video
from marvel_jax.data.processor import mrope_positions
from marvel_jax.errors import MarvelError
from marvel_jax.video_geometry import VideoGeometry
from tests.data import samples, videos

RULES = VideoGeometry()
SMALL = VideoGeometry(min_pixels=64, max_pixels=1024)


@pytest.mark.parametrize(
    ("frames", "rate", "options", "expected"),
    [
        (300, 30, {}, 20),  # 10 s, two a second
        (300, 30, {"fps": 1.0}, 10),
        (330, 30, {"fps": 1.0}, 10),  # 11 s: the even number below
        (25, 25, {}, 4),  # 1 s: no fewer than 4
        (3, 10, {}, 2),  # no more than there are
        (1, 10, {}, 2),  # one frame fills a temporal patch
        (24 * 3600, 24, {}, 768),  # an hour: no more than 768
    ],
)
def test_the_frames_taken_by_the_clock(frames, rate, options, expected):
    assert RULES.count(frames, frames / rate, step=2, **options) == expected


@given(st.integers(1, 5000), st.floats(0.5, 240), st.floats(0.1, 30), st.sampled_from([1, 2, 3]))
def test_frames_taken_fill_their_patches_and_are_there(frames, rate, fps, step):
    found = RULES.count(frames, frames / rate, step=step, fps=fps)
    assert found % step == 0 and step <= found <= max(step, min(frames, 768))
    assert found >= min(frames // step * step, -(-4 // step) * step)


def shown(patches: np.ndarray, grid: tuple[int, int, int], geometry: ImageGeometry) -> np.ndarray:
    """The pixels [T, H, W, 3] that patches were cut from, patch by patch."""
    frames, rows, columns = grid
    side, merge, together = geometry.patch_size, geometry.merge_size, geometry.temporal_patch_size
    out = np.zeros((frames * together, rows * side, columns * side, 3), np.uint8)
    number = 0
    for time in range(frames):
        for row, column in images.patch_coordinates(rows, columns, merge):
            patch = patches[number].reshape(3, together, side, side)
            for half in range(together):
                area = np.s_[row * side : (row + 1) * side, column * side : (column + 1) * side]
                out[time * together + half][area] = patch[:, half].transpose(1, 2, 0)
            number += 1
    assert number == len(patches)
    return out


@settings(max_examples=25, deadline=None)
@given(st.integers(1, 7), st.integers(1, 3), st.integers(1, 3), st.sampled_from([1, 2, 3]))
def test_patches_hold_every_frame_where_it_belongs(count, rows, columns, together):
    geometry = dataclasses.replace(samples.SMALL, temporal_patch_size=together)
    pixels = videos.frames(count, 8 * rows, 8 * columns)
    found, grid = video.cut(Video(pixels), geometry, SMALL)
    assert grid == video.grid(Video(pixels), geometry, SMALL)
    again = shown(found, grid, geometry)
    np.testing.assert_array_equal(again[:count], pixels)
    # What does not fill the last patch is the last frame again.
    assert len(again) == -(-count // together) * together
    assert all((frame == pixels[-1]).all() for frame in again[count:])


def test_frames_may_be_pictures_and_some_of_them_may_be_asked_for():
    pixels = videos.frames(9, 16, 16)
    given_frames = Video([Image(frame) for frame in pixels])
    whole = video.cut(Video(pixels), samples.SMALL, SMALL)
    np.testing.assert_array_equal(video.cut(given_frames, samples.SMALL, SMALL)[0], whole[0])
    some, grid = video.cut(Video(pixels, num_frames=4), samples.SMALL, SMALL)
    np.testing.assert_array_equal(shown(some, grid, samples.SMALL), pixels[[0, 3, 5, 8]])


def test_a_video_is_smaller_the_more_frames_are_taken():
    rules = VideoGeometry(min_pixels=64, max_pixels=4096, total_pixels=8192)
    areas = {
        count: math.prod(video.grid(Video(videos.grey(count, 128, 128)), samples.SMALL, rules)[1:])
        * 16
        for count in (2, 4, 8, 16, 80)
    }
    # Frames share the pixels, those of a temporal patch as one; a frame has its least all the same.
    assert areas == {2: 4096, 4: 4096, 8: 40 * 40, 16: 32 * 32, 80: 8 * 8}


def test_positions_of_a_recorded_layout() -> None:
    # one text token, a video of 3 temporal patches of 1 x 2 merged tokens, two text tokens
    assert mrope_positions(9, [(1, 7)], [(3, 1, 2)]).tolist() == [
        [0, 0, 0],
        [1, 1, 1],
        [1, 1, 2],
        [2, 1, 1],
        [2, 1, 2],
        [3, 1, 1],
        [3, 1, 2],
        [4, 4, 4],
        [5, 5, 5],
    ]


def test_an_item_with_video_is_consistent():
    processor = samples.processor(video=SMALL)
    still, film = Image(samples.picture(16, 24)), Video(videos.frames(5, 16, 24))
    item = Item(parts=("a pear", still, "and", film, film, "green"))
    found = processor(item)
    assert processor.lengths(item) == (len(found.tokens), len(found.patches))
    assert found.patches.shape == (24 * 7, 96)
    assert found.patch_image.tolist() == [number for number in range(7) for _ in range(24)]
    image, frame = (processor.tokenizer.special(f"<|{kind}_pad|>") for kind in ("image", "video"))
    visual = found.vision_index >= 0
    np.testing.assert_array_equal(found.vision_index[visual], np.arange(6 * 7))
    assert found.tokens[visual].tolist() == [image] * 6 + [frame] * 36
    # A still among video is its frame twice.
    halves = found.patches[:24].reshape(24, 3, 2, 16)
    np.testing.assert_array_equal(halves[:, :, 0], halves[:, :, 1])
    alone = processor(Item.of(image=still)).patches
    np.testing.assert_array_equal(halves[:, :, 0].reshape(24, 48), alone)


def test_what_is_read_of_a_video_is_in_the_fingerprint_and_no_video_leaves_it_alone():
    plain = samples.processor().fingerprint
    assert samples.processor(video=VideoGeometry()).fingerprint == plain
    assert samples.processor(video=VideoGeometry(fps=1.0)).fingerprint != plain


# --- files -------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def pyav():
    return pytest.importorskip("av", reason="reading video files needs PyAV")


@pytest.mark.parametrize("suffix", [".avi", ".mkv"])
def test_the_frames_of_a_file_are_spread_from_its_first_to_its_last(pyav, tmp_path, suffix):
    path = videos.write(tmp_path / f"clip{suffix}", videos.grey(31))
    for asked, expected in (
        ({}, [0, 6, 12, 18, 24, 30]),  # 3.1 s, two a second
        ({"fps": 1.0}, [0, 10, 20, 30]),
        ({"num_frames": 3}, [0, 10, 20, 30]),  # an even number, the nearest
        ({"num_frames": 99}, list(range(15)) + list(range(16, 31))),  # as many as there are
    ):
        cut, grid = video.cut(Video(path, **asked), samples.SMALL, SMALL)
        assert grid == video.grid(Video(path, **asked), samples.SMALL, SMALL)
        values = shown(cut, grid, samples.SMALL)
        assert (values == values[:, :1, :1, :1]).all()
        assert (values[:, 0, 0, 0] // 3).tolist() == expected


def test_a_file_shows_what_its_bytes_and_its_frames_show(pyav, tmp_path):
    pixels = videos.frames(6, 16, 24)
    path = videos.write(tmp_path / "clip.avi", pixels, rate=2)
    expected = video.cut(Video(pixels), samples.SMALL, SMALL)
    for source in (path, str(path), path.read_bytes()):
        found = video.cut(Video(source), samples.SMALL, SMALL)
        assert found[1] == expected[1]
        np.testing.assert_array_equal(found[0], expected[0])
    assert (np.asarray(video.first_frame(Video(path))) == pixels[0]).all()


@pytest.mark.parametrize(
    ("content", "reason"),
    [
        (None, "does not exist"),
        (b"not a video", "cannot be decoded"),
        (b"", "cannot be decoded"),
        ("half", "it ends after .* of 40 frames: it is truncated"),
    ],
)
def test_a_broken_video_names_item_file_and_reason(pyav, tmp_path, content, reason):
    path = tmp_path / "clip.avi"
    if content == "half":
        whole = videos.encoded(videos.frames(40))
        content = whole[: len(whole) // 2]
    if content is not None:
        path.write_bytes(content)
    processor = samples.processor(video=SMALL)
    item = Item.of(video=path, id="v7")  # not opened before it is needed
    with pytest.raises(ImageError, match=rf"Item v7: video .*clip\.avi: .*{reason}") as caught:
        processor(item)
    assert caught.value.file == str(path)


def test_without_pyav_it_is_said_what_to_install(monkeypatch):
    monkeypatch.setattr(video_file.importlib.util, "find_spec", lambda name: None)
    with pytest.raises(MarvelError, match=r"marvel-jax\[video\]") as caught:
        samples.processor()(Item.of(video="clip.mp4"))
    assert not isinstance(caught.value, ImageError)  # not this video's fault: none is skipped


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: Video(3), "A video is a path"),
        (lambda: Video([]), "one Image or more"),
        (lambda: Video("a.mp4", num_frames=4, fps=1.0), "not both"),
        (lambda: Video("a.mp4", fps=0), "fps is 0"),
        (lambda: Video("a.mp4", num_frames=0), "num_frames is 0"),
        (lambda: Video(videos.grey(3), fps=1.0), "give num_frames"),
        (lambda: VideoGeometry(fps=0), "fps is 0"),
        (lambda: VideoGeometry(min_frames=9, max_frames=8), "min_frames"),
        (lambda: VideoGeometry.from_dict({"frames": 3}, name="x"), "unknown field video.frames"),
        (lambda: VideoGeometry.from_dict({"fps": "2"}, name="x"), "expected a number"),
    ],
)
def test_what_cannot_be_is_refused(make, message):
    with pytest.raises(MarvelError, match=message):
        make()
