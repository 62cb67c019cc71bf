"""The contact sheet shows every result, in any script, and says what it could not draw."""

import PIL.Image
import pytest

from marvel_jax.collection import sheet
from marvel_jax.collection.sheet import Tile, write_sheet
from marvel_jax.errors import MarvelError
from tests import tiny


def test_every_tile_is_drawn(tmp_path):
    for number in range(2):
        (tmp_path / f"{number}.png").write_bytes(tiny.picture(number))
    (tmp_path / "bad.png").write_bytes(b"no")
    tiles = [
        Tile("1", "0.9", "0.png", None, tmp_path / "0.png"),
        Tile("2", "0.8", "a.txt", "a very long text " * 80, None),
        Tile("3", "0.7", "bad.png", "caption", tmp_path / "bad.png"),
        *(Tile(f"{n}", "0.1", "1.png", "x" * 300, tmp_path / "1.png") for n in range(4, 8)),
    ]
    made = write_sheet(
        tmp_path / "sheet.png", tiles, text="a query", image=tmp_path / "1.png", asked="Find it."
    )
    drawn = PIL.Image.open(made.path).convert("L")
    assert any("bad.png" in note for note in made.notes)
    side = sheet._SIDE + sheet._GAP
    top = drawn.height // 3
    for column in range(5):  # the first row of tiles
        left = sheet._GAP + column * side
        part = drawn.crop((left, top, left + sheet._SIDE, top + sheet._SIDE))
        assert part.getextrema()[0] < 128, column


def test_scripts_without_a_font_are_told(tmp_path, monkeypatch):
    monkeypatch.setattr(sheet.shutil, "which", lambda name: None)
    tiles = [Tile("1", "0.9", "name", "\u732b and \u0642\u0644\u0628", None)]
    made = write_sheet(tmp_path / "sheet.jpg", tiles, text="caf\u00e9", image=None, asked="")
    assert len(made.notes) == 1 and "arabic, cjk" in made.notes[0]


def test_an_ending_that_is_no_picture(tmp_path):
    with pytest.raises(MarvelError, match=r"sheet\.png"):
        write_sheet(tmp_path / "sheet.doc", [], text="a", image=None, asked="")
