"""Stage 3, targets: the teacher's representation of every image; from here on the problem is regression."""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np
import torch
from numpy.typing import NDArray

from limbeck.data.dataset import ImageDataset
from limbeck.data.feed import Examples, Way
from limbeck.data.targets import write_targets
from limbeck.ssl.teachers import load_teacher
from limbeck.stages.task import StageTask

_BATCH = 256


def targets(task: StageTask) -> None:
    """Write `targets.safetensors`, in the order of the dataset, and `standardization.safetensors`."""
    dataset = ImageDataset.open(task.inputs["dataset"].path)
    settings = task.spec.targets
    rows = _representations(task, dataset)
    write_targets(
        task.out,
        len(dataset),
        rows,
        standardize=settings.standardize,
        components=settings.components,
        whitening=settings.whitening,
        between=task.shop.stop.check,
    )


def _representations(task: StageTask, dataset: ImageDataset) -> Iterator[NDArray[np.float32]]:
    """The teacher's, f32[b, d] each."""
    shop = task.shop
    teacher = load_teacher(task.inputs["teacher"].path, shop.device)
    # one pass: a copy of all images on the device would not pay
    way: Way = "streamed" if shop.device.type == "cuda" else "direct"
    examples = Examples.pixels(dataset.images, shop.device, way=way)
    with (
        shop.progress.bar("targets", len(dataset), "images") as bar,
        examples.feed(torch.arange(len(dataset)).split(_BATCH)) as fed,
    ):
        for pixels, _ in fed:
            yield teacher.represent(pixels).cpu().numpy()
            bar.advance(len(pixels))
            shop.stop.check()
