"""Accuracies of an evaluation: one row a probe on disk, means and recovered gaps in summaries."""

from __future__ import annotations

import statistics
from collections.abc import Iterable
from dataclasses import asdict, dataclass
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq

from limbeck.summary import Accuracy, RecoveredGap

FILE = "accuracies.parquet"
_SCHEMA = pa.schema(
    [
        ("task", pa.string()),
        ("architecture", pa.string()),
        ("method", pa.string()),
        ("label_fraction", pa.float64()),
        ("labels", pa.int64()),
        ("seed", pa.int64()),
        ("accuracy", pa.float64()),
    ]
)


@dataclass(frozen=True)
class Score:
    """One probe: a method's encoder of one seed, with one share of the labels of one task."""

    task: str
    architecture: str
    method: str
    label_fraction: float
    labels: int
    seed: int
    accuracy: float


def write_scores(path: Path, scores: Iterable[Score]) -> None:
    """Write the table of all probes."""
    pq.write_table(pa.Table.from_pylist([asdict(score) for score in scores], schema=_SCHEMA), path)


def read_scores(path: Path) -> list[Score]:
    """Read the table of all probes."""
    return [Score(**row) for row in pq.read_table(path).to_pylist()]


def summarize(scores: Iterable[Score]) -> list[Accuracy]:
    """Mean and sample standard deviation over the seeds, in the order of first appearance."""
    groups: dict[tuple[str, str, str, float], list[Score]] = {}
    for score in scores:
        key = (score.task, score.architecture, score.method, score.label_fraction)
        groups.setdefault(key, []).append(score)
    return [
        Accuracy(
            task=task,
            architecture=architecture,
            method=method,
            label_fraction=fraction,
            labels=group[0].labels,
            mean=statistics.fmean(values),
            deviation=statistics.stdev(values) if len(values) > 1 else 0.0,
            values=values,
            seeds=[score.seed for score in group],
        )
        for (task, architecture, method, fraction), group in groups.items()
        for values in [[score.accuracy for score in group]]
    ]


def recovered_gaps(accuracies: Iterable[Accuracy]) -> list[RecoveredGap]:
    """(distilled - random subset) / (full data - random subset) wherever all three were evaluated."""
    means: dict[tuple[str, str, float], dict[str, float]] = {}
    for accuracy in accuracies:
        setting = (accuracy.task, accuracy.architecture, accuracy.label_fraction)
        means.setdefault(setting, {})[accuracy.method] = accuracy.mean
    gaps = []
    for (task, architecture, fraction), mean in means.items():
        if not {"distilled", "random", "full"} <= mean.keys():
            continue
        room = mean["full"] - mean["random"]
        value = (mean["distilled"] - mean["random"]) / room if room > 0 else None
        gaps.append(RecoveredGap(task=task, architecture=architecture, label_fraction=fraction, value=value))
    return gaps
