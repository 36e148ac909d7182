"""The protocol: which labels a probe sees, which are held out, when encoders are probed, and what is chosen on what.

Every method has the same choices: a learning rate from one grid, a number of steps from one curve, a ridge weight from
one grid. They are made on held-out training labels, rate and steps by encoders of selection seeds that are not
reported. Test images and reporting seeds choose nothing.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from statistics import fmean

import numpy as np
from numpy.typing import NDArray

from limbeck.evaluation.probe import Probe
from limbeck.seeding import derive

Indices = NDArray[np.int64]


def held_out_split(labels: Indices, share: float, task: str) -> tuple[Indices, Indices]:
    """Split the labelled training images of a task into those that probes may see and those held out.

    Args:
        labels: i64[n].
        share: of every class that is held out; at least one image of a class with two or more, never all of them.
        task: the split depends on the task's name alone, so that all methods, seeds and sets share it.

    Returns:
        Two sorted arrays of indices.
    """
    draws = np.random.default_rng(derive(0, "held out", task))
    seen, held = list[Indices](), list[Indices]()
    for name in np.unique(labels):
        members = draws.permutation(np.flatnonzero(labels == name))
        count = 0 if len(members) < 2 else min(len(members) - 1, max(1, round(share * len(members))))
        held.append(members[:count])
        seen.append(members[count:])
    return np.sort(np.concatenate(seen)), np.sort(np.concatenate(held))


def draw_labels(labels: Indices, seen: Indices, fraction: float, draws: np.random.Generator) -> Indices:
    """Draw about `fraction` of all labels, the same share of every class, among those that probes may see.

    Args:
        labels: i64[n], of all labelled training images.
        seen: indices of those that a probe may see.
        fraction: of n; a class has at least one label, and at most those that are not held out.
        draws: where they are drawn from.

    Returns:
        Sorted indices.
    """
    chosen = []
    for name in np.unique(labels):
        members = draws.permutation(seen[labels[seen] == name])
        chosen.append(members[: max(1, round(fraction * int((labels == name).sum())))])
    return np.sort(np.concatenate(chosen))


def curve_points(last: int, count: int) -> tuple[int, ...]:
    """Return the steps at which an encoder is probed, ascending: `last` and `count` - 1 halvings of it."""
    return tuple(sorted({max(1, round(last / 2**k)) for k in range(count)}))


def best_probe(probes: Iterable[tuple[Probe, float]]) -> tuple[Probe, float]:
    """Return the probe with the highest held-out accuracy, of equals the one with the strongest ridge."""
    return max(probes, key=lambda entry: (entry[1], entry[0].ridge))


@dataclass(frozen=True)
class Candidate:
    """The held-out accuracies of one method's encoders at one learning rate.

    Attributes:
        factor: the rate as a multiple of the method's own base rate.
        accuracies: by setting (task, label fraction) and steps: one value a selection seed.
    """

    factor: float
    accuracies: Mapping[tuple[str, float], Mapping[int, Sequence[float]]]

    def best_steps(self, setting: tuple[str, float]) -> int:
        """Return the steps with the highest mean in a setting, of equals the fewest."""
        return best_steps(self.accuracies[setting])

    @property
    def value(self) -> float:
        """The mean over settings of the highest mean over the seeds along the curve."""
        return fmean(max(fmean(values) for values in curve.values()) for curve in self.accuracies.values())


def best_steps(curve: Mapping[int, Sequence[float]]) -> int:
    """Return the steps with the highest mean held-out accuracy, of equals the fewest."""
    return max(sorted(curve), key=lambda steps: fmean(curve[steps]))


def best_rate(candidates: Sequence[Candidate]) -> Candidate:
    """Return the candidate of highest value, of equals the one whose factor is nearest 1."""
    return max(candidates, key=lambda candidate: (candidate.value, -abs(np.log(candidate.factor))))
