"""Stage 6, distill: optimise the synthetic images, their targets and the inner learning rate by trajectory matching.

Every iteration draws an expert and a start epoch s, trains a student from theta_s for N steps on the synthetic set,
and follows the gradient of ||theta_N - theta_{s+M}||^2 / ||theta_s - theta_{s+M}||^2. The other method, KRR-ST, has
another gradient (`limbeck.matching.kernel`); all else is the same.
"""

from __future__ import annotations

import math
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import torch
from torch import Tensor
from torch.nn import functional

from limbeck.checkpoint import save_tensors
from limbeck.data.dataset import ImageDataset
from limbeck.data.distilled import image_grid
from limbeck.data.pixels import viewable
from limbeck.errors import WorkError
from limbeck.live import UNSEEN
from limbeck.matching.synthetic import LARGEST_STEP, DivergedError, Snapshot, SyntheticSet
from limbeck.nn.encoders import build_student, student_config
from limbeck.ranks import anyone, from_first, place
from limbeck.stages.methods import Found, Method, choose_method
from limbeck.stages.start import choose_start, synthetic_set
from limbeck.stages.task import StageTask
from limbeck.threads import fitting_threads

_PICTURES, _SHOWN = 10, 100  # pictures of a run, and how many images each shows at most
_UNMOVED = 0.99  # matching loss


def distill(task: StageTask) -> None:
    """Write `synthetic.safetensors` and `history.parquet`.

    The first holds images f32[m, 3, s, s] (normalised), the same as they are kept, stored f32[m, 3, r, r], targets
    f32[m, d], rate f32[], and initial_images and initial_targets, what these were at the start. With `pixels: uint8`
    all images are on the grid of whole numbers 0 to 255. The second holds the matching loss and the rate of every
    iteration, and the expert and the start epoch of its first pair. With krrSt these are the loss of the regression,
    the student of the pool, and how many steps that had taken.

    Several ranks of torch.distributed may do it together: each matches its share of an iteration's pairs, all hold and
    write the same set, and the first saves and reads the checkpoints.

    Raises:
        WorkError: the optimisation diverged, or its set trains nothing.
    """
    synthetic = synthetic_set(task, choose_start(task))
    if place()[1] > 1:  # processors differ in last bits: all ranks start as the first does
        started = from_first(synthetic.pack(), task.shop.device)
        assert started is not None
        synthetic.unpack(*started)
    initial = synthetic.result
    history = _optimise(task, synthetic)
    result = synthetic.result
    _check_progress(task, history, result)
    _check_training(task, result)
    if place()[0] == 0:
        _show(task, task.spec.distill.iterations, result.images)
    save_tensors(
        task.out / "synthetic.safetensors",
        {
            "images": result.images,
            "stored": result.stored,
            "targets": result.targets,
            "rate": result.rate,
            "initial_images": initial.images,
            "initial_targets": initial.targets,
        },
    )
    _write_history(task.out / "history.parquet", history)


