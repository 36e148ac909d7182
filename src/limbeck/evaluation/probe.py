"""The linear probe: multinomial logistic regression on standardised features, by SciPy's L-BFGS in float64.

Features are standardised by the images that the probe is fitted on, so a probe does not depend on their scale.
The weight of the ridge is chosen on held-out labels from a grid that is the same for every method.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from functools import cache

import numpy as np
import torch
from numpy.typing import NDArray
from threadpoolctl import ThreadpoolController
from torch import Tensor
from torch.nn import functional

# A dimension whose deviation is below this share of its mean is constant but for the rounding of float32.
_CONSTANT = 1e-6
_HISTORY = 20  # L-BFGS's pairs of steps and gradients


class UnreachedError(Exception):
    """The optimum of a probe was not reached within its iterations."""


@dataclass(frozen=True)
class Probe:
    """A fitted probe.

    Attributes:
        ridge: weight of ||W||^2 in its objective.
        mean: f64[k], subtracted from features.
        scale: f64[k], the features are multiplied by; 0 where they do not vary.
        weight: f64[k, c], for standardised features.
        bias: f64[c].
    """

    ridge: float
    mean: Tensor
    scale: Tensor
    weight: Tensor
    bias: Tensor

    def accuracy(self, features: Tensor, labels: Tensor) -> float:
        """Return the share of features f[n, k] whose most likely class is their label i64[n]."""
        with torch.no_grad():
            logits = standardized(features, self.mean, self.scale) @ self.weight + self.bias
        return logits.argmax(1).eq(labels).double().mean().item()


def standardized(features: Tensor, mean: Tensor, scale: Tensor) -> Tensor:
    """Return (features - mean) * scale, f64[n, k], of f[n, k]."""
    return (features.double() - mean) * scale


def fit_probes(
    features: Tensor, labels: Tensor, classes: int, ridges: Sequence[float], *, iterations: int, tolerance: float
) -> list[Probe]:
    """Fit one probe for each ridge weight, in the order of `ridges`.

    Each minimises mean cross-entropy + ridge * ||W||^2 over standardised features; the bias is free. scikit-learn's
    LogisticRegression has the same optimum at C = 1 / (2 n ridge).

    Args:
        features: f[n, k].
        labels: i64[n], in 0..classes-1.
        classes: number of classes c.
        ridges: weights of ||W||^2.
        iterations: most L-BFGS iterations for each.
        tolerance: the optimum counts as reached where no entry of the gradient is larger.

    Raises:
        FloatingPointError: a feature or a weight is not finite.
        UnreachedError: the optimum was not reached.
    """
    if not features.isfinite().all():
        raise FloatingPointError("the encoder's features are not finite")
    wide = features.double()
    mean, deviation = wide.mean(0), wide.std(0, correction=0)
    varies = deviation > _CONSTANT * mean.abs()
    scale = torch.where(varies, 1.0 / deviation.where(varies, torch.ones_like(deviation)), 0.0)
    rows = standardized(features, mean, scale)
    basis = None
    if rows.shape[0] < rows.shape[1]:  # the optimum lies in the span of the rows: a smaller problem, the same probe
        basis, triangle = torch.linalg.qr(rows.T)
        rows = triangle.T
    start = rows.new_zeros(rows.shape[1] + 1, classes)
    found = dict[float, Probe]()
    for ridge in sorted(set(ridges), reverse=True):  # each starts where the next stronger one ended
        start = _minimum(rows, labels, start, ridge, iterations, tolerance)
        weight = start[:-1] if basis is None else basis @ start[:-1]
        found[ridge] = Probe(ridge, mean, scale, weight, start[-1])
    return [found[ridge] for ridge in ridges]


def _minimum(rows: Tensor, labels: Tensor, start: Tensor, ridge: float, iterations: int, tolerance: float) -> Tensor:
    """Return the optimum f64[k + 1, c], weights above the bias, found from `start`.

    Raises:
        FloatingPointError: it is not finite.
        UnreachedError: it was not reached.
    """
    from scipy.optimize import minimize  # slow to import

    count, wanted = len(rows), functional.one_hot(labels, start.shape[1]).double()

    def objective(flat: NDArray[np.float64]) -> tuple[float, NDArray[np.float64]]:
        parameters = torch.from_numpy(flat).reshape(start.shape).to(rows.device)
        weight, bias = parameters[:-1], parameters[-1]
        scores = (rows @ weight + bias).log_softmax(1)
        loss = -(scores * wanted).sum() / count + ridge * weight.square().sum()
        residual = (scores.exp() - wanted) / count
        gradient = torch.cat([rows.T @ residual + 2.0 * ridge * weight, residual.sum(0, keepdim=True)])
        return loss.item(), gradient.flatten().cpu().numpy()

    options = {"maxiter": iterations, "maxfun": 2 * iterations, "gtol": tolerance, "ftol": 0.0, "maxcor": _HISTORY}
    with _blas().limit(limits=1):
        found = minimize(objective, start.flatten().cpu().numpy(), jac=True, method="L-BFGS-B", options=options)
    if not np.isfinite(found.x).all():
        raise FloatingPointError(f"the probe's weights are not finite with ridge {ridge:g}")
    left = float(np.abs(found.jac).max())
    if not left <= tolerance:  # so that NaN fails, too
        raise UnreachedError(
            f"after {found.nit} iterations the probe's gradient is {left:.1e}, not {tolerance:g}, ridge {ridge:g}; "
            "raise spec.evaluate.probe.iterations, or leave out small ridges"
        )
    return torch.from_numpy(found.x).reshape(start.shape).to(rows.device)


@cache
def _blas() -> ThreadpoolController:
    """SciPy's BLAS: its vectors are short, and threads that wait for each other made a step ten times slower."""
    return ThreadpoolController().select(internal_api="openblas")
