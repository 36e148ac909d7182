"""The charts of the report, drawn by matplotlib as SVG that takes its colours from the page.

A chart is drawn with stand-in colours that are then replaced by `currentColor` and the page's CSS variables,
so that one drawing serves light and dark mode. A drawing holds no text from the spec: what names it stands in
the page.
"""

from __future__ import annotations

import io
import re
from collections.abc import Sequence
from dataclasses import dataclass
from itertools import pairwise
from typing import Any

import numpy as np
import numpy.typing as npt
from matplotlib import style
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import FixedLocator, FuncFormatter, MaxNLocator, NullFormatter, NullLocator

from limbeck.report.data import Floats
from limbeck.report.evaluation import METHOD_NAMES, Setting
from limbeck.report.wording import NO_BREAK, fraction, number

# At 72 dots per inch a point of matplotlib is a unit of the SVG: about a CSS pixel on a phone.
_DPI = 72
_WIDTH = 360
_FONT_SIZE = 12.5

_SHORT_NAMES = METHOD_NAMES | {
    "fullSsl": "Full, SSL",
    "facilityLocation": "Facility loc.",
    "kCenter": "k-centre",
    "highLoss": "Highest loss",
    "random": "Random",
    "none": "Untrained",
}
_MARKERS = {
    "full": "s",
    "fullSsl": "P",
    "distilled": "o",
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
_INK, _RULE, _MUTED, _ACCENT, *_ = _STAND_INS.values()

_STYLE = {
    "svg.fonttype": "none",
    "svg.hashsalt": "limbeck",
    "font.size": _FONT_SIZE,
    "text.color": _INK,
    "text.parse_math": False,
    "axes.edgecolor": _MUTED,
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
    "xtick.color": _MUTED,
    "ytick.color": _MUTED,
    "xtick.labelcolor": _INK,
    "ytick.labelcolor": _INK,
    "ytick.major.size": 0,
    "lines.linewidth": 1.6,
}

_SHOWN_POINTS = 200  # more logged iterations than twice this are drawn as the means of this many bins
_MARKED_POINTS = 30  # so few that a line alone would hide where they lie


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


@dataclass(frozen=True)
class HistoryChart(Chart):
    """A chart over the iterations.

    Attributes:
        iterations_per_point: How many logged iterations a point of the line is the mean of.
        has_band: Whether a band shows the middle 80 % of the values that a point is the mean of.
    """

    iterations_per_point: int
    has_band: bool


def accuracy_chart(setting: Setting, name: str) -> Chart:
    """Accuracy over label fraction; with one label fraction, accuracy by method."""
    with style.context(["default", _STYLE]):
        if len(setting.labels) > 1:
            figure, kind = _accuracy_over_fraction(setting), "Accuracy over label fraction"
        else:
            figure, kind = _accuracy_by_method(setting), "Accuracy by method"
        title = f"{kind}: {setting.task}, {setting.architecture}. The table holds its figures."
        return Chart(name, title, _view_box(figure), _svg_body(figure, name))


def history_chart(
    iterations: npt.NDArray[np.int64], values: Floats, *, name: str, quantity: str, band: bool = False
) -> HistoryChart | None:
    """A quantity of the distillation over its iterations; None where no finite value was logged.

    Args:
        iterations: int64[k].
        values: float[k]; what is not finite is left out.
        name: See `Chart.name`.
        quantity: What the values are, for the title.
        band: Whether to show how far the values spread about the line.
    """
    finite = np.isfinite(values)
    iterations, values = iterations[finite], values[finite]
    if len(values) == 0:
        return None
    bins = _SHOWN_POINTS if len(values) > 2 * _SHOWN_POINTS else len(values)
    groups = np.array_split(values, bins)
    x = np.array([group.mean() for group in np.array_split(iterations, bins)])
    y = np.array([group.mean() for group in groups])

    with style.context(["default", _STYLE]):
        figure = Figure(figsize=(_WIDTH / _DPI, 210 / _DPI), dpi=_DPI)
        axes = _axes(figure, left=46, right=14, bottom=44, top=8)
        has_band = band and bins < len(values)
        if has_band:
            low, high = (np.array([np.quantile(group, q) for group in groups]) for q in (0.1, 0.9))
            axes.fill_between(x, low, high, color=_ACCENT, alpha=0.18, linewidth=0)
        axes.plot(
            x,
            y,
            color=_ACCENT,
            marker="o" if bins <= _MARKED_POINTS else "",
            markersize=4,
            solid_joinstyle="round",
        )
        if y.min() > 0 and y.max() > 30 * y.min():
            axes.set_yscale("log")
            axes.yaxis.set_minor_formatter(NullFormatter())
        else:
            axes.yaxis.set_major_locator(MaxNLocator(4))
        axes.yaxis.set_major_formatter(FuncFormatter(lambda value, _: number(value)))
        axes.xaxis.set_major_locator(MaxNLocator(4, integer=True))
        axes.xaxis.set_major_formatter(FuncFormatter(lambda value, _: f"{value:,.0f}"))
        axes.set_xlabel("Iteration")
        first, last = number(float(y[0])), number(float(y[-1]))
        title = f"{quantity} over the iterations of the distillation: from {first} to {last}."
        return HistoryChart(
            name, title, _view_box(figure), _svg_body(figure, name), round(len(values) / bins), has_band
        )


def _accuracy_over_fraction(setting: Setting) -> Figure:
    figure = Figure(figsize=(_WIDTH / _DPI, 300 / _DPI), dpi=_DPI)
    axes = _axes(figure, left=34, right=96, bottom=44, top=30)
    fractions = list(setting.labels)
    span = np.log10(fractions[-1] / fractions[0])
    last_points = []
    for rank, method in enumerate(setting.methods):
        accuracies = [setting.cells[method, f] for f in fractions if (method, f) in setting.cells]
        dodge = 10 ** (0.012 * span * (rank - (len(setting.methods) - 1) / 2))  # keeps error bars apart
        x = [accuracy.label_fraction * dodge for accuracy in accuracies]
        y = [100 * accuracy.mean for accuracy in accuracies]
        _error_bars(axes, x, y, method, yerr=[100 * accuracy.deviation for accuracy in accuracies])
        last_points.append((x[-1], y[-1]))

    axes.set_xscale("log")
    axes.set_xlim(fractions[0] * 10 ** (-0.06 * span), fractions[-1] * 10 ** (0.05 * span))
    axes.margins(y=0.08)
    axes.xaxis.set_major_locator(FixedLocator(_apart(fractions, 0.13 * span)))
    axes.xaxis.set_minor_locator(NullLocator())
    axes.xaxis.set_major_formatter(FuncFormatter(lambda value, _: fraction(value)))
    ticks = MaxNLocator(6).tick_values(*axes.get_ylim())
    axes.yaxis.set_major_locator(FixedLocator([tick for tick in ticks if tick <= 100]))
    axes.set_xlabel("Labels used, log scale")
    _name_y_axis(axes, f"Accuracy,{NO_BREAK}%")
    _label_lines(axes, setting.methods, last_points)
    return figure


def _accuracy_by_method(setting: Setting) -> Figure:
    (label_fraction,) = setting.labels
    figure = Figure(figsize=(_WIDTH / _DPI, (74 + 34 * len(setting.methods)) / _DPI), dpi=_DPI)
    axes = _axes(figure, left=96, right=20, bottom=44, top=8)
    axes.grid(visible=True, axis="both")
    for row, method in enumerate(setting.methods):
        accuracy = setting.cells[method, label_fraction]
        _error_bars(axes, [100 * accuracy.mean], [row], method, xerr=[100 * accuracy.deviation])
    names = [_SHORT_NAMES.get(method, "Other") for method in setting.methods]
    axes.set_yticks(range(len(names)), names)
    axes.set_ylim(len(names) - 0.5, -0.5)
    axes.margins(x=0.1)
    axes.xaxis.set_major_locator(MaxNLocator(5))
    axes.set_xlabel(f"Accuracy with {fraction(label_fraction)} of the labels,{NO_BREAK}%")
    return figure


def _error_bars(
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
        color=_color(method),
        marker=_MARKERS.get(method, "x"),
        markersize=5.5,
        linewidth=2.4 if method == "distilled" else 1.4,
        linestyle="--" if method in ("full", "none") else "-",
        elinewidth=1.1,
        capsize=2.5,
        zorder=4 if method == "distilled" else 3,
    )


def _label_lines(axes: Axes, methods: Sequence[str], last_points: Sequence[tuple[float, float]]) -> None:
    """Name each line at its right end, moved apart where the ends lie close, with a thin line to the end."""
    low, high = axes.get_ylim()
    right = axes.get_xlim()[1]
    x_label = right * (right / axes.get_xlim()[0]) ** 0.05
    heights = _spread([y for _, y in last_points], gap=0.075 * (high - low), high=high)
    for method, (x, y), height in zip(methods, last_points, heights, strict=True):
        axes.plot([x, x_label], [y, height], color=_color(method), linewidth=0.7, alpha=0.6, clip_on=False)
        axes.text(
            x_label * (right / axes.get_xlim()[0]) ** 0.012,
            height,
            _SHORT_NAMES.get(method, "Other"),
            color=_color(method),
            verticalalignment="center_baseline",
            fontweight="bold" if method == "distilled" else "normal",
        )


def _spread(positions: Sequence[float], gap: float, high: float) -> list[float]:
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


def _apart(fractions: Sequence[float], decades: float) -> list[float]:
    """The label fractions without those so close to the one before that their tick labels would touch."""
    kept = [fractions[0]]
    for candidate in fractions[1:]:
        if np.log10(candidate / kept[-1]) >= decades:
            kept.append(candidate)
    return kept


def _color(method: str) -> str:
    return _STAND_INS.get(f"var(--{method})", _MUTED)


def _axes(figure: Figure, *, left: float, right: float, bottom: float, top: float) -> Axes:
    """Axes with margins in units of the SVG: fixed, so that the layout rests on no font's measures."""
    width, height = figure.get_size_inches() * _DPI
    return figure.add_axes(
        (left / width, bottom / height, (width - left - right) / width, (height - bottom - top) / height)
    )


def _name_y_axis(axes: Axes, name: str) -> None:
    """The y axis' name, level and above the axis, where it is read without turning the head."""
    axes.annotate(
        name,
        xy=(0, 1),
        xycoords=("figure fraction", "axes fraction"),
        xytext=(0, 12),
        textcoords="offset points",
        verticalalignment="bottom",
    )


def _view_box(figure: Figure) -> str:
    width, height = figure.get_size_inches() * _DPI
    return f"0 0 {width:g} {height:g}"


def _svg_body(figure: Figure, name: str) -> str:
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
