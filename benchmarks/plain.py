"""The plain way to differentiate an inner loop: one graph through all its steps, then one backward pass through it."""

from __future__ import annotations

from collections.abc import Callable, Sequence

import torch
from torch import Tensor

from limbeck.matching.unroll import InnerLoop, SyntheticGradient


def unrolled(
    loss: Callable[[Tensor, Tensor, Tensor], Tensor],
    start: Tensor,
    goal: Tensor,
    images: Tensor,
    targets: Tensor,
    rate: Tensor,
    batches: Sequence[Tensor | None],
    inner: InnerLoop,
) -> tuple[Tensor, SyntheticGradient]:
    """The matching loss and its gradient, as published code computes them.

    Args:
        loss: L(theta f[P], x f[b, 3, s, s], y f[b, d]), a scalar.
        start: theta_0, f[P].
        goal: f[P].
        images: f[m, 3, s, s].
        targets: f[m, d].
        rate: the inner learning rate, a scalar.
        batches: for each step the indices i64[b] into the set; None is the whole set.
        inner: momentum and weight decay.
    """
    images, targets, rate = leaves = tuple(t.detach().clone().requires_grad_() for t in (images, targets, rate))
    theta, velocity = start.clone().requires_grad_(), torch.zeros_like(start)
    for batch in batches:
        x, y = (images, targets) if batch is None else (images[batch], targets[batch])
        (gradient,) = torch.autograd.grad(loss(theta, x, y), theta, create_graph=True)
        velocity = inner.momentum * velocity + gradient + inner.weight_decay * theta
        theta = theta - rate * velocity
    value = (theta - goal).square().sum() / (start - goal).square().sum()
    return value.detach(), SyntheticGradient(*torch.autograd.grad(value, leaves))
