"""One iteration of distill: draw (expert, start epoch) pairs, match them, average their gradients.

On one accelerator the pairs are stacked and unrolled together, as far as memory goes; on the CPU they follow one
another. Where torch.distributed is set up, each rank matches its own share of the pairs and the gradients are summed
over the ranks, so that every rank updates its copy of the set alike.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor, distributed

from limbeck.matching.engine import Layout, choose_layout
from limbeck.matching.experts import Experts
from limbeck.matching.match import inner_order, match
from limbeck.matching.steps import Steps
from limbeck.matching.unroll import InnerLoop, SyntheticGradient, pick
from limbeck.nn.augmentation import Moves
from limbeck.ranks import place
from limbeck.seeding import generator
from limbeck.spec import Engine


@dataclass(frozen=True)
class Drawn:
    """One (expert, start) pair of an iteration."""

    expert: int
    epoch: int
    order: Tensor | None  # the batches of the inner steps, i64[N, b], on the CPU; None: every one is the whole set
    moves: Moves | None = None  # how the images of each are augmented, of shape [N, b], on the CPU


@dataclass(frozen=True)
class Matched:
    """Means over the pairs of an iteration."""

    loss: float
    gradient: SyntheticGradient


class Matcher:
    """Computes the gradient of one iteration.

    Args:
        experts: the expert trajectories.
        steps: the derivatives of the student's loss.
        inner: momentum and weight decay of the inner loop.
        seed: the spec's; the draws of an iteration come from it and the iteration's number.
        start_epochs: start epochs are drawn from 0 up to, not including, what this gives for an iteration.
        gap: M, the epochs of an expert that the inner steps must match.
        inner_steps: N.
        inner_batch: images an inner step, at most the whole set.
        engine: the memory budget.
        device: where to compute.
        image_size: s, where the images of inner steps are augmented; None where they are not.
        layers: as in `match`.
    """

    def __init__(
        self,
        experts: Experts,
        steps: Steps,
        inner: InnerLoop,
        *,
        seed: int,
        start_epochs: Callable[[int], int],
        gap: int,
        inner_steps: int,
        inner_batch: int,
        engine: Engine,
        device: torch.device,
        image_size: int | None = None,
        layers: Sequence[int] | None = None,
    ) -> None:
        self._experts, self._steps, self._inner = experts, steps, inner
        self._image_size, self._layers = image_size, layers
        self._seed, self._start_epochs, self._gap = seed, start_epochs, gap
        self._inner_steps, self._inner_batch = inner_steps, inner_batch
        self._engine, self._device = engine, device
        self._layout: Layout | None = None  # chosen at the first iteration

    def draw(self, iteration: int, pairs: int, size: int) -> list[Drawn]:
        """The pairs of an iteration, for a synthetic set of `size` images."""
        return [self._draw(size, iteration, *((pair,) if pair else ())) for pair in range(pairs)]

    def _draw(self, size: int, *path: int) -> Drawn:
        draws = generator(self._seed, "distill", *path)
        expert = int(torch.randint(len(self._experts), (), generator=draws))
        epoch = int(torch.randint(self._start_epochs(path[0]), (), generator=draws))
        order = inner_order(size, self._inner_batch, self._inner_steps, draws)
        moves = None
        if self._image_size is not None:
            moves = Moves.draw((self._inner_steps, min(self._inner_batch, size)), self._image_size, draws)
        return Drawn(expert, epoch, order, moves)

    def match(self, drawn: Sequence[Drawn], images: Tensor, targets: Tensor, rate: Tensor) -> Matched:
        """The mean matching loss of the pairs and its gradient.

        Args:
            drawn: the pairs, the same on every rank.
            images: the synthetic images, f[m, 3, s, s], on the device.
            targets: their targets, f[m, d].
            rate: the inner learning rate, a scalar.
        """
        rank, ranks = place()
        total = SyntheticGradient(torch.zeros_like(images), torch.zeros_like(targets), torch.zeros_like(rate))
        loss = torch.zeros((), device=images.device)
        mine = drawn[rank::ranks]
        if mine and self._layout is None:
            start, _, batches, _ = self._stack(mine[:1])
            x, y = (pick(rows.detach(), batches[0], 1) for rows in (images, targets))
            self._layout = choose_layout(
                self._steps, start, x, y, pairs=len(mine), inner_steps=self._inner_steps, engine=self._engine
            )
        while mine and self._layout:
            start, goal, batches, moves = self._stack(mine[: self._layout.stacked])
            found = match(
                self._steps,
                start,
                goal,
                images,
                targets,
                rate,
                batches,
                self._inner,
                self._layout.hold,
                moves=moves,
                layers=self._layers,
            )
            for into, part in zip(_tensors(total), _tensors(found.gradient), strict=True):
                into += part
            loss += found.losses.sum()
            mine = mine[self._layout.stacked :]
        for tensor in (*_tensors(total), loss):
            if ranks > 1:
                distributed.all_reduce(tensor)
            tensor /= len(drawn)
        return Matched(loss.item(), total)

    def _stack(self, drawn: Sequence[Drawn]) -> tuple[Tensor, Tensor, list[Tensor | None], list[Moves] | None]:
        """Starts f[p, P], goals f[p, P], and batches i64[p, b] and moves [p, b] of every inner step, on the device."""
        start = torch.stack([self._experts.theta(pair.expert, pair.epoch) for pair in drawn])
        goal = torch.stack([self._experts.theta(pair.expert, pair.epoch + self._gap) for pair in drawn])
        if drawn[0].order is None:
            batches: list[Tensor | None] = [None] * self._inner_steps
        else:
            orders = [pair.order for pair in drawn if pair.order is not None]
            batches = list(torch.stack(orders, 1).to(self._device).unbind())
        moves = None
        if drawn[0].moves is not None:
            moves = Moves.stack([pair.moves for pair in drawn if pair.moves is not None]).to(self._device).steps()
        return start.to(self._device), goal.to(self._device), batches, moves


def _tensors(gradient: SyntheticGradient) -> tuple[Tensor, Tensor, Tensor]:
    return gradient.images, gradient.targets, gradient.rate
