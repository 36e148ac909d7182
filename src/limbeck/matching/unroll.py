r"""The inner loop and its exact gradient in constant memory.

Forward, N steps of SGD with momentum mu and weight decay w on batches (x_k, y_k) of the synthetic set:

    g_k         = grad_theta L(theta_k; x_k, y_k) + w theta_k
    v_{k+1}     = mu v_k + g_k                                   (v_0 = 0)
    theta_{k+1} = theta_k - lr v_{k+1}

Only theta_0..theta_N and v_1..v_N are kept, not the graph. Backward, with a the adjoint of theta and b that of v,
each step is differentiated again alone, for k = N-1..0:

    b   <- b - lr a                         (all that reaches v_{k+1})
    lr' <- lr' - <a, v_{k+1}>
    a   <- a + (H_k + w) b,   x_k' <- (d g_k / d x_k)^T b,   y_k' likewise
    b   <- mu b

where H_k is the Hessian, symmetric, so that all three products are one gradient of <g_k, b>. With mu = 0 this is
plain SGD. It is reverse-mode differentiation of the unrolled loop (Maclaurin et al., 2015, without their lossy
reversal), so the gradients equal those of keeping the whole graph, whatever N, in the memory of one step. Where there
is memory to spare, the graphs of the last steps are held from the forward pass, which saves building them again.

Where images are augmented, x_k is A_k of them with a linear map A_k, and the gradient of x_k goes back through its
adjoint.

Several (expert, start) pairs are unrolled at once as stacked parameters f[p, P], each on its own batches.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field

import torch
from torch import Tensor

from limbeck.matching.steps import Held, Steps
from limbeck.nn.augmentation import Moves


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
    """What the forward pass keeps: N + 1 parameter vectors, N velocities, and the graphs that are held."""

    thetas: list[Tensor]  # each f[p, P]; thetas[k] is theta_k
    velocities: list[Tensor]  # each f[p, P]; velocities[k] is v_{k+1}
    held: dict[int, Held] = field(default_factory=dict)  # by step

    @property
    def final(self) -> Tensor:
        """theta_N, f[p, P]."""
        return self.thetas[-1]


def next_velocity(velocity: Tensor, gradient: Tensor, theta: Tensor, inner: InnerLoop) -> Tensor:
    """v_{k+1}, f[p, P], from v_k, the loss's gradient and theta_k."""
    if inner.weight_decay:
        gradient = gradient + inner.weight_decay * theta
    return inner.momentum * velocity + gradient if inner.momentum else gradient


def run_inner_loop(
    steps: Steps,
    theta: Tensor,
    images: Tensor,
    targets: Tensor,
    rate: Tensor,
    batches: Sequence[Tensor | None],
    inner: InnerLoop,
    hold: int = 0,
    moves: Sequence[Moves] | None = None,
) -> Trajectory:
    """Train from theta f[p, P] on the synthetic set, one step a batch.

    Args:
        steps: the derivatives of L(theta, x, y).
        theta: theta_0 of each of p networks, f[p, P].
        images: the synthetic images, f[m, 3, s, s].
        targets: their targets, f[m, d].
        rate: the inner learning rate, a positive scalar.
        batches: for each step the indices i64[p, b] into the set; None is the whole set, without a copy.
        inner: momentum and weight decay.
        hold: of how many steps, the last ones, the graph is held for the replay.
        moves: for each step how its images are augmented, of shape [p, b]; not at all when absent.
    """
    path = Trajectory([theta.detach()], [])
    images, targets, rate = images.detach(), targets.detach(), rate.detach()
    velocity = torch.zeros_like(path.final)
    with torch.no_grad():
        for k, batch in enumerate(batches):
            theta = path.final
            x, y = _seen(images, batch, len(theta), moves, k), pick(targets, batch, len(theta))
            if k >= len(batches) - hold:
                path.held[k] = steps.held(theta, x, y)
                gradient = path.held[k].gradient.detach()
            else:
                gradient, _ = steps.gradient(theta, x, y)
            velocity = next_velocity(velocity, gradient, theta, inner)
            path.velocities.append(velocity)
            path.thetas.append(theta - rate * velocity)
    return path


def replay_gradient(
    steps: Steps,
    trajectory: Trajectory,
    adjoint: Tensor,
    images: Tensor,
    targets: Tensor,
    rate: Tensor,
    batches: Sequence[Tensor | None],
    inner: InnerLoop,
    moves: Sequence[Moves] | None = None,
) -> SyntheticGradient:
    """Gradients of an outer loss with gradient `adjoint` f[p, P] at theta_N; other arguments as `run_inner_loop` had.

    The graphs that the trajectory holds are used up.
    """
    images, targets, rate = images.detach(), targets.detach(), rate.detach()
    image_gradient, target_gradient = torch.zeros_like(images), torch.zeros_like(targets)
    rate_gradient = torch.zeros_like(rate)
    a, b = adjoint.detach(), torch.zeros_like(adjoint)
    with torch.no_grad():
        for k in range(len(batches) - 1, -1, -1):
            theta, batch = trajectory.thetas[k], batches[k]
            rate_gradient -= (a * trajectory.velocities[k]).sum()
            b = b - rate * a
            held = trajectory.held.pop(k, None)
            if held is None:
                x, y = _seen(images, batch, len(theta), moves, k), pick(targets, batch, len(theta))
                products = steps.products(theta, x, y, b)
            else:
                products = held.products(b)
            del held
            a = a + products.theta + inner.weight_decay * b
            b = inner.momentum * b
            _add(image_gradient, batch, products.images if moves is None else moves[k].adjoint(products.images))
            _add(target_gradient, batch, products.targets)
    return SyntheticGradient(image_gradient, target_gradient, rate_gradient)


def pick(rows: Tensor, batch: Tensor | None, networks: int) -> Tensor:
    """Each network's batch, f[p, b, ...], of the rows f[m, ...] at i64[p, b]; None is all rows, without a copy."""
    return rows.expand(networks, *rows.shape) if batch is None else rows[batch]


def _seen(images: Tensor, batch: Tensor | None, networks: int, moves: Sequence[Moves] | None, step: int) -> Tensor:
    """Each network's images of a step, f[p, b, 3, s, s]."""
    picked = pick(images, batch, networks)
    return picked if moves is None else moves[step](picked)


def _add(total: Tensor, batch: Tensor | None, part: Tensor) -> None:
    if batch is None:
        total += part.sum(0)
    else:
        total.index_add_(0, batch.flatten(), part.flatten(0, 1))
