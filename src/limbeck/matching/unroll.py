r"""The inner loop and its exact gradient in constant memory.

Forward, N steps of SGD with momentum mu and weight decay w on batches (x_k, y_k) of the synthetic set:

    g_k         = grad_theta L(theta_k; x_k, y_k) + w theta_k
    v_{k+1}     = mu v_k + g_k                                   (v_0 = 0)
    theta_{k+1} = theta_k - lr v_{k+1}

Only theta_0..theta_N and v_0..v_N are kept, not the graph. Backward, with a the adjoint of theta and b that of v,
each step's graph is built again alone, differentiated and dropped, for k = N-1..0:

    b   <- b - lr a                         (all that reaches v_{k+1})
    lr' <- lr' - <a, v_{k+1}>
    a   <- a + (H_k + w) b,   x_k' <- (d g_k / d x_k)^T b,   y_k' likewise
    b   <- mu b

where H_k is the Hessian, symmetric, so that all three products are one gradient of <g_k, b>. With mu = 0 this is
plain SGD. It is reverse-mode differentiation of the unrolled loop (Maclaurin et al., 2015, without their lossy
reversal), so the gradients equal those of keeping the whole graph, whatever N, in the memory of one step.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

# L(theta, images, targets): the training loss of one inner step, a scalar
StudentLoss = Callable[[Tensor, Tensor, Tensor], Tensor]


@dataclass(frozen=True)
class InnerLoop:
    """The inner optimiser's fixed settings; its learning rate is learned and passed in."""

    momentum: float = 0.0
    weight_decay: float = 0.0


@dataclass(frozen=True)
class SyntheticGradient:
    """Gradients of the outer loss with respect to the synthetic set and the inner learning rate."""

    images: Tensor  # as the images, f[m, 3, s, s]
    targets: Tensor  # as the targets, f[m, d]
    rate: Tensor  # scalar


@dataclass(frozen=True)
class Trajectory:
    """What the forward pass keeps: N + 1 parameter vectors and, with momentum, as many velocities."""

    thetas: list[Tensor]  # each f[P]
    velocities: list[Tensor]  # each f[P]; velocities[k] is v_k

    @property
    def final(self) -> Tensor:
        """theta_N, f[P]."""
        return self.thetas[-1]


def sgd_step(
    loss: StudentLoss,
    theta: Tensor,
    velocity: Tensor,
    rate: Tensor | float,
    inner: InnerLoop,
    x: Tensor,
    y: Tensor,
) -> tuple[Tensor, Tensor, Tensor]:
    """One step of SGD: (theta_{k+1} f[P], v_{k+1} f[P], the loss before the step), all detached."""
    with torch.enable_grad():
        theta = theta.detach().requires_grad_()
        value = loss(theta, x, y)
        (gradient,) = torch.autograd.grad(value, theta)
    with torch.no_grad():
        velocity = _velocity(velocity, gradient, theta, inner)
        return theta - rate * velocity, velocity, value.detach()


def _velocity(velocity: Tensor, gradient: Tensor, theta: Tensor, inner: InnerLoop) -> Tensor:
    if inner.weight_decay:
        gradient = gradient + inner.weight_decay * theta
    return inner.momentum * velocity + gradient if inner.momentum else gradient


def run_inner_loop(
    loss: StudentLoss,
    theta: Tensor,
    images: Tensor,
    targets: Tensor,
    rate: Tensor,
    batches: Sequence[Tensor | None],
    inner: InnerLoop,
) -> Trajectory:
    """Train from theta f[P] on the synthetic set, one step a batch.

    Args:
        loss: L(theta, x, y).
        theta: theta_0, f[P].
        images: the synthetic images, f[m, 3, s, s].
        targets: their targets, f[m, d].
        rate: the inner learning rate, a positive scalar.
        batches: for each step the indices i64[b] into the set; None is the whole set, without a copy.
        inner: momentum and weight decay.
    """
    thetas, velocities = [theta.detach()], [torch.zeros_like(theta)]
    images, targets, rate = images.detach(), targets.detach(), rate.detach()
    for batch in batches:
        x, y = _pick(images, batch), _pick(targets, batch)
        theta, velocity, _ = sgd_step(loss, thetas[-1], velocities[-1], rate, inner, x, y)
        thetas.append(theta)
        velocities.append(velocity if inner.momentum else velocities[0])
    return Trajectory(thetas, velocities)


def replay_gradient(
    loss: StudentLoss,
    trajectory: Trajectory,
    adjoint: Tensor,
    images: Tensor,
    targets: Tensor,
    rate: Tensor,
    batches: Sequence[Tensor | None],
    inner: InnerLoop,
) -> SyntheticGradient:
    """Gradients of an outer loss with gradient `adjoint` f[P] at theta_N; other arguments as `run_inner_loop` had."""
    images, targets, rate = images.detach(), targets.detach(), rate.detach()
    image_gradient, target_gradient = torch.zeros_like(images), torch.zeros_like(targets)
    rate_gradient = torch.zeros_like(rate)
    a, b = adjoint.detach(), torch.zeros_like(adjoint)
    for k in range(len(batches) - 1, -1, -1):
        batch = batches[k]
        theta = trajectory.thetas[k].detach().requires_grad_()
        x = _pick(images, batch).detach().requires_grad_()
        y = _pick(targets, batch).detach().requires_grad_()
        b = b - rate * a
        with torch.enable_grad():
            (gradient,) = torch.autograd.grad(loss(theta, x, y), theta, create_graph=True)
            hessian_b, x_gradient, y_gradient = torch.autograd.grad(gradient, (theta, x, y), b)
        with torch.no_grad():
            velocity = _velocity(trajectory.velocities[k], gradient.detach(), theta.detach(), inner)
            rate_gradient -= torch.dot(a, velocity)
            a = a + hessian_b + inner.weight_decay * b
            b = inner.momentum * b
            _add(image_gradient, batch, x_gradient)
            _add(target_gradient, batch, y_gradient)
    return SyntheticGradient(image_gradient, target_gradient, rate_gradient)


def _pick(rows: Tensor, batch: Tensor | None) -> Tensor:
    return rows if batch is None else rows[batch]


def _add(total: Tensor, batch: Tensor | None, part: Tensor) -> None:
    if batch is None:
        total += part
    else:
        total.index_add_(0, batch, part)
