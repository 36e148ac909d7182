"""Choosing real images to start from: the hardest, the most spread out, or any."""

from __future__ import annotations

import torch
from torch import Tensor

from limbeck.nn.flat import FlatNetwork
from limbeck.nn.pretraining import Images
from limbeck.seeding import generator

_BATCH = 512


@torch.no_grad()
def loss_scores(network: FlatNetwork, theta: Tensor, images: Images, targets: Tensor) -> Tensor:
    """Each image's mean squared error f32[n] to its target f32[n, d], under parameters theta f32[P].

    An expert keeps no running statistics, so a student with batch norm is scored with those of batches of about 512
    images in the order of the dataset.
    """
    parts = torch.arange(len(images)).tensor_split(-(-len(images) // _BATCH))
    return torch.cat(
        [(network(theta, images[part]) - targets[part.to(targets.device)]).square().mean(1) for part in parts]
    )


def random_subset(count: int, size: int, seed: int) -> Tensor:
    """`size` of `count` indices, i64[size], drawn without replacement."""
    return torch.randperm(count, generator=generator(seed, "subset"))[:size]


def k_center(points: Tensor, size: int, seed: int) -> Tensor:
    """Greedy k-centre (Gonzalez, 1985): each next index, i64[size], is the point farthest from those chosen.

    Args:
        points: f32[n, d].
        size: how many to choose, at most n.
        seed: of the first one.

    Raises:
        ValueError: `size` is larger than n.
    """
    if size > len(points):
        raise ValueError(f"{size} of {len(points)} points")
    chosen = [int(torch.randint(len(points), (), generator=generator(seed, "k-center")))]
    distance = (points - points[chosen[0]]).square().sum(1)
    while len(chosen) < size:
        distance[chosen[-1]] = -1.0  # never again, even among equal points
        chosen.append(int(distance.argmax()))
        distance = torch.minimum(distance, (points - points[chosen[-1]]).square().sum(1))
    return torch.tensor(chosen)
