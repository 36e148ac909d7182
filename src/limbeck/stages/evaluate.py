"""Stage 7, evaluate: encoders pre-trained on the synthetic set and on its rivals, judged by linear probes.

For every architecture, seed and method a fresh encoder is pre-trained and frozen, and probes are fitted on shares of
the labels of every task. Each of these is a result of its own, `encoder/<key>/`, so a cut evaluation goes on where it
was, and another distilled set is compared without training its rivals again.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any, get_args

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

from limbeck.checkpoint import Checkpoint, load_tensors
from limbeck.data.dataset import ImageDataset
from limbeck.data.feed import Examples
from limbeck.data.targets import open_targets
from limbeck.errors import InputError, WorkError
from limbeck.matching.selection import choose, random_subset
from limbeck.nn.encoders import ConvNet, EncoderConfig, ResNet, build_encoder, student_config
from limbeck.nn.pretraining import Recipe, pretrain_encoder, recipe_of
from limbeck.nn.probe import accuracy, fit_probe, label_subset
from limbeck.scores import FILE, Score, write_scores
from limbeck.seeding import derive
from limbeck.spec import Architecture, DistillationSpec, Initialization, Teacher
from limbeck.ssl.training import train_ssl
from limbeck.stages.graph import ENCODER_VERSION, objective_wire
from limbeck.stages.task import StageTask
from limbeck.store import Identity, json_digest
from limbeck.threads import fitting_threads

_BATCH = 512


@dataclass(frozen=True)
class _Diet:
    """What an encoder is pre-trained on: images with targets, and a description that stands in its key."""

    examples: Examples
    recipe: Recipe
    description: dict[str, Any]


@dataclass(frozen=True)
class _SslDiet:
    """All images, and the self-supervised objective that the teacher's settings name."""

    dataset: ImageDataset
    settings: Teacher

    @property
    def description(self) -> dict[str, Any]:
        """As of a `_Diet`."""
        return {"ssl": objective_wire(self.settings)}


@dataclass(frozen=True)
class _Labelled:
    """One part of a task."""

    examples: Examples  # without targets
    labelled: NDArray[np.int64]  # the indices of the images that have a label
    labels: NDArray[np.int64]  # of all images, -1 where there is none
    classes: int

    def chosen_labels(self, indices: NDArray[np.int64]) -> Tensor:
        return torch.from_numpy(self.labels[indices])


def evaluate(task: StageTask) -> None:
    """Write `accuracies.parquet`, one row a probe."""
    settings = task.spec.evaluate
    write_scores(task.out / FILE, evaluate_part(task, settings.architectures, ["distilled", *settings.baselines]))


def evaluate_part(task: StageTask, architectures: Sequence[Architecture], methods: Sequence[str]) -> list[Score]:
    """The scores of some encoders, which are trained and probed unless that was done before.

    Without "distilled" among the methods the task needs no distilled set. Nothing is written to the task's folder.
    """
    spec, settings = task.spec, task.spec.evaluate
    if not settings.tasks:
        return []
    data = _Data(task)
    scores = []
    total = len(architectures) * len(settings.seeds) * len(methods)
    with task.shop.progress.bar("evaluate", total, "encoders") as bar:
        for architecture in architectures:
            config = encoder_config(spec, architecture)
            for seed in settings.seeds:
                for method in methods:
                    with fitting_threads(config, settings.batch):
                        scores += _method_scores(task, data, config, method, seed)
                    bar.advance(note=f"{architecture}, {method}, seed {seed}")
    return scores


def encoder_config(spec: DistillationSpec, architecture: Architecture) -> EncoderConfig:
    """The encoder of that architecture: the student's own settings where it is the student's, else the usual ones."""
    if architecture == spec.student.architecture:
        return student_config(spec)
    width = spec.evaluate.width
    if architecture == "convnet":
        return EncoderConfig("convnet", spec.source.image_size, width or 128, "instance")
    return EncoderConfig(architecture, spec.source.image_size, width or 64, "batch")


