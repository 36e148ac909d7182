"""The chart of accuracy over pre-training steps, as SVG."""

from __future__ import annotations

import math
from collections.abc import Sequence

from matplotlib import style
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import FixedLocator, FuncFormatter, MaxNLocator, NullLocator

from limbeck.report.drawing import (
    DPI,
    STYLE,
    WIDTH,
    Chart,
    axes_within,
    color_of,
    error_bars,
    label_lines,
    name_y_axis,
    svg_body,
    view_box_of,
)
from limbeck.report.evaluation import RISING, Setting, may_still_rise
from limbeck.report.wording import NO_BREAK, fraction
from limbeck.summary import Accuracy


def curve_chart(setting: Setting, label_fraction: float, name: str) -> Chart | None:
    """Accuracy over pre-training steps, one line a method; None where no method was probed at several steps.

    A ring marks the steps that were chosen for a method. A method without pre-training, or whose pre-training is not
    counted in steps, is a level line.

    Args:
        setting: The task and architecture.
        label_fraction: With which share of the labels.
        name: See `Chart.name`.
    """
    accuracies = [setting.cells[m, label_fraction] for m in setting.methods if (m, label_fraction) in setting.cells]
    steps = sorted({point.steps for a in accuracies for point in a.curve if point.steps > 0})
    if len(steps) < 2:
        return None
    with style.context(["default", STYLE]):
        figure = _accuracy_over_steps(accuracies, steps)
        title = (
            f"Accuracy over pre-training steps with {fraction(label_fraction)} of the labels: "
            f"{setting.task}, {setting.architecture}."
        )
        return Chart(name, title, view_box_of(figure), svg_body(figure, name))


def _accuracy_over_steps(accuracies: Sequence[Accuracy], steps: Sequence[int]) -> Figure:
    figure = Figure(figsize=(WIDTH / DPI, 300 / DPI), dpi=DPI)
    axes = axes_within(figure, left=34, right=106, bottom=44, top=30)
    span = math.log10(steps[-1] / steps[0])
    last_points = []
    for rank, accuracy in enumerate(accuracies):
        dodge = 10 ** (0.006 * span * (rank - (len(accuracies) - 1) / 2))  # keeps error bars apart
        last_points.append(_line(axes, accuracy, steps, dodge))

    axes.set_xscale("log")
    axes.set_xlim(steps[0] * 10 ** (-0.06 * span), steps[-1] * 10 ** (0.05 * span))
    axes.margins(y=0.08)
    axes.xaxis.set_major_locator(FixedLocator(_ticks(steps, 0.21 * span)))
    axes.xaxis.set_minor_locator(NullLocator())
    axes.xaxis.set_major_formatter(FuncFormatter(lambda value, _: f"{value:,.0f}"))
    ticks = MaxNLocator(6).tick_values(*axes.get_ylim())
    axes.yaxis.set_major_locator(FixedLocator([tick for tick in ticks if tick <= 100]))
    axes.set_xlabel("Pre-training steps, log scale")
    name_y_axis(axes, f"Accuracy,{NO_BREAK}%")
    marks = {a.method: f" {RISING}" for a in accuracies if may_still_rise(a)}
    label_lines(axes, [a.method for a in accuracies], last_points, marks)
    return figure


def _ticks(steps: Sequence[int], decades: float) -> list[int]:
    """The steps, from the last on, without those so close to the one after that their tick labels would touch."""
    kept = [steps[-1]]
    for candidate in reversed(steps[:-1]):
        if math.log10(kept[-1] / candidate) >= decades:
            kept.append(candidate)
    return kept


def _line(axes: Axes, accuracy: Accuracy, steps: Sequence[int], dodge: float) -> tuple[float, float]:
    """Draw a method's line; returns its right end."""
    points = [point for point in accuracy.curve if point.steps > 0]
    if not points:
        mean = 100 * accuracy.mean
        axes.plot(
            [steps[0], steps[-1]], [mean, mean], color=color_of(accuracy.method), linewidth=1.2, linestyle=(0, (2, 2))
        )
        return steps[-1], mean
    x, y = [point.steps * dodge for point in points], [100 * point.mean for point in points]
    error_bars(axes, x, y, accuracy.method, yerr=[100 * point.deviation for point in points])
    chosen = [i for i, point in enumerate(points) if point.steps == accuracy.steps]
    axes.plot(
        [x[i] for i in chosen],
        [y[i] for i in chosen],
        marker="o",
        markersize=11,
        markerfacecolor="none",
        markeredgewidth=1.3,
        color=color_of(accuracy.method),
        linestyle="",
        zorder=5,
    )
    return x[-1], y[-1]
