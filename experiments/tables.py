"""The tables of a study: pure functions of its result files.

A variant's result is a list of distillations, each with the accuracies of its evaluation. Distillations of one variant
differ in `distill.seed` alone and share the evaluation seeds, so figures form a matrix, distillations x seeds.
"""

from __future__ import annotations

import math
import statistics
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from limbeck.evaluation.scores import Setting, by_setting, recovered_gaps
from limbeck.summary import Accuracy, RecoveredGap

CONFIDENCE = 0.95  # of the two-sided intervals
Matrix = NDArray[np.float64]  # [distillations, seeds]


@dataclass(frozen=True)
class Interval:
    """A mean with its interval; `low` and `high` are None with fewer than two seeds."""

    mean: float
    low: float | None
    high: float | None


def interval(ours: Matrix, theirs: Matrix | None = None) -> Interval:
    """Return the mean of `ours`, or of `ours` - `theirs`, with a 95 % interval over distillations and seeds.

    The seeds pair the two sides, the distillations do not. The squared standard error is the sum of

        var(mean over distillations, by seed) / seeds
        var(mean over seeds, by distillation) / distillations, of each side that has several,

    and its degrees of freedom are Welch and Satterthwaite's. What varies with seed and distillation together counts in
    both terms, so the interval is a little too wide. A side of one distillation adds no term: its luck is not in the
    interval.

    Args:
        ours: f64[k, n].
        theirs: f64[j, n], for the same seeds.
    """
    sides = [ours] if theirs is None else [ours, theirs]
    by_seed = ours.mean(0) if theirs is None else ours.mean(0) - theirs.mean(0)
    mean = float(by_seed.mean())
    if len(by_seed) < 2:
        return Interval(mean, None, None)
    terms = [(float(by_seed.var(ddof=1)) / len(by_seed), len(by_seed) - 1)]
    terms += [(float(side.mean(1).var(ddof=1)) / len(side), len(side) - 1) for side in sides if len(side) > 1]
    squared = sum(term for term, _ in terms)
    if squared == 0.0:
        return Interval(mean, mean, mean)
    freedom = squared**2 / sum(term**2 / count for term, count in terms)
    from scipy.special import stdtrit  # slow to import

    half = float(stdtrit(freedom, 0.5 + CONFIDENCE / 2)) * math.sqrt(squared)
    return Interval(mean, mean - half, mean + half)


@dataclass(frozen=True)
class Done:
    """The finished distillations of a variant, one result file each."""

    files: Sequence[Mapping[str, Any]]

    @property
    def accuracies(self) -> list[list[Accuracy]]:
        """By distillation."""
        return [[Accuracy.model_validate(entry) for entry in file["accuracies"]] for file in self.files]

    @property
    def settings(self) -> list[Setting]:
        """Tasks, architectures and label fractions, in the order of the spec."""
        return list(by_setting(self.accuracies[0]))

    @property
    def methods(self) -> list[str]:
        """Of the first distillation, which has all rivals."""
        return list(dict.fromkeys(entry.method for entry in self.accuracies[0]))

    def matrix(self, method: str, settings: Sequence[Setting] | None = None) -> Matrix | None:
        """Accuracies in percent, the mean over settings, f64[distillations, seeds]; None where there are none."""
        rows = []
        for entries in self.accuracies:
            found = [
                dict(zip(entry.seeds, entry.values, strict=True))
                for setting, methods in by_setting(entries).items()
                if settings is None or setting in settings
                for entry in [methods.get(method)]
                if entry is not None
            ]
            if found:
                seeds = sorted(set.intersection(*(set(values) for values in found)))
                rows.append([100 * statistics.fmean(values[seed] for values in found) for seed in seeds])
        return np.array(rows) if rows else None

    def above(self, rival: str, base: Done, settings: Sequence[Setting] | None = None) -> Interval | None:
        """Return the distilled sets' points above a rival: the variant's own, else the base's.

        Every distillation is compared with its own start.
        """
        ours, own = self.matrix("distilled", settings), self.matrix(rival, settings)
        theirs = base.matrix(rival, settings) if own is None else own
        if ours is None or theirs is None or ours.shape[1] != theirs.shape[1]:
            return None
        theirs = theirs[: len(ours)]
        return interval(ours - theirs) if ours.shape == theirs.shape else interval(ours, theirs[:1])

    def gap(self, setting: Setting, base: Done, of: Callable[[RecoveredGap], float | None]) -> float | None:
        """Return the recovered gap, mean over distillations, beside the variant's own rivals or the base's."""
        rivals = [*base.accuracies[0], *self.accuracies[0]]
        found = []
        for entries in self.accuracies:
            for gap in recovered_gaps([*rivals, *entries]):
                value = of(gap)
                if (gap.task, gap.architecture, gap.label_fraction) == setting and value is not None:
                    found.append(value)
        return statistics.fmean(found) if found else None


