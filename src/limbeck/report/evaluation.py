"""The accuracies of a run, arranged as the report shows them: one setting a task and architecture."""

from __future__ import annotations

from dataclasses import dataclass

from limbeck.report.wording import count
from limbeck.summary import Accuracy, Summary

METHOD_NAMES = {
    "full": "Full data",
    "fullSsl": "Full data, SSL",
    "distilled": "Distilled",
    "facilityLocation": "Facility-location subset",
    "kCenter": "k-centre subset",
    "highLoss": "Highest-loss subset",
    "random": "Random subset",
    "none": "No pre-training",
}
SMALL_METHODS = ("distilled", "facilityLocation", "kCenter", "highLoss", "random")


@dataclass(frozen=True)
class Setting:
    """All accuracies of one task with one architecture.

    Attributes:
        task: The task's name, as in the spec.
        architecture: The encoder that was pre-trained.
        labels: Label fraction -> how many labelled images that is, ascending.
        methods: The methods measured, in the order of the report.
        cells: (method, label fraction) -> accuracy.
        gaps: Label fraction -> recovered gap, None where full data does not beat the random subset.
    """

    task: str
    architecture: str
    labels: dict[float, int]
    methods: tuple[str, ...]
    cells: dict[tuple[str, float], Accuracy]
    gaps: dict[float, float | None]

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
        gaps={
            g.label_fraction: g.value
            for g in summary.recovered_gaps
            if (g.task, g.architecture) == (task, architecture)
        },
    )
