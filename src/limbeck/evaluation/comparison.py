"""The champion gate: whether a new distilled set replaces the champion.

Both sets are evaluated under the new set's protocol, on the same task data and with the same selection seeds. The gate
looks at held-out labels only: the differences by seed, and the lower bound of a one-sided t-interval of their mean.
"""

from __future__ import annotations

import math
import statistics
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Literal

import numpy as np
from numpy.typing import NDArray
from pydantic import BaseModel, ConfigDict

from limbeck.spec import Registry
from limbeck.summary import Accuracy, RecoveredGap

GAP, ACCURACY = "recovered_gap", "accuracy"
DISTILLED, CHAMPION = "distilled", "champion"  # methods of the two sets that are compared
CONFIDENCE: float = Registry.model_fields["confidence"].default
FEWEST_SEEDS = 3  # of an interval: with 2, t at 95 % is 6.3, and one seed's luck decides
Policy = Literal["ifBetter", "always", "never"]
_OTHERWISE = "limbeck registry promote decides otherwise"
_SAME = 1e-9  # a smaller deviation is rounding: accuracies differ by whole images

_Cell = tuple[str, str, str]  # task, architecture, label fraction as a metric has it
_BySeed = Mapping[int, float]


@dataclass(frozen=True)
class Gate:
    """The rule that a spec sets, see `spec.registry`."""

    policy: Policy
    metric: str = ACCURACY
    confidence: float = CONFIDENCE


@dataclass(frozen=True)
class Evaluated:
    """What the gate needs of the new set.

    Attributes:
        accuracies: of every method in every setting, with the figures on held-out labels.
        targets: digest of the targets that it was distilled with.
    """

    accuracies: tuple[Accuracy, ...]
    targets: str | None

    @classmethod
    def of(cls, lineage: Mapping[str, str], evaluation: Mapping[str, Any]) -> Evaluated:
        """From what a distilled set carries."""
        return cls(tuple(Accuracy.model_validate(entry) for entry in evaluation["accuracies"]), lineage.get("targets"))

    def by_seed(self, metric: str) -> dict[int, float] | None:
        """A metric's value on held-out labels for every selection seed; None where it was not evaluated."""
        return _values(metric, self.accuracies, DISTILLED, self.accuracies)


class Champion(BaseModel):
    """The champion, evaluated again under the new set's protocol, or the reason why that cannot be done."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    version: int
    accuracies: list[Accuracy] = []  # of the method "champion"
    targets: str | None = None  # digest of the targets that it was distilled with
    refusal: str | None = None  # one line

    def by_seed(self, metric: str, new: Evaluated) -> dict[int, float] | None:
        """A metric's value as `Evaluated.by_seed` gives it; a gap's rivals are those of the new set."""
        return _values(metric, self.accuracies, CHAMPION, new.accuracies)


@dataclass(frozen=True)
class Decision:
    """Whether a new version becomes the champion, and why."""

    promote: bool
    reason: str


def lower_bound(differences: NDArray[np.float64], confidence: float) -> NDArray[np.float64]:
    """Lower bound of the one-sided t-interval of the mean difference, f64[..., seeds] -> f64[...].

    It is mean - t(confidence, seeds - 1) * deviation / sqrt(seeds). Differences that do not vary give -inf: they tell
    nothing of how far the mean may be off.

    Raises:
        ValueError: there are fewer than `FEWEST_SEEDS` differences.
    """
    from scipy.special import stdtrit  # slow to import

    seeds = differences.shape[-1]
    if seeds < FEWEST_SEEDS:
        raise ValueError(f"{seeds} differences; at least {FEWEST_SEEDS}")
    deviation = differences.std(axis=-1, ddof=1)
    bound = differences.mean(axis=-1) - stdtrit(seeds - 1, confidence) * deviation / math.sqrt(seeds)
    return np.asarray(np.where(deviation > _SAME, bound, -np.inf))


def is_better(differences: NDArray[np.float64], confidence: float) -> NDArray[np.bool_]:
    """Whether the interval of `lower_bound` lies above 0, f64[..., seeds] -> bool[...]: the gate's whole arithmetic."""
    return np.asarray(lower_bound(differences, confidence) > 0.0)


