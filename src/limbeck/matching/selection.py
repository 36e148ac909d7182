"""Choosing real images: the hardest, the most spread out, those that stand for the others, or any."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from limbeck.data.feed import Examples, batches_of
from limbeck.nn.flat import FlatNetwork
from limbeck.seeding import generator
from limbeck.spec import Initialization

_BATCH = 512
_MOST = 2**22  # similarities that are held at once
_LOOKS = 5  # ln(100): a step then finds one of the best hundredth but for a chance of one in a hundred
_STOOD_FOR = 2**14  # of more points, a random sample tells what each candidate would add
_BLOCK = 1024  # points whose distances are computed at once, in the processor's cache


def loss_scores(
    network: FlatNetwork, theta: Tensor, examples: Examples, between: Callable[[], None] = lambda: None
) -> Tensor:
    """Each image's mean squared error f32[n] to its target, on their device, under parameters theta f32[P].

    An expert keeps no running statistics, so a student with batch norm is scored with those of batches of about 512
    images in the order of the dataset. `between` is called after every batch.
    """
    scores = list[Tensor]()
    with torch.no_grad(), examples.feed(batches_of(len(examples), _BATCH)) as fed:
        for images, targets in fed:
            scores.append((network(theta, images) - targets).square().mean(1))
            between()
    return torch.cat(scores)


def choose(
    how: Initialization,
    targets: NDArray[np.float32],
    scores: Tensor,
    size: int,
    seed: int,
    between: Callable[[], None] = lambda: None,
) -> Tensor:
    """Indices, i64[size], of images chosen by their targets f32[n, d] or their scores f32[n]; `between` as below."""
    if how == "highLoss":
        return scores.argsort(descending=True, stable=True)[:size]
    if how == "kCenter":
        return k_center(targets, size, seed, between)
    if how == "facilityLocation":
        return facility_location(targets, size, seed, between)
    return random_subset(len(targets), size, seed)


def random_subset(count: int, size: int, seed: int) -> Tensor:
    """`size` of `count` indices, i64[size], drawn without replacement."""
    return torch.randperm(count, generator=generator(seed, "subset"))[:size]


def k_center(points: NDArray[np.float32], size: int, seed: int, between: Callable[[], None] = lambda: None) -> Tensor:
    """Greedy k-centre (Gonzalez, 1985): each next index, i64[size], is the point farthest from those chosen.

    Args:
        points: f32[n, d], perhaps mapped; beside them only a number for each is kept.
        size: how many to choose, at most n.
        seed: of the first one.
        between: called after every step.

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
        between()
    return torch.tensor(chosen)


def facility_location(
    points: NDArray[np.float32], size: int, seed: int, between: Callable[[], None] = lambda: None
) -> Tensor:
    """Indices, i64[size], that greedily maximise the facility location of cosine similarities.

    The value of a subset is the sum over all points of 1 + their largest cosine with one of the subset: each point is
    stood for by the most similar one, the idea of SAS (Joshi and Mirzasoleiman, 2023) on the teacher's representations.
    Every step looks at a random share of the points (Mirzasoleiman et al., 2015), so that of n points some n ln(100)
    are looked at in all, and the sum is over at most 16,384 of them, drawn at random: the similarities to compute
    grow with n, not its square, and none of them are kept; the sample is. Each step still draws an order of all n.

    Args:
        points: f32[n, d], perhaps mapped.
        size: how many to choose, at most n.
        seed: of what each step looks at, and of the sample.
        between: called after every step.

    Raises:
        ValueError: `size` is larger than n.
    """
    count = len(points)
    if size > count:
        raise ValueError(f"{size} of {count} points")
    draws = generator(seed, "facility-location")
    looked_at = min(count, -(-count * _LOOKS // size))
    stood_for = points
    if count > _STOOD_FOR:
        stood_for = points[np.sort(torch.randperm(count, generator=draws)[:_STOOD_FOR].numpy())]
    stood_for = _directions(stood_for)
    covered, chosen = np.zeros(len(stood_for), np.float32), list[int]()
    free = np.ones(count, bool)
    for _ in range(size):
        order = torch.randperm(count, generator=draws).numpy()
        candidates = np.sort(order[free[order]][:looked_at])
        gains = _gains(stood_for, _directions(points[candidates]), covered)
        best = int(candidates[gains.argmax()])
        chosen.append(best)
        free[best] = False
        direction = _directions(points[best : best + 1])
        for start in range(0, len(stood_for), _BLOCK):
            part = covered[start : start + _BLOCK]
            np.maximum(part, 1.0 + (stood_for[start : start + _BLOCK] @ direction.T)[:, 0], out=part)
        between()
    return torch.tensor(chosen)


def _directions(rows: NDArray[np.float32]) -> NDArray[np.float32]:
    """Rows f32[b, d] at length one; a row of zeros stays."""
    lengths = np.linalg.norm(rows, axis=1, keepdims=True)
    directions: NDArray[np.float32] = rows / np.maximum(lengths, np.float32(1e-12))
    return directions


def _gains(
    points: NDArray[np.float32], directions: NDArray[np.float32], covered: NDArray[np.float32]
) -> NDArray[np.float64]:
    """What each of the candidates f32[c, d] would add, f64[c], to what f32[n] points f32[n, d] have reached already.

    All of them are of length one.
    """
    gains, block = np.zeros(len(directions)), max(1, min(_BLOCK, _MOST // len(directions)))
    for start in range(0, len(points), block):
        similarity = 1.0 + points[start : start + block] @ directions.T
        gains += np.maximum(similarity - covered[start : start + block, None], 0.0).sum(0, dtype=np.float64)
    return gains


def _lower(distance: NDArray[np.float32], points: NDArray[np.float32], center: NDArray[np.float32]) -> None:
    """Lower each point's squared distance f32[n] to that from `center` f32[d], where it is nearer."""
    for start in range(0, len(points), _BLOCK):
        apart = points[start : start + _BLOCK] - center
        part = distance[start : start + _BLOCK]
        np.minimum(part, np.einsum("nd,nd->n", apart, apart), out=part)
