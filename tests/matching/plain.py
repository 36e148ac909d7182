"""The plain way: keep the whole unrolled graph and let autograd walk it. The reference for the replay."""

from __future__ import annotations

import torch


def unrolled_match(loss, start, goal, images, targets, rate, batches, inner):
    """The matching loss and its gradients for images, targets and rate by back-propagation through the graph."""
    images, targets, rate = (t.detach().clone().requires_grad_() for t in (images, targets, rate))
    theta, velocity = start.detach().clone().requires_grad_(), torch.zeros_like(start)
    for batch in batches:
        x = images if batch is None else images[batch]
        y = targets if batch is None else targets[batch]
        (gradient,) = torch.autograd.grad(loss(theta[None], x[None], y[None])[0], theta, create_graph=True)
        velocity = inner.momentum * velocity + gradient + inner.weight_decay * theta
        theta = theta - rate * velocity
    value = (theta - goal).square().sum() / (start - goal).square().sum()
    return value.detach(), torch.autograd.grad(value, (images, targets, rate))
