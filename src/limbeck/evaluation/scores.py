"""Figures of an evaluation: one row a probe on disk; means, curves, gaps and paired differences in summaries."""

from __future__ import annotations

import math
import statistics
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Literal

import pyarrow as pa
import pyarrow.parquet as pq

from limbeck.evaluation.protocol import best_steps
from limbeck.summary import Accuracy, CurvePoint, Difference, RecoveredGap

FILE = "accuracies.parquet"
CONFIDENCE = 0.95  # of the two-sided intervals of differences
_CONTROLS = ("random", "start")  # what the distilled set is compared with seed by seed
_SCHEMA = pa.schema(
    [
        ("task", pa.string()),
        ("architecture", pa.string()),
        ("method", pa.string()),
        ("label_fraction", pa.float64()),
        ("labels", pa.int64()),
        ("seed", pa.int64()),
        ("steps", pa.int64()),
        ("rate", pa.float64()),
        ("ridge", pa.float64()),
        ("split", pa.string()),
        ("accuracy", pa.float64()),
        ("images", pa.int64()),
        ("bytes", pa.int64()),
    ]
)


@dataclass(frozen=True)
class Score:
    """One probe: a method's encoder of one seed after some steps, with one share of the labels of one task.

    `split` tells what it was scored on: `heldOut` with a selection seed, `test` with a reporting seed.
    """

    task: str
    architecture: str
    method: str
    label_fraction: float
    labels: int
    seed: int
    steps: int | None  # None where pre-training is not counted in steps
    rate: float | None
    ridge: float
    split: Literal["heldOut", "test"]
    accuracy: float
    images: int | None
    bytes: int | None


def write_scores(path: Path, scores: Iterable[Score]) -> None:
    """Write the table of all probes."""
    pq.write_table(pa.Table.from_pylist([asdict(score) for score in scores], schema=_SCHEMA), path)


def read_scores(path: Path) -> list[Score]:
    """Read the table of all probes."""
    return [Score(**row) for row in pq.read_table(path).to_pylist()]


def summarize(scores: Iterable[Score]) -> list[Accuracy]:
    """Return one entry a setting and method, in the order of first appearance, at the steps best on held-out labels."""
    groups: dict[tuple[str, str, str, float], list[Score]] = {}
    for score in scores:
        key = (score.task, score.architecture, score.method, score.label_fraction)
        groups.setdefault(key, []).append(score)
    return [_accuracy(group) for group in groups.values()]


def _accuracy(group: Sequence[Score]) -> Accuracy:
    test, held = _by_steps(group, "test"), _by_steps(group, "heldOut")
    points = sorted({*test, *held}, key=lambda steps: -1 if steps is None else steps)
    known = {steps: list(values.values()) for steps, values in held.items() if steps is not None}
    chosen = best_steps(known) if known else points[-1]
    at, held_out = test.get(chosen, {}), held.get(chosen, {})
    first = next((score for score in group if score.split == "test"), group[0])
    values = list(at.values())
    return Accuracy(
        task=first.task,
        architecture=first.architecture,
        method=first.method,
        label_fraction=first.label_fraction,
        labels=first.labels,
        mean=statistics.fmean(values) if values else math.nan,
        deviation=_deviation(values),
        values=values,
        seeds=list(at),
        steps=chosen,
        rate=first.rate,
        images=first.images,
        bytes=first.bytes,
        selection_seeds=list(held_out),
        held_out=list(held_out.values()),
        curve=[
            CurvePoint(
                steps=steps,
                mean=statistics.fmean(test[steps].values()),
                deviation=_deviation(list(test[steps].values())),
                values=list(test[steps].values()),
                held_out=list(held.get(steps, {}).values()),
            )
            for steps in points
            if steps is not None and test.get(steps)
        ],
    )


