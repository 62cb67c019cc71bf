"""How the report writes what it shows: shares, times, counts, tasks and small pictures."""

import base64
import io
from pathlib import Path

import PIL.Image

from marvel_jax.data.images import ImageError, load_image
from marvel_jax.data.items import Image, Item, Video, Visual
from marvel_jax.data.video import first_frame
from marvel_jax.data.video_file import require_pyav
from marvel_jax.retrieval.metrics import Interval

THUMBNAIL = 96  # pixels: sixteen sets of four examples stay far below 3 MB

MINUS = "\N{MINUS SIGN}"

MODALITY_TITLES = {"image": "pictures", "text": "words", "image,text": "pictures with words"}

TASK_TITLES = {
    "t->i": ("Words", "picture"),
    "t->t": ("Words", "words"),
    "t->(i,t)": ("Words", "picture with words"),
    "i->t": ("Picture", "words"),
    "i->i": ("Picture", "picture"),
    "(i,t)->t": ("Picture + words", "words"),
    "(i,t)->i": ("Picture + words", "picture"),
    "(i,t)->(i,t)": ("Picture + words", "picture with words"),
}


def picture(visual: Visual) -> str | None:
    """A picture as a data: URI, at most THUMBNAIL pixels a side; a video's first frame stands for
    it. None where it cannot be read: an evaluation tolerates some, and its report says so.

    Raises:
      MarvelError: a video's file, and PyAV is not installed.
    """
    if isinstance(visual, Video) and isinstance(visual.source, str | Path | bytes):
        require_pyav()
    try:
        still = Image(first_frame(visual)) if isinstance(visual, Video) else visual
        thumbnail = load_image(still).copy()
    except ImageError:
        return None
    thumbnail.thumbnail((THUMBNAIL, THUMBNAIL), PIL.Image.Resampling.LANCZOS)
    stream = io.BytesIO()
    thumbnail.save(stream, "WEBP", quality=88, method=4)
    return f"data:image/webp;base64,{base64.b64encode(stream.getvalue()).decode()}"


def pictures(item: Item) -> list[Visual]:
    """The item's pictures and videos."""
    return list(item.visuals)


def texts(item: Item) -> list[str]:
    """The item's texts."""
    return [part for part in item.parts if isinstance(part, str)]


def alt(image: Visual) -> str:
    """What stands for a picture or a video: its file's name."""
    if isinstance(image.source, str | Path):
        return Path(image.source).stem
    return Path(image.name).stem if image.name else "picture"


def percent(value: float) -> str:
    """A share for reading: 61.3%, 0.04%, 100%."""
    share = 100 * value
    if share >= 99.95:
        return "100%"
    if share == 0:
        return "0%"
    return f"{share:.1f}%" if share >= 1 else f"{share:.2g}%"


def span(interval: Interval) -> str:
    """An interval of shares: 58.1-64.5%."""
    low, high = percent(interval.low), percent(interval.high)
    return f"{low.removesuffix('%')}\N{EN DASH}{high}"


def duration(seconds: float) -> str:
    """Hours and minutes, or minutes and seconds."""
    minutes, rest = divmod(round(seconds), 60)
    hours, minutes = divmod(minutes, 60)
    if hours:
        return f"{hours} h {minutes} min"
    return f"{minutes} min {rest} s" if minutes else f"{rest} s"


def count(number: float) -> str:
    """A number with its thousands apart."""
    return f"{number:,.0f}" if float(number).is_integer() else f"{number:g}"


def milli(value: float) -> str:
    """Milliseconds, three digits."""
    return f"{value:.3g} ms"


def points(value: float) -> str:
    """A difference of two shares in percentage points: +1.2, -0.3, 0."""
    rounded = round(100 * value, 1)
    if rounded == 0:
        return "0"
    return f"{rounded:+.1f}".replace("-", MINUS)


def points_span(interval: Interval) -> str:
    """The interval of a difference: -0.3 to +1.2."""
    low, high = points(interval.low), points(interval.high)
    return low if low == high else f"{low} to {high}"


def probability(value: float) -> str:
    """A p-value: 0.23, 0.0031, below 0.0001."""
    if value < 1e-4:
        return "<0.0001"
    return f"{value:.2g}" if value < 0.995 else "1"


def size(gigabytes: float) -> str:
    """17.2 GB, 20.6 MB."""
    return f"{gigabytes:.3g} GB" if gigabytes >= 1 else f"{1000 * gigabytes:.3g} MB"


def modality(name: str) -> str:
    """M-BEIR's modality in a reader's words."""
    return MODALITY_TITLES.get(name, name)
