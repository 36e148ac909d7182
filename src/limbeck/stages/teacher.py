"""Stage 2, teacher: an encoder trained by self-supervised learning on the unlabelled images, or imported."""

from __future__ import annotations

import json
import math
from collections.abc import Iterator
from pathlib import Path

import torch
from torch import Tensor

from limbeck.checkpoint import pack, pack_optimizer, unpack, unpack_optimizer
from limbeck.data.dataset import ImageDataset
from limbeck.data.feed import Examples
from limbeck.errors import InputError, WorkError
from limbeck.nn.encoders import EncoderConfig, build_encoder
from limbeck.patience import patiently
from limbeck.seeding import generator
from limbeck.spec import TIMM, Adam, Teacher
from limbeck.ssl.teachers import TeacherRecord, import_teacher, save_teacher
from limbeck.stages.task import StageTask
from limbeck.storage import Access

_NOTE_EVERY = 16  # steps; reading the loss waits for an accelerator to catch up


def teacher(task: StageTask) -> None:
    """Write `teacher.json`, the weights and, where it was trained here, the loss of every epoch."""
    dataset = ImageDataset.open(task.inputs["dataset"].path)
    settings = task.spec.teacher
    config = EncoderConfig(
        settings.architecture, task.spec.source.image_size, settings.width, settings.norm, settings.depth
    )
    mean, std = dataset.mean.tolist(), dataset.std.tolist()
    if settings.checkpoint is not None:
        local = None if settings.checkpoint.startswith(TIMM) else _fetch(settings.checkpoint, task)
        module, record = import_teacher(settings.checkpoint, local, config, mean, std)
        save_teacher(task.out, module, record)
        return
    module = _train(task, dataset, config)
    save_teacher(task.out, module, TeacherRecord("encoder", config, None, config.image_size, mean, std))


def _fetch(checkpoint: str, task: StageTask) -> Path:
    """The checkpoint file, in the working folder under a name that is not part of the result."""
    try:
        filesystem, path = Access.of(task.spec).open(checkpoint)
        target = task.out / f"checkpoint-imported{Path(path).suffix}"
        patiently(f"reading {checkpoint}", lambda: filesystem.get_file(path, str(target)))
    except FileNotFoundError:
        raise InputError("spec.teacher.checkpoint", f"{checkpoint} does not exist", "a file or timm:NAME") from None
    except ValueError as error:
        raise InputError("spec.teacher.checkpoint", f"{checkpoint}: {error}", "a path or an fsspec URL") from None
    return target


def _train(task: StageTask, dataset: ImageDataset, config: EncoderConfig) -> torch.nn.Module:
    try:
        from limbeck.ssl.objectives import build_objective
        from limbeck.ssl.views import Views

        settings, seed, device = task.spec.teacher, task.spec.seed, task.shop.device
        encoder = build_encoder(config, seed, "teacher")
        objective = build_objective(settings, encoder.feature_dimension, seed)
        views = Views(settings.augmentation, config.image_size)
    except ImportError as error:
        raise InputError(
            "spec.teacher.algorithm",
            f"{task.spec.teacher.algorithm} needs {error.name}",
            "pip install 'limbeck[ssl]'",
        ) from None
    encoder, head = encoder.to(device).train(), objective.head.to(device).train()
    examples = Examples.pixels(dataset.images, device, say=task.shop.progress.say)
    mean, std = (torch.from_numpy(v).to(device)[:, None, None] for v in (dataset.mean, dataset.std))
    batch = min(settings.batch, len(dataset))
    steps = len(dataset) // batch
    optimizer = torch.optim.AdamW(
        [*encoder.parameters(), *head.parameters()],
        lr=settings.optimizer.rate,
        weight_decay=settings.optimizer.weight_decay,
    )
    checkpoint = task.checkpoint()
    first, losses = 0, []
    saved = checkpoint.load()
    if saved is not None:
        tensors, values = saved
        unpack(encoder, tensors, "encoder")
        unpack(head, tensors, "head")
        unpack_optimizer(optimizer, tensors, "optimizer")
        first, losses = values["epochs"], values["losses"]

    def save(epochs: int) -> None:
        state = {**pack(encoder, "encoder"), **pack(head, "head"), **pack_optimizer(optimizer, "optimizer")}
        checkpoint.save(state, {"epochs": epochs, "losses": losses})

    def batches() -> Iterator[Tensor]:
        for epoch in range(first, settings.epochs):
            order = torch.randperm(len(dataset), generator=generator(seed, "teacher", "order", epoch))
            yield from order.to(examples.index_device)[: steps * batch].split(batch)

    bars = task.shop.progress.bar("teacher", settings.epochs * steps, "steps", first * steps)
    with bars as bar, examples.feed(batches()) as fed:
        for epoch in range(first, settings.epochs):
            total, note = torch.zeros((), dtype=torch.float64, device=device), ""
            for step in range(steps):
                done = epoch * steps + step
                for group in optimizer.param_groups:
                    group["lr"] = _rate(settings, settings.optimizer, done, steps)
                pixels, _ = next(fed)
                one, two = views(pixels, seed, epoch, step)
                features = encoder((torch.cat([one, two]) - mean) / std)
                loss = objective(*features.chunk(2))
                optimizer.zero_grad(set_to_none=True)
                loss.backward()
                optimizer.step()
                total += loss.detach()
                if step % _NOTE_EVERY == 0:
                    note = f"loss {total.item() / (step + 1):.4g}"
                bar.advance(note=note)
                task.shop.stop.check()
            if not math.isfinite(total.item()):
                raise WorkError(
                    f"teacher: the loss is not finite in epoch {epoch + 1}; lower spec.teacher.optimizer.rate "
                    f"(now {settings.optimizer.rate:g})"
                )
            losses.append(total.item() / steps)
            task.shop.live.figures(epoch, {"teacher_loss": losses[-1]})
            if checkpoint.due():
                save(epoch + 1)
    (task.out / "history.json").write_text(json.dumps({"losses": losses}) + "\n")
    return encoder.eval()


def _rate(settings: Teacher, adam: Adam, step: int, steps: int) -> float:
    """Linear warm-up, then a cosine to zero."""
    warmup, total = min(adam.warmup_epochs, settings.epochs - 1) * steps, settings.epochs * steps
    if step < warmup:
        return adam.rate * (step + 1) / warmup
    return adam.rate * 0.5 * (1.0 + math.cos(math.pi * (step - warmup) / max(1, total - warmup)))
