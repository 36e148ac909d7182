"""Pre-training an encoder by regression to targets: what a distilled set is for, and how it is judged."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from typing import Any, Protocol

import torch
from torch import Tensor, nn
from torch.nn import functional

from limbeck.interrupt import StopRequest
from limbeck.nn.encoders import Student
from limbeck.seeding import generator, seeded


class Images(Protocol):
    """Normalised images by index i64[...]: a tensor f32[n, 3, s, s], or anything that makes such batches."""

    def __getitem__(self, indices: Tensor, /) -> Tensor: ...

    def __len__(self) -> int: ...


@dataclass(frozen=True)
class Recipe:
    """How an encoder is pre-trained: SGD with momentum on the mean squared error to the targets."""

    rate: float
    epochs: int
    batch: int
    momentum: float
    weight_decay: float

    def wire(self) -> dict[str, Any]:
        """For digests and files."""
        return asdict(self)


def pretrain_encoder(
    encoder: nn.Module,
    images: Images,
    targets: Tensor,
    recipe: Recipe,
    *,
    seed: int,
    device: torch.device,
    stop: StopRequest | None = None,
) -> nn.Module:
    """Train `encoder`, in place, with a linear head that is dropped afterwards; returned in eval mode.

    Args:
        encoder: maps f32[b, 3, s, s] to features of any shape [b, ...], flattened for the head.
        images: normalised images f32[n, 3, s, s]; other than a tensor, they give their batches on `device`.
        targets: f32[n, d].
        recipe: optimiser, epochs and batch; a last batch shorter than the rest is left out of its epoch.
        seed: of the head's weights and of the order of the images.
        device: where to train.
        stop: looked at between steps.

    Raises:
        FloatingPointError: the loss is no longer finite.
    """
    encoder = encoder.to(device).train()
    count, batch = len(images), min(recipe.batch, len(images))
    targets = targets.to(device)
    if isinstance(images, Tensor):
        images = images.to(device)
    with torch.no_grad(), _statistics_kept(encoder):
        features = encoder(images[torch.arange(min(2, count), device=device)]).flatten(1).shape[1]
    with seeded(seed, "pretrain", "head"):
        student = Student(nn.Sequential(encoder, nn.Flatten()), features, targets.shape[1]).to(device)
    optimizer = torch.optim.SGD(
        student.parameters(), lr=recipe.rate, momentum=recipe.momentum, weight_decay=recipe.weight_decay
    )
    for epoch in range(recipe.epochs):
        order = torch.randperm(count, generator=generator(seed, "pretrain", "order", epoch)).to(device)
        for step in range(count // batch):
            chosen = order[step * batch : (step + 1) * batch]
            loss = functional.mse_loss(student(images[chosen]), targets[chosen])
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
        if not encoder(images[torch.arange(min(2, count), device=device)]).isfinite().all():
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
