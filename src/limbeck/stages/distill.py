"""Stage 6, distill: optimise the synthetic images, their targets and the inner learning rate by trajectory matching.

Every iteration draws an expert and a start epoch s, trains a student from theta_s for N steps on the synthetic set,
and follows the gradient of ||theta_N - theta_{s+M}||^2 / ||theta_s - theta_{s+M}||^2. The rate is exp(rho) with rho
learned, so it stays positive.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import torch
from torch import Tensor

from limbeck.checkpoint import load_tensors, pack_optimizer, save_tensors, unpack_optimizer
from limbeck.data.dataset import ImageDataset
from limbeck.data.distilled import DistilledSet, image_grid, viewable
from limbeck.data.feed import Examples
from limbeck.data.targets import open_targets, read_standardization
from limbeck.errors import WorkError
from limbeck.live import UNSEEN
from limbeck.matching.engine import GRADIENT_FORWARDS, PRODUCT_FORWARDS, Work, choose_steps
from limbeck.matching.experts import Experts
from limbeck.matching.matcher import Matcher
from limbeck.matching.unroll import InnerLoop
from limbeck.nn.encoders import build_student, student_config
from limbeck.nn.flat import FlatNetwork
from limbeck.ranks import anyone, from_first, place
from limbeck.spec import Distill
from limbeck.ssl.teachers import load_teacher
from limbeck.stages.task import StageTask
from limbeck.storage import Access
from limbeck.threads import fitting_threads

_PICTURES, _SHOWN = 10, 100  # pictures of a run, and how many images each shows at most


@dataclass(frozen=True)
class _Start:
    images: Tensor  # f32[m, 3, s, s], normalised
    targets: Tensor  # f32[m, d]
    rate: float


def distill(task: StageTask) -> None:
    """Write `synthetic.safetensors` and `history.parquet`.

    The first holds images f32[m, 3, s, s] (normalised), targets f32[m, d], rate f32[], and initial_images; the second
    the matching loss and the rate of every iteration, and the expert and the start epoch of its first pair.

    Several ranks of torch.distributed may do it together: each matches its share of an iteration's pairs, all hold and
    write the same set, and the first saves and reads the checkpoints.
    """
    spec, shop = task.spec, task.shop
    settings, device = spec.distill, shop.device
    experts = Experts.listed(task.inputs["trajectories"].path, task.locate)
    start = _warm_start(task) if settings.warm_start else _real_start(task)
    config = student_config(spec)
    network = FlatNetwork(build_student(config, start.targets.shape[1], spec.seed).to(device))

    images = start.images.to(device, copy=True).requires_grad_()  # the start itself is kept for the report
    targets = start.targets.to(device, copy=True).requires_grad_()
    log_rate = torch.tensor(math.log(start.rate), device=device, requires_grad=True)
    optimizer = _outer_optimizer(images, targets, log_rate, settings)
    steps = [group["lr"] for group in optimizer.param_groups]
    history = torch.zeros(settings.iterations, 4, dtype=torch.float64)  # loss, rate, expert, start
    checkpoint, first, leads = task.checkpoint(), 0, place()[0] == 0
    saved = from_first(checkpoint.load() if leads else None, device)
    if saved is not None:
        tensors, values = saved
        first = values["iterations"]
        with torch.no_grad():
            for parameter, name in ((images, "images"), (targets, "targets"), (log_rate, "log_rate")):
                parameter.copy_(tensors[name])
        unpack_optimizer(optimizer, tensors, "optimizer")
        history[:first] = tensors["history"]

    def save(iterations: int) -> None:
        state = {"images": images, "targets": targets, "log_rate": log_rate, "history": history[:iterations]}
        checkpoint.save({**state, **pack_optimizer(optimizer, "optimizer")}, {"iterations": iterations})

    batch = min(settings.inner_batch, len(images))
    bars = shop.progress.bar("distill", settings.iterations, "iterations", first)
    with fitting_threads(config, batch), bars as bar:
        matcher = _matcher(task, experts, network, batch)
        for iteration in range(first, settings.iterations):
            shop.stop.requested = anyone(shop.stop.requested, device)
            if leads and (checkpoint.due() or shop.stop.requested):
                save(iteration)
            shop.stop.check()
            rate = log_rate.detach().exp()
            if leads and iteration % max(1, settings.iterations // _PICTURES) == 0:
                _show(task, iteration, images)
            drawn = matcher.draw(iteration, settings.pairs, len(images))
            matched = matcher.match(drawn, images, targets, rate)
            value = matched.loss
            if not (math.isfinite(value) and matched.gradient.rate.isfinite()):
                raise WorkError(
                    f"distill: the matching loss is {value:g} at iteration {iteration}, rate {rate.item():.3g}; "
                    "lower spec.distill.pixelStep, rateStep or innerOptimizer.rate"
                )
            for group, step in zip(optimizer.param_groups, steps, strict=True):
                group["lr"] = step * _decay(settings, iteration)
            images.grad, targets.grad = matched.gradient.images, matched.gradient.targets
            log_rate.grad = matched.gradient.rate * rate
            optimizer.step()
            history[iteration] = torch.tensor(
                [value, rate.item(), drawn[0].expert, drawn[0].epoch], dtype=torch.float64
            )
            if leads:
                shop.live.figures(iteration, {"matching_loss": value, "learning_rate": rate.item()})
            bar.advance(note=f"matching loss {history[max(0, iteration - 49) : iteration + 1, 0].mean():.4f}")
    if leads:
        _show(task, settings.iterations, images)
    save_tensors(
        task.out / "synthetic.safetensors",
        {"images": images, "targets": targets, "rate": log_rate.exp(), "initial_images": start.images},
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


def _matcher(task: StageTask, experts: Experts, network: FlatNetwork, batch: int) -> Matcher:
    """What computes the gradient of an iteration, by the means that fit the size of the work and the device."""
    spec, shop = task.spec, task.shop
    settings, engine = spec.distill, spec.execution.engine
    forwards = settings.iterations * settings.pairs * settings.inner_steps * (GRADIENT_FORWARDS + PRODUCT_FORWARDS)
    work = Work(network, batch, spec.source.image_size, float(forwards))
    steps = choose_steps(work, settings.precision, engine, shop.device, shop.progress.say)
    return Matcher(
        experts,
        steps,
        InnerLoop(settings.inner_optimizer.momentum, settings.inner_optimizer.weight_decay),
        seed=spec.seed,
        start_epochs=settings.max_start_epoch,
        gap=settings.expert_gap,
        inner_steps=settings.inner_steps,
        inner_batch=settings.inner_batch,
        engine=engine,
        device=shop.device,
    )


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
    center, scale = read_standardization(task.inputs["targets"].path)
    targets = (teacher.represent(pixels.to(task.shop.device)).cpu() - center) / scale
    mean, std = (torch.from_numpy(v)[:, None, None] for v in (dataset.mean, dataset.std))
    return _Start((pixels - mean) / std, targets, earlier.recipe.rate)


def _outer_optimizer(
    images: Tensor, targets: Tensor, log_rate: Tensor, settings: Distill
) -> torch.optim.SGD | torch.optim.Adam:
    """The optimiser of all three.

    A step d on the rate is a step d / rate on its logarithm. With SGD the logarithm's gradient is also rate times the
    rate's, hence the square.
    """
    rate = settings.inner_optimizer.rate
    rate_step = settings.rate_step / (rate**2 if settings.optimizer == "sgd" else rate)
    groups = [
        {"params": [images], "lr": settings.pixel_step},
        {"params": [targets], "lr": settings.target_step},
        {"params": [log_rate], "lr": rate_step},
    ]
    if settings.optimizer == "sgd":
        return torch.optim.SGD(groups, momentum=settings.momentum)
    return torch.optim.Adam(groups, betas=(settings.momentum, 0.99))


def _decay(settings: Distill, iteration: int) -> float:
    """The share of the step sizes that is left at an iteration."""
    if settings.schedule == "constant":
        return 1.0
    return 0.5 * (1.0 + math.cos(math.pi * iteration / settings.iterations))


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
