"""Pre-training an encoder by regression to targets: what a distilled set is for, and how it is judged."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional

from limbeck.checkpoint import Checkpoint, pack, pack_optimizer, unpack, unpack_optimizer
from limbeck.data.feed import Examples
from limbeck.interrupt import StopRequest
from limbeck.nn.augmentation import randomly_moved
from limbeck.nn.encoders import Student
from limbeck.seeding import generator, seeded
from limbeck.spec import DistillationSpec, Jitter, epoch_steps

_LOOK_EVERY = 64  # steps; reading the loss waits for an accelerator to catch up


@dataclass(frozen=True)
class Recipe:
    """How an encoder is pre-trained: SGD with momentum on the mean squared error to the targets."""

    rate: float
    steps: int
    batch: int
    momentum: float
    weight_decay: float
    augmentation: Jitter = "none"  # of the images of every step

    def wire(self) -> dict[str, Any]:
        """For digests and files."""
        return asdict(self)

    @classmethod
    def read(cls, record: Mapping[str, Any], count: int) -> Recipe:
        """Return the recipe of a file, for a set of `count` images; earlier files have whole epochs."""
        known = dict(record)
        epochs = known.pop("epochs", None)
        if epochs is not None:  # a last batch shorter than the rest was left out of its epoch
            known["steps"] = epochs * (count // min(known["batch"], count))
        return cls(**known)


def recipe_of(spec: DistillationSpec, rate: float, count: int) -> Recipe:
    """How a spec pre-trains encoders on `count` examples with targets."""
    settings = spec.evaluate
    steps = settings.steps_of(count)
    return Recipe(rate, steps, settings.batch, settings.momentum, settings.weight_decay, spec.student.augmentation)


def pretrain_encoder(
    encoder: nn.Module,
    examples: Examples,
    recipe: Recipe,
    *,
    seed: int,
    stop: StopRequest | None = None,
    checkpoint: Checkpoint | None = None,
    points: Sequence[int] = (),
    reached: Callable[[int], None] = lambda steps: None,
) -> nn.Module:
    """Train `encoder`, in place, with a linear head that is dropped afterwards; returned in eval mode.

    Exactly `recipe.steps` steps are taken, across the borders of epochs.

    Args:
        encoder: maps f32[b, 3, s, s] to features of any shape [b, ...], flattened for the head.
        examples: normalised images f32[n, 3, s, s] and targets f32[n, d]; the encoder is trained on their device.
        recipe: optimiser, steps and batch.
        seed: of the head's weights, the order of the images and their augmentation.
        stop: looked at between steps.
        checkpoint: where the state is saved from time to time and when a stop is requested, and found again.
        points: numbers of steps, ascending; after each, `reached` is called with the encoder in eval mode.
        reached: see above; a training that resumes does not call it again for points that lie behind.

    Raises:
        FloatingPointError: the loss, a weight or a feature is not finite.
    """
    device = examples.device
    encoder = encoder.to(device).train()
    count = len(examples)
    few, _ = examples[torch.arange(min(2, count))]
    with torch.no_grad(), _statistics_kept(encoder):
        features = encoder(few).flatten(1).shape[1]
    with seeded(seed, "pretrain", "head"):
        student = Student(nn.Sequential(encoder, nn.Flatten()), features, examples.target_dimension).to(device)
    optimizer = torch.optim.SGD(
        student.parameters(), lr=recipe.rate, momentum=recipe.momentum, weight_decay=recipe.weight_decay
    )
    first = 0
    saved = checkpoint.load() if checkpoint is not None else None
    if saved is not None:
        unpack(student, saved[0], "student")
        unpack_optimizer(optimizer, saved[0], "optimizer")
        first = saved[1]["steps"]
    each = epoch_steps(count, recipe.batch)

    def batches() -> Iterator[Tensor]:
        for epoch in range(first // each, -(-recipe.steps // each)):
            order = torch.randperm(count, generator=generator(seed, "pretrain", "order", epoch))
            parts = order.to(examples.index_device).split(min(recipe.batch, count))[:each]
            yield from parts[max(0, first - epoch * each) : recipe.steps - epoch * each]

    with examples.feed(batches()) as fed:
        for step in range(first, recipe.steps):
            if checkpoint is not None and ((stop is not None and stop.requested) or checkpoint.due()):
                checkpoint.save({**pack(student, "student"), **pack_optimizer(optimizer, "optimizer")}, {"steps": step})
            if stop is not None:
                stop.check()
            images, targets = next(fed)
            if recipe.augmentation != "none":
                images = randomly_moved(images, generator(seed, "pretrain", "moves", step // each, step % each))
            loss = functional.mse_loss(student(images), targets)
            optimizer.zero_grad(set_to_none=True)
            loss.backward()
            optimizer.step()
            done = step + 1
            if (done % _LOOK_EVERY == 0 or done == recipe.steps or done in points) and not torch.isfinite(loss):
                raise FloatingPointError(f"the loss is {loss.item()} at step {done} and learning rate {recipe.rate:g}")
            if done in points:
                with torch.no_grad(), _statistics_kept(encoder):
                    _check_finite(encoder, few, recipe.rate)
                    reached(done)
    _check_finite(encoder.eval(), few, recipe.rate)
    return encoder


def _check_finite(encoder: nn.Module, images: Tensor, rate: float) -> None:
    """Raise FloatingPointError where a weight, or a feature of these images, is not finite."""
    with torch.no_grad():
        tensors = [*encoder.state_dict().values(), encoder(images)]
    if not all(tensor.isfinite().all() for tensor in tensors):
        raise FloatingPointError(f"the encoder is not finite after training at learning rate {rate:g}")


@contextmanager
def _statistics_kept(encoder: nn.Module) -> Iterator[None]:
    """Inside the block the encoder is in eval mode, so that looking at its output changes no running statistics."""
    encoder.eval()
    yield
    encoder.train()
