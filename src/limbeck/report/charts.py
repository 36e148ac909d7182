"""The charts of accuracy over label fraction and of the distillation's history, as SVG."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import numpy.typing as npt
from matplotlib import style
from matplotlib.figure import Figure
from matplotlib.ticker import FixedLocator, FuncFormatter, MaxNLocator, NullFormatter, NullLocator

from limbeck.report.data import Floats
from limbeck.report.drawing import (
    ACCENT,
    DPI,
    STYLE,
    WIDTH,
    Chart,
    apart,
    axes_within,
    error_bars,
    label_lines,
    name_y_axis,
    short_name,
    svg_body,
    view_box_of,
)
from limbeck.report.evaluation import Setting
from limbeck.report.wording import NO_BREAK, fraction, number

_SHOWN_POINTS = 200  # more logged iterations than twice this are drawn as the means of this many bins
_MARKED_POINTS = 30  # so few that a line alone would hide where they lie


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
    with style.context(["default", STYLE]):
        if len(setting.labels) > 1:
            figure, kind = _accuracy_over_fraction(setting), "Accuracy over label fraction"
        else:
            figure, kind = _accuracy_by_method(setting), "Accuracy by method"
        title = f"{kind}: {setting.task}, {setting.architecture}. The table holds its figures."
        return Chart(name, title, view_box_of(figure), svg_body(figure, name))


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

    with style.context(["default", STYLE]):
        figure = Figure(figsize=(WIDTH / DPI, 210 / DPI), dpi=DPI)
        axes = axes_within(figure, left=46, right=14, bottom=44, top=8)
        has_band = band and bins < len(values)
        if has_band:
            low, high = (np.array([np.quantile(group, q) for group in groups]) for q in (0.1, 0.9))
            axes.fill_between(x, low, high, color=ACCENT, alpha=0.18, linewidth=0)
        axes.plot(
            x,
            y,
            color=ACCENT,
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
            name, title, view_box_of(figure), svg_body(figure, name), round(len(values) / bins), has_band
        )


def _accuracy_over_fraction(setting: Setting) -> Figure:
    figure = Figure(figsize=(WIDTH / DPI, 300 / DPI), dpi=DPI)
    axes = axes_within(figure, left=34, right=96, bottom=44, top=30)
    fractions = list(setting.labels)
    span = np.log10(fractions[-1] / fractions[0])
    last_points = []
    for rank, method in enumerate(setting.methods):
        accuracies = [setting.cells[method, f] for f in fractions if (method, f) in setting.cells]
        dodge = 10 ** (0.012 * span * (rank - (len(setting.methods) - 1) / 2))  # keeps error bars apart
        x = [accuracy.label_fraction * dodge for accuracy in accuracies]
        y = [100 * accuracy.mean for accuracy in accuracies]
        error_bars(axes, x, y, method, yerr=[100 * accuracy.deviation for accuracy in accuracies])
        last_points.append((x[-1], y[-1]))

    axes.set_xscale("log")
    axes.set_xlim(fractions[0] * 10 ** (-0.06 * span), fractions[-1] * 10 ** (0.05 * span))
    axes.margins(y=0.08)
    axes.xaxis.set_major_locator(FixedLocator(apart(fractions, 0.13 * span)))
    axes.xaxis.set_minor_locator(NullLocator())
    axes.xaxis.set_major_formatter(FuncFormatter(lambda value, _: fraction(value)))
    ticks = MaxNLocator(6).tick_values(*axes.get_ylim())
    axes.yaxis.set_major_locator(FixedLocator([tick for tick in ticks if tick <= 100]))
    axes.set_xlabel("Labels used, log scale")
    name_y_axis(axes, f"Accuracy,{NO_BREAK}%")
    label_lines(axes, setting.methods, last_points)
    return figure


def _accuracy_by_method(setting: Setting) -> Figure:
    (label_fraction,) = setting.labels
    figure = Figure(figsize=(WIDTH / DPI, (74 + 34 * len(setting.methods)) / DPI), dpi=DPI)
    axes = axes_within(figure, left=96, right=20, bottom=44, top=8)
    axes.grid(visible=True, axis="both")
    for row, method in enumerate(setting.methods):
        accuracy = setting.cells[method, label_fraction]
        error_bars(axes, [100 * accuracy.mean], [row], method, xerr=[100 * accuracy.deviation])
    names = [short_name(method) for method in setting.methods]
    axes.set_yticks(range(len(names)), names)
    axes.set_ylim(len(names) - 0.5, -0.5)
    axes.margins(x=0.1)
    axes.xaxis.set_major_locator(MaxNLocator(5))
    axes.set_xlabel(f"Accuracy with {fraction(label_fraction)} of the labels,{NO_BREAK}%")
    return figure
