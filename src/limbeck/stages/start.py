"""What distillation starts from: selected real images with their targets, or an earlier distilled set."""

from __future__ import annotations

import torch

from limbeck.checkpoint import load_tensors
from limbeck.data.dataset import ImageDataset
from limbeck.data.distilled import DistilledSet
from limbeck.data.feed import Examples
from limbeck.data.pixels import PixelGrid
from limbeck.data.targets import open_targets, read_standardization
from limbeck.errors import WorkError
from limbeck.matching.synthetic import Snapshot, Start, SyntheticSet
from limbeck.ssl.teachers import load_teacher
from limbeck.stages.task import StageTask
from limbeck.storage import Access


def starting_set(task: StageTask) -> Snapshot:
    """The set that a distillation of no steps gives: shrunk, clamped and rounded as it is kept, on the CPU.

    Args:
        task: with dataset, targets and select among its inputs, and with `distill.warmStart` teacher, too.

    Raises:
        InputError: there is no set to start from at `distill.warmStart`, or it is damaged.
        WorkError: an image or a target is not finite.
    """
    return synthetic_set(task, choose_start(task)).result


def synthetic_set(task: StageTask, start: Start) -> SyntheticSet:
    """The synthetic set before its first step, on the device."""
    dataset, spec = ImageDataset.open(task.inputs["dataset"].path), task.spec
    grid = PixelGrid(torch.from_numpy(dataset.mean), torch.from_numpy(dataset.std))
    return SyntheticSet(start, spec.distill, spec.source.image_size, grid, task.shop.device)


def choose_start(task: StageTask) -> Start:
    """The images, targets and rate that the spec starts from.

    Raises:
        InputError: there is no set to start from at `distill.warmStart`, or it is damaged.
        WorkError: an image or a target is not finite.
    """
    start = warm_start(task) if task.spec.distill.warm_start else real_start(task)
    settings = {"images": "source", "targets": "teacher or targets"}
    for name, values in (("images", start.images), ("targets", start.targets)):
        if not values.isfinite().all():
            raise WorkError(f"distill: the {name} that it starts from are not finite; change spec.{settings[name]}")
    return start


def real_start(task: StageTask) -> Start:
    """The selected real images, with their own targets."""
    dataset = ImageDataset.open(task.inputs["dataset"].path)
    indices = load_tensors(task.input_file("select", "selection.safetensors"))[0]["indices"]
    targets = open_targets(task.inputs["targets"].path)
    examples = Examples.normalized(dataset.images, dataset.mean, dataset.std, torch.device("cpu"), targets)
    return Start(*examples[indices], task.spec.distill.inner_optimizer.rate)


def warm_start(task: StageTask) -> Start:
    """The images and the rate of an earlier distilled set, with this teacher's targets for them.

    A registered one is among the inputs.

    Raises:
        InputError: there is none, or it is damaged.
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
    return Start((earlier.pixels(earlier.kept) - mean) / std, targets, earlier.recipe.rate)
