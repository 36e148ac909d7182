"""The linear probe: multinomial logistic regression on frozen features, by L-BFGS."""

from __future__ import annotations

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor
from torch.nn import functional


def fit_probe(
    features: Tensor, labels: Tensor, classes: int, *, regularization: float, iterations: int
) -> tuple[Tensor, Tensor]:
    """Minimise mean cross-entropy + regularization * ||W||^2 from W = 0, b = 0.

    Args:
        features: f32[n, k].
        labels: i64[n], in 0..classes-1.
        classes: number of classes c.
        regularization: weight of ||W||^2; the bias is free.
        iterations: most L-BFGS iterations.

    Returns:
        W f32[k, c] and b f32[c].
    """
    weight = features.new_zeros(features.shape[1], classes, requires_grad=True)
    bias = features.new_zeros(classes, requires_grad=True)
    optimizer = torch.optim.LBFGS(
        [weight, bias],
        max_iter=iterations,
        tolerance_grad=1e-5,
        tolerance_change=1e-9,
        history_size=20,
        line_search_fn="strong_wolfe",
    )

    def closure() -> Tensor:
        optimizer.zero_grad()
        loss = functional.cross_entropy(features @ weight + bias, labels)
        loss = loss + regularization * weight.square().sum()
        loss.backward()
        return loss

    optimizer.step(closure)
    return weight.detach(), bias.detach()


@torch.no_grad()
def accuracy(features: Tensor, labels: Tensor, weight: Tensor, bias: Tensor) -> float:
    """Share of f32[n, k] whose most likely class under (W, b) is their label i64[n]."""
    return (features @ weight + bias).argmax(1).eq(labels).float().mean().item()


def label_subset(labels: NDArray[np.int64], fraction: float, generator: np.random.Generator) -> NDArray[np.int64]:
    """Sorted indices of about `fraction` of the labelled images, the same share of every class, at least one each."""
    chosen = []
    for name in np.unique(labels):
        members = generator.permutation(np.flatnonzero(labels == name))
        chosen.append(members[: max(1, round(fraction * len(members)))])
    return np.sort(np.concatenate(chosen))
