"""Pixel limits are read the same whichever file and spelling a folder uses."""

import json

import pytest

from marvel_jax import preprocessor
from marvel_jax.data.images import ImageGeometry
from marvel_jax.errors import MarvelError
from marvel_jax.settings import EmbeddingSettings

LIMITS = {"min_pixels": 6272, "max_pixels": 12544}
SPELLINGS = {
    "flat": ("preprocessor_config.json", LIMITS),
    "edges": ("preprocessor_config.json", {"size": {"shortest_edge": 6272, "longest_edge": 12544}}),
    "size": ("preprocessor_config.json", {"size": LIMITS}),
    "nested": ("processor_config.json", {"image_processor": {"size": LIMITS}}),
}


@pytest.mark.parametrize("spelling", SPELLINGS)
def test_every_reader_sees_the_same_limits(tmp_path, spelling):
    name, content = SPELLINGS[spelling]
    (tmp_path / name).write_text(json.dumps(content))
    geometry, settings = ImageGeometry.from_folder(tmp_path), EmbeddingSettings.read(tmp_path)
    for found in (geometry, settings):
        assert (found.min_pixels, found.max_pixels) == (6272, 12544)


def test_a_folder_without_limits_has_those_of_transformers(tmp_path):
    (tmp_path / "preprocessor_config.json").write_text("{}")
    settings = EmbeddingSettings.read(tmp_path)
    assert (settings.min_pixels, settings.max_pixels) == (3136, 1003520)
    assert ImageGeometry.from_folder(tmp_path).max_pixels == 1003520


@pytest.mark.parametrize("field", ["do_normalize", "do_rescale", "do_resize", "rescale_factor"])
def test_another_preparation_is_refused(tmp_path, field):
    (tmp_path / "preprocessor_config.json").write_text(json.dumps({field: 0}))
    with pytest.raises(MarvelError, match=field):
        preprocessor.read(tmp_path)


@pytest.mark.parametrize(
    "content",
    [
        "[]",
        '{"rescale_factor": null}',
        '{"size": 224}',
        '{"min_pixels": "abc"}',
        '{"max_pixels": true}',
    ],
)
def test_broken_fields_are_one_clear_error(tmp_path, content):
    (tmp_path / "preprocessor_config.json").write_text(content)
    with pytest.raises(MarvelError, match=r"preprocessor_config\.json"):
        preprocessor.read(tmp_path)


@pytest.mark.parametrize("content", ["[]", '{"min_pixels": "a"}', '{"colour": 1}'])
def test_broken_settings_are_one_clear_error(tmp_path, content):
    (tmp_path / "marvel.json").write_text(content)
    with pytest.raises(MarvelError):
        EmbeddingSettings.read(tmp_path)
