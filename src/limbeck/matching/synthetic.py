"""The synthetic set while it is optimised: its parameters, their optimiser, and the mean of its last states.

Every step is projected: the learning rate stays within a factor of where it started, and pixels that are kept as
uint8 stay within 0 to 255.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass

import torch
from torch import Tensor

from limbeck.checkpoint import pack_optimizer, unpack_optimizer
from limbeck.data.pixels import PixelGrid
from limbeck.matching.unroll import SyntheticGradient
from limbeck.nn.enlarging import Enlarging
from limbeck.spec import Distill

RATE_RANGE = 100.0
"""The learned rate stays between the start divided by this and the start times this."""

LARGEST_STEP = 10.0
"""No single step may multiply or divide the rate by more than this."""

_AT_BOUND = 50  # iterations in a row after which a rate at a bound is a failure; a tenth of all, where that is less
_STEPS = "distill.pixelStep, targetStep, rateStep or innerOptimizer.rate"
_CPU = torch.device("cpu")


class DivergedError(ArithmeticError):
    """The optimisation has left what it can come back from; the message ends with the settings to change."""


@dataclass(frozen=True)
class Start:
    """What distillation starts from."""

    images: Tensor  # f32[m, 3, s, s], normalised; of an earlier set as they are kept, f32[m, 3, r, r]
    targets: Tensor  # f32[m, d]
    rate: float  # the inner learning rate


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

    With `downsampling` the images are kept smaller and enlarged to those that networks see; they start as the given
    ones, shrunk.

    Args:
        start: images, targets and rate.
        settings: optimiser, step sizes and schedule, and how the images are kept.
        shown: s, the side at which networks see the images.
        grid: the values that pixels take where they are kept as uint8.
        device: where the parameters are kept.
    """

    def __init__(self, start: Start, settings: Distill, shown: int, grid: PixelGrid, device: torch.device) -> None:
        self._settings, self._shown = settings, shown
        self._grid = grid if settings.pixels == "uint8" else None
        kept = settings.side(shown)
        self._enlarge = Enlarging(kept, shown, device)
        images = start.images
        starts = {
            "images": images if images.shape[-1] == kept else self._enlarge.shrink(images),
            "log_rate": torch.tensor(math.log(start.rate)),
        }
        rank = settings.target_rank
        if rank is None or rank >= min(start.targets.shape):
            starts["targets"] = start.targets
        else:
            starts["target_left"], starts["target_right"] = _factors(start.targets, rank)
        self._parameters: dict[str, Tensor] = {
            name: starts[name].to(device, copy=True).requires_grad_()
            for name in ("images", "targets", "target_left", "target_right", "log_rate")
            if name in starts
        }
        self._start_rate, self._at_bound = start.rate, 0
        log_rate, reach = math.log(start.rate), math.log(RATE_RANGE)
        self._low, self._high = (torch.tensor(log_rate + by).item() for by in (-reach, reach))  # as float32 has them
        self._pixel_bounds = None if self._grid is None else tuple(bound.to(device) for bound in self._grid.bounds)
        self._project()
        self._optimizer = _optimizer(self._parameters, settings, start.rate)
        self._steps = [group["lr"] for group in self._optimizer.param_groups]
        self._mean = {name: torch.zeros_like(tensor) for name, tensor in self._values().items()}
        self._averaged = 0

    @property
    def now(self) -> Snapshot:
        """The set as it is; its tensors are not parameters."""
        return self._snapshot(self._values())

    @property
    def result(self) -> Snapshot:
        """The mean of the last sets, as `averageLast` says, else the set as it is; on the CPU, rounded as it is kept.

        Its images are what a saved set gives back when it is loaded, bit by bit.
        """
        reached = self._snapshot(self._mean) if self._averaged else self.now
        stored = reached.stored.cpu()
        if self._grid is not None:
            stored = self._grid.normalised(self._grid.nearest(stored))
        images = Enlarging(stored.shape[-1], self._shown, _CPU)(stored)
        return Snapshot(images, stored, reached.targets.cpu(), reached.rate.cpu())

    def step(self, gradient: SyntheticGradient, iteration: int) -> None:
        """Take one projected step of the optimiser along a gradient with respect to images, targets and rate.

        Raises:
            DivergedError: the gradient or what it makes of the set is not finite, one step changed the rate by more
                than `LARGEST_STEP`, or the rate has been at a bound for too long.
        """
        parts = {"images": gradient.images, "targets": gradient.targets, "rate": gradient.rate}
        bad = _not_finite(parts)
        if bad is not None:
            raise DivergedError(f"the gradient of the {bad} is not finite; lower spec.{_STEPS}")
        for group, size in zip(self._optimizer.param_groups, self._steps, strict=True):
            group["lr"] = size * _decay(self._settings, iteration)
        self._set_gradients(gradient)
        before = self._parameters["log_rate"].item()
        self._optimizer.step()
        self._check_step(before)
        self._project()
        if iteration >= (1.0 - self._settings.average_last) * self._settings.iterations:
            self._averaged += 1
            for name, value in self._values().items():
                self._mean[name] += (value - self._mean[name]) / self._averaged

    def _set_gradients(self, gradient: SyntheticGradient) -> None:
        parameters = self._parameters
        parameters["images"].grad = self._enlarge.adjoint(gradient.images)
        parameters["log_rate"].grad = gradient.rate * parameters["log_rate"].detach().exp()
        if "targets" in parameters:
            parameters["targets"].grad = gradient.targets
        else:
            left, right = parameters["target_left"].detach(), parameters["target_right"].detach()
            parameters["target_left"].grad = gradient.targets @ right.T
            parameters["target_right"].grad = left.T @ gradient.targets

    def _check_step(self, before: float) -> None:
        """Look at a step before it is projected, which would hide where it led; `before` is the earlier rho."""
        settings, after = self._settings, self._parameters["log_rate"].item()
        lower = f"lower spec.distill.rateStep (now {settings.rate_step:g})"
        if not abs(after - before) <= math.log(LARGEST_STEP):  # a rate that is not a number, too
            found = f"the inner learning rate from {math.exp(before):.3g} to {_exp(after):.3g}"
            raise DivergedError(f"one step takes {found}; allowed: a factor of {LARGEST_STEP:g}; {lower}")
        bad = _not_finite({name: tensor.detach() for name, tensor in self._parameters.items()})
        if bad is not None:
            what, field = ("images", "pixelStep") if bad == "images" else ("targets", "targetStep")
            raise DivergedError(f"a step leaves {what} that are not finite; lower spec.distill.{field}")
        self._at_bound = 0 if self._low < after < self._high else self._at_bound + 1
        if self._at_bound >= max(1, min(_AT_BOUND, settings.iterations // 10)):
            lowest = after <= self._low
            bound = self._start_rate / RATE_RANGE if lowest else self._start_rate * RATE_RANGE
            raise DivergedError(
                f"the inner learning rate stays at its {'lower' if lowest else 'upper'} bound, {bound:.3g}; allowed: "
                f"{self._start_rate:g}, where it started, times or divided by {RATE_RANGE:g}; {lower}, or start from "
                "another innerOptimizer.rate"
            )

    def _project(self) -> None:
        """Bring the rate, and pixels that are kept as uint8, back into their range."""
        with torch.no_grad():
            self._parameters["log_rate"].clamp_(self._low, self._high)
            if self._pixel_bounds is not None:
                self._parameters["images"].clamp_(*self._pixel_bounds)

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
        return tensors, {"averaged": self._averaged, "at_bound": self._at_bound}

    def unpack(self, tensors: Mapping[str, Tensor], values: Mapping[str, int]) -> None:
        """The inverse of `pack`."""
        with torch.no_grad():
            for name, parameter in self._parameters.items():
                parameter.copy_(tensors[name])
        unpack_optimizer(self._optimizer, tensors, "optimizer")
        self._averaged, self._at_bound = values["averaged"], values["at_bound"]
        if self._averaged:
            for name, mean in self._mean.items():
                mean.copy_(tensors[f"mean.{name}"])


def _factors(targets: Tensor, rank: int) -> tuple[Tensor, Tensor]:
    """U f32[m, r] and V f32[r, d], of equal norms, with U V the best approximation of f32[m, d] of that rank."""
    left, values, right = torch.linalg.svd(targets.double(), full_matrices=False)
    roots = values[:rank].sqrt()
    return (left[:, :rank] * roots).float(), (roots[:, None] * right[:rank]).float()


def _not_finite(tensors: Mapping[str, Tensor]) -> str | None:
    """The name of the first tensor that holds a number that is not finite, or None; one look at the device."""
    finite = torch.stack([tensor.isfinite().all() for tensor in tensors.values()]).tolist()
    return next((name for name, fine in zip(tensors, finite, strict=True) if not fine), None)


def _exp(value: float) -> float:
    """exp, without an overflow."""
    return math.exp(value) if value < 700.0 else math.inf


def _optimizer(parameters: Mapping[str, Tensor], settings: Distill, rate: float) -> torch.optim.SGD | torch.optim.Adam:
    """The optimiser of all of them, for a rate that starts there.

    A step d on the rate is a step d / rate on its logarithm. With SGD the logarithm's gradient is also rate times the
    rate's, hence the square.
    """
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
