"""Pre-training an encoder by regression to targets: what a distilled set is for, and how it is judged."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional

from limbeck.data.feed import Examples
from limbeck.interrupt import StopRequest
from limbeck.nn.augmentation import randomly_moved
from limbeck.nn.encoders import Student
from limbeck.seeding import generator, seeded
from limbeck.spec import DistillationSpec, Jitter


@dataclass(frozen=True)
class Recipe:
    """How an encoder is pre-trained: SGD with momentum on the mean squared error to the targets."""

    rate: float
    epochs: int
    batch: int
    momentum: float
    weight_decay: float
    augmentation: Jitter = "none"  # of the images of every step

    def wire(self) -> dict[str, Any]:
        """For digests and files."""
        return asdict(self)


def recipe_of(spec: DistillationSpec, rate: float, count: int) -> Recipe:
    """How a spec pre-trains encoders on `count` examples with targets."""
    settings, epochs = spec.evaluate, spec.evaluate.epochs_of(count)
    return Recipe(rate, epochs, settings.batch, settings.momentum, settings.weight_decay, spec.student.augmentation)


def pretrain_encoder(
    encoder: nn.Module,
    examples: Examples,
    recipe: Recipe,
    *,
    seed: int,
    stop: StopRequest | None = None,
) -> nn.Module:
    """Train `encoder`, in place, with a linear head that is dropped afterwards; returned in eval mode.

    Args:
        encoder: maps f32[b, 3, s, s] to features of any shape [b, ...], flattened for the head.
        examples: normalised images f32[n, 3, s, s] and targets f32[n, d]; the encoder is trained on their device.
        recipe: optimiser, epochs and batch; a last batch shorter than the rest is left out of its epoch.
        seed: of the head's weights, the order of the images and their augmentation.
        stop: looked at between steps.

    Raises:
        FloatingPointError: the loss is no longer finite.
    """
    device = examples.device
    encoder = encoder.to(device).train()
    count, batch = len(examples), min(recipe.batch, len(examples))
    few, _ = examples[torch.arange(min(2, count))]
    with torch.no_grad(), _statistics_kept(encoder):
        features = encoder(few).flatten(1).shape[1]
    with seeded(seed, "pretrain", "head"):
        student = Student(nn.Sequential(encoder, nn.Flatten()), features, examples.target_dimension).to(device)
    optimizer = torch.optim.SGD(
        student.parameters(), lr=recipe.rate, momentum=recipe.momentum, weight_decay=recipe.weight_decay
    )

    def batches() -> Iterator[Tensor]:
        for epoch in range(recipe.epochs):
            order = torch.randperm(count, generator=generator(seed, "pretrain", "order", epoch))
            yield from order.to(examples.index_device)[: count // batch * batch].split(batch)

    with examples.feed(batches()) as fed:
        for epoch in range(recipe.epochs):
            for step in range(count // batch):
                images, targets = next(fed)
                if recipe.augmentation != "none":
                    images = randomly_moved(images, generator(seed, "pretrain", "moves", epoch, step))
                loss = functional.mse_loss(student(images), targets)
                optimizer.zero_grad(set_to_none=True)
                loss.backward()
                optimizer.step()
                if stop is not None:
                    stop.check()
            if not torch.isfinite(loss):
                raise FloatingPointError(
                    f"the loss is {loss.item()} after epoch {epoch + 1} at learning rate {recipe.rate:g}"
                )
    with torch.no_grad(), _statistics_kept(encoder):
        if not encoder(few).isfinite().all():
            raise FloatingPointError(
                f"the last step, at learning rate {recipe.rate:g}, left features that are not finite"
            )
    return encoder.eval()


@contextmanager
def _statistics_kept(encoder: nn.Module) -> Iterator[None]:
    """Inside the block the encoder is in eval mode, so that looking at its output changes no running statistics."""
    encoder.eval()
    yield
    encoder.train()
