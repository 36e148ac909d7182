"""The matching loss of MKDT (Joshi et al., 2025, eq. 5, after Cazenavette et al., 2022) and its gradient."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from limbeck.matching.steps import Steps
from limbeck.matching.unroll import InnerLoop, SyntheticGradient, replay_gradient, run_inner_loop


@dataclass(frozen=True)
class Match:
    """The matching losses of p (expert, start) pairs and the gradient of their sum."""

    losses: Tensor  # f[p]
    gradient: SyntheticGradient


def match(
    steps: Steps,
    start: Tensor,
    goal: Tensor,
    images: Tensor,
    targets: Tensor,
    rate: Tensor,
    batches: Sequence[Tensor | None],
    inner: InnerLoop,
    hold: int = 0,
) -> Match:
    """||theta_N - goal||^2 / ||start - goal||^2 after training from `start` on the synthetic set, and its gradient.

    Args:
        steps: the derivatives of the student's training loss.
        start: the experts' parameters theta_s at the start epochs, f[p, P].
        goal: the experts' parameters theta_{s+M}, M epochs later, f[p, P].
        images: the synthetic images, f[m, 3, s, s].
        targets: their targets, f[m, d].
        rate: the inner learning rate, a scalar.
        batches: as in `run_inner_loop`.
        inner: as in `run_inner_loop`.
        hold: as in `run_inner_loop`.
    """
    trajectory = run_inner_loop(steps, start, images, targets, rate, batches, inner, hold)
    distance = (start - goal).square().sum(1, keepdim=True)
    difference = trajectory.final - goal
    losses = difference.square().sum(1) / distance[:, 0]
    adjoint = 2.0 * difference / distance
    return Match(losses, replay_gradient(steps, trajectory, adjoint, images, targets, rate, batches, inner))


def inner_order(size: int, batch: int, steps: int, generator: torch.Generator) -> Tensor | None:
    """Indices i64[steps, b] of each inner step: shuffles of 0..size-1 laid end to end and cut into batches.

    All batches have the same length, min(batch, size); where that is the whole set there is no order: None.
    """
    if batch >= size:
        return None
    shuffles = -(-steps * batch // size)
    order = torch.cat([torch.randperm(size, generator=generator) for _ in range(shuffles)])
    return order[: steps * batch].view(steps, batch)