class _Data:
    """The datasets, targets and subsets that encoders are pre-trained on and probed with."""

    def __init__(self, task: StageTask) -> None:
        self._task = task
        self._dataset = ImageDataset.open(task.inputs["dataset"].path)
        self._scores = load_tensors(task.input_file("select", "selection.safetensors"))[0]["scores"]
        self._synthetic = (
            load_tensors(task.input_file("distill", "synthetic.safetensors"))[0] if "distill" in task.inputs else {}
        )
        self._targets = open_targets(task.inputs["targets"].path)
        self._subsets = dict[Initialization, Tensor]()  # those that are chosen already
        self._size = task.spec.distill.budget(len(self._dataset), task.spec.source.image_size)
        self._full = self._examples(self._dataset, self._targets)
        self._labelled = {
            name: self._labelled_images(ImageDataset.open(result.path))
            for name, result in task.inputs.items()
            if ":" in name
        }

    def _examples(self, dataset: ImageDataset, targets: NDArray[np.float32] | None = None) -> Examples:
        """Any dataset's images, normalised as the source is: that is what the encoders are trained to see."""
        source, shop = self._dataset, self._task.shop
        say = None if targets is None else shop.progress.say
        return Examples.normalized(dataset.images, source.mean, source.std, shop.device, targets, say=say)

    def _labelled_images(self, dataset: ImageDataset) -> _Labelled:
        assert dataset.labels is not None  # checked after ingest
        return _Labelled(
            self._examples(dataset), np.flatnonzero(dataset.labels >= 0), dataset.labels, len(dataset.classes)
        )

    def _chosen(self, method: Initialization, seed: int) -> Tensor:
        """The subset of a method: a random one of every evaluation seed, else one for all of them."""
        if method == "random":
            return random_subset(len(self._dataset), self._size, derive(seed, "random"))
        if method not in self._subsets:
            task = self._task
            if method == "facilityLocation":
                task.shop.progress.say("evaluate: the subset that stands for all images is chosen first")
            self._subsets[method] = choose(
                method, self._targets, self._scores, self._size, task.spec.seed, task.shop.stop.check
            )
        return self._subsets[method]

    def diet(self, method: str, seed: int) -> _Diet | _SslDiet | None:
        """What `method` pre-trains on; None for no pre-training."""
        evaluate, spec = self._task.spec.evaluate, self._task.spec
        rate = evaluate.baseline_rate or spec.trajectories.optimizer.rate
        if method == "distilled":
            rate = self._synthetic["rate"].item()
        inputs = self._task.inputs
        makers: dict[str, Callable[[], _Diet | _SslDiet | None]] = {
            "none": lambda: None,
            "distilled": lambda: _Diet(
                Examples.held(self._synthetic["images"], self._synthetic["targets"], self._task.shop.device),
                recipe_of(spec, rate, len(self._synthetic["images"])),
                {"distilled": inputs["distill"].digest},
            ),
            "full": lambda: _Diet(
                self._full,
                recipe_of(spec, rate, len(self._full)),
                {"targets": inputs["targets"].digest, "subset": "all"},
            ),
            "fullSsl": lambda: _SslDiet(self._dataset, spec.ssl_teacher),
            **{way: partial(self._subset, way, seed, rate) for way in get_args(Initialization)},
        }
        return makers[method]()

    def _subset(self, method: Initialization, seed: int, rate: float) -> _Diet:
        indices = self._chosen(method, seed)
        description = {
            "targets": self._task.inputs["targets"].digest,
            "subset": json_digest(indices.tolist()),
        }
        return _Diet(self._full.subset(indices), recipe_of(self._task.spec, rate, len(indices)), description)

    def probe(self, encoder: nn.Module, config: EncoderConfig, method: str, seed: int) -> list[Score]:
        """Probe a frozen encoder on every task with every share of the labels."""
        settings = self._task.spec.evaluate
        scores = []
        for entry in settings.tasks:
            train, test = self._labelled[f"train:{entry.name}"], self._labelled[f"test:{entry.name}"]
            features, test_features = _features(encoder, train), _features(encoder, test)
            test_labels = test.chosen_labels(test.labelled).to(test_features.device)
            for fraction in settings.label_fractions:
                draws = np.random.default_rng(derive(seed, "labels", entry.name, repr(fraction)))
                chosen = label_subset(train.labels[train.labelled], fraction, draws)  # among the labelled
                weight, bias = fit_probe(
                    features[torch.from_numpy(chosen).to(features.device)],
                    train.chosen_labels(train.labelled[chosen]).to(features.device),
                    train.classes,
                    regularization=settings.probe.regularization,
                    iterations=settings.probe.iterations,
                )
                value = accuracy(test_features, test_labels, weight, bias)
                scores.append(Score(entry.name, config.architecture, method, fraction, len(chosen), seed, value))
                self._task.shop.stop.check()
        return scores


