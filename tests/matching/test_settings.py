"""Numeric settings of the synthetic set and of KRR-ST's pool have the effect that the spec states, step by step."""

from __future__ import annotations

import math
from typing import Any

import pytest
import torch

from limbeck.data.feed import Examples
from limbeck.data.pixels import PixelGrid
from limbeck.matching.kernel import KernelRegression, ridge_loss
from limbeck.matching.steps import Steps, student_loss
from limbeck.matching.synthetic import Snapshot, Start, SyntheticSet
from limbeck.matching.unroll import InnerLoop, SyntheticGradient, next_velocity
from limbeck.nn.augmentation import randomly_moved
from limbeck.nn.encoders import EncoderConfig, build_student
from limbeck.nn.flat import FlatNetwork
from limbeck.seeding import generator
from limbeck.spec import Distill, InnerSgd, Kernel

CPU = torch.device("cpu")
RATE = 0.05  # of the inner loop, at the start


def draws(*shape: int, seed: int = 0) -> torch.Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed))


def made(**settings: Any) -> SyntheticSet:
    steps: dict[str, Any] = {
        "pixel_step": 0.02,
        "target_step": 0.03,
        "rate_step": 1e-3,
        "average_last": 0.0,
        "downsampling": 1,
    }
    steps |= {"pixels": "float32"}  # no bounds on the pixels
    given: dict[str, Any] = {"iterations": 8, "schedule": "constant", **steps} | settings
    given["inner_optimizer"] = InnerSgd(rate=RATE)
    start = Start(draws(4, 3, 4, 4), draws(4, 5, seed=1), RATE)
    return SyntheticSet(start, Distill(**given), 4, PixelGrid(torch.zeros(3), torch.ones(3)), CPU)


def gradients(iteration: int) -> SyntheticGradient:
    images, targets = draws(4, 3, 4, 4, seed=10 + iteration), draws(4, 5, seed=50 + iteration)
    return SyntheticGradient(images, targets, draws(1, seed=90 + iteration)[0])


class PlainSgd:
    """Heavy-ball momentum, undampened: v <- momentum v + g, x <- x - step v."""

    def __init__(self, momentum: float) -> None:
        self._momentum, self._velocity = momentum, torch.zeros(())

    def move(self, gradient: torch.Tensor) -> torch.Tensor:
        self._velocity = self._momentum * self._velocity + gradient
        return self._velocity


class PlainAdam:
    """Kingma and Ba, 2015, with beta2 0.99."""

    def __init__(self, momentum: float) -> None:
        self._beta, self._first, self._second, self._taken = momentum, torch.zeros(()), torch.zeros(()), 0

    def move(self, gradient: torch.Tensor) -> torch.Tensor:
        self._taken += 1
        self._first = self._beta * self._first + (1 - self._beta) * gradient
        self._second = 0.99 * self._second + 0.01 * gradient**2
        first, second = self._first / (1 - self._beta**self._taken), self._second / (1 - 0.99**self._taken)
        return first / (second.sqrt() + 1e-8)


@pytest.mark.parametrize("optimizer", ["sgd", "adam"])
@pytest.mark.parametrize(
    "changes",
    [
        {},
        {"momentum": 0.0},
        {"momentum": 0.3},
        {"pixel_step": 0.2},
        {"pixel_step": 0.0},
        {"target_step": 0.2},
        {"target_step": 0.0},
        {"rate_step": 2e-3},
        {"rate_step": 0.0},
        {"schedule": "cosine"},
    ],
    ids=str,
)
def test_the_set_moves_as_the_optimiser_written_out_moves_it(optimizer, changes):
    """A step of rateStep is, in units of the rate, that step: exp(rho) moves by it as it stands at the start."""
    synthetic = made(optimizer=optimizer, **changes)
    settings = synthetic._settings
    x, y, rho = draws(4, 3, 4, 4), draws(4, 5, seed=1), torch.tensor(math.log(RATE))
    kind = PlainSgd if optimizer == "sgd" else PlainAdam
    by_x, by_y, by_rho = kind(settings.momentum), kind(settings.momentum), kind(settings.momentum)
    # on the logarithm a step d of the rate is d / rate, and under SGD its gradient is rate times the rate's as well
    unit = settings.rate_step / (RATE**2 if optimizer == "sgd" else RATE)
    for iteration in range(6):
        gradient = gradients(iteration)
        left = 0.5 * (1 + math.cos(math.pi * iteration / 8)) if settings.schedule == "cosine" else 1.0
        x = x - left * settings.pixel_step * by_x.move(gradient.images)
        y = y - left * settings.target_step * by_y.move(gradient.targets)
        rho = rho - left * unit * by_rho.move(gradient.rate * rho.exp())
        synthetic.step(gradient, iteration)
        torch.testing.assert_close(synthetic.now.stored, x, rtol=1e-4, atol=1e-5)
        torch.testing.assert_close(synthetic.now.targets, y, rtol=1e-4, atol=1e-5)
        torch.testing.assert_close(synthetic.now.rate, rho.exp(), rtol=1e-4, atol=1e-7)