def _by_steps(group: Iterable[Score], split: str) -> dict[int | None, dict[int, float]]:
    """The accuracies on a split, by steps and seed."""
    found: dict[int | None, dict[int, float]] = {}
    for score in group:
        if score.split == split:
            found.setdefault(score.steps, {})[score.seed] = score.accuracy
    return found


def _deviation(values: Sequence[float]) -> float:
    return statistics.stdev(values) if len(values) > 1 else 0.0


Setting = tuple[str, str, float]  # task, architecture, label fraction


def by_setting(accuracies: Iterable[Accuracy]) -> dict[Setting, dict[str, Accuracy]]:
    """Return the entries by setting and method, in the order of first appearance."""
    found: dict[Setting, dict[str, Accuracy]] = {}
    for accuracy in accuracies:
        setting = (accuracy.task, accuracy.architecture, accuracy.label_fraction)
        found.setdefault(setting, {})[accuracy.method] = accuracy
    return found


def recovered_gaps(accuracies: Iterable[Accuracy]) -> list[RecoveredGap]:
    """Return the recovered gap wherever distilled, random and full were evaluated.

    Every method is at its own best steps; beside it stands the gap where all of them have taken the steps that are
    best for the distilled set.
    """
    gaps = []
    for (task, architecture, fraction), methods in by_setting(accuracies).items():
        if not {"distilled", "random", "full"} <= methods.keys():
            continue
        three = [methods[name] for name in ("distilled", "random", "full")]
        steps = three[0].steps
        at_steps = [next((point.mean for point in entry.curve if point.steps == steps), None) for entry in three]
        shared = [value for value in at_steps if value is not None]
        gaps.append(
            RecoveredGap(
                task=task,
                architecture=architecture,
                label_fraction=fraction,
                value=_gap(*(entry.mean for entry in three)),
                equal_steps=steps if len(shared) == 3 else None,
                equal_steps_value=_gap(*shared) if len(shared) == 3 else None,
            )
        )
    return gaps


def _gap(distilled: float, random: float, full: float) -> float | None:
    return (distilled - random) / (full - random) if full > random else None


def differences(accuracies: Iterable[Accuracy]) -> list[Difference]:
    """Return distilled minus random and minus start, paired by seed: their mean over all settings, then each setting.

    The intervals hold the luck of pre-training and of the labels' draw, not that of the distillation.
    """
    settings = by_setting(accuracies)
    found = []
    for against in _CONTROLS:
        paired = {
            setting: _paired(methods["distilled"], methods[against])
            for setting, methods in settings.items()
            if {"distilled", against} <= methods.keys()
        }
        paired = {setting: values for setting, values in paired.items() if values}
        if not paired:
            continue
        seeds = set.intersection(*(set(values) for values in paired.values()))
        over_all = [statistics.fmean(values[seed] for values in paired.values()) for seed in sorted(seeds)]
        if over_all:
            found.append(_difference(against, None, over_all))
        found += [_difference(against, setting, list(values.values())) for setting, values in paired.items()]
    return found


def _paired(ours: Accuracy, theirs: Accuracy) -> dict[int, float]:
    others: Mapping[int, float] = dict(zip(theirs.seeds, theirs.values, strict=True))
    values = zip(ours.seeds, ours.values, strict=True)
    return {seed: value - others[seed] for seed, value in values if seed in others}


def _difference(against: str, setting: Setting | None, values: Sequence[float]) -> Difference:
    mean, count = statistics.fmean(values), len(values)
    half = None
    if count > 1:
        from scipy.stats import t as student_t  # slow to import

        quantile = float(student_t.ppf(0.5 + CONFIDENCE / 2, count - 1))
        half = quantile * statistics.stdev(values) / math.sqrt(count)
    task, architecture, fraction = setting or (None, None, None)
    return Difference(
        against=against,
        task=task,
        architecture=architecture,
        label_fraction=fraction,
        mean=mean,
        low=None if half is None else mean - half,
        high=None if half is None else mean + half,
        seeds=count,
    )
