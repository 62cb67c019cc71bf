"""A contact sheet: one picture of a query and what a search found for it."""

import shutil
import subprocess
import textwrap
import unicodedata
from collections.abc import Sequence
from pathlib import Path
from typing import NamedTuple

import PIL.Image
import PIL.ImageDraw
import PIL.ImageFont

from marvel_jax.data.images import ImageError, load_image
from marvel_jax.data.items import Image
from marvel_jax.errors import MarvelError

_COLUMNS = 5
_SIDE = 200  # pixels of a picture's square
_GAP = 12
_SIZE = 14
_LINE = 19
_LINES = 3  # of a text below its picture
_TALL_LINES = _LINES + _SIDE // _LINE  # of a text that has no picture
_MOST = 400  # characters of a text that are looked at
_PLAIN = 0x24F  # what Pillow's own font draws: Latin with its accents
_INK, _FAINT, _PAPER, _FRAME = "#111111", "#555555", "#ffffff", "#d0d0d0"


class Tile(NamedTuple):
    """A result: "1", "0.913", the name, and what it shows."""

    rank: str
    score: str
    name: str
    text: str | None
    image: Path | None


class Sheet(NamedTuple):
    """Where it is, and what could not be drawn as it should be."""

    path: Path
    notes: tuple[str, ...]