def test_under_sgd_a_small_step_of_the_rate_is_rate_step_times_its_gradient():
    synthetic = made(optimizer="sgd", momentum=0.0, rate_step=1e-5)
    synthetic.step(SyntheticGradient(torch.zeros(4, 3, 4, 4), torch.zeros(4, 5), torch.tensor(2.0)), 0)
    assert (RATE - synthetic.now.rate).item() == pytest.approx(2e-5, rel=1e-2)


def test_under_adam_the_first_step_of_the_rate_is_rate_step_whatever_the_gradient():
    for gradient in (2.0, 200.0):
        synthetic = made(optimizer="adam", rate_step=1e-4)
        synthetic.step(SyntheticGradient(torch.zeros(4, 3, 4, 4), torch.zeros(4, 5), torch.tensor(gradient)), 0)
        assert (RATE - synthetic.now.rate).item() == pytest.approx(1e-4, rel=1e-2)


@pytest.mark.parametrize(("share", "averaged"), [(0.0, 1), (0.25, 2), (0.5, 4), (1.0, 8)])
def test_the_result_is_the_mean_over_the_last_share_of_the_iterations(share, averaged):
    synthetic, seen = made(average_last=share), []
    for iteration in range(8):
        synthetic.step(gradients(iteration), iteration)
        seen.append(Snapshot(**{name: tensor.clone() for name, tensor in vars(synthetic.now).items()}))
    for name in ("images", "stored", "targets"):
        mean = torch.stack([getattr(one, name) for one in seen[-averaged:]]).mean(0)
        torch.testing.assert_close(getattr(synthetic.result, name), mean)
    logarithm = torch.stack([one.rate for one in seen[-averaged:]]).log().mean()
    torch.testing.assert_close(synthetic.result.rate, logarithm.exp())


