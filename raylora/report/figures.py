"""How pictures look, and what a picture is: a drawing with a title, words for who cannot see it, and its data as a table."""

from __future__ import annotations

import base64
import io
from collections.abc import Callable
from dataclasses import dataclass
from itertools import cycle, islice

import matplotlib as mpl
import numpy as np
from matplotlib.axes import Axes
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure
from PIL import Image

from raylora.report.table import Table

DPI, CSS_DPI = 150, 100
MARKERS = ("o", "s", "^", "D", "v", "P", "X")
STRUCTURE_COLOURS = {"MYO": "#3DDC97", "LV": "#E69F00", "RV": "#56B4E9"}


@dataclass(frozen=True)
class Theme:
    """Paper, ink and lines. Line colours are Okabe and Ito's (told apart by colour-blind eyes), without yellow and black, which vanish on
    paper or in ink; on dark paper the same hues are lighter."""

    paper: str
    ink: str
    faint: str
    lines: tuple[str, ...]


LIGHT = Theme("#ffffff", "#1f2328", "#d8dee4", ("#0072B2", "#E69F00", "#009E73", "#D55E00", "#56B4E9", "#CC79A7", "#7A7A7A"))
DARK = Theme("#161b22", "#e6edf3", "#3d444d", ("#4DA3E0", "#F0B23E", "#2CC79A", "#FF8A4C", "#A5D8F5", "#E5A0C5", "#A9B1BA"))


@dataclass(frozen=True)
class Picture:
    """One figure of a report; `name` is its file's, `data` what it shows. On a page in the dark a light one is turned (page.css): its paper
    becomes the page's, its hues stay. A dark one, as images need it, is the same everywhere."""

    name: str
    title: str
    alt: str
    draw: Callable[[Theme], Figure]
    data: Table
    theme: Theme = LIGHT


def figure(
    theme: Theme, width: float = 7.5, height: float = 3.6, *, rows: int = 1, columns: int = 1, **grid: object
) -> tuple[Figure, list[Axes]]:
    """A figure and its axes, row by row, in a theme."""
    with mpl.rc_context(_settings(theme)):
        made = Figure(figsize=(width, height), layout="constrained", facecolor=theme.paper)
        FigureCanvasAgg(made)
        return made, list(made.subplots(rows, columns, squeeze=False, **grid).ravel())


def png(picture: Picture) -> bytes:
    """The picture as a PNG of 256 colours (a third of the size), without anything that changes from one day to the next."""
    with mpl.rc_context(_settings(picture.theme)):
        made = picture.draw(picture.theme)
        made.set_dpi(DPI)
        made.canvas.draw()
    image = Image.fromarray(np.asarray(made.canvas.buffer_rgba())[..., :3])  # type: ignore[attr-defined]
    small = io.BytesIO()
    image.quantize(256, dither=Image.Dither.NONE).save(small, format="png")
    return small.getvalue()


def data_uri(image: bytes) -> str:
    return "data:image/png;base64," + base64.b64encode(image).decode("ascii")


def shown_width(image: bytes) -> int:
    """How wide a PNG of `png` is shown, in CSS pixels: finer than a plain screen, for screens that are."""
    return round(int.from_bytes(image[16:20], "big") * CSS_DPI / DPI)


def colours(theme: Theme, count: int) -> list[str]:
    return list(islice(cycle(theme.lines), count))


def markers(count: int) -> list[str]:
    """Markers beside colours, so that lines are told apart without them; they shift once colours repeat."""
    return [MARKERS[(i + i // len(MARKERS)) % len(MARKERS)] for i in range(count)]


def legend_outside(axes: Axes, title: str | None = None) -> None:
    """A legend to the right of the axes."""
    axes.legend(title=title, loc="upper left", bbox_to_anchor=(1.01, 1.0), borderaxespad=0, frameon=False, alignment="left")


def _settings(theme: Theme) -> dict[str, object]:
    return {
        "font.size": 9.0,
        "font.family": "DejaVu Sans",
        "axes.titlesize": 10.0,
        "axes.titlelocation": "left",
        "axes.titleweight": "bold",
        "axes.spines.top": False,
        "axes.spines.right": False,
        "axes.edgecolor": theme.ink,
        "axes.labelcolor": theme.ink,
        "axes.titlecolor": theme.ink,
        "axes.facecolor": theme.paper,
        "axes.grid": True,
        "axes.axisbelow": True,
        "grid.color": theme.faint,
        "grid.linewidth": 0.6,
        "text.color": theme.ink,
        "xtick.color": theme.ink,
        "ytick.color": theme.ink,
        "figure.facecolor": theme.paper,
        "savefig.facecolor": theme.paper,
        "lines.linewidth": 1.6,
        "lines.markersize": 4.5,
        "legend.fontsize": 8.5,
    }
