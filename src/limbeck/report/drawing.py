"""What the charts of the report share: style, colours, lines of methods with their names, and the SVG.

A chart is drawn with stand-in colours that are then replaced by `currentColor` and the page's CSS variables,
so that one drawing serves light and dark mode. A drawing holds no text from the spec: what names it stands in
the page.
"""

from __future__ import annotations

import io
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from itertools import pairwise
from typing import Any

import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from limbeck.report.evaluation import METHOD_NAMES

# At 72 dots per inch a point of matplotlib is a unit of the SVG: about a CSS pixel on a phone.
DPI = 72
WIDTH = 360
_FONT_SIZE = 12.5

_SHORT_NAMES = METHOD_NAMES | {
    "fullSsl": "Full, SSL",
    "facilityLocation": "Facility loc.",
    "kCenter": "k-centre",
    "highLoss": "Highest loss",
    "random": "Random",
    "start": "Start",
    "none": "Untrained",
}
_MARKERS = {
    "full": "s",
    "fullSsl": "P",
    "distilled": "o",
    "start": "p",
    "facilityLocation": "X",
    "kCenter": "h",
    "highLoss": "^",
    "random": "D",
    "none": "v",
}

_STAND_INS = {
    css: f"#0a0b{i:02x}"
    for i, css in enumerate(
        [
            "currentColor",
            "var(--rule)",
            "var(--muted)",
            "var(--accent)",
            *(f"var(--{m})" for m in METHOD_NAMES),
        ],
        1,
    )
}
_INK, _RULE, MUTED, ACCENT, *_ = _STAND_INS.values()

STYLE = {
    "svg.fonttype": "none",
    "svg.hashsalt": "limbeck",
    "font.size": _FONT_SIZE,
    "text.color": _INK,
    "text.parse_math": False,
    "axes.edgecolor": MUTED,
    "axes.labelcolor": _INK,
    "axes.linewidth": 0.8,
    "axes.spines.top": False,
    "axes.spines.right": False,
    "axes.spines.left": False,
    "axes.grid": True,
    "axes.grid.axis": "y",
    "axes.axisbelow": True,
    "grid.color": _RULE,
    "grid.linewidth": 0.8,
    "xtick.color": MUTED,
    "ytick.color": MUTED,
    "xtick.labelcolor": _INK,
    "ytick.labelcolor": _INK,
    "ytick.major.size": 0,
    "lines.linewidth": 1.6,
}


@dataclass(frozen=True)
class Chart:
    """An SVG drawing.

    Attributes:
        name: Unique within the page; every id within the drawing begins with it.
        title: What a screen reader says.
        view_box: The SVG's viewBox.
        body: What stands within the <svg> element. Holds no text from outside this module.
    """

    name: str
    title: str
    view_box: str
    body: str


def short_name(method: str) -> str:
    """What a chart calls a method; `Other` for one that the report does not know."""
    return _SHORT_NAMES.get(method, "Other")


def error_bars(
    axes: Axes,
    x: Sequence[float],
    y: Sequence[float],
    method: str,
    *,
    xerr: Sequence[float] | None = None,
    yerr: Sequence[float] | None = None,
) -> None:
    """A method's line; one that the report does not know is drawn in the muted colour."""
    axes.errorbar(
        x,
        y,
        xerr=xerr,
        yerr=yerr,
        color=color_of(method),
        marker=_MARKERS.get(method, "x"),
        markersize=5.5,
        linewidth=2.4 if method == "distilled" else 1.4,
        linestyle="--" if method in ("full", "none") else "-",
        elinewidth=1.1,
        capsize=2.5,
        zorder=4 if method == "distilled" else 3,
    )


