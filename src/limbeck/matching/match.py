"""The matching loss of MKDT (Joshi et al., 2025, eq. 5, after Cazenavette et al., 2022) and its gradient."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from limbeck.matching.steps import Steps
from limbeck.matching.unroll import InnerLoop, SyntheticGradient, replay_gradient, run_inner_loop
from limbeck.nn.augmentation import Moves

_UNMOVED = 1e-4  # share of the mean tensor's distance below which one counts as not moved by the expert


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
    *,
    moves: Sequence[Moves] | None = None,
    layers: Sequence[int] | None = None,
) -> Match:
    """||theta_N - goal||^2 / ||start - goal||^2 after training from `start` on the synthetic set, and its gradient.

    With `layers` the ratio is taken of each parameter tensor apart and averaged over those that the expert moved: a
    layer of many parameters then counts no more than one of few.

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
        moves: as in `run_inner_loop`.
        layers: numbers of elements of the parameter tensors, together P.
    """
    trajectory = run_inner_loop(steps, start, images, targets, rate, batches, inner, hold, moves)
    weights = distance_weights(start, goal, layers)
    difference = trajectory.final - goal
    losses = (weights * difference.square()).sum(1)
    adjoint = 2.0 * weights * difference
    gradient = replay_gradient(steps, trajectory, adjoint, images, targets, rate, batches, inner, moves)
    return Match(losses, gradient)


def distance_weights(start: Tensor, goal: Tensor, layers: Sequence[int] | None) -> Tensor:
    """What each parameter's squared distance to the goal counts, f[p, P] or f[p, 1]."""
    way = (start - goal).square()
    if layers is None:
        return 1.0 / way.sum(1, keepdim=True)
    distances = torch.stack([part.sum(1) for part in way.split(list(layers), 1)], 1)
    moved = distances > _UNMOVED * distances.mean(1, keepdim=True)
    each = torch.where(moved, 1.0 / distances.clamp_min(torch.finfo(distances.dtype).tiny), 0.0)
    each = each / moved.sum(1, keepdim=True)
    return each.repeat_interleave(torch.tensor(list(layers), device=each.device), 1)


def inner_order(size: int, batch: int, steps: int, generator: torch.Generator) -> Tensor | None:
    """Indices i64[steps, b] of each inner step: shuffles of 0..size-1 laid end to end and cut into batches.

    All batches have the same length, min(batch, size); where that is the whole set there is no order: None.
    """
    if batch >= size:
        return None
    shuffles = -(-steps * batch // size)
    order = torch.cat([torch.randperm(size, generator=generator) for _ in range(shuffles)])
    return order[: steps * batch].view(steps, batch)
