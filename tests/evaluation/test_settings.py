"""Every number of `evaluate` reaches the arithmetic that it names: the stage against a plain loop.

`tests/test_settings.py` lists which test shows which field's effect.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import astuple
from pathlib import Path
from statistics import fmean
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor
from torch.nn import functional

from limbeck.checkpoint import load_tensors
from limbeck.data.budget import set_bytes
from limbeck.data.dataset import ImageDataset
from limbeck.data.targets import open_targets
from limbeck.errors import WorkError
from limbeck.evaluation.encoders import untrained
from limbeck.evaluation.probe import fit_probes
from limbeck.evaluation.scores import FILE, Score, read_scores
from limbeck.matching.selection import random_subset
from limbeck.nn.encoders import EncoderConfig, Student, build_encoder, student_config
from limbeck.runner import Run
from limbeck.seeding import derive, generator, seeded
from limbeck.spec import DistillationSpec
from limbeck.stages.evaluate import encoder_config
from tests.stages.tiny import distillation, workshop

SMALL = {
    "source.limit": 60,
    "trajectories.experts": 1,
    "distill.iterations": 2,
    "student.width": 4,
    "teacher.width": 4,
    "evaluate.tasks": [
        {
            "name": "digits",
            "train": {"uri": "sklearn:digits#train", "limit": 100},
            "test": {"uri": "sklearn:digits#test", "limit": 60},
        }
    ],
    "evaluate.labelFractions": [0.3],
    "evaluate.heldOut": 0.3,
    "evaluate.seeds": [0],
    "evaluate.selectionSeeds": [77],
    "evaluate.rateFactors": [1.0],
    "evaluate.baselines": ["random"],
    "evaluate.steps": 4,
    "evaluate.curvePoints": 1,
    "evaluate.batch": 6,
}


@pytest.fixture(scope="module")
def output(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Path]:
    """A store with all that comes before evaluate. On one thread, like the reference."""
    before, folder = torch.get_num_threads(), tmp_path_factory.mktemp("evaluate")
    torch.set_num_threads(1)
    run = Run(distillation(folder, SMALL), workshop(folder))
    for name in ("ingest", "teacher", "targets", "trajectories", "select", "distill"):
        run.stage(name)
    yield folder
    torch.set_num_threads(before)


def evaluated(output: Path, changes: dict[str, Any]) -> tuple[DistillationSpec, Run, list[Score]]:
    """The scores of a tiny run, and where they come from."""
    whole = distillation(output, SMALL | changes)
    run = Run(whole, workshop(output))
    run.stage("evaluate")
    return whole.spec, run, read_scores(run.results["evaluate"].path / FILE)


# ---- the reference


def normalized(run: Run, name: str) -> tuple[Tensor, np.ndarray]:
    source, dataset = (ImageDataset.open(run.results[which].path) for which in ("dataset", name))
    pixels = torch.from_numpy(np.asarray(dataset.images)).float() / 255
    mean, std = (torch.from_numpy(values)[:, None, None] for values in (source.mean, source.std))
    return (pixels - mean) / std, np.asarray(dataset.labels)


def diet(spec: DistillationSpec, run: Run, method: str, seed: int) -> tuple[Tensor, Tensor, float]:
    """Images, targets and the rate that the factors multiply."""
    if method == "distilled":
        tensors = load_tensors(run.results["distill"].path / "synthetic.safetensors")[0]
        return tensors["images"], tensors["targets"], tensors["rate"].item()
    images, targets = (
        normalized(run, "dataset")[0],
        torch.from_numpy(np.array(open_targets(run.results["targets"].path))),
    )
    rate = spec.evaluate.baseline_rate or spec.trajectories.optimizer.rate
    if method == "random":  # as many bytes as the set: uint8 pixels of the same side, targets of the same length
        rows = random_subset(len(images), spec.distill.size or 0, derive(seed, "random"))
        images, targets = images[rows], targets[rows]
    return images, targets, rate


def plain_encoders(
    spec: DistillationSpec, images: Tensor, targets: Tensor, rate: float, seed: int
) -> Iterator[tuple[int, torch.nn.Module]]:
    """The encoder after each number of steps of the curve: SGD written out, then rounded to half precision."""
    settings, config = spec.evaluate, student_config(spec)
    batch = min(settings.batch, len(images))
    epoch_length = len(images) // batch + (len(images) % batch > 1)
    last = settings.steps or settings.epochs * epoch_length
    points = {max(1, round(last / 2**k)) for k in range(settings.curve_points)}
    encoder = build_encoder(config, seed, "evaluate")
    with seeded(seed, "pretrain", "head"):
        student = Student(encoder, encoder.feature_dimension, targets.shape[1])
    parameters = list(student.parameters())
    velocities = [torch.zeros_like(parameter) for parameter in parameters]
    for step in range(last):
        order = torch.randperm(len(images), generator=generator(seed, "pretrain", "order", step // epoch_length))
        rows = order[step % epoch_length * batch :][:batch]
        gradients = torch.autograd.grad(functional.mse_loss(student(images[rows]), targets[rows]), parameters)
        with torch.no_grad():
            for theta, velocity, gradient in zip(parameters, velocities, gradients, strict=True):
                velocity.mul_(settings.momentum).add_(gradient + settings.weight_decay * theta)
                theta -= rate * velocity
        if step + 1 in points:
            kept = build_encoder(config, seed)
            kept.load_state_dict({name: tensor.half().float() for name, tensor in encoder.state_dict().items()})
            yield step + 1, kept.eval()


def plain_split(labels: np.ndarray, share: float) -> np.ndarray:
    """Which training images are held out: a share of every class."""
    draws, held = np.random.default_rng(derive(0, "held out", "digits")), np.zeros(len(labels), bool)
    for name in np.unique(labels):
        members = draws.permutation(np.flatnonzero(labels == name))
        held[members[: max(1, round(share * len(members)))]] = True
    return held


def plain_draw(labels: np.ndarray, held: np.ndarray, fraction: float, seed: int) -> np.ndarray:
    """The training images whose labels a probe sees: a fraction of every class, among those not held out."""
    draws, chosen = np.random.default_rng(derive(seed, "labels", "digits", repr(fraction))), []
    for name in np.unique(labels):
        members = draws.permutation(np.flatnonzero((labels == name) & ~held))
        chosen += list(members[: max(1, round(fraction * (labels == name).sum()))])
    return np.sort(chosen)


def plain_rows(spec: DistillationSpec, run: Run, method: str, factor: float, seed: int, split: str) -> list[Any]:
    """The scores of one encoder."""
    settings, images = spec.evaluate, diet(spec, run, method, seed)
    train, labels = normalized(run, "train:digits")
    held, found = plain_split(labels, settings.held_out), []
    tests = normalized(run, "test:digits") if split == "test" else (train[held], labels[held])
    size = set_bytes(len(images[0]), 8, images[1].shape[1], 1)
    for steps, encoder in plain_encoders(spec, images[0], images[1], factor * images[2], seed):
        with torch.no_grad():
            features, tested = encoder(train), encoder(tests[0])
        for fraction in settings.label_fractions:
            rows = plain_draw(labels, held, fraction, seed)
            best = (-1.0, 0.0, -1.0)
            for probe in fit_probes(
                features[rows],
                torch.from_numpy(labels[rows]),
                10,
                settings.probe.ridges,
                iterations=2000,
                tolerance=1e-6,
            ):
                value = probe.accuracy(features[held], torch.from_numpy(labels[held]))
                best = max(best, (value, probe.ridge, probe.accuracy(tested, torch.from_numpy(tests[1]))))
            rate = factor * images[2]
            found.append(
                Score(
                    *("digits", "convnet", method, fraction, len(rows), seed, steps, rate),
                    *(best[1], split, best[2], len(images[0]), size),
                )
            )
    return found


def plain_scores(spec: DistillationSpec, run: Run, method: str) -> list[Score]:
    """The rate that is best on held-out labels, then its scores by selection seeds and by reporting seeds."""
    settings, best = spec.evaluate, (-1.0, 0.0, 0.0, list[Score]())
    for factor in settings.rate_factors:
        rows = [r for s in settings.selection_seeds for r in plain_rows(spec, run, method, factor, s, "heldOut")]
        value = fmean(
            max(
                fmean(r.accuracy for r in rows if (r.steps, r.label_fraction) == (steps, fraction))
                for steps in {r.steps for r in rows}
            )
            for fraction in settings.label_fractions
        )
        best = max(best, (value, -abs(float(np.log(factor))), factor, rows), key=lambda entry: entry[:2])
    return best[3] + [r for s in settings.seeds for r in plain_rows(spec, run, method, best[2], s, "test")]


# ---- the stage


@pytest.mark.parametrize(
    "changes",
    [
        {},
        {"labelFractions": [0.1, 0.5]},
        {"heldOut": 0.6},
        {"seeds": [3, 1]},
        {"selectionSeeds": [78, 5, 79]},
        {"steps": None, "epochs": 3},
        {"steps": 7},
        {"steps": 7, "curvePoints": 3},
        {"batch": 4},
        {"batch": 3},
        {"momentum": 0.2},
        {"weightDecay": 0.5},
        {"baselineRate": 0.02},
        {"rateFactors": [0.03, 4.0]},
        {"probe": {"ridges": [1e-3, 3.0]}},
        {"baselines": ["full"]},
    ],
    ids=str,
)
def test_encoders_and_probes_are_those_of_a_plain_loop_with_these_settings(output, changes):
    """Also with a last batch that is shorter, and one of a single image, which is left out."""
    changes = {f"evaluate.{name}": value for name, value in changes.items()}
    spec, run, scores = evaluated(output, changes)
    expected = [row for method in ("distilled", *spec.evaluate.baselines) for row in plain_scores(spec, run, method)]
    assert [astuple(row) for row in scores] == [pytest.approx(astuple(row)) for row in expected]


def test_the_probe_s_iterations_are_counted(output):
    with pytest.raises(WorkError, match="after 3 iterations the probe's gradient"):
        evaluated(output, {"evaluate.probe": {"iterations": 3, "ridges": [1e-3]}, "evaluate.baselines": []})


def test_at_a_tolerance_of_1_the_probe_stays_where_it_starts_and_answers_the_first_class(output):
    _, run, scores = evaluated(output, {"evaluate.probe": {"tolerance": 1.0}, "evaluate.baselines": []})
    labels = normalized(run, "test:digits")[1]
    assert [row.accuracy for row in scores if row.split == "test"] == [pytest.approx((labels == 0).mean())]


@pytest.mark.parametrize(
    ("student", "width", "channels"),
    [
        ("convnet", None, {"convnet": 4, "resnet10": 64, "resnet18": 64}),
        ("convnet", 12, {"convnet": 4, "resnet10": 12, "resnet18": 12}),
        ("resnet10", None, {"convnet": 128, "resnet10": 4, "resnet18": 64}),
        ("resnet10", 12, {"convnet": 12, "resnet10": 4, "resnet18": 12}),
    ],
)
def test_width_is_the_channels_of_the_first_stage_of_what_is_not_the_student(student, width, channels):
    changes = {"student.architecture": student, "student.norm": "batch", "evaluate.width": width}
    spec = distillation("out", SMALL | changes).spec
    for architecture, expected in channels.items():
        config = encoder_config(spec, architecture)
        weights = untrained(config, 0).at(0).state_dict()
        assert weights["0.weight" if architecture == "convnet" else "conv1.weight"].shape == (expected, 3, 3, 3)
        if architecture != student:
            assert config == EncoderConfig(
                architecture, 8, expected, "instance" if architecture == "convnet" else "batch"
            )
