"""Stage 3, targets: the teacher's representation of every image; from here on the problem is regression."""

from __future__ import annotations

import torch

from limbeck.checkpoint import save_tensors
from limbeck.data.dataset import ImageDataset
from limbeck.data.resident import ResidentImages
from limbeck.errors import WorkError
from limbeck.ssl.teachers import load_teacher
from limbeck.stages.task import StageTask

_BATCH = 256


def targets(task: StageTask) -> None:
    """Write `targets.safetensors`: targets f32[n, d], in the order of the dataset, center f32[d] and scale f32[].

    A representation r becomes the target (r - center) / scale.
    """
    dataset = ImageDataset.open(task.inputs["dataset"].path)
    teacher = load_teacher(task.inputs["teacher"].path, task.shop.device)
    images = ResidentImages.pixels(dataset.images, task.shop.device)
    rows = []
    with task.shop.progress.bar("targets", len(dataset), "images") as bar:
        for part in torch.arange(len(dataset)).split(_BATCH):
            rows.append(teacher.represent(images[part]).cpu())
            bar.advance(len(part))
            task.shop.stop.check()
    result = torch.cat(rows)
    if not torch.isfinite(result).all():
        raise WorkError("targets: the teacher gives representations that are not finite; train or import another")
    center, scale = torch.zeros(result.shape[1]), torch.ones(())
    if task.spec.targets.standardize:
        center, scale = result.mean(0), (result - result.mean(0)).std().clamp_min(1e-12)
    tensors = {"targets": (result - center) / scale, "center": center, "scale": scale}
    save_tensors(task.out / "targets.safetensors", tensors)
