"""Whether one distilled set is better than another: figures by seed, and only under the same evaluation settings."""

from __future__ import annotations

import math
import statistics
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import Any, Literal

from limbeck.summary import Accuracy, RecoveredGap

GAP, ACCURACY = "recovered_gap", "accuracy"
Policy = Literal["ifBetter", "always", "never"]


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
        settings |= {"student": spec["student"], "source.imageSize": spec["source"]["imageSize"]}
        settings["the tasks' data"] = {name: digest for name, digest in lineage.items() if ":" in name}
        return cls(settings, tuple(Accuracy.model_validate(entry) for entry in evaluation["accuracies"]))

    def by_seed(self, metric: str) -> dict[int, float] | None:
        """A metric's value for every evaluation seed; None where it was not evaluated.

        The mean over the seeds is the metric as the run shows it.
        """
        kind, *rest = metric.split("/")
        cells = {(a.task, a.architecture, a.method, f"{a.label_fraction:g}"): a for a in self.accuracies}
        if kind == ACCURACY and len(rest) == 4:
            cell = cells.get((rest[0], rest[1], rest[2], rest[3]))
            return None if cell is None else dict(zip(cell.seeds, cell.values, strict=True))
        if kind != GAP or len(rest) not in (0, 3):
            return None
        gaps = []
        for task, architecture, method, fraction in cells:
            if method == "distilled" and (not rest or [task, architecture, fraction] == rest):
                gap = _gap_by_seed(
                    *(cells.get((task, architecture, m, fraction)) for m in ("distilled", "random", "full"))
                )
                if gap is not None:
                    gaps.append(gap)
        if not gaps:
            return None
        return {seed: statistics.fmean(gap[seed] for gap in gaps) for seed in gaps[0]}


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


def decide(policy: Policy, metric: str, new: Evaluated, champion: tuple[int, Evaluated] | None) -> Decision:
    """Whether `new` replaces the champion, a version's number and how it did.

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
    differing = [name for name in {**old.settings, **new.settings} if old.settings.get(name) != new.settings.get(name)]
    if differing:
        return Decision(
            False,
            f"version {version}, the champion, was evaluated under other settings ({', '.join(sorted(differing))}); "
            "limbeck registry promote decides otherwise",
        )
    theirs = old.by_seed(metric)
    if values is None or theirs is None or values.keys() != theirs.keys():
        return Decision(False, f"{shown}, {_who(version)} {'was evaluated' if theirs else 'was not'}: not comparable")
    differences = [values[seed] - theirs[seed] for seed in values]
    gain, error = statistics.fmean(differences), _standard_error(differences)
    verdict = "better than" if gain > error else "not better than"
    return Decision(
        gain > error,
        f"{shown}, {verdict} {_who(version)} with {_spread(theirs.values())}: the difference over "
        f"{len(differences)} seeds is {gain:+.3f} with standard error {error:.3f}",
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