def write_sheet(
    path: Path, tiles: Sequence[Tile], *, text: str | None, image: Path | None, asked: str
) -> Sheet:
    """Draws a query (`text`, `image`; `asked` says what for) and the tiles, and saves the picture.

    Texts of any script, by the fonts that fontconfig knows. Without it, or without a font for a
    script, Pillow's own font draws Latin, and a note says so.

    Raises:
      MarvelError: the ending of `path` is no picture's, or it cannot be written.
    """
    if path.suffix.lower() not in PIL.Image.registered_extensions():
        raise MarvelError(f"--sheet {path}: name a picture, as {path.stem or 'sheet'}.png.")
    fonts = _Fonts()
    rows = max(1, -(-len(tiles) // _COLUMNS))
    tile_height = _SIDE + (_LINES + 2) * _LINE + _GAP
    head = _SIDE if image is not None else 4 * _LINE
    width = _GAP + _COLUMNS * (_SIDE + _GAP)
    size = (width, _GAP + head + 2 * _GAP + rows * (tile_height + _GAP))
    sheet = PIL.Image.new("RGB", size, _PAPER)
    left = _GAP
    if image is not None:
        _paste(sheet, image, (left, _GAP), fonts)
        left += _SIDE + _GAP
    pen = _Pen(sheet, fonts)
    top = pen.write((left, _GAP), text or "", width=width - left - _GAP, lines=2, fill=_INK)
    pen.write((left, top), asked, width=width - left - _GAP, lines=2, fill=_FAINT)
    for number, tile in enumerate(tiles):
        row, column = divmod(number, _COLUMNS)
        corner = (
            _GAP + column * (_SIDE + _GAP),
            _GAP + head + 2 * _GAP + row * (tile_height + _GAP),
        )
        _draw_tile(sheet, pen, tile, corner, fonts)
    try:
        sheet.save(path)
    except (OSError, ValueError) as error:
        raise MarvelError(f"--sheet {path} cannot be written: {error}.") from error
    return Sheet(path, tuple(fonts.notes))


def _draw_tile(
    sheet: PIL.Image.Image, pen: "_Pen", tile: Tile, corner: tuple[int, int], fonts: "_Fonts"
) -> None:
    left, top = corner
    top = pen.write((left, top), f"{tile.rank}.  {tile.score}", width=_SIDE, lines=1, fill=_INK)
    lines = _TALL_LINES
    if tile.image is not None:
        _paste(sheet, tile.image, (left, top), fonts)
        top += _SIDE + 2
        lines = _LINES
    if tile.text is not None:
        top = pen.write((left, top), tile.text, width=_SIDE, lines=lines, fill=_INK)
    pen.write((left, top), tile.name, width=_SIDE, lines=1, fill=_FAINT)


def _paste(sheet: PIL.Image.Image, path: Path, corner: tuple[int, int], fonts: "_Fonts") -> None:
    pen = PIL.ImageDraw.Draw(sheet)
    left, top = corner
    pen.rectangle((left, top, left + _SIDE - 1, top + _SIDE - 1), outline=_FRAME)
    try:
        picture = load_image(Image(path))
    except ImageError as error:
        fonts.note(f"{path}: {error.reason}")
        _Pen(sheet, fonts).write(
            (left + 4, top + 4), error.reason, width=_SIDE - 8, lines=_LINES, fill=_FAINT
        )
        return
    picture.thumbnail((_SIDE - 2, _SIDE - 2))
    sheet.paste(picture, (left + (_SIDE - picture.width) // 2, top + (_SIDE - picture.height) // 2))


class _Pen:
    def __init__(self, sheet: PIL.Image.Image, fonts: "_Fonts") -> None:
        self._draw = PIL.ImageDraw.Draw(sheet)
        self._fonts = fonts

    def write(
        self, corner: tuple[int, int], text: str, *, width: int, lines: int, fill: str
    ) -> int:
        """Writes wrapped text, at most so many lines, and returns where the next one begins."""
        left, top = corner
        shown = " ".join(text[:_MOST].split())
        font = self._fonts.of(shown)
        wrapped = _wrap(shown, font, width)
        if wrapped and (len(wrapped) > lines or len(text) > _MOST):
            wrapped = wrapped[:lines]
            while wrapped and font.getlength(wrapped[-1] + "...") > width:
                wrapped[-1] = wrapped[-1][:-1]
            wrapped[-1] += "..."
        for line in wrapped:
            self._draw.text((left, top), line, font=font, fill=fill)
            top += _LINE
        return top


def _wrap(text: str, font: PIL.ImageFont.FreeTypeFont, width: int) -> list[str]:
    """Lines no wider than `width` pixels; broken at blanks, or within a word that is too long."""
    characters = max(4, int(width / max(1.0, font.getlength(text) / max(1, len(text)))))
    while characters > 1:
        lines = textwrap.wrap(text, characters)
        if all(font.getlength(line) <= width for line in lines):
            return lines
        characters -= 1
    return list(text)


class _Fonts:
    """The font for a text: what fontconfig says covers its characters best."""

    def __init__(self) -> None:
        self.notes: list[str] = []
        self._tool = shutil.which("fc-match")
        self._known: dict[frozenset[str], PIL.ImageFont.FreeTypeFont] = {}

    def note(self, line: str) -> None:
        if line not in self.notes:
            self.notes.append(line)

    def of(self, text: str) -> PIL.ImageFont.FreeTypeFont:
        """The font to draw a text with."""
        foreign = [one for one in text if ord(one) > _PLAIN and one.isprintable()]
        scripts = frozenset(unicodedata.name(one, "unknown").split()[0].lower() for one in foreign)
        if scripts not in self._known:
            found = self._ask(text) if scripts else None
            if scripts and found is None:
                self.note(
                    f"no font for {', '.join(sorted(scripts))} characters was found through "
                    "fontconfig (fc-match): texts with them are not drawn as they should be"
                )
            plain = PIL.ImageFont.load_default(_SIZE)
            assert isinstance(plain, PIL.ImageFont.FreeTypeFont)
            self._known[scripts] = plain if found is None else found
        return self._known[scripts]

    def _ask(self, text: str) -> PIL.ImageFont.FreeTypeFont | None:
        if self._tool is None:
            return None
        characters = " ".join(f"{ord(one):x}" for one in sorted(set(text)) if one.isprintable())
        asked = [self._tool, "-f", "%{file}\n%{index}", f"sans:charset={characters}"]
        told = subprocess.run(asked, capture_output=True, text=True, check=False).stdout
        file, _, index = told.partition("\n")
        try:
            return PIL.ImageFont.truetype(file, _SIZE, index=int(index or 0) & 0xFFFF)
        except (OSError, ValueError):  # a font of bitmaps, as of emoji, or none at all
            return None
