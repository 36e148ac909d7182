"""The accuracies of a run, arranged as the report shows them: one setting a task and architecture."""

from __future__ import annotations

from dataclasses import dataclass

from limbeck.report.wording import count
from limbeck.summary import Accuracy, Difference, RecoveredGap, Summary

METHOD_NAMES = {
    "full": "Full data",
    "fullSsl": "Full data, SSL",
    "distilled": "Distilled",
    "start": "Start of the distillation",
    "facilityLocation": "Facility-location subset",
    "kCenter": "k-centre subset",
    "highLoss": "Highest-loss subset",
    "random": "Random subset",
    "none": "No pre-training",
}
SMALL_METHODS = ("distilled", "start", "facilityLocation", "kCenter", "highLoss", "random")
RIVALS = ("start", "random")  # those that the distilled set is compared with, paired by seed
RISING = "\N{UPWARDS ARROW}"  # marks a method whose longest pre-training was its best


@dataclass(frozen=True)
class Setting:
    """All accuracies of one task with one architecture.

    Attributes:
        task: The task's name, as in the spec.
        architecture: The encoder that was pre-trained.
        labels: Label fraction -> how many labelled images that is, ascending.
        methods: The methods measured, in the order of the report.
        cells: (method, label fraction) -> accuracy.
        gaps: Label fraction -> recovered gap.
        differences: (rival, label fraction) -> the distilled set's difference to it.
    """

    task: str
    architecture: str
    labels: dict[float, int]
    methods: tuple[str, ...]
    cells: dict[tuple[str, float], Accuracy]
    gaps: dict[float, RecoveredGap]
    differences: dict[tuple[str, float], Difference]

    def best_small(self, label_fraction: float) -> frozenset[str]:
        """The most accurate of the methods with a small budget; empty where only one was measured."""
        means = {
            method: self.cells[method, label_fraction].mean
            for method in SMALL_METHODS
            if (method, label_fraction) in self.cells
        }
        if len(means) < 2:
            return frozenset()
        best = max(means.values())
        return frozenset(method for method, mean in means.items() if mean == best)

    @property
    def rivals(self) -> tuple[str, ...]:
        """The rivals that the distilled set was compared with here."""
        return tuple(rival for rival in RIVALS if any(against == rival for against, _ in self.differences))

    @property
    def pretrained(self) -> tuple[str, ...]:
        """The methods of which the summary says how they were pre-trained."""
        return tuple(
            method
            for method in self.methods
            if any(a.steps is not None or a.bytes is not None for a in self.of(method))
        )

    @property
    def selection_seeds(self) -> int:
        """With how many seeds rate and steps were chosen, at most; 0 where the summary does not say."""
        return max(len(accuracy.selection_seeds) for accuracy in self.cells.values())

    @property
    def longest(self) -> list[int]:
        """The steps of the longest pre-training of each method that may still be rising, ascending and each once."""
        return sorted({a.steps for a in self.cells.values() if a.steps is not None and may_still_rise(a)})

    def of(self, method: str) -> list[Accuracy]:
        """The method's accuracies, by label fraction."""
        return [self.cells[method, f] for f in self.labels if (method, f) in self.cells]

    @property
    def seeds(self) -> str:
        """Over how many seeds the figures are: `one seed`, `5 seeds`, `3 to 5 seeds`."""
        numbers = {len(accuracy.seeds) for accuracy in self.cells.values()}
        if numbers == {1}:
            return "one seed"
        if len(numbers) == 1:
            return count(numbers.pop(), "seed")
        return f"{min(numbers)} to {count(max(numbers), 'seed')}"

    @property
    def has_deviations(self) -> bool:
        """Whether any figure rests on more than one seed."""
        return any(len(accuracy.seeds) > 1 for accuracy in self.cells.values())


def settings_of(summary: Summary) -> list[Setting]:
    """The summary's accuracies by task and architecture, in the order in which the summary names them."""
    return [
        _setting(summary, task, architecture)
        for task, architecture in dict.fromkeys((a.task, a.architecture) for a in summary.accuracies)
    ]


def overall(summary: Summary, against: str) -> Difference | None:
    """The distilled set's difference to a rival as the mean over all settings, if the summary holds it."""
    return next((d for d in summary.differences if d.task is None and d.against == against), None)


def is_above(difference: Difference) -> bool:
    """Whether the whole interval lies above 0; one seed gives no interval, so nothing is above by it."""
    return difference.low is not None and difference.low > 0


def may_still_rise(accuracy: Accuracy) -> bool:
    """Whether the longest pre-training was chosen, so that a longer one might be better still."""
    return bool(accuracy.curve) and accuracy.steps == accuracy.curve[-1].steps


def method_name(method: str) -> str:
    """What the report calls a method; one that it does not know keeps its own name."""
    return METHOD_NAMES.get(method, method)


def _setting(summary: Summary, task: str, architecture: str) -> Setting:
    accuracies = [a for a in summary.accuracies if (a.task, a.architecture) == (task, architecture)]
    found = dict.fromkeys(a.method for a in accuracies)
    return Setting(
        task=task,
        architecture=architecture,
        labels=dict(sorted({a.label_fraction: a.labels for a in accuracies}.items())),
        methods=tuple(m for m in METHOD_NAMES if m in found) + tuple(m for m in found if m not in METHOD_NAMES),
        cells={(a.method, a.label_fraction): a for a in accuracies},
        gaps={g.label_fraction: g for g in summary.recovered_gaps if (g.task, g.architecture) == (task, architecture)},
        differences={
            (d.against, d.label_fraction): d
            for d in summary.differences
            if (d.task, d.architecture) == (task, architecture) and d.label_fraction is not None
        },
    )
