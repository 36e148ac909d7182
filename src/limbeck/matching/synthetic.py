"""The synthetic set while it is optimised: its parameters, their optimiser, and the mean of its last states."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass

import torch
from torch import Tensor

from limbeck.checkpoint import pack_optimizer, unpack_optimizer
from limbeck.matching.unroll import SyntheticGradient
from limbeck.nn.enlarging import Enlarging
from limbeck.spec import Distill


@dataclass(frozen=True)
class Snapshot:
    """A synthetic set."""

    images: Tensor  # f32[m, 3, s, s], normalised, as networks see them
    stored: Tensor  # f32[m, 3, r, r], as they are kept
    targets: Tensor  # f32[m, d]
    rate: Tensor  # f32[], the inner learning rate


class SyntheticSet:
    """Images, targets and the learning rate as parameters of one optimiser.

    The rate is exp(rho) with rho learned, so it stays positive. With `targetRank` r the targets are U V, with
    U f32[m, r] and V f32[r, d] that start as the best approximation of the given ones.

    Args:
        images: f32[m, 3, s, s], normalised; or as they are kept, f32[m, 3, r, r].
        targets: f32[m, d].
        rate: where the inner learning rate starts.
        settings: optimiser, step sizes and schedule.
        shown: s, the side at which networks see the images.
        device: where the parameters are kept.

    With `downsampling` the images are kept smaller and enlarged to those that networks see; they start as the given
    ones, shrunk.
    """

    def __init__(
        self, images: Tensor, targets: Tensor, rate: float, settings: Distill, shown: int, device: torch.device
    ) -> None:
        self._settings = settings
        kept = settings.side(shown)
        self._enlarge = Enlarging(kept, shown, device)
        starts = {
            "images": images if images.shape[-1] == kept else self._enlarge.shrink(images),
            "log_rate": torch.tensor(math.log(rate)),
        }
        rank = settings.target_rank
        if rank is None or rank >= min(targets.shape):
            starts["targets"] = targets
        else:
            starts["target_left"], starts["target_right"] = _factors(targets, rank)
        self._parameters: dict[str, Tensor] = {
            name: starts[name].to(device, copy=True).requires_grad_()
            for name in ("images", "targets", "target_left", "target_right", "log_rate")
            if name in starts
        }
        self._optimizer = _optimizer(self._parameters, settings)
        self._steps = [group["lr"] for group in self._optimizer.param_groups]
        self._mean = {name: torch.zeros_like(tensor) for name, tensor in self._values().items()}
        self._averaged = 0

    @property
    def now(self) -> Snapshot:
        """The set as it is; its tensors are not parameters."""
        return self._snapshot(self._values())

    @property
    def result(self) -> Snapshot:
        """The mean of the last sets, as `averageLast` says; else the set as it is."""
        return self._snapshot(self._mean) if self._averaged else self.now

    def step(self, gradient: SyntheticGradient, iteration: int) -> None:
        """One step of the optimiser along a gradient with respect to images, targets and rate."""
        for group, size in zip(self._optimizer.param_groups, self._steps, strict=True):
            group["lr"] = size * _decay(self._settings, iteration)
        parameters = self._parameters
        parameters["images"].grad = self._enlarge.adjoint(gradient.images)
        parameters["log_rate"].grad = gradient.rate * parameters["log_rate"].detach().exp()
        if "targets" in parameters:
            parameters["targets"].grad = gradient.targets
        else:
            left, right = parameters["target_left"].detach(), parameters["target_right"].detach()
            parameters["target_left"].grad = gradient.targets @ right.T
            parameters["target_right"].grad = left.T @ gradient.targets
        self._optimizer.step()
        if iteration >= (1.0 - self._settings.average_last) * self._settings.iterations:
            self._averaged += 1
            for name, value in self._values().items():
                self._mean[name] += (value - self._mean[name]) / self._averaged

    def _values(self) -> dict[str, Tensor]:
        """Stored images, targets, and the logarithm of the rate."""
        given = {name: tensor.detach() for name, tensor in self._parameters.items()}
        targets = given["targets"] if "targets" in given else given["target_left"] @ given["target_right"]
        return {"images": given["images"], "targets": targets, "log_rate": given["log_rate"]}

    def _snapshot(self, values: Mapping[str, Tensor]) -> Snapshot:
        return Snapshot(self._enlarge(values["images"]), values["images"], values["targets"], values["log_rate"].exp())

    def pack(self) -> tuple[dict[str, Tensor], dict[str, int]]:
        """Tensors and values of a checkpoint."""
        tensors: dict[str, Tensor] = {**self._parameters, **pack_optimizer(self._optimizer, "optimizer")}
        if self._averaged:
            tensors |= {f"mean.{name}": mean for name, mean in self._mean.items()}
        return tensors, {"averaged": self._averaged}

    def unpack(self, tensors: Mapping[str, Tensor], values: Mapping[str, int]) -> None:
        """The inverse of `pack`."""
        with torch.no_grad():
            for name, parameter in self._parameters.items():
                parameter.copy_(tensors[name])
        unpack_optimizer(self._optimizer, tensors, "optimizer")
        self._averaged = values["averaged"]
        if self._averaged:
            for name, mean in self._mean.items():
                mean.copy_(tensors[f"mean.{name}"])


def _factors(targets: Tensor, rank: int) -> tuple[Tensor, Tensor]:
    """U f32[m, r] and V f32[r, d], of equal norms, with U V the best approximation of f32[m, d] of that rank."""
    left, values, right = torch.linalg.svd(targets.double(), full_matrices=False)
    roots = values[:rank].sqrt()
    return (left[:, :rank] * roots).float(), (roots[:, None] * right[:rank]).float()


def _optimizer(parameters: Mapping[str, Tensor], settings: Distill) -> torch.optim.SGD | torch.optim.Adam:
    """The optimiser of all of them.

    A step d on the rate is a step d / rate on its logarithm. With SGD the logarithm's gradient is also rate times the
    rate's, hence the square.
    """
    rate = settings.inner_optimizer.rate
    rate_step = settings.rate_step / (rate**2 if settings.optimizer == "sgd" else rate)
    sizes = {"images": settings.pixel_step, "log_rate": rate_step}
    groups = [
        {"params": [parameter], "lr": sizes.get(name, settings.target_step)} for name, parameter in parameters.items()
    ]
    if settings.optimizer == "sgd":
        return torch.optim.SGD(groups, momentum=settings.momentum)
    return torch.optim.Adam(groups, betas=(settings.momentum, 0.99))


def _decay(settings: Distill, iteration: int) -> float:
    """The share of the step sizes that is left at an iteration."""
    if settings.schedule == "constant":
        return 1.0
    return 0.5 * (1.0 + math.cos(math.pi * iteration / settings.iterations))
