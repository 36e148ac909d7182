"""Self-supervised training of an encoder: the teacher's, and the baseline that pre-trains on everything by SSL."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator

import torch
from torch import Tensor, nn

from limbeck.checkpoint import Checkpoint, pack, pack_optimizer, unpack, unpack_optimizer
from limbeck.data.dataset import ImageDataset
from limbeck.data.feed import Examples
from limbeck.interrupt import StopRequest
from limbeck.nn.encoders import ConvNet, ResNet
from limbeck.nn.precision import tell_emulation
from limbeck.progress import SILENT, Progress
from limbeck.seeding import generator
from limbeck.spec import Adam, Teacher
from limbeck.ssl.objectives import build_objective
from limbeck.ssl.views import Views

_NOTE_EVERY = 16  # steps; reading the loss waits for an accelerator to catch up


def train_ssl(
    encoder: ConvNet | ResNet,
    dataset: ImageDataset,
    settings: Teacher,
    *,
    device: torch.device,
    seed: int,
    checkpoint: Checkpoint,
    stop: StopRequest,
    progress: Progress = SILENT,
    epoch_done: Callable[[int, float], None] = lambda epoch, loss: None,
) -> list[float]:
    """Train `encoder`, in place, by the settings' objective; returned are the mean losses of its epochs.

    Args:
        encoder: freshly initialised; left in eval mode on the device.
        dataset: images, and the mean and deviation that they are normalised with.
        settings: algorithm, epochs, batch, projection, optimiser and augmentation.
        device: where to train.
        seed: of the projection head, the order of the images and the views.
        checkpoint: where the state is saved from time to time and when a stop is asked for, and found again.
        stop: looked at between steps.
        progress: gets a bar called teacher, and is told how the images are fed.
        epoch_done: called after every epoch with its number, from 0, and its mean loss.

    Raises:
        FloatingPointError: the loss of an epoch, or a weight after the last one, is not finite.
        Stopped: a stop was asked for.
        ImportError: lightly or kornia is not installed.
    """
    count = len(dataset)
    objective = build_objective(settings, encoder.feature_dimension, seed)
    views = Views(settings.augmentation, dataset.images.shape[-1])
    examples = Examples.pixels(dataset.images, device, say=progress.say)
    mean, std = (torch.from_numpy(v).to(device)[:, None, None] for v in (dataset.mean, dataset.std))
    layout = _layout(encoder)
    encoder = encoder.to(device, memory_format=layout).train()  # type: ignore[call-overload]
    head = objective.head.to(device).train()
    tell_emulation(settings.precision, device, progress.say)
    low = settings.precision == "bfloat16"
    batch = min(settings.batch, count)
    steps = count // batch
    optimizer = torch.optim.AdamW(
        [*encoder.parameters(), *head.parameters()],
        lr=settings.optimizer.rate,
        weight_decay=settings.optimizer.weight_decay,
    )
    first_epoch, first_step, losses = 0, 0, list[float]()
    total = torch.zeros((), dtype=torch.float64, device=device)
    saved = checkpoint.load()
    if saved is not None:
        tensors, values = saved
        unpack(encoder, tensors, "encoder")
        unpack(head, tensors, "head")
        unpack_optimizer(optimizer, tensors, "optimizer")
        total = tensors.get("total", total).to(device)  # earlier versions saved between epochs
        first_epoch, first_step, losses = values["epochs"], values.get("step", 0), values["losses"]

    def save(epoch: int, step: int) -> None:
        state = {**pack(encoder, "encoder"), **pack(head, "head"), **pack_optimizer(optimizer, "optimizer")}
        checkpoint.save(state | {"total": total}, {"epochs": epoch, "step": step, "losses": losses})

    def batches() -> Iterator[Tensor]:
        begun = first_step * batch
        for epoch in range(first_epoch, settings.epochs):
            order = torch.randperm(count, generator=generator(seed, "teacher", "order", epoch))
            yield from order.to(examples.index_device)[begun : steps * batch].split(batch)
            begun = 0

    bars = progress.bar("teacher", settings.epochs * steps, "steps", first_epoch * steps + first_step)
    with bars as bar, examples.feed(batches()) as fed:
        for epoch in range(first_epoch, settings.epochs):
            note = ""
            for step in range(first_step, steps):
                if stop.requested or checkpoint.due():
                    save(epoch, step)
                stop.check()
                done = epoch * steps + step
                for group in optimizer.param_groups:
                    group["lr"] = _rate(settings, settings.optimizer, done, steps)
                pixels, _ = next(fed)
                one, two = views(pixels, seed, epoch, step)
                seen = ((torch.cat([one, two]) - mean) / std).contiguous(memory_format=layout)
                with torch.autocast(device.type, dtype=torch.bfloat16, enabled=low):
                    features = encoder(seen)
                loss = objective(*features.float().chunk(2))
                optimizer.zero_grad(set_to_none=True)
                loss.backward()
                optimizer.step()
                total += loss.detach()
                if step % _NOTE_EVERY == 0:
                    note = f"loss {total.item() / (step + 1):.4g}"
                bar.advance(note=note)
            if not math.isfinite(total.item()):
                raise FloatingPointError(f"the loss is not finite in epoch {epoch + 1}")
            losses.append(total.item() / steps)
            epoch_done(epoch, losses[-1])
            total, first_step = torch.zeros_like(total), 0
    for name, tensor in encoder.state_dict().items():  # the last step's loss was taken before it
        if not tensor.isfinite().all():
            raise FloatingPointError(f"{name} of the encoder is not finite after the last step")
    encoder.to(memory_format=torch.contiguous_format).eval()
    return losses


def _layout(encoder: ConvNet | ResNet) -> torch.memory_format:
    """Channels last where batches are normalised: on the CPU a fifth faster or more (`benchmarks/teacher.py`).

    Where every image is normalised by itself, torch computes that layout up to five times slower.
    """
    batchwise = any(isinstance(module, nn.BatchNorm2d) for module in encoder.modules())
    return torch.channels_last if batchwise else torch.contiguous_format


def _rate(settings: Teacher, adam: Adam, step: int, steps: int) -> float:
    """Linear warm-up, then a cosine to zero."""
    warmup, total = min(adam.warmup_epochs, settings.epochs - 1) * steps, settings.epochs * steps
    if step < warmup:
        return adam.rate * (step + 1) / warmup
    return adam.rate * 0.5 * (1.0 + math.cos(math.pi * (step - warmup) / max(1, total - warmup)))
