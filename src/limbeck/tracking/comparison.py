"""Whether one distilled set is better than another: figures by seed, and only under the same evaluation settings."""

from __future__ import annotations

import math
import statistics
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import Any, Literal

from limbeck.spec import Student
from limbeck.summary import Accuracy, RecoveredGap

GAP, ACCURACY = "recovered_gap", "accuracy"
Policy = Literal["ifBetter", "always", "never"]
_OTHERWISE = "limbeck registry promote decides otherwise"


@dataclass(frozen=True)
class Evaluated:
    """How a distilled set did, and under which settings.

    Attributes:
        settings: what must be equal for two sets to be compared, by name.
        accuracies: of every method in every setting.
    """

    settings: Mapping[str, Any]
    accuracies: tuple[Accuracy, ...]

    @classmethod
    def of(cls, spec: Mapping[str, Any], lineage: Mapping[str, str], evaluation: Mapping[str, Any]) -> Evaluated:
        """From what a distilled set carries; `spec` as `DistillationSpec.content` gives it."""
        settings = {name: value for name, value in spec["evaluate"].items() if name not in ("tasks", "baselines")}
        settings["baselineRate"] = settings.get("baselineRate") or spec["trajectories"]["optimizer"]["rate"]
        settings = {f"evaluate.{name}": value for name, value in settings.items()}
        student = Student.model_validate(spec["student"]).wire()  # earlier sets do not have all that there is today
        settings |= {"student": student, "source.imageSize": spec["source"]["imageSize"]}
        settings["the tasks' data"] = {name: digest for name, digest in lineage.items() if ":" in name}
        return cls(settings, tuple(Accuracy.model_validate(entry) for entry in evaluation["accuracies"]))

    def by_seed(self, metric: str) -> dict[int, float] | None:
        """A metric's value for every evaluation seed; None where it was not evaluated.

        The mean over the seeds is the metric as the run shows it.
        """
        parts = self._parts(metric)
        return _mean(parts.values()) if parts else None

    def compared(self, metric: str, other: Evaluated) -> tuple[dict[int, float], dict[int, float]] | None:
        """A metric's values here and there; None where they cannot be compared.

        A recovered gap does not exist where the full set is no better than the random one, so a mean of
        several is taken over those that exist on both sides.
        """
        ours, theirs = self._parts(metric), other._parts(metric)
        both = [cell for cell in ours if cell in theirs]
        if not both or any(ours[cell].keys() != theirs[cell].keys() for cell in both):
            return None
        return _mean(ours[cell] for cell in both), _mean(theirs[cell] for cell in both)

    def _parts(self, metric: str) -> dict[tuple[str, ...], dict[int, float]]:
        """The values by seed that a metric is the mean of, by task, architecture and label fraction."""
        kind, *rest = metric.split("/")
        cells = {(a.task, a.architecture, a.method, f"{a.label_fraction:g}"): a for a in self.accuracies}
        if kind == ACCURACY and len(rest) == 4:
            cell = cells.get((rest[0], rest[1], rest[2], rest[3]))
            return {} if cell is None else {tuple(rest): dict(zip(cell.seeds, cell.values, strict=True))}
        if kind != GAP or len(rest) not in (0, 3):
            return {}
        gaps = dict[tuple[str, ...], dict[int, float]]()
        for task, architecture, method, fraction in cells:
            if method == "distilled" and (not rest or [task, architecture, fraction] == rest):
                three = (cells.get((task, architecture, m, fraction)) for m in ("distilled", "random", "full"))
                gap = _gap_by_seed(*three)
                if gap is not None:
                    gaps[task, architecture, fraction] = gap
        return gaps


def _mean(parts: Iterable[Mapping[int, float]]) -> dict[int, float]:
    values = list(parts)
    return {seed: statistics.fmean(part[seed] for part in values) for seed in values[0]}


def _gap_by_seed(distilled: Accuracy | None, random: Accuracy | None, full: Accuracy | None) -> dict[int, float] | None:
    if distilled is None or random is None or full is None or full.mean <= random.mean:
        return None
    pairs = zip(distilled.seeds, distilled.values, random.values, strict=True)
    return {seed: (ours - theirs) / (full.mean - random.mean) for seed, ours, theirs in pairs}


@dataclass(frozen=True)
class Decision:
    """Whether a new version becomes the champion, and why."""

    promote: bool
    reason: str


def decide(policy: Policy, metric: str, new: Evaluated, champion: tuple[int, Evaluated | None] | None) -> Decision:
    """Whether `new` replaces the champion, a version's number and how it did, which may be unknown.

    With `ifBetter` the mean difference over the seeds, which both share, must be larger than its standard error.
    """
    if policy == "never":
        return Decision(False, "spec.registry.promote is never")
    values = new.by_seed(metric)
    shown = f"{metric} {_spread(values.values())}" if values else f"{metric} was not evaluated"
    if champion is None:
        return Decision(True, f"the first champion; {shown}")
    version, old = champion
    if policy == "always":
        return Decision(True, f"spec.registry.promote is always; {shown}")
    if old is None:
        return Decision(False, f"the files of {_who(version)} cannot be read; {_OTHERWISE}")
    differing = [name for name in {**old.settings, **new.settings} if old.settings.get(name) != new.settings.get(name)]
    if differing:
        return Decision(
            False,
            f"{_who(version)} was evaluated under other settings ({', '.join(sorted(differing))}); {_OTHERWISE}",
        )
    both = new.compared(metric, old)
    if both is None:
        there = "was evaluated" if old.by_seed(metric) else "was not"
        return Decision(False, f"{shown}, {_who(version)} {there}: not comparable")
    values, theirs = both
    differences = [values[seed] - theirs[seed] for seed in values]
    gain, error = statistics.fmean(differences), _standard_error(differences)
    verdict = "better than" if gain > error else "not better than"
    return Decision(
        gain > error,
        f"{metric} {_spread(values.values())}, {verdict} {_who(version)} with {_spread(theirs.values())}: "
        f"the difference over {len(differences)} seeds is {gain:+.3f} with standard error {error:.3f}",
    )


def _who(version: int) -> str:
    return f"version {version}, the champion,"


def _standard_error(values: list[float]) -> float:
    return statistics.stdev(values) / math.sqrt(len(values)) if len(values) > 1 else 0.0


def _spread(values: Iterable[float]) -> str:
    numbers = list(values)
    deviation = f" ± {statistics.stdev(numbers):.3f}" if len(numbers) > 1 else ""
    return f"{statistics.fmean(numbers):.3f}{deviation}"


def named_figures(accuracies: Iterable[Accuracy], gaps: Iterable[RecoveredGap]) -> dict[str, tuple[float, str | None]]:
    """Every figure of an evaluation by the name that it has in MLflow, with the task that it was measured on."""
    figures: dict[str, tuple[float, str | None]] = {
        f"{ACCURACY}/{a.task}/{a.architecture}/{a.method}/{a.label_fraction:g}": (a.mean, a.task) for a in accuracies
    }
    known = [gap for gap in gaps if gap.value is not None]
    for gap in known:
        assert gap.value is not None
        figures[f"{GAP}/{gap.task}/{gap.architecture}/{gap.label_fraction:g}"] = (gap.value, gap.task)
    if known:
        figures[GAP] = (statistics.fmean(gap.value for gap in known if gap.value is not None), None)
    return figures