@pytest.mark.parametrize("rank", [1, 3])
def test_targets_of_a_rank_are_a_product_of_two_that_both_learn(rank):
    synthetic = made(target_rank=rank, optimizer="sgd", momentum=0.0)
    left, values, right = torch.linalg.svd(draws(4, 5, seed=1))
    roots = values[:rank].sqrt()
    u, v = left[:, :rank] * roots, roots[:, None] * right[:rank]
    for iteration in range(4):
        gradient = gradients(iteration)
        synthetic.step(gradient, iteration)
        u, v = u - 0.03 * gradient.targets @ v.T, v - 0.03 * u.T @ gradient.targets
        torch.testing.assert_close(synthetic.now.targets, u @ v, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("downsampling", [1, 2])
def test_images_are_kept_at_the_side_divided_by_downsampling(downsampling):
    assert made(downsampling=downsampling).now.stored.shape == (4, 3, 4 // downsampling, 4 // downsampling)


@pytest.mark.parametrize(("growth", "windows"), [(0.0, [4] * 10), (0.5, [1, 1, 2, 3, 4, 4, 4, 4, 4, 4])])
def test_the_window_of_start_epochs_grows_over_a_share_of_the_iterations(growth, windows):
    settings = Distill(iterations=10, max_start_epoch=4, start_growth=growth)
    assert [settings.start_epochs(iteration) for iteration in range(10)] == windows
    assert settings.reachable_epochs == 3 + settings.expert_gap


# ---- KRR-ST

CONFIG = EncoderConfig("convnet", 8, 4, "instance", 1)
REAL, REAL_TARGETS = draws(40, 3, 8, 8), draws(40, 3, seed=1)
SET, SET_TARGETS = draws(5, 3, 8, 8, seed=2), draws(5, 3, seed=3)


def regression(rate: float = 0.05, momentum: float = 0.9, **settings: Any) -> KernelRegression:
    kernel = Kernel(**{"pool": 2, "pool_steps": 4, "real_batch": 16} | settings)
    return KernelRegression(
        CONFIG, Examples.held(REAL, REAL_TARGETS, CPU), kernel, rate=rate, momentum=momentum, seed=0
    )


@pytest.mark.parametrize("changes", [{}, {"real_batch": 7}, {"ridge": 0.1}, {"pool": 5}], ids=str)
def test_an_iteration_s_loss_is_the_ridge_s_on_a_batch_of_real_images_by_a_student_of_the_pool(changes):
    found, kernel = regression(**changes), Kernel(**{"pool": 2, "real_batch": 16} | changes)
    student = build_student(CONFIG, 3, 0)
    encoder = FlatNetwork(student.encoder)
    for iteration in range(4):
        thetas = found.pack()["thetas"].clone()
        assert len(thetas) == kernel.pool
        random = generator(0, "krr", iteration)
        place = int(torch.randint(kernel.pool, (), generator=random))
        rows = torch.randint(len(REAL), (kernel.real_batch,), generator=random)
        theta = thetas[place, : encoder.parameter_count]
        features = [torch.cat([encoder(theta, x).flatten(1), torch.ones(len(x), 1)], 1) for x in (SET, REAL[rows])]
        expected = ridge_loss(features[0], SET_TARGETS, features[1], REAL_TARGETS[rows], kernel.ridge)
        seen = found.iterate(iteration, SET, SET_TARGETS)
        assert (seen.loss, seen.student) == (pytest.approx(expected.item(), rel=1e-4), place)


@pytest.mark.parametrize(
    "changes", [{}, {"rate": 0.2}, {"momentum": 0.3}, {"pool_weight_decay": 0.0}, {"pool_weight_decay": 0.7}], ids=str
)
def test_a_student_of_the_pool_takes_a_step_of_sgd_with_momentum_and_l2_decay_on_the_set(changes):
    found = regression(pool=1, pool_steps=100, **changes)
    decay, rate, momentum = (
        changes.get("pool_weight_decay", 1e-3),
        changes.get("rate", 0.05),
        changes.get("momentum", 0.9),
    )
    steps, theta = Steps(student_loss(FlatNetwork(build_student(CONFIG, 3, 0)))), found.pack()["thetas"].clone()
    velocity = torch.zeros_like(theta)
    for iteration in range(3):
        gradient, _ = steps.gradient(theta, SET[None], SET_TARGETS[None])
        velocity = momentum * velocity + gradient + decay * theta
        theta = theta - rate * velocity
        found.iterate(iteration, SET, SET_TARGETS)
        torch.testing.assert_close(found.pack()["thetas"], theta, rtol=1e-4, atol=1e-6)


@pytest.mark.parametrize("steps", [1, 3])
def test_a_student_is_replaced_by_a_fresh_one_after_pool_steps(steps):
    found = regression(pool=1, pool_steps=steps)
    fresh = found.pack()["thetas"].clone()
    ages = [found.iterate(iteration, SET, SET_TARGETS).age for iteration in range(steps + 1)]
    assert ages == [*range(steps), steps]
    replaced = found.pack()
    assert (replaced["ages"].item(), replaced["taken"].item()) == (0, 1)
    assert not torch.equal(replaced["thetas"], fresh)
    assert not replaced["velocities"].any()


@pytest.mark.parametrize(("momentum", "decay"), [(0.0, 0.0), (0.9, 0.0), (0.0, 0.1), (0.5, 0.2)])
def test_the_inner_velocity_is_momentum_times_the_last_plus_the_gradient_plus_decay_times_theta(momentum, decay):
    velocity, gradient, theta = draws(1, 9), draws(1, 9, seed=1), draws(1, 9, seed=2)
    found = next_velocity(velocity, gradient, theta, InnerLoop(momentum, decay))
    torch.testing.assert_close(found, momentum * velocity + gradient + decay * theta)
    still = next_velocity(torch.zeros_like(theta), torch.zeros_like(theta), theta, InnerLoop(momentum, decay))
    torch.testing.assert_close(still, decay * theta)  # all that is left where the gradient is zero


def test_a_student_of_the_pool_sees_images_that_its_own_stream_moves():
    examples = Examples.held(REAL, REAL_TARGETS, CPU)
    kernel = Kernel(pool=1, pool_steps=100, real_batch=4)
    found = KernelRegression(CONFIG, examples, kernel, rate=0.05, momentum=0.0, seed=6, augmentation="flipShift")
    theta = found.pack()["thetas"].clone()
    moved = randomly_moved(SET, generator(6, "krr", 0, 0, "moves", 0))
    steps = Steps(student_loss(FlatNetwork(build_student(CONFIG, 3, 6))))
    gradient, _ = steps.gradient(theta, moved[None], SET_TARGETS[None])
    found.iterate(0, SET, SET_TARGETS)
    torch.testing.assert_close(found.pack()["thetas"], theta - 0.05 * (gradient + 1e-3 * theta), rtol=1e-4, atol=1e-6)
