"""The methods of the stage distill: what gives the gradient of an iteration."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Protocol

from torch import Tensor

from limbeck.matching.engine import GRADIENT_FORWARDS, PRODUCT_FORWARDS, Work, choose_steps
from limbeck.matching.experts import Experts
from limbeck.matching.kernel import KernelRegression
from limbeck.matching.matcher import Matcher
from limbeck.matching.synthetic import Snapshot
from limbeck.matching.unroll import InnerLoop, SyntheticGradient
from limbeck.nn.encoders import build_student, student_config
from limbeck.nn.flat import FlatNetwork
from limbeck.stages.task import StageTask


class Method(Protocol):
    """What gives the gradient of an iteration."""

    def iterate(self, iteration: int, now: Snapshot) -> Found:
        """At the set as it is."""

    def pack(self) -> dict[str, Tensor]:
        """Tensors of a checkpoint."""

    def unpack(self, tensors: Mapping[str, Tensor]) -> None:
        """The inverse of `pack`."""

    def prepare(self, now: Snapshot, between: Callable[[], None]) -> None:
        """What comes before the first iteration, from where it was cut; `between` is called again and again."""


@dataclass(frozen=True)
class Found:
    """What an iteration finds."""

    loss: float
    gradient: SyntheticGradient
    expert: int  # of the first pair; the student of the pool
    start: int  # epoch that the pair starts at; the student's steps


def choose_method(task: StageTask, now: Snapshot) -> Method:
    """The method that the spec names, for a synthetic set of that form."""
    return PooledRegression(task) if task.spec.distill.method == "krrSt" else TrajectoryMatching(task, now)


class TrajectoryMatching:
    """Matches expert trajectories, by the means that fit the size of the work and the device."""

    def __init__(self, task: StageTask, now: Snapshot) -> None:
        spec, shop = task.spec, task.shop
        settings, engine = spec.distill, spec.execution.engine
        batch = min(settings.inner_batch, len(now.images))
        student = build_student(student_config(spec), now.targets.shape[1], spec.distillation_seed)
        network = FlatNetwork(student.to(shop.device))
        forwards = settings.iterations * settings.pairs * settings.inner_steps * (GRADIENT_FORWARDS + PRODUCT_FORWARDS)
        work = Work(network, batch, spec.source.image_size, float(forwards))
        steps = choose_steps(work, settings.precision, engine, shop.device, shop.progress.say)
        self._pairs = settings.pairs
        self._matcher = Matcher(
            Experts.listed(task.inputs["trajectories"].path, task.locate),
            steps,
            InnerLoop(settings.inner_optimizer.momentum, settings.inner_optimizer.weight_decay),
            seed=spec.distillation_seed,
            start_epochs=settings.start_epochs,
            gap=settings.expert_gap,
            inner_steps=settings.inner_steps,
            inner_batch=settings.inner_batch,
            engine=engine,
            device=shop.device,
            image_size=None if spec.student.augmentation == "none" else spec.source.image_size,
            layers=network.sizes if settings.loss_normalization == "layer" else None,
        )

    def iterate(self, iteration: int, now: Snapshot) -> Found:
        """See `Method.iterate`."""
        drawn = self._matcher.draw(iteration, self._pairs, len(now.images))
        matched = self._matcher.match(drawn, now.images, now.targets, now.rate)
        return Found(matched.loss, matched.gradient, drawn[0].expert, drawn[0].epoch)

    def pack(self) -> dict[str, Tensor]:
        """See `Method.pack`."""
        return {}

    def unpack(self, tensors: Mapping[str, Tensor]) -> None:
        """See `Method.unpack`."""

    def prepare(self, now: Snapshot, between: Callable[[], None]) -> None:
        """See `Method.prepare`."""


class PooledRegression:
    """Regresses the targets of real images on the synthetic ones."""

    def __init__(self, task: StageTask) -> None:
        spec, shop = task.spec, task.shop
        inner = spec.distill.inner_optimizer
        self._progress = shop.progress
        self._regression = KernelRegression(
            student_config(spec),
            task.source_examples(),
            spec.distill.kernel,
            rate=inner.rate,
            momentum=inner.momentum,
            seed=spec.distillation_seed,
            augmentation=spec.student.augmentation,
        )

    def iterate(self, iteration: int, now: Snapshot) -> Found:
        """See `Method.iterate`."""
        found = self._regression.iterate(iteration, now.images, now.targets)
        return Found(found.loss, found.gradient, found.student, found.age)

    def pack(self) -> dict[str, Tensor]:
        """See `Method.pack`."""
        return {f"pool.{name}": tensor for name, tensor in self._regression.pack().items()}

    def unpack(self, tensors: Mapping[str, Tensor]) -> None:
        """See `Method.unpack`."""
        self._regression.unpack({n.removeprefix("pool."): t for n, t in tensors.items() if n.startswith("pool.")})

    def prepare(self, now: Snapshot, between: Callable[[], None]) -> None:
        """See `Method.prepare`."""
        total, done = self._regression.preparation()
        with self._progress.bar("pool", total, "steps", done) as bar:

            def stepped() -> None:
                bar.advance()
                between()

            if done < total:
                self._regression.prepare(now.images, now.targets, stepped)
