"""Choosing real images to start from: the hardest, the most spread out, or any."""

from __future__ import annotations

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from limbeck.data.feed import Examples, batches_of
from limbeck.nn.flat import FlatNetwork
from limbeck.seeding import generator

_BATCH = 512
_BLOCK = 1024  # points whose distances are computed at once, in the processor's cache


@torch.no_grad()
def loss_scores(network: FlatNetwork, theta: Tensor, examples: Examples) -> Tensor:
    """Each image's mean squared error f32[n] to its target, on their device, under parameters theta f32[P].

    An expert keeps no running statistics, so a student with batch norm is scored with those of batches of about 512
    images in the order of the dataset.
    """
    with examples.feed(batches_of(len(examples), _BATCH)) as fed:
        return torch.cat([(network(theta, images) - targets).square().mean(1) for images, targets in fed])


def random_subset(count: int, size: int, seed: int) -> Tensor:
    """`size` of `count` indices, i64[size], drawn without replacement."""
    return torch.randperm(count, generator=generator(seed, "subset"))[:size]


def k_center(points: NDArray[np.float32], size: int, seed: int) -> Tensor:
    """Greedy k-centre (Gonzalez, 1985): each next index, i64[size], is the point farthest from those chosen.

    Args:
        points: f32[n, d], perhaps mapped; beside them only a number for each is kept.
        size: how many to choose, at most n.
        seed: of the first one.

    Raises:
        ValueError: `size` is larger than n.
    """
    if size > len(points):
        raise ValueError(f"{size} of {len(points)} points")
    chosen = [int(torch.randint(len(points), (), generator=generator(seed, "k-center")))]
    distance = np.full(len(points), np.inf, np.float32)
    while len(chosen) < size:
        _lower(distance, points, np.array(points[chosen[-1]]))
        distance[chosen[-1]] = -1.0  # never again, even among equal points
        chosen.append(int(distance.argmax()))
    return torch.tensor(chosen)


def _lower(distance: NDArray[np.float32], points: NDArray[np.float32], center: NDArray[np.float32]) -> None:
    """Lower each point's squared distance f32[n] to that from `center` f32[d], where it is nearer."""
    for start in range(0, len(points), _BLOCK):
        apart = points[start : start + _BLOCK] - center
        part = distance[start : start + _BLOCK]
        np.minimum(part, np.einsum("nd,nd->n", apart, apart), out=part)
