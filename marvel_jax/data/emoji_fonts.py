"""The two typefaces of the emoji corpus: finding them, and drawing one emoji as one picture."""

import io
import os
import shutil
import subprocess
import sys
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import PIL.Image
import PIL.ImageDraw
import PIL.ImageFont
from PIL import features

from marvel_jax.errors import MarvelError
from marvel_jax.files import hash_files

FONT_DIR_VARIABLE = "MARVEL_FONT_DIR"
PICTURE_SIZE = 128  # pixels a side, as the colour font's own bitmaps are 136 x 128

# The colour font holds bitmaps of this size only; any other size is refused by FreeType.
_COLOUR_SIZE = 109
_DRAWING_SIZE = 96
# Drawn by no font: its glyph is the "missing glyph" of whichever font is asked.
_UNASSIGNED = "\U0010ffff"
_VARIATION = "\ufe0f"


@dataclass(frozen=True)
class FontFiles:
    """Where the colour font (Noto Color Emoji, bitmaps) and the line font (Symbola) lie."""

    colour: Path
    drawing: Path

    def hashes(self) -> dict[str, str]:
        """The content hash of each file, by file name."""
        return {path.name: hash_files(path) for path in (self.colour, self.drawing)}


def find_fonts() -> FontFiles:
    """The two font files, from MARVEL_FONT_DIR, the checkout's .cache/fonts or the system.

    Raises:
      MarvelError: MARVEL_FONT_DIR is not a folder, or a font is nowhere; the message says what to
        install and where a file may be put.
    """
    return FontFiles(
        colour=_find("Noto Color Emoji", ("NotoColorEmoji.ttf",), "fonts-noto-color-emoji"),
        drawing=_find("Symbola", ("Symbola_hint.ttf", "Symbola.ttf"), "fonts-symbola"),
    )


def _find(title: str, names: tuple[str, ...], package: str) -> Path:
    searched = []
    for folder in _folders():
        searched.append(str(folder))
        for name in names:
            direct = folder / name
            if direct.is_file():
                return direct
            found = sorted(folder.rglob(name))
            if found:
                return found[0]
    found_by_tool = _ask_fontconfig(names)
    if found_by_tool is not None:
        return found_by_tool
    raise MarvelError(
        f"The font {title} ({' or '.join(names)}) was not found. On Debian or Ubuntu: "
        f"apt-get install {package}. Elsewhere put the file into .cache/fonts of the checkout, "
        f"or into a folder named by {FONT_DIR_VARIABLE}. Searched: {', '.join(searched)}."
    )


def _folders() -> Iterator[Path]:
    override = os.environ.get(FONT_DIR_VARIABLE)
    if override:
        for part in override.split(os.pathsep):
            if not Path(part).is_dir():
                raise MarvelError(f"{FONT_DIR_VARIABLE} names {part}, which is not a folder.")
            yield Path(part)
    home = Path.home()
    usual = [
        Path(__file__).parents[2] / ".cache" / "fonts",
        Path.cwd() / ".cache" / "fonts",
        home / ".local" / "share" / "fonts",
        home / ".fonts",
        Path("/usr/share/fonts"),
        Path("/usr/local/share/fonts"),
    ]
    if sys.platform == "darwin":
        usual += [home / "Library" / "Fonts", Path("/Library/Fonts")]
    for folder in dict.fromkeys(usual):
        if folder.is_dir():
            yield folder


def _ask_fontconfig(names: tuple[str, ...]) -> Path | None:
    """Fontconfig knows folders that are not among the usual ones (Nix, Guix, a user's own)."""
    tool = shutil.which("fc-list")
    if tool is None:
        return None
    listing = subprocess.run(
        [tool, "--format=%{file}\n"], capture_output=True, text=True, check=False
    ).stdout
    for line in listing.splitlines():
        if Path(line).name in names and Path(line).is_file():
            return Path(line)
    return None


@dataclass(frozen=True)
class Undrawable:
    """Why an emoji has no picture: `missing` (no glyph) or `apart` (several glyphs for one)."""

    reason: str


