"""Style of all figures: colours, common marks, fonts, and reproducible files.

    figure, (axes,) = canvas("Title")
    Picture("name", "Title", caption, alt, figure).encode("svg")

Colours are those of Okabe and Ito (2008), which colour-blind people can distinguish; every series
also has its own line style, marker or hatch, for print in grey. Equal pictures give equal bytes.
"""

from __future__ import annotations

import io
import re
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Literal, final

from noisescope.scoring.metrics import Interval

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure
    from matplotlib.legend import Legend


def whisker(axes: Axes, at: float, interval: Interval) -> None:
    """Draw a vertical 90% interval at x = `at`."""
    below, above = interval.estimate - interval.low, interval.high - interval.estimate
    axes.errorbar(
        at, interval.estimate, [[below], [above]], color=INK, capsize=2.5, linewidth=1, capthick=1
    )


def base_line(axes: Axes, base: float) -> None:
    """Draw and label the share in a random selection."""
    axes.axhline(base, color=INK, linewidth=1.1, linestyle=(0, (5, 3)), zorder=3)
    axes.annotate(
        f"base rate {base:.0%}",
        (0, base),
        (2, 3),
        xycoords=("axes fraction", "data"),
        textcoords="offset points",
        ha="left",
        fontsize=8,
        color=INK,
        bbox={"facecolor": PAPER, "edgecolor": "none", "pad": 1.0, "alpha": 0.85},
        zorder=4,
    )


INK = "#1f2430"
FAINT = "#6b7280"
RULE = "#e4e6ea"
PAPER = "#fdfdfc"
BLUE = "#0072b2"
ORANGE = "#e69f00"
VERMILLION = "#d55e00"
GREEN = "#009e73"
PURPLE = "#cc79a7"
SKY = "#56b4e9"

#: (colour, line style, marker) of the n-th series.
SERIES = (
    (BLUE, "-", "o"),
    (VERMILLION, "--", "s"),
    (GREEN, "-.", "^"),
    (PURPLE, ":", "D"),
    (ORANGE, (0, (6, 2, 1, 2, 1, 2)), "v"),
    (SKY, (0, (3, 1)), "P"),
)

#: The same figure on a dark page.
DARK = {
    INK: "#e6e7ea",
    FAINT: "#a0a6b1",
    RULE: "#343944",
    PAPER: "#1b1e25",
    BLUE: "#56a8e0",
    VERMILLION: "#f0803c",
    GREEN: "#35c49a",
}

WIDTH, HEIGHT = 6.4, 3.9

_SETTINGS: dict[Any, Any] = {
    "font.family": "DejaVu Sans",
    "font.size": 9,
    "axes.titlesize": 10.5,
    "axes.titleweight": "bold",
    "axes.titlelocation": "left",
    "axes.titlepad": 12,
    "axes.labelsize": 9,
    "axes.labelcolor": INK,
    "axes.edgecolor": FAINT,
    "axes.linewidth": 0.8,
    "axes.spines.top": False,
    "axes.spines.right": False,
    "axes.facecolor": PAPER,
    "axes.axisbelow": True,
    "axes.grid": True,
    "axes.grid.axis": "y",
    "axes.titlecolor": INK,
    "grid.color": RULE,
    "grid.linewidth": 0.8,
    "text.color": INK,
    "xtick.color": FAINT,
    "ytick.color": FAINT,
    "xtick.labelcolor": INK,
    "ytick.labelcolor": INK,
    "xtick.labelsize": 8,
    "ytick.labelsize": 8,
    "legend.frameon": False,
    "legend.fontsize": 8,
    "lines.linewidth": 1.8,
    "lines.markersize": 5,
    "hatch.linewidth": 0.6,
    "figure.facecolor": PAPER,
    "savefig.facecolor": PAPER,
    "svg.fonttype": "path",
    "svg.hashsalt": "noisescope",
    "path.simplify": True,
}


@final
@dataclass(frozen=True)
class Picture:
    """A figure with its file name, title, caption, and text alternative."""

    name: str
    title: str
    caption: str
    alt: str
    figure: Figure

    def encode(self, kind: Literal["png", "svg"]) -> bytes:
        """Encode the figure as a file; equal pictures give equal bytes."""
        import matplotlib as mpl
        from matplotlib.colors import to_hex
        from matplotlib.text import Text

        sink = io.BytesIO()
        metadata = {"Date": None, "Creator": None} if kind == "svg" else {"Software": None}
        with mpl.rc_context({**_SETTINGS, "svg.hashsalt": self.name}):
            if (
                self.figure.get_layout_engine() is not None
            ):  # lay out once: each pass shifts a little
                for text in self.figure.findobj(Text):
                    if to_hex(text.get_color()) == "#000000":  # made without this style
                        text.set_color(INK)
                self.figure.draw_without_rendering()
                self.figure.set_layout_engine("none")
            self.figure.savefig(sink, format=kind, dpi=160, metadata=metadata)
        return sink.getvalue()


def canvas(
    title: str, *, rows: int = 1, height: float = HEIGHT, ratios: tuple[float, ...] = (1,)
) -> tuple[Figure, list[Axes]]:
    """Make a figure in this style with `rows` axes on a shared x axis, the title on the first."""
    import matplotlib as mpl
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    with mpl.rc_context(_SETTINGS):
        figure = Figure(figsize=(WIDTH, height), layout="constrained")
        FigureCanvasAgg(figure)
        grid = figure.subplots(
            rows, 1, sharex=rows > 1, squeeze=False, gridspec_kw={"height_ratios": ratios}
        )
        axes = list(grid[:, 0])
        axes[0].set_title(title)
    return figure, axes


def legend(axes: Axes, **where: Any) -> Legend:
    """Add a legend without a frame, with handles long enough to distinguish line styles."""
    return axes.legend(
        frameon=False, fontsize=8, title_fontsize=8, handlelength=3.2, labelcolor=INK, **where
    )


def percent(axes: Axes, *, x: bool = False, decimals: int = 0) -> None:
    from matplotlib.ticker import PercentFormatter

    (axes.xaxis if x else axes.yaxis).set_major_formatter(PercentFormatter(1.0, decimals=decimals))


def dark(svg: bytes) -> bytes:
    """Recolour an SVG for a dark page."""
    text = svg.decode()
    pattern = re.compile("|".join(map(re.escape, DARK)))
    return pattern.sub(lambda match: DARK[match.group()], text).encode()


def thin(count: int, most: int) -> slice:
    """Return a slice of every k-th of `count` points, at most `most` of them."""
    return slice(None, None, max(1, -(-count // most)))
