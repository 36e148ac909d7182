"""Probes of one encoder on one task, as a result of its own, `probe/<key>/`: cheap beside the encoder's training.

With a selection seed an encoder is scored on held-out labels alone; test images are read for reporting seeds only.
"""

from __future__ import annotations

import json
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Literal

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

from limbeck.data.dataset import ImageDataset
from limbeck.data.feed import Examples
from limbeck.errors import WorkError
from limbeck.evaluation.encoders import Trained
from limbeck.evaluation.probe import UnreachedError, fit_probes
from limbeck.evaluation.protocol import best_probe, draw_labels, held_out_split
from limbeck.seeding import derive
from limbeck.stages.task import StageTask
from limbeck.store import Identity

Split = Literal["heldOut", "test"]
_VERSION = 1
_FILE = "probes.json"
_BATCH = 512


@dataclass(frozen=True)
class Probed:
    """One probe's accuracy on one split."""

    steps: int  # of the encoder's pre-training
    fraction: float  # of the labels
    labels: int  # that the probe was fitted on
    ridge: float
    split: Split
    accuracy: float


class TaskImages:
    """The images of a task, normalised as the source is: that is what the encoders are trained to see.

    Args:
        task: with the task's datasets among its inputs.
        name: the task's.
    """

    def __init__(self, task: StageTask, name: str) -> None:
        self.name, self._task = name, task
        source = ImageDataset.open(task.inputs["dataset"].path)

        def part(which: str) -> _Part:
            dataset = ImageDataset.open(task.inputs[f"{which}:{name}"].path)
            assert dataset.labels is not None  # checked after ingest
            labelled = np.flatnonzero(dataset.labels >= 0)
            examples = Examples.normalized(dataset.images, source.mean, source.std, task.shop.device)
            return _Part(examples, labelled, dataset.labels[labelled])

        self.train, self.test = part("train"), part("test")
        self.classes = len(ImageDataset.open(task.inputs[f"train:{name}"].path).classes)
        self.seen, self.held_out = held_out_split(self.train.labels, task.spec.evaluate.held_out, name)

    def drawn(self, seed: int, fraction: float) -> NDArray[np.int64]:
        """Return the labelled training images that a probe of this seed is fitted on, as sorted positions."""
        draws = np.random.default_rng(derive(seed, "labels", self.name, repr(fraction)))
        return draw_labels(self.train.labels, self.seen, fraction, draws)


@dataclass(frozen=True)
class _Part:
    """The labelled images of one part of a task."""

    examples: Examples  # of all its images, without targets
    labelled: NDArray[np.int64]  # the indices of those that have a label
    labels: NDArray[np.int64]  # of these

    def targets(self, positions: NDArray[np.int64], device: torch.device) -> Tensor:
        """Labels i64[m] of some of the labelled images."""
        return torch.from_numpy(self.labels[positions]).to(device)

    def features(self, encoder: nn.Module, positions: NDArray[np.int64]) -> Tensor:
        """Features f32[m, k] of some of the labelled images."""
        batches = torch.from_numpy(self.labelled[positions]).split(_BATCH)
        with torch.no_grad(), self.examples.feed(batches) as fed:
            return torch.cat([encoder(images).flatten(1) for images, _ in fed])


def probe(task: StageTask, images: TaskImages, trained: Trained, *, seed: int, report: bool) -> list[Probed]:
    """Return the accuracies of an encoder's probes at every point and share of labels, unless fitted before.

    Args:
        task: the evaluation.
        images: of one task.
        trained: the encoder.
        seed: of the labels' draw.
        report: whether the test images are scored, too.

    Raises:
        FloatingPointError: features or weights are not finite.
        UnreachedError: the optimum of a probe was not reached.
    """
    settings = task.spec.evaluate
    section = {
        "encoder": trained.digest,
        "task": images.name,
        "seed": seed,
        "fractions": settings.label_fractions,
        "probe": settings.probe.wire(),
        "heldOut": settings.held_out,
        "report": report,
    }
    parts = ("train", "test") if report else ("train",)
    inputs = {f"{part}:{images.name}": task.inputs[f"{part}:{images.name}"].digest for part in parts}
    inputs["dataset"] = task.inputs["dataset"].digest  # whose mean and deviation normalise the images

    def work(folder: Path) -> list[str]:
        rows = [asdict(row) for steps in trained.points for row in _probed(task, images, trained, steps, seed, report)]
        (folder / _FILE).write_text(json.dumps(rows, indent=1) + "\n")
        return []

    result, _ = task.shop.make(Identity("probe", _VERSION, section, inputs), work)
    return [Probed(**row) for row in json.loads((result.path / _FILE).read_text())]


def _probed(task: StageTask, images: TaskImages, trained: Trained, steps: int, seed: int, report: bool) -> list[Probed]:
    """Fit and score the probes of an encoder at one point."""
    settings, device = task.spec.evaluate, task.shop.device
    encoder = trained.at(steps).to(device)
    train, test = images.train, images.test
    drawn = {fraction: images.drawn(seed, fraction) for fraction in settings.label_fractions}
    union: NDArray[np.int64] = np.unique(np.concatenate(list(drawn.values())))
    features = train.features(encoder, union)
    scored: list[tuple[Split, Tensor, Tensor]] = [
        ("heldOut", train.features(encoder, images.held_out), train.targets(images.held_out, device))
    ]
    if report:
        everything = np.arange(len(test.labels))
        scored.append(("test", test.features(encoder, everything), test.targets(everything, device)))
    rows = []
    for fraction, chosen in drawn.items():
        fitted = fit_probes(
            features[torch.from_numpy(np.searchsorted(union, chosen)).to(device)],
            train.targets(chosen, device),
            images.classes,
            settings.probe.ridges,
            iterations=settings.probe.iterations,
            tolerance=settings.probe.tolerance,
        )
        _, held_features, held_labels = scored[0]
        best, _ = best_probe([(entry, entry.accuracy(held_features, held_labels)) for entry in fitted])
        for split, rest, labels in scored:
            if not rest.isfinite().all():
                raise FloatingPointError("the encoder's features are not finite")
            accuracy = best.accuracy(rest, labels)
            rows.append(Probed(steps, fraction, len(chosen), best.ridge, split, accuracy))
        task.shop.stop.check()
    return rows


def failed(method: str, seed: int, error: FloatingPointError | UnreachedError) -> WorkError:
    """Return the error of a probe that has no result, with what to change."""
    if isinstance(error, UnreachedError):
        return WorkError(f"evaluate: {method}, seed {seed}: {error}")
    field = "spec.evaluate.rateFactors or baselineRate" if method != "distilled" else "spec.evaluate.rateFactors"
    return WorkError(f"evaluate: {method}, seed {seed}: {error}; lower {field}")
