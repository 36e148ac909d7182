"""The matching loss of MKDT (Joshi et al., 2025, eq. 5, after Cazenavette et al., 2022) and its gradient."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor
from torch.nn import functional

from limbeck.matching.unroll import InnerLoop, StudentLoss, SyntheticGradient, replay_gradient, run_inner_loop
from limbeck.nn.flat import FlatNetwork


@dataclass(frozen=True)
class Match:
    """The matching loss of one (expert, start) pair and its gradient."""

    loss: Tensor  # scalar
    gradient: SyntheticGradient


def student_loss(network: FlatNetwork) -> StudentLoss:
    """Mean squared error of a student f[b, d] to its targets f[b, d], as a function of theta f[P]."""

    def loss(theta: Tensor, images: Tensor, targets: Tensor) -> Tensor:
        return functional.mse_loss(network(theta, images), targets)

    return loss


def match(
    loss: StudentLoss,
    start: Tensor,
    goal: Tensor,
    images: Tensor,
    targets: Tensor,
    rate: Tensor,
    batches: Sequence[Tensor | None],
    inner: InnerLoop,
) -> Match:
    """||theta_N - goal||^2 / ||start - goal||^2 after training from `start` on the synthetic set, and its gradient.

    Args:
        loss: the student's training loss.
        start: the expert's parameters theta_s at the start epoch, f[P].
        goal: the expert's parameters theta_{s+M}, M epochs later, f[P].
        images: the synthetic images, f[m, 3, s, s].
        targets: their targets, f[m, d].
        rate: the inner learning rate, a scalar.
        batches: as in `run_inner_loop`.
        inner: as in `run_inner_loop`.
    """
    trajectory = run_inner_loop(loss, start, images, targets, rate, batches, inner)
    with torch.no_grad():
        distance = (start - goal).square().sum()
        difference = trajectory.final - goal
        value = difference.square().sum() / distance
        adjoint = 2.0 * difference / distance
    return Match(value, replay_gradient(loss, trajectory, adjoint, images, targets, rate, batches, inner))


def inner_batches(
    size: int, batch: int, steps: int, generator: torch.Generator, device: torch.device
) -> list[Tensor | None]:
    """Indices of each inner step: shuffles of 0..size-1 laid end to end and cut into `steps` batches.

    All batches have the same length, min(batch, size); where that is the whole set, None stands for it.
    """
    if batch >= size:
        return [None] * steps
    shuffles = -(-steps * batch // size)
    order = torch.cat([torch.randperm(size, generator=generator) for _ in range(shuffles)])
    return list(order[: steps * batch].to(device).view(steps, batch).unbind())
