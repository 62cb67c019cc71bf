"""The look of a study's plots, and how they are saved: PNG and SVG, for screens, print and grey."""

import contextlib
import importlib
import io
import itertools
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any
from urllib.parse import quote

from numpy.typing import ArrayLike

from marvel_jax.errors import MarvelError
from marvel_jax.studies.series import short
from marvel_jax.studies.trial import Trial

# Okabe and Ito's colours, which people of every kind of sight tell apart (2008), without the
# yellow that paper swallows; a marker, a line and a hatching each, so that grey print does too.
COLOURS = ("#0072B2", "#D55E00", "#009E73", "#CC79A7", "#56B4E9", "#000000")
MARKERS = ("o", "s", "^", "D", "v", "P")
LINES = ("-", "--", "-.", ":", (0, (5, 1, 1, 1, 1, 1)), (0, (8, 2)))
HATCHES = ("", "////", "....", "xxxx", "\\\\\\\\", "++++")
AT_ONCE = len(COLOURS)
"""How many curves one plot holds."""

INK, GRID = "#1d1b26", "#d9d6cd"
_STYLE = {
    "figure.figsize": (6.4, 4.2),
    "figure.dpi": 100,
    "figure.constrained_layout.use": True,
    "font.family": "DejaVu Sans",
    "font.size": 10,
    "axes.edgecolor": INK,
    "axes.labelcolor": INK,
    "axes.spines.top": False,
    "axes.spines.right": False,
    "axes.grid": True,
    "axes.axisbelow": True,
    "grid.color": GRID,
    "grid.linewidth": 0.7,
    "legend.frameon": False,
    "legend.fontsize": 8.5,
    "lines.linewidth": 1.8,
    "lines.markersize": 6,
    # The same plot has the same bytes, and two of them on a page do not share names.
    "svg.hashsalt": "marvel-jax",
    "svg.fonttype": "path",
    "text.parse_math": False,  # a name with a $ is a name
}
_DPI = 160


def load() -> Any:
    """Matplotlib.

    Raises:
      MarvelError: it is not installed; the message names the extra.
    """
    try:
        return importlib.import_module("matplotlib")
    except ImportError as error:
        raise MarvelError(
            "The plots of a study need matplotlib, which is not installed: pip install "
            "'marvel-jax[studies]' (in a checkout: -e '.[studies]')."
        ) from error


@contextlib.contextmanager
def plot(folder: Path, name: str) -> Iterator[Any]:
    """Yields the axes of a new plot, and saves it as NAME.png and NAME.svg."""
    matplotlib = load()
    figures = importlib.import_module("matplotlib.figure")
    with matplotlib.rc_context(_STYLE | {"svg.hashsalt": name}):
        figure = figures.Figure()
        yield figure.add_subplot()
        for kind, options in (("png", {"dpi": _DPI}), ("svg", {"metadata": {"Date": None}})):
            stream = io.BytesIO()
            figure.savefig(stream, format=kind, **options)
            (folder / f"{name}.{kind}").write_bytes(stream.getvalue())


def run_url(trial: Trial) -> str | None:
    """The link from the report to a trial's run; None where it has none of its own.

    A folder that would lead out of the study's is not linked to.
    """
    parts = Path(trial.folder).parts
    if not trial.folder or Path(trial.folder).is_absolute() or ".." in parts:
        return None
    return f"../{quote(Path(trial.folder).as_posix())}/"


def scatter(axes: Any, x: ArrayLike, y: ArrayLike, trials: Sequence[Trial], **look: Any) -> None:
    """Points that link to their runs."""
    drawn = axes.scatter(x, y, **look)
    drawn.set_urls([run_url(trial) for trial in trials])


def log_x(axes: Any, values: Sequence[float], label: str) -> None:
    """A logarithmic x axis with plain numbers, at the values themselves where they are few."""
    _log(axes.set_xscale, axes.xaxis, values)
    axes.set_xlabel(label)


def log_y(axes: Any, values: Sequence[float], label: str) -> None:
    """The same of y."""
    _log(axes.set_yscale, axes.yaxis, values)
    axes.set_ylabel(label)


def _log(set_scale: Any, axis: Any, values: Sequence[float]) -> None:
    ticker = importlib.import_module("matplotlib.ticker")
    set_scale("log")
    distinct = sorted(set(values))
    if len(distinct) <= 9 and _apart(distinct):
        axis.set_major_locator(ticker.FixedLocator(distinct))
    else:
        axis.set_major_locator(ticker.LogLocator(subs=(1, 2, 5), numticks=9))
    axis.set_minor_locator(ticker.NullLocator())
    axis.set_major_formatter(ticker.FuncFormatter(lambda value, _: short(float(f"{value:.9g}"))))


def _apart(values: Sequence[float]) -> bool:
    """Whether labels at these places would not run into each other."""
    if len(values) < 2:
        return True
    whole = values[-1] / values[0]
    return all(high / low >= whole ** (1 / 14) for low, high in itertools.pairwise(values))