def label_lines(
    axes: Axes,
    methods: Sequence[str],
    last_points: Sequence[tuple[float, float]],
    marks: Mapping[str, str] | None = None,
) -> None:
    """Name each line at its right end, moved apart where the ends lie close, with a thin line to the end.

    Args:
        axes: With a logarithmic x axis.
        methods: One a line.
        last_points: The right end of each line.
        marks: What to append to a method's name.
    """
    marks = marks or {}
    low, high = axes.get_ylim()
    right = axes.get_xlim()[1]
    x_label = right * (right / axes.get_xlim()[0]) ** 0.05
    heights = spread([y for _, y in last_points], gap=0.075 * (high - low), high=high)
    for method, (x, y), height in zip(methods, last_points, heights, strict=True):
        axes.plot([x, x_label], [y, height], color=color_of(method), linewidth=0.7, alpha=0.6, clip_on=False)
        axes.text(
            x_label * (right / axes.get_xlim()[0]) ** 0.012,
            height,
            short_name(method) + marks.get(method, ""),
            color=color_of(method),
            verticalalignment="center_baseline",
            fontweight="bold" if method == "distilled" else "normal",
        )


def spread(positions: Sequence[float], gap: float, high: float) -> list[float]:
    """The positions moved apart to at least `gap`, in the same order, and none above `high`."""
    ascending = sorted(range(len(positions)), key=lambda i: positions[i])
    placed = list(positions)
    for before, after in pairwise(ascending):
        placed[after] = max(placed[after], placed[before] + gap)
    ceiling = high
    for i in reversed(ascending):
        placed[i] = min(placed[i], ceiling)
        ceiling = placed[i] - gap
    return placed


def apart(values: Sequence[float], decades: float) -> list[float]:
    """The ascending values without those so close to the one before that their tick labels would touch."""
    kept = [values[0]]
    for candidate in values[1:]:
        if np.log10(candidate / kept[-1]) >= decades:
            kept.append(candidate)
    return kept


def color_of(method: str) -> str:
    """The stand-in of a method's colour; the muted one for a method that the report does not know."""
    return _STAND_INS.get(f"var(--{method})", MUTED)


def axes_within(figure: Figure, *, left: float, right: float, bottom: float, top: float) -> Axes:
    """Axes with margins in units of the SVG: fixed, so that the layout rests on no font's measures."""
    width, height = figure.get_size_inches() * DPI
    return figure.add_axes(
        (left / width, bottom / height, (width - left - right) / width, (height - bottom - top) / height)
    )


def name_y_axis(axes: Axes, name: str) -> None:
    """The y axis' name, level and above the axis, where it is read without turning the head."""
    axes.annotate(
        name,
        xy=(0, 1),
        xycoords=("figure fraction", "axes fraction"),
        xytext=(0, 12),
        textcoords="offset points",
        verticalalignment="bottom",
    )


def view_box_of(figure: Figure) -> str:
    """The figure's size as an SVG's viewBox."""
    width, height = figure.get_size_inches() * DPI
    return f"0 0 {width:g} {height:g}"


def svg_body(figure: Figure, name: str) -> str:
    """The figure as the content of an <svg> element, in the page's colours and font, with ids of its own."""
    file = io.StringIO()
    nothing: dict[str, Any] = {"Creator": None, "Date": None, "Format": None, "Type": None}
    figure.savefig(file, format="svg", transparent=True, metadata=nothing)
    svg = file.getvalue()
    body = svg[svg.index(">", svg.index("<svg")) + 1 : svg.rindex("</svg>")]
    body = re.sub(r"<defs>\s*<style.*?</style>\s*</defs>", "", body, flags=re.DOTALL)
    body = re.sub(r" font-family: [^;\"]*;?", "", body)
    body = re.sub(r'\bid="', f'id="{name}-', body)
    body = re.sub(r'xlink:href="#', f'href="#{name}-', body)
    body = body.replace("url(#", f"url(#{name}-")
    for css, stand_in in _STAND_INS.items():
        body = body.replace(stand_in, css)
    return re.sub(r"\s*\n\s*", "\n", body).strip()
