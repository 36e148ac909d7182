"""What each method pre-trains encoders on: the distilled set, its rivals, or everything."""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from functools import partial
from typing import Any, get_args

import torch
from torch import Tensor

from limbeck.checkpoint import load_tensors
from limbeck.data.budget import set_bytes
from limbeck.data.dataset import ImageDataset
from limbeck.data.distilled import DistilledSet
from limbeck.data.feed import Examples
from limbeck.data.targets import open_targets
from limbeck.evaluation.comparison import CHAMPION
from limbeck.matching.selection import choose, random_subset
from limbeck.seeding import derive
from limbeck.spec import Initialization, Teacher
from limbeck.stages.graph import objective_wire
from limbeck.stages.start import starting_set
from limbeck.stages.task import StageTask
from limbeck.store import json_digest

FIXED = ("none", "fullSsl")  # methods with nothing to choose: no pre-training, and the teacher's own settings


@dataclass(frozen=True)
class Diet:
    """Images with targets that an encoder is pre-trained on.

    Attributes:
        examples: normalised images and targets.
        bytes: of the images and targets as they are stored.
        rate: what the rate factors multiply.
        description: stands in the encoder's key.
    """

    examples: Examples
    bytes: int
    rate: float
    description: Mapping[str, Any]

    @property
    def images(self) -> int:
        """How many there are."""
        return len(self.examples)


@dataclass(frozen=True)
class SslDiet:
    """All images, and the self-supervised objective that the teacher's settings name."""

    dataset: ImageDataset
    settings: Teacher

    @property
    def images(self) -> int:
        """How many there are."""
        return len(self.dataset)

    @property
    def bytes(self) -> int:
        """The bytes of the images; there are no targets."""
        return int(self.dataset.images.nbytes)

    @property
    def description(self) -> Mapping[str, Any]:
        """As of a `Diet`."""
        return {"ssl": objective_wire(self.settings)}


class Diets:
    """The diets of all methods of an evaluation; one that no seed changes is made once."""

    def __init__(self, task: StageTask) -> None:
        self._task = task
        self._dataset = ImageDataset.open(task.inputs["dataset"].path)
        self._targets = open_targets(task.inputs["targets"].path)
        self._full = task.source_examples()
        self._known = dict[str, Diet | SslDiet | None]()  # by method: those that no seed changes

    def of(self, method: str, seed: int) -> Diet | SslDiet | None:
        """Return what a method pre-trains on with an evaluation seed; None for no pre-training."""
        if method == "random":
            return self._made(method, seed)
        if method not in self._known:
            self._known[method] = self._made(method, seed)
        return self._known[method]

    def _made(self, method: str, seed: int) -> Diet | SslDiet | None:
        makers: dict[str, Callable[[], Diet | SslDiet | None]] = {
            "none": lambda: None,
            "distilled": self._distilled,
            CHAMPION: self._champion,
            "start": self._start,
            "full": lambda: Diet(self._full, self._bytes(len(self._full)), self._rate, self._key("all")),
            "fullSsl": lambda: SslDiet(self._dataset, self._task.spec.ssl_teacher),
            **{way: partial(self._subset, way, seed) for way in get_args(Initialization)},
        }
        return makers[method]()

    @property
    def _rate(self) -> float:
        return self._task.spec.evaluate.baseline_rate or self._task.spec.trajectories.optimizer.rate

    @property
    def _budget(self) -> int:
        """The bytes of the distilled set, which does not have to be there yet."""
        spec = self._task.spec
        side, dimension = spec.distill.side(spec.source.image_size), self._targets.shape[1]
        count = spec.distill.count(len(self._dataset), spec.source.image_size)
        return set_bytes(count, side, dimension, 1 if spec.distill.pixels == "uint8" else 4)

    def _bytes(self, images: int) -> int:
        """The bytes of real images with targets."""
        return set_bytes(images, self._task.spec.source.image_size, self._targets.shape[1], 1)

    def _size(self) -> int:
        """How many real images take as many bytes as the distilled set, with their targets; at least one."""
        one = self._bytes(1)
        each = self._bytes(2) - one
        return min(len(self._dataset), max(1, 1 + (self._budget - one) // each))

    def _key(self, subset: str) -> Mapping[str, Any]:
        return {"targets": self._task.inputs["targets"].digest, "subset": subset}

    def _distilled(self) -> Diet:
        result = self._task.inputs["distill"]
        tensors = load_tensors(result.path / "synthetic.safetensors")[0]
        examples = Examples.held(tensors["images"], tensors["targets"], self._task.shop.device)
        return Diet(examples, self._budget, tensors["rate"].item(), {"distilled": result.digest})

    def _start(self) -> Diet:
        start = starting_set(self._task)
        digest = hashlib.sha256()
        for tensor in (start.images, start.targets):
            digest.update(tensor.contiguous().numpy().tobytes())
        examples = Examples.held(start.images, start.targets, self._task.shop.device)
        return Diet(examples, self._budget, start.rate.item(), {"start": digest.hexdigest()})

    def _champion(self) -> Diet:
        """The registered set, normalised as the source is: that is what the tasks' images are.

        Its rates are chosen around the rate that it learned, as those of the new set are.
        """
        result = self._task.inputs[CHAMPION]
        champion = DistilledSet.load(result.path)
        mean, std = (torch.from_numpy(v)[:, None, None] for v in (self._dataset.mean, self._dataset.std))
        images = (champion.pixels(champion.images) - mean) / std
        examples = Examples.held(images, champion.targets, self._task.shop.device)
        rate = champion.recipe.rate if champion.learned_rate is None else champion.learned_rate
        return Diet(examples, champion.nbytes, rate, {"champion": result.digest})

    def _subset(self, method: Initialization, seed: int) -> Diet:
        indices = self._chosen(method, seed)
        key = self._key(json_digest(indices.tolist()))
        return Diet(self._full.subset(indices), self._bytes(len(indices)), self._rate, key)

    def _chosen(self, method: Initialization, seed: int) -> Tensor:
        """The subset of a method: a random one of every evaluation seed, else one for all of them."""
        if method == "random":
            return random_subset(len(self._dataset), self._size(), derive(seed, "random"))
        task = self._task
        if method == "facilityLocation":
            task.shop.progress.say("evaluate: choosing the facility-location subset")
        scores = load_tensors(task.input_file("select", "selection.safetensors"))[0]["scores"]
        return choose(method, self._targets, scores, self._size(), task.spec.seed, task.shop.stop.check)