@torch.no_grad()
def _features(encoder: nn.Module, data: _Labelled) -> Tensor:
    """Features f32[m, k] of the images that have a label."""
    parts = torch.from_numpy(data.labelled).split(_BATCH)
    with data.examples.feed(parts) as fed:
        return torch.cat([encoder(images).flatten(1) for images, _ in fed])


def _method_scores(task: StageTask, data: _Data, config: EncoderConfig, method: str, seed: int) -> list[Score]:
    """The scores of one encoder, trained and probed unless that was done before."""
    settings, shop = task.spec.evaluate, task.shop
    diet = data.diet(method, seed)
    section = {
        "encoder": config.wire(),
        "seed": seed,
        "diet": diet.description if diet else None,
        "recipe": diet.recipe.wire() if isinstance(diet, _Diet) else None,
        "labelFractions": settings.label_fractions,
        "probe": settings.probe.wire(),
        "tasks": [entry.name for entry in settings.tasks],
    }
    digests = {name: result.digest for name, result in task.inputs.items() if ":" in name}
    inputs = {"dataset": task.inputs["dataset"].digest, **digests}

    def work(folder: Path) -> list[str]:
        encoder = build_encoder(config, seed, "evaluate").to(shop.device).eval()
        if isinstance(diet, _SslDiet):
            _train_ssl(task, encoder, diet, folder, seed)
        elif diet is not None:
            try:
                pretrain_encoder(
                    encoder,
                    diet.examples,
                    diet.recipe,
                    seed=seed,
                    stop=shop.stop,
                )
            except FloatingPointError as error:
                field = "distill.innerOptimizer.rate or rateStep" if method == "distilled" else "evaluate.baselineRate"
                raise WorkError(f"evaluate: {method}, seed {seed}: {error}; lower spec.{field}") from None
        rows = [score.__dict__ for score in data.probe(encoder, config, method, seed)]
        (folder / "scores.json").write_text(json.dumps(rows, indent=2) + "\n")
        return []

    result, _ = shop.make(Identity("encoder", ENCODER_VERSION, section, inputs), work)
    rows = json.loads((result.path / "scores.json").read_text())
    return [Score(**{**row, "method": method}) for row in rows]


def _train_ssl(task: StageTask, encoder: ConvNet | ResNet, diet: _SslDiet, folder: Path, seed: int) -> None:
    """Train the encoder, in place, on all images, without the teacher."""
    settings, shop = diet.settings, task.shop
    try:
        train_ssl(
            encoder,
            diet.dataset,
            settings,
            device=shop.device,
            seed=derive(seed, "fullSsl"),
            checkpoint=Checkpoint(folder, task.spec.execution.checkpoint_seconds, shop.store),
            stop=shop.stop,
        )
    except FloatingPointError as error:
        raise WorkError(
            f"evaluate: fullSsl, seed {seed}: {error}; lower spec.teacher.optimizer.rate (now "
            f"{settings.optimizer.rate:g})"
        ) from None
    except ImportError as error:
        raise InputError(
            "spec.evaluate.baselines", f"fullSsl needs {error.name}", "pip install 'limbeck[ssl]'"
        ) from None