class Painter:
    """Draws emoji with the two fonts, 128 x 128 RGB on white.

    Not thread-safe (FreeType faces are not); encode the pictures elsewhere if time matters.

    Raises:
      MarvelError: Pillow lacks Raqm (without it sequences fall apart), or a font cannot be opened.
    """

    def __init__(self, fonts: FontFiles) -> None:
        if not features.check("raqm"):
            raise MarvelError(
                "This Pillow has no Raqm, without which emoji sequences are drawn as several "
                "pictures. Install Pillow from its wheel: pip install --force-reinstall pillow."
            )
        self._colour = _open(fonts.colour, _COLOUR_SIZE)
        self._drawing = _open(fonts.drawing, _DRAWING_SIZE)
        self._advance = self._colour.getlength("\U0001f600")
        self._blank = self._colour.getbbox(_UNASSIGNED)
        self._no_glyph = _shape(self._drawing, _UNASSIGNED)

    def picture(self, sequence: str) -> PIL.Image.Image | Undrawable:
        """The colour picture of one emoji, or why there is none."""
        # Every glyph of the font is equally wide, so a wider text is more than one glyph: the
        # font does not know the sequence and shows its members side by side.
        if self._colour.getlength(sequence) > 1.1 * self._advance:
            return Undrawable("apart")
        box = self._colour.getbbox(sequence)
        if box == self._blank or box[2] <= box[0] or box[3] <= box[1]:
            return Undrawable("missing")
        glyph = PIL.Image.new("RGB", (round(box[2] - box[0]), round(box[3] - box[1])), "white")
        pen = PIL.ImageDraw.Draw(glyph)
        pen.text((-box[0], -box[1]), sequence, font=self._colour, embedded_color=True)
        return _fit(glyph)

    def drawing(self, sequence: str) -> PIL.Image.Image | Undrawable:
        """The line drawing (black on white) of an emoji that is a single code point."""
        character = sequence.replace(_VARIATION, "")
        if len(character) != 1:
            return Undrawable("apart")
        shape = _shape(self._drawing, character)
        if shape == self._no_glyph or not any(shape[1]):
            return Undrawable("missing")
        box = self._drawing.getbbox(character)
        glyph = PIL.Image.new("RGB", (round(box[2] - box[0]), round(box[3] - box[1])), "white")
        pen = PIL.ImageDraw.Draw(glyph)
        pen.text((-box[0], -box[1]), character, font=self._drawing, fill="black")
        return _fit(glyph)


def encode_png(picture: PIL.Image.Image) -> bytes:
    """The picture as a PNG file's bytes. Level 3: 1.8 times as fast as 6 for 6% more bytes."""
    stream = io.BytesIO()
    picture.save(stream, "PNG", compress_level=3)
    return stream.getvalue()


def _open(path: Path, size: int) -> PIL.ImageFont.FreeTypeFont:
    try:
        # From memory: given a path that it cannot read, Pillow takes another file of that name.
        content = io.BytesIO(path.read_bytes())
        return PIL.ImageFont.truetype(content, size, layout_engine=PIL.ImageFont.Layout.RAQM)
    except OSError as error:
        raise MarvelError(
            f"{path} cannot be opened as a font of {size} pixels ({error}). Noto Color Emoji must "
            f"be the bitmap build that Debian's fonts-noto-color-emoji holds."
        ) from error


def _shape(font: PIL.ImageFont.FreeTypeFont, text: str) -> tuple[tuple[int, int], bytes]:
    mask = font.getmask(text)
    return mask.size, bytes(mask)


def _fit(glyph: PIL.Image.Image) -> PIL.Image.Image:
    """Scaled down if it is larger than the canvas, never up, and centred on white."""
    scale = min(1.0, PICTURE_SIZE / glyph.width, PICTURE_SIZE / glyph.height)
    if scale < 1:
        size = (max(1, round(glyph.width * scale)), max(1, round(glyph.height * scale)))
        glyph = glyph.resize(size, PIL.Image.Resampling.LANCZOS)
    canvas = PIL.Image.new("RGB", (PICTURE_SIZE, PICTURE_SIZE), "white")
    corner = ((PICTURE_SIZE - glyph.width) // 2, (PICTURE_SIZE - glyph.height) // 2)
    canvas.paste(glyph, corner)
    return canvas