def overview(rows: Iterable[tuple[str, str, Done | None]], base: Done) -> str:
    """Return the table of all variants, a Markdown table.

    Args:
        rows: axis, name and result of every variant; None where it has not been run.
        base: the result of the first one.
    """
    labels = [label(setting, base) for setting in base.settings]
    head = ["axis", "variant", "distillations", *labels, "bytes"]
    head += ["above start", "above random", "above the first", "matching loss", "distill, s"]
    lines = []
    for axis, name, done in rows:
        if done is None:
            lines.append([axis, name, "not run", *[""] * (len(head) - 3)])
            continue
        ours = done.matrix("distilled")
        first = base.matrix("distilled")
        assert ours is not None
        assert first is not None
        own = "" if done is base or ours.shape[1] != first.shape[1] else points(interval(ours, first))
        lines.append(
            [
                axis,
                name,
                str(len(done.files)),
                *(accuracy(done, "distilled", setting) for setting in base.settings),
                joined(entry.bytes for entries in done.accuracies for entry in entries if entry.method == "distilled"),
                points(done.above("start", base)),
                points(done.above("random", base)),
                own,
                f"{statistics.fmean(file['matchingLoss'] for file in done.files):.3f}",
                f"{statistics.fmean(file['seconds'].get('distill', 0.0) for file in done.files):.0f}",
            ]
        )
    return markdown(head, lines, text=2)


def by_setting_and_method(rows: Iterable[tuple[str, Done]], base: Done) -> str:
    """Return the table of every method in every setting, with what was chosen for it on held-out labels."""
    head = ["variant", "method", "setting", "accuracy", "steps", "rate", "images", "bytes"]
    head += ["above start", "above random", "gap", "gap at equal steps"]
    lines = []
    for name, done in rows:
        for setting in done.settings:
            for method in done.methods:
                entries = [
                    methods[method]
                    for accuracies in done.accuracies
                    for found, methods in by_setting(accuracies).items()
                    if found == setting and method in methods
                ]
                line = [name, method, label(setting, done), accuracy(done, method, setting)]
                line += [joined(entry.steps for entry in entries), joined(entry.rate for entry in entries)]
                line += [joined(entry.images for entry in entries), joined(entry.bytes for entry in entries)]
                if method == "distilled":
                    line += [points(done.above(rival, base, [setting])) for rival in ("start", "random")]
                    line += [
                        share(done.gap(setting, base, lambda gap: gap.value)),
                        share(done.gap(setting, base, lambda gap: gap.equal_steps_value)),
                    ]
                lines.append([*line, *[""] * (len(head) - len(line))])
    return markdown(head, lines, text=3)


def label(setting: Setting, done: Done) -> str:
    """A setting in words; the task is named where there are several."""
    task, architecture, fraction = setting
    several = len({entry[0] for entry in done.settings}) > 1
    return f"{task + ', ' if several else ''}{architecture} {100 * fraction:g} %"


def accuracy(done: Done, method: str, setting: Setting) -> str:
    """Mean in percent, and deviation over the seeds of the mean over distillations."""
    found = done.matrix(method, [setting])
    if found is None:
        return ""
    by_seed = found.mean(0)
    return f"{by_seed.mean():.2f} ± {by_seed.std(ddof=1) if len(by_seed) > 1 else 0.0:.2f}"


def points(found: Interval | None) -> str:
    """An interval in points."""
    if found is None:
        return ""
    return f"{found.mean:+.2f}" + ("" if found.low is None else f" [{found.low:+.2f}, {found.high:+.2f}]")


def share(value: float | None) -> str:
    """A recovered gap."""
    return "" if value is None else f"{value:.2f}"


def joined(values: Iterable[float | None]) -> str:
    """The distinct numbers, in order of appearance."""
    return ", ".join(dict.fromkeys(f"{value:.3g}" if value < 1000 else f"{value:,.0f}" for value in values if value))


def markdown(head: Sequence[str], lines: Iterable[Sequence[str]], text: int) -> str:
    """A Markdown table whose first `text` columns are words, the others numbers."""
    rule = ["---"] * text + ["---:"] * (len(head) - text)
    return "".join(f"| {' | '.join(cells)} |\n" for cells in (head, rule, *lines))
