"""KRR-ST (Lee et al., 2024): the other method of distill, by kernel ridge regression instead of trajectories.

A pool of students is trained on the synthetic set (X, Y) while that changes. An iteration takes one of them, computes
the features F of the synthetic images and G of a batch of real ones, each with a one appended, predicts the teacher's
representations of the real images by ridge regression on the synthetic ones,

    P = G F^T (F F^T + ridge trace(F F^T) I)^-1 Y,

and follows the gradient of the mean squared error of P to those representations with respect to X and Y. Then that
student takes a step on (X, Y); one that has taken `poolSteps` is replaced by a fresh one.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass

import torch
from torch import Tensor, nn
from torch.nn import functional

from limbeck.data.feed import Examples
from limbeck.matching.steps import Steps, student_loss
from limbeck.matching.unroll import InnerLoop, SyntheticGradient, next_velocity
from limbeck.nn.augmentation import randomly_moved
from limbeck.nn.encoders import EncoderConfig, build_student
from limbeck.nn.flat import FlatNetwork, flatten
from limbeck.seeding import generator
from limbeck.spec import Jitter, Kernel


@dataclass(frozen=True)
class Regressed:
    """What an iteration found."""

    loss: float
    gradient: SyntheticGradient
    student: int  # of the pool
    age: int  # steps that it had taken


def ridge_loss(features: Tensor, targets: Tensor, real_features: Tensor, real_targets: Tensor, ridge: float) -> Tensor:
    """Mean squared error of ridge regression on synthetic features, at real ones.

    Args:
        features: F f[m, k], of the synthetic images.
        targets: Y f[m, d].
        real_features: G f[b, k].
        real_targets: f[b, d].
        ridge: as a share of the trace of F F^T.
    """
    kernel = features.double() @ features.double().T  # in float32 the solution would be off by a hundredth
    shift = ridge * kernel.detach().trace()
    identity = torch.eye(len(kernel), dtype=kernel.dtype, device=kernel.device)
    solved = torch.linalg.solve(kernel + shift * identity, targets.double()).to(targets.dtype)
    return functional.mse_loss(real_features @ (features.T @ solved), real_targets)


class KernelRegression:
    """Computes the gradient of one iteration, and trains the pool.

    Args:
        config: the students' encoder.
        examples: the real images and their targets; the work is done on their device.
        settings: of the pool and the ridge.
        rate: learning rate of the pool's students.
        momentum: likewise.
        seed: the spec's.
        augmentation: of the synthetic images, when a student takes a step.
    """

    def __init__(
        self,
        config: EncoderConfig,
        examples: Examples,
        settings: Kernel,
        *,
        rate: float,
        momentum: float,
        seed: int,
        augmentation: Jitter = "none",
    ) -> None:
        self._config, self._examples, self._settings, self._seed = config, examples, settings, seed
        self._augmentation = augmentation
        self._rate, self._inner = rate, InnerLoop(momentum, settings.pool_weight_decay)
        student = build_student(config, examples.target_dimension, seed).to(examples.device)
        network = FlatNetwork(student)
        self._steps = Steps(student_loss(network))
        self._encoder = FlatNetwork(nn.Sequential(student.encoder, nn.Flatten()))
        # ages are spread at first, so that all stages of training are seen from the first iteration on
        draws = generator(seed, "krr", "ages")
        self._first_ages = torch.randint(settings.pool_steps, (settings.pool,), generator=draws)
        self._ages = torch.zeros(settings.pool, dtype=torch.int64)
        self._prepared = False
        self._taken = torch.zeros(settings.pool, dtype=torch.int64)  # how many students a place of the pool has had
        self._thetas = torch.stack([self._fresh(place) for place in range(settings.pool)])
        self._velocities = torch.zeros_like(self._thetas)

    def prepare(self, images: Tensor, targets: Tensor, between: Callable[[], None]) -> None:
        """Bring the students of a fresh pool to their ages, on the synthetic set as it is at the start.

        `between` is called after every step; a pool that was packed then goes on from there.
        """
        for place, age in enumerate(self._first_ages.tolist()):
            while self._ages[place] < age:
                self._train(place, int(self._ages[place]), images, targets)
                self._ages[place] += 1
                between()
        self._prepared = True

    def preparation(self) -> tuple[int, int]:
        """How many steps `prepare` has to take in all, and how many are taken."""
        total = int(self._first_ages.sum())
        return total, total if self._prepared else int(self._ages.sum())

    def iterate(self, iteration: int, images: Tensor, targets: Tensor) -> Regressed:
        """The loss and its gradient for images f[m, 3, s, s] and targets f[m, d]; the student then takes a step."""
        draws = generator(self._seed, "krr", iteration)
        place = int(torch.randint(self._settings.pool, (), generator=draws))
        chosen = torch.randint(len(self._examples), (self._settings.real_batch,), generator=draws)
        real, real_targets = self._examples[chosen]
        theta = self._thetas[place, : self._encoder.parameter_count]
        with torch.no_grad():
            real_features = _with_one(self._encoder(theta, real))
        with torch.enable_grad():
            x, y = images.detach().requires_grad_(), targets.detach().requires_grad_()
            features = _with_one(self._encoder(theta, x))
            loss = ridge_loss(features, y, real_features, real_targets, self._settings.ridge)
            by_x, by_y = torch.autograd.grad(loss, (x, y))
        age = int(self._ages[place])
        if age >= self._settings.pool_steps:
            self._taken[place] += 1
            self._thetas[place], self._velocities[place], self._ages[place] = self._fresh(place), 0.0, 0
        else:
            self._train(place, age, images, targets)
            self._ages[place] += 1
        return Regressed(loss.item(), SyntheticGradient(by_x, by_y, torch.zeros((), device=x.device)), place, age)

    def pack(self) -> dict[str, Tensor]:
        """Tensors of a checkpoint."""
        tensors = {"thetas": self._thetas, "velocities": self._velocities, "ages": self._ages, "taken": self._taken}
        return tensors | {"prepared": torch.tensor(self._prepared)}

    def unpack(self, tensors: Mapping[str, Tensor]) -> None:
        """The inverse of `pack`."""
        device = self._examples.device
        self._thetas, self._velocities = tensors["thetas"].to(device), tensors["velocities"].to(device)
        self._ages, self._taken = tensors["ages"].cpu(), tensors["taken"].cpu()
        self._prepared = bool(tensors["prepared"])

    def _fresh(self, place: int) -> Tensor:
        purpose = ("krr", place, int(self._taken[place]))
        student = build_student(self._config, self._examples.target_dimension, self._seed, *purpose)
        return flatten(student).to(self._examples.device)

    def _train(self, place: int, step: int, images: Tensor, targets: Tensor) -> None:
        theta, images = self._thetas[place : place + 1], images.detach()
        if self._augmentation != "none":
            draws = generator(self._seed, "krr", place, int(self._taken[place]), "moves", step)
            images = randomly_moved(images, draws)
        gradient, _ = self._steps.gradient(theta, images[None], targets.detach()[None])
        velocity = next_velocity(self._velocities[place : place + 1], gradient, theta, self._inner)
        self._velocities[place] = velocity[0]
        self._thetas[place] = (theta - self._rate * velocity)[0]


def _with_one(features: Tensor) -> Tensor:
    return torch.cat([features, features.new_ones(len(features), 1)], 1)