def decide(gate: Gate, new: Evaluated, version: int | None, champion: Champion | None) -> Decision | None:
    """Whether the new set becomes the champion.

    Args:
        gate: the rule.
        new: the new set.
        version: the version that is the champion now; None where there is none.
        champion: a champion that was evaluated again, which may have been replaced since.

    Returns:
        The decision; None where `version` must be evaluated again first.
    """
    if gate.policy == "never":
        return Decision(False, "spec.registry.promote is never")
    values = new.by_seed(gate.metric)
    shown = f"{gate.metric} was not evaluated"
    if values:
        shown = f"{gate.metric} {statistics.fmean(values.values()):.3f} on held-out labels"
    if version is None:
        return Decision(True, f"the first champion; {shown}")
    if gate.policy == "always":
        return Decision(True, f"spec.registry.promote is always; {shown}")
    if not values:
        return Decision(False, f"{shown}, so version {version} stays the champion; {_OTHERWISE}")
    if len(values) < FEWEST_SEEDS:
        few = f"{len(values)} selection seed{'s' if len(values) > 1 else ''}"
        return Decision(
            False, f"not compared with version {version}: {few}; give evaluate.selectionSeeds at least {FEWEST_SEEDS}"
        )
    if champion is None or champion.version != version:
        return None
    if champion.refusal is not None:
        return Decision(False, f"not compared with version {version}: {champion.refusal}; {_OTHERWISE}")
    if is_gap(gate.metric) and (new.targets is None or champion.targets != new.targets):
        why = f"it has other targets, so its {GAP} is another quantity; registry.metric: {ACCURACY} compares them"
        return Decision(False, f"not compared with version {version}: {why}")
    theirs = champion.by_seed(gate.metric, new)
    if theirs is None or theirs.keys() != values.keys():
        why = f"{gate.metric} was not evaluated for both in the same settings"
        return Decision(False, f"not compared with version {version}: {why}; {_OTHERWISE}")
    differences = np.array([values[seed] - theirs[seed] for seed in sorted(values)])
    promote = bool(is_better(differences, gate.confidence))
    return Decision(promote, f"{shown}, {_against(version, differences, gate, promote)}")


def _against(version: int, differences: NDArray[np.float64], gate: Gate, promote: bool) -> str:
    """The difference and its bound in words."""
    gain, bound = float(differences.mean()), float(lower_bound(differences, gate.confidence))
    scale, unit = (1.0, "") if is_gap(gate.metric) else (100.0, " points")
    digits = 2 if is_gap(gate.metric) else 1
    side = "above" if gain >= 0.0 else "below"
    text = f"{abs(scale * gain):.{digits}f}{unit} {side} version {version}"
    if not promote and gain > 0.0:
        text += ", which is not enough"
    if math.isinf(bound):
        return f"{text} (the difference is the same for all {len(differences)} seeds, so it has no interval)"
    return (
        f"{text} ({100 * gate.confidence:g} % one-sided bound {scale * bound:+.{digits}f} "
        f"over {len(differences)} seeds)"
    )


def is_gap(metric: str) -> bool:
    """Whether a metric is the recovered gap, of all settings or of one."""
    return metric.split("/")[0] == GAP


def _values(
    metric: str, accuracies: Iterable[Accuracy], method: str, rivals: Sequence[Accuracy]
) -> dict[int, float] | None:
    """A metric of one method by selection seed; None where it was not evaluated.

    It is the mean over the settings that the metric names. A recovered gap takes the means of the rivals' held-out
    accuracies, and does not exist in settings where the full set is no better than the random one.
    """
    kind, *rest = metric.split("/")
    if kind == ACCURACY and len(rest) == 4 and rest[2] == DISTILLED:
        del rest[2]
    if kind not in (GAP, ACCURACY) or len(rest) not in (0, 3):
        return None
    cells = {cell: values for cell, values in _held_out(accuracies, method).items() if not rest or [*cell] == rest}
    if kind == GAP:
        random, full = _held_out(rivals, "random"), _held_out(rivals, "full")
        gaps = {cell: _gap(values, random.get(cell), full.get(cell)) for cell, values in cells.items()}
        cells = {cell: gap for cell, gap in gaps.items() if gap is not None}
    seeds = {frozenset(values) for values in cells.values()}
    if len(seeds) != 1:  # nothing, or what cannot be averaged by seed
        return None
    return {seed: statistics.fmean(values[seed] for values in cells.values()) for seed in sorted(seeds.pop())}


def _held_out(accuracies: Iterable[Accuracy], method: str) -> dict[_Cell, _BySeed]:
    """The accuracies of one method on held-out labels, by setting and selection seed."""
    return {
        (a.task, a.architecture, f"{a.label_fraction:g}"): dict(zip(a.selection_seeds, a.held_out, strict=True))
        for a in accuracies
        if a.method == method and a.held_out
    }


def _gap(values: _BySeed, random: _BySeed | None, full: _BySeed | None) -> _BySeed | None:
    if not random or not full:
        return None
    low, high = statistics.fmean(random.values()), statistics.fmean(full.values())
    return {seed: (value - low) / (high - low) for seed, value in values.items()} if high > low else None


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
