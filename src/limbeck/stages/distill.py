"""Stage 6, distill: optimise the synthetic images, their targets and the inner learning rate by trajectory matching.

Every iteration draws an expert and a start epoch s, trains a student from theta_s for N steps on the synthetic set,
and follows the gradient of ||theta_N - theta_{s+M}||^2 / ||theta_s - theta_{s+M}||^2. The other method, KRR-ST, has
another gradient (`limbeck.matching.kernel`); all else is the same.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Protocol

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import torch
from torch import Tensor

from limbeck.checkpoint import load_tensors, save_tensors
from limbeck.data.dataset import ImageDataset
from limbeck.data.distilled import DistilledSet, image_grid, viewable
from limbeck.data.feed import Examples
from limbeck.data.targets import open_targets, read_standardization
from limbeck.errors import WorkError
from limbeck.live import UNSEEN
from limbeck.matching.engine import GRADIENT_FORWARDS, PRODUCT_FORWARDS, Work, choose_steps
from limbeck.matching.experts import Experts
from limbeck.matching.kernel import KernelRegression
from limbeck.matching.matcher import Matcher
from limbeck.matching.synthetic import Snapshot, SyntheticSet
from limbeck.matching.unroll import InnerLoop, SyntheticGradient
from limbeck.nn.encoders import build_student, student_config
from limbeck.nn.flat import FlatNetwork
from limbeck.ranks import anyone, from_first, place
from limbeck.ssl.teachers import load_teacher
from limbeck.stages.task import StageTask
from limbeck.storage import Access
from limbeck.threads import fitting_threads

_PICTURES, _SHOWN = 10, 100  # pictures of a run, and how many images each shows at most


@dataclass(frozen=True)
class _Start:
    images: Tensor  # f32[m, 3, s, s], normalised; of an earlier set as they are kept
    targets: Tensor  # f32[m, d]
    rate: float


class _Method(Protocol):
    """What gives the gradient of an iteration."""

    def iterate(self, iteration: int, now: Snapshot) -> _Found:
        """At the set as it is."""

    def pack(self) -> dict[str, Tensor]:
        """Tensors of a checkpoint."""

    def unpack(self, tensors: Mapping[str, Tensor]) -> None:
        """The inverse of `pack`."""

    def prepare(self, now: Snapshot, between: Callable[[], None]) -> None:
        """What comes before the first iteration, from where it was cut; `between` is called again and again."""


@dataclass(frozen=True)
class _Found:
    loss: float
    gradient: SyntheticGradient
    expert: int  # of the first pair; the student of the pool
    start: int  # epoch that the pair starts at; the student's steps


def distill(task: StageTask) -> None:
    """Write `synthetic.safetensors` and `history.parquet`.

    The first holds images f32[m, 3, s, s] (normalised), the same as they are kept, stored f32[m, 3, r, r], targets
    f32[m, d], rate f32[], and initial_images, what the images were at the start; the second the matching loss and the
    rate of every iteration, and the expert and the start epoch of its first pair. With krrSt these are the loss of the
    regression, the student of the pool, and how many steps that had taken.

    Several ranks of torch.distributed may do it together: each matches its share of an iteration's pairs, all hold and
    write the same set, and the first saves and reads the checkpoints.
    """
    spec, shop = task.spec, task.shop
    settings, device = spec.distill, shop.device
    start = _warm_start(task) if settings.warm_start else _real_start(task)
    config = student_config(spec)
    synthetic = SyntheticSet(start.images, start.targets, start.rate, settings, spec.source.image_size, device)
    if place()[1] > 1:  # processors differ in last bits: all ranks start as the first does
        started = from_first(synthetic.pack(), device)
        assert started is not None
        synthetic.unpack(*started)
    initial = synthetic.now.images.clone()
    history = torch.zeros(settings.iterations, 4, dtype=torch.float64)  # loss, rate, expert, start
    checkpoint, first, leads = task.checkpoint(), 0, place()[0] == 0
    saved = from_first(checkpoint.load() if leads else None, device)
    batch = min(settings.inner_batch, len(start.images))
    if saved is not None:
        first = saved[1]["iterations"]
    bars = shop.progress.bar("distill", settings.iterations, "iterations", first)
    with fitting_threads(config, batch), bars as bar:
        method: _Method = _Kernel(task) if settings.method == "krrSt" else _Mkdt(task, start, batch)
        if saved is not None:
            tensors, values = saved
            synthetic.unpack(tensors, values)
            method.unpack(tensors)
            history[:first] = tensors["history"]

        def save(iterations: int) -> None:
            state, values = synthetic.pack()
            state |= {"history": history[:iterations], **method.pack()}
            checkpoint.save(state, {"iterations": iterations, **values})

        def pause(iterations: int) -> None:
            shop.stop.requested = anyone(shop.stop.requested, device)
            if leads and (checkpoint.due() or shop.stop.requested):
                save(iterations)
            shop.stop.check()

        method.prepare(synthetic.now, lambda: pause(0))
        for iteration in range(first, settings.iterations):
            pause(iteration)
            now = synthetic.now
            if leads and iteration % max(1, settings.iterations // _PICTURES) == 0:
                _show(task, iteration, now.images)
            found = method.iterate(iteration, now)
            rate = now.rate.item()
            if not (math.isfinite(found.loss) and found.gradient.rate.isfinite()):
                lower = "pixelStep, rateStep" if settings.method == "mkdt" else "pixelStep, targetStep"
                raise WorkError(
                    f"distill: the matching loss is {found.loss:g} at iteration {iteration}, rate {rate:.3g}; "
                    f"lower spec.distill.{lower} or innerOptimizer.rate"
                )
            synthetic.step(found.gradient, iteration)
            history[iteration] = torch.tensor([found.loss, rate, found.expert, found.start], dtype=torch.float64)
            if leads:
                shop.live.figures(iteration, {"matching_loss": found.loss, "learning_rate": rate})
            bar.advance(note=f"matching loss {history[max(0, iteration - 49) : iteration + 1, 0].mean():.4f}")
    result = synthetic.result
    if leads:
        _show(task, settings.iterations, result.images)
    save_tensors(
        task.out / "synthetic.safetensors",
        {
            "images": result.images,
            "stored": result.stored,
            "targets": result.targets,
            "rate": result.rate,
            "initial_images": initial,
        },
    )
    _write_history(task.out / "history.parquet", history)


def _show(task: StageTask, iteration: int, images: Tensor) -> None:
    """Show the first synthetic images as they are before an iteration."""
    if task.shop.live is UNSEEN:
        return
    dataset = ImageDataset.open(task.inputs["dataset"].path)
    mean, std = torch.from_numpy(dataset.mean), torch.from_numpy(dataset.std)
    grid = image_grid(viewable(images[:_SHOWN].detach().cpu(), mean, std))
    task.shop.live.picture(iteration, "synthetic", np.asarray(grid))


class _Mkdt:
    """Matches expert trajectories, by the means that fit the size of the work and the device."""

    def __init__(self, task: StageTask, start: _Start, batch: int) -> None:
        spec, shop = task.spec, task.shop
        settings, engine = spec.distill, spec.execution.engine
        network = FlatNetwork(build_student(student_config(spec), start.targets.shape[1], spec.seed).to(shop.device))
        forwards = settings.iterations * settings.pairs * settings.inner_steps * (GRADIENT_FORWARDS + PRODUCT_FORWARDS)
        work = Work(network, batch, spec.source.image_size, float(forwards))
        steps = choose_steps(work, settings.precision, engine, shop.device, shop.progress.say)
        self._pairs = settings.pairs
        self._matcher = Matcher(
            Experts.listed(task.inputs["trajectories"].path, task.locate),
            steps,
            InnerLoop(settings.inner_optimizer.momentum, settings.inner_optimizer.weight_decay),
            seed=spec.seed,
            start_epochs=settings.start_epochs,
            gap=settings.expert_gap,
            inner_steps=settings.inner_steps,
            inner_batch=settings.inner_batch,
            engine=engine,
            device=shop.device,
            image_size=None if spec.student.augmentation == "none" else spec.source.image_size,
            layers=network.sizes if settings.loss_normalization == "layer" else None,
        )

    def iterate(self, iteration: int, now: Snapshot) -> _Found:
        drawn = self._matcher.draw(iteration, self._pairs, len(now.images))
        matched = self._matcher.match(drawn, now.images, now.targets, now.rate)
        return _Found(matched.loss, matched.gradient, drawn[0].expert, drawn[0].epoch)

    def pack(self) -> dict[str, Tensor]:
        return {}

    def unpack(self, tensors: Mapping[str, Tensor]) -> None:
        pass

    def prepare(self, now: Snapshot, between: Callable[[], None]) -> None:
        pass


class _Kernel:
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
            seed=spec.seed,
            augmentation=spec.student.augmentation,
        )

    def iterate(self, iteration: int, now: Snapshot) -> _Found:
        found = self._regression.iterate(iteration, now.images, now.targets)
        return _Found(found.loss, found.gradient, found.student, found.age)

    def pack(self) -> dict[str, Tensor]:
        return {f"pool.{name}": tensor for name, tensor in self._regression.pack().items()}

    def unpack(self, tensors: Mapping[str, Tensor]) -> None:
        self._regression.unpack({n.removeprefix("pool."): t for n, t in tensors.items() if n.startswith("pool.")})

    def prepare(self, now: Snapshot, between: Callable[[], None]) -> None:
        total, done = self._regression.preparation()
        with self._progress.bar("pool", total, "steps", done) as bar:

            def stepped() -> None:
                bar.advance()
                between()

            if done < total:
                self._regression.prepare(now.images, now.targets, stepped)


def _real_start(task: StageTask) -> _Start:
    """The selected real images, with their own targets."""
    dataset = ImageDataset.open(task.inputs["dataset"].path)
    indices = load_tensors(task.input_file("select", "selection.safetensors"))[0]["indices"]
    targets = open_targets(task.inputs["targets"].path)
    examples = Examples.normalized(dataset.images, dataset.mean, dataset.std, torch.device("cpu"), targets)
    return _Start(*examples[indices], task.spec.distill.inner_optimizer.rate)


def _warm_start(task: StageTask) -> _Start:
    """The images and the rate of an earlier distilled set, with this teacher's targets for them.

    A registered one is among the inputs.
    """
    given = task.inputs.get("warmStart")
    earlier = (
        DistilledSet.load(given.path)
        if given is not None
        else DistilledSet.load(task.spec.distill.warm_start or "", Access.of(task.spec))
    )
    dataset = ImageDataset.open(task.inputs["dataset"].path)
    pixels = earlier.pixels(earlier.images)
    teacher = load_teacher(task.inputs["teacher"].path, task.shop.device)
    standardize = read_standardization(task.inputs["targets"].path)
    targets = standardize(teacher.represent(pixels.to(task.shop.device)).cpu())
    mean, std = (torch.from_numpy(v)[:, None, None] for v in (dataset.mean, dataset.std))
    return _Start((earlier.pixels(earlier.kept) - mean) / std, targets, earlier.recipe.rate)


def _write_history(path: Path, history: Tensor) -> None:
    loss, rate, expert, start = history.numpy().T
    table = {
        "iteration": pa.array(range(len(history)), pa.int64()),
        "matchingLoss": loss,
        "learningRate": rate,
        "expert": expert.astype("int64"),
        "startEpoch": start.astype("int64"),
    }
    pq.write_table(pa.table(table), path)
