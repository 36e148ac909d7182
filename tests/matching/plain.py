"""The plain way: keep the whole unrolled graph and let autograd walk it. The reference for the replay."""

from __future__ import annotations

import torch


def unrolled_match(loss, start, goal, images, targets, rate, batches, inner, moves=None, layers=None):
    """The matching loss and its gradients for images, targets and rate by back-propagation through the graph."""
    images, targets, rate = (t.detach().clone().requires_grad_() for t in (images, targets, rate))
    theta, velocity = start.detach().clone().requires_grad_(), torch.zeros_like(start)
    for step, batch in enumerate(batches):
        x = images if batch is None else images[batch]
        x = x if moves is None else moves[step](x)
        y = targets if batch is None else targets[batch]
        (gradient,) = torch.autograd.grad(loss(theta[None], x[None], y[None])[0], theta, create_graph=True)
        velocity = inner.momentum * velocity + gradient + inner.weight_decay * theta
        theta = theta - rate * velocity
    parts = [slice(None)] if layers is None else layers
    value = sum((theta - goal)[p].square().sum() / (start - goal)[p].square().sum() for p in parts) / len(parts)
    return value.detach(), torch.autograd.grad(value, (images, targets, rate))
