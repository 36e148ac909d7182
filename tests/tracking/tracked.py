"""Tiny runs that are tracked, here, and sets to register that need no run."""

from __future__ import annotations

import shutil
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch

from limbeck.data.distilled import DistilledSet
from limbeck.evaluation.comparison import CONFIDENCE, Champion, named_figures
from limbeck.interrupt import StopRequest
from limbeck.nn.pretraining import Recipe
from limbeck.progress import SILENT, Progress
from limbeck.runner import Run
from limbeck.store import file_digest
from limbeck.summary import Accuracy, Summary
from limbeck.tracking.journal import Data
from limbeck.tracking.messages import Publish
from limbeck.tracking.process import SenderProcess
from limbeck.tracking.recorder import Recording
from tests.report.conftest import accuracies, gaps
from tests.stages.tiny import distillation, workshop

EVERY_GAP = {"distilled": (0.4, 0.6), "random": (0.3, 0.5), "full": (0.5, 0.7)}


def run_tracked(
    output: Path,
    uri: str,
    changes: dict[str, Any] | None = None,
    progress: Progress = SILENT,
    stop: StopRequest | None = None,
) -> Summary:
    spec = distillation(output, {"tracking": {"uri": uri}, **(changes or {})})
    recording = Recording(SenderProcess(uri), workshop(output, progress, stop), "limbeck run", stage_alone=False)
    return Run(spec, recording.workshop, recording).all()


def stage_tracked(name: Any, output: Path, uri: str, changes: dict[str, Any] | None = None) -> None:
    spec = distillation(output, {"tracking": {"uri": uri}, **(changes or {})})
    recording = Recording(SenderProcess(uri), workshop(output), f"limbeck stage {name}", stage_alone=True)
    Run(spec, recording.workshop, recording).stage(name)


def copy_of(finished: Path, to: Path) -> Path:
    return Path(shutil.copytree(finished, to))


def evaluation(shift: float = 0.0, seeds: int = 4, draw: int = 0) -> dict[str, Any]:
    """An evaluation whose distilled set is better by `shift` on average, on the test images and on held-out labels.

    On the latter sets of another `draw` differ by some 0.003 for a seed, and not on average.
    """
    found = accuracies(EVERY_GAP, fractions=(0.1, 0.5), seeds=seeds)
    own = np.random.default_rng(draw).normal(0, 0.002, seeds)
    moved = []
    for a in found:
        held_out, by = np.array(a.values) - 0.01, shift if a.method == "distilled" else 0.0
        if a.method == "distilled":
            held_out += shift + own - own.mean()
        changes = {"values": [v + by for v in a.values], "mean": a.mean + by, "held_out": held_out.tolist()}
        moved.append(a.model_copy(update={**changes, "selection_seeds": [1000 + seed for seed in a.seeds]}))
    return {
        "accuracies": [a.model_dump(mode="json", by_alias=True) for a in moved],
        "recoveredGaps": [g.model_dump(mode="json", by_alias=True) for g in gaps(moved)],
    }


def as_champion(version: int, figures: dict[str, Any], targets: str | None) -> Champion:
    """A set as the champion that was evaluated again, with the very figures that it came with."""
    own = [Accuracy.model_validate(entry) for entry in figures["accuracies"]]
    renamed = [a.model_copy(update={"method": "champion"}) for a in own if a.method == "distilled"]
    return Champion(version=version, accuracies=renamed, targets=targets)


def spec_of(**evaluate: Any) -> dict[str, Any]:
    return {
        "source": {"uri": "digits", "imageSize": 8},
        "student": {"width": 8},
        "trajectories": {"optimizer": {"rate": 0.1}},
        "evaluate": {"epochs": 3, "tasks": [], "baselines": ["random", "full"]} | evaluate,
    }


def publishable(
    folder: Path,
    name: str | None = "digits",
    *,
    number: int = 0,
    shift: float = 0.0,
    promote: Any = "ifBetter",
    metric: str = "accuracy",
    seeds: int = 4,
    evaluate: dict[str, Any] | None = None,
) -> Publish:
    """A distilled set in a folder, and the request to publish it."""
    folder.mkdir(parents=True)
    draws = torch.Generator().manual_seed(number)
    distilled = DistilledSet(
        images=torch.randn(4, 3, 8, 8, generator=draws),
        targets=torch.randn(4, 5, generator=draws),
        mean=torch.full((3,), 0.5),
        std=torch.full((3,), 0.2),
        recipe=Recipe(rate=0.1, steps=1, batch=4, momentum=0.9, weight_decay=0.0),
        spec=spec_of(**(evaluate or {})),
        lineage={"source": "s", "dataset": "d", "targets": "t", "train:digits": "a", "test:digits": "b"},
        evaluation=evaluation(shift, seeds, draw=number),
    )
    distilled.save(folder)
    found = [a for a in accuracies(EVERY_GAP, fractions=(0.1, 0.5), seeds=seeds) if a.method != "distilled"]
    task = Data(name="test digits", digest="b" * 32, uri="digits", images=10, context="evaluation")
    return Publish(
        until=0,
        folder=str(folder),
        images=4,
        image_size=8,
        target_dimension=5,
        recipe=distilled.recipe.wire(),
        spec=distilled.spec,
        lineage=distilled.lineage,
        evaluation=distilled.evaluation,
        location=str(folder),
        digest=file_digest(folder / "distilled.json"),
        title=name or "distilled set",
        name=name,
        promote=promote,
        metric=metric,
        confidence=CONFIDENCE,
        tags={"limbeck.source": "digits"},
        synthetic=Data(name="distilled set", digest="c" * 32, uri=str(folder), images=4, context="synthetic"),
        tasks={"digits": task},
        figures=named_figures(found, []),
    )


def numbers(versions: Sequence[Any]) -> list[int]:
    return [version.number for version in versions]