def _optimise(task: StageTask, synthetic: SyntheticSet) -> Tensor:
    """Do all iterations, from the checkpoint on where there is one.

    Returns:
        Loss, rate, expert and start of every iteration, f64[iterations, 4].
    """
    spec, shop = task.spec, task.shop
    settings = spec.distill
    now = synthetic.now
    state = _State(task, synthetic)
    bars = shop.progress.bar("distill", settings.iterations, "iterations", state.first)
    with fitting_threads(student_config(spec), min(settings.inner_batch, len(now.images))), bars as bar:
        method = choose_method(task, now)
        state.restore(method)
        method.prepare(synthetic.now, lambda: state.pause(0))
        for iteration in range(state.first, settings.iterations):
            state.pause(iteration)
            now = synthetic.now
            if state.leads and iteration % max(1, settings.iterations // _PICTURES) == 0:
                _show(task, iteration, now.images)
            found, rate = method.iterate(iteration, now), now.rate.item()
            _step(synthetic, found, iteration, rate)
            losses = state.remember(iteration, found, rate)
            if state.leads:
                shop.live.figures(iteration, {"matching_loss": found.loss, "learning_rate": rate})
            bar.advance(note=f"matching loss {losses.mean():.4f}")
    return state.history


def _step(synthetic: SyntheticSet, found: Found, iteration: int, rate: float) -> None:
    """Step along the gradient that was found.

    Raises:
        WorkError: the loss is not finite, or the set diverges.
    """
    try:
        if not math.isfinite(found.loss):
            lower = "lower spec.distill.pixelStep, targetStep, rateStep or innerOptimizer.rate"
            raise DivergedError(f"the matching loss is {found.loss:g}; {lower}")
        synthetic.step(found.gradient, iteration)
    except DivergedError as error:
        raise WorkError(f"distill: iteration {iteration}, learning rate {rate:.3g}: {error}") from None


class _State:
    """The loop's state: the set, the method and the history, restored from a checkpoint and saved to it.

    Attributes:
        first: the iteration to go on with.
        history: loss, rate, expert and start of every iteration, f64[iterations, 4].
        leads: whether this is the first rank, the one that saves and reports.
    """

    def __init__(self, task: StageTask, synthetic: SyntheticSet) -> None:
        self._shop, self._synthetic = task.shop, synthetic
        self._checkpoint = task.checkpoint()
        self.leads = place()[0] == 0
        self.history = torch.zeros(task.spec.distill.iterations, 4, dtype=torch.float64)
        self._saved = from_first(self._checkpoint.load() if self.leads else None, task.shop.device)
        self.first = 0 if self._saved is None else int(self._saved[1]["iterations"])
        self._method: Method | None = None

    def restore(self, method: Method) -> None:
        """Bring the set and the method to where the checkpoint left them; the method is saved from now on."""
        self._method = method
        if self._saved is not None:
            tensors, values = self._saved
            self._synthetic.unpack(tensors, values)
            method.unpack(tensors)
            self.history[: self.first] = tensors["history"]
            self._saved = None

    def remember(self, iteration: int, found: Found, rate: float) -> Tensor:
        """Add an iteration to the history; the losses of the last 50, f64[<= 50]."""
        row = [found.loss, rate, found.expert, found.start]
        self.history[iteration] = torch.tensor(row, dtype=torch.float64)
        return self.history[max(0, iteration - 49) : iteration + 1, 0]

    def pause(self, iterations: int) -> None:
        """Save after so many iterations where that is due, and stop where any rank was asked to.

        Raises:
            Stopped: one was.
        """
        stop = self._shop.stop
        stop.requested = anyone(stop.requested, self._shop.device)
        if self.leads and (self._checkpoint.due() or stop.requested):
            assert self._method is not None
            tensors, values = self._synthetic.pack()
            tensors |= {"history": self.history[:iterations], **self._method.pack()}
            self._checkpoint.save(tensors, {"iterations": iterations, **values})
        stop.check()


def _check_progress(task: StageTask, history: Tensor, result: Snapshot) -> None:
    """Raise WorkError where the rate has fallen so far that students no longer move: a matching loss of one.

    The loss of a student that stays where it is is exactly one. A set may end there without ever reaching a bound.
    """
    first, rate = history[0, 1].item(), result.rate.item()
    loss = history[-max(1, len(history) // 10) :, 0].mean().item()
    if task.spec.distill.method == "mkdt" and rate < first / LARGEST_STEP and loss > _UNMOVED:
        step = task.spec.distill.rate_step
        raise WorkError(
            f"distill: the learning rate has fallen from {first:.3g} to {rate:.3g}, at which students do not move "
            f"(matching loss {loss:.3f}; 1 is that of no training); lower spec.distill.rateStep (now {step:g})"
        )


def _check_training(task: StageTask, result: Snapshot) -> None:
    """Raise WorkError unless the first step of pre-training from the set changes weights of a student's encoder."""
    spec, device = task.spec, task.shop.device
    student = build_student(student_config(spec), result.targets.shape[1], spec.distillation_seed).to(device)
    batch = min(spec.evaluate.batch, len(result.images))
    loss = functional.mse_loss(student(result.images[:batch].to(device)), result.targets[:batch].to(device))
    weights = [tensor for tensor in student.encoder.parameters() if tensor.dim() > 1]
    gradients = torch.autograd.grad(loss, weights)
    rate = result.rate.to(device)
    with torch.no_grad():
        moved = [(weight, weight - rate * gradient) for weight, gradient in zip(weights, gradients, strict=True)]
    found = None
    if all(torch.equal(before, after) for before, after in moved):
        found = "changes no weight of a student"
    elif not all(after.isfinite().all() for _, after in moved):
        found = "makes weights of a student that are not finite"
    if found is not None:
        change = f"change spec.distill.innerOptimizer.rate (now {spec.distill.inner_optimizer.rate:g}) or rateStep"
        raise WorkError(f"distill: a step of pre-training at the learned rate, {rate.item():.3g}, {found}; {change}")


def _show(task: StageTask, iteration: int, images: Tensor) -> None:
    """Show the first synthetic images as they are before an iteration."""
    if task.shop.live is UNSEEN:
        return
    dataset = ImageDataset.open(task.inputs["dataset"].path)
    mean, std = torch.from_numpy(dataset.mean), torch.from_numpy(dataset.std)
    grid = image_grid(viewable(images[:_SHOWN].detach().cpu(), mean, std))
    task.shop.live.picture(iteration, "synthetic", np.asarray(grid))


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
