"""KRR-ST: the regression is the ridge's, its gradient autograd's, and the pool is trained and replaced."""

from __future__ import annotations

import pytest
import torch
from sklearn.linear_model import Ridge

from limbeck.data.feed import Examples
from limbeck.matching.kernel import KernelRegression, ridge_loss
from limbeck.nn.encoders import EncoderConfig
from limbeck.spec import Kernel

CONFIG = EncoderConfig("convnet", 8, 4, "instance", 1)
CPU = torch.device("cpu")


def draws(*shape, seed=0):
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


def test_the_loss_is_that_of_ridge_regression():
    features, targets, real, real_targets = draws(6, 9), draws(6, 2, seed=1), draws(5, 9, seed=2), draws(5, 2, seed=3)
    ridge = 0.01
    fitted = Ridge(alpha=ridge * (features @ features.T).trace().item(), fit_intercept=False, solver="svd")
    error = fitted.fit(features.numpy(), targets.numpy()).predict(real.numpy()) - real_targets.numpy()
    assert ridge_loss(features, targets, real, real_targets, ridge).item() == pytest.approx((error**2).mean())


def regression(**settings):
    examples = Examples.held(draws(40, 3, 8, 8).float(), draws(40, 3, seed=1).float(), CPU)
    kernel = Kernel(**{"pool": 2, "pool_steps": 4, "real_batch": 16} | settings)
    return KernelRegression(CONFIG, examples, kernel, rate=0.05, momentum=0.9, seed=0)


def synthetic():
    return draws(5, 3, 8, 8, seed=2).float(), draws(5, 3, seed=3).float()


def test_following_the_gradient_lowers_the_loss_at_the_same_draws():
    images, targets = synthetic()
    at = regression().iterate(7, images, targets)
    step = 0.02
    moved = regression().iterate(7, images - step * at.gradient.images, targets - step * at.gradient.targets)
    assert moved.student == at.student
    expected = step * (at.gradient.images.square().sum() + at.gradient.targets.square().sum()).item()
    assert at.loss - moved.loss == pytest.approx(expected, rel=0.2)
    assert at.gradient.rate == 0.0


def test_students_start_at_ages_of_their_own_are_trained_and_replaced():
    found = regression(pool=3, pool_steps=6)
    images, targets = synthetic()
    steps = []
    found.prepare(images, targets, lambda: steps.append(1))
    ages = found.pack()["ages"].tolist()
    assert len(steps) == sum(ages)
    seen = [found.iterate(i, images, targets) for i in range(60)]
    for place in range(3):
        own = [entry.age for entry in seen if entry.student == place]
        assert own == [(ages[place] + k) % 7 for k in range(len(own))]  # 6 steps, then a fresh one
    assert found.pack()["taken"].min() > 0


def test_a_student_that_is_trained_has_a_smaller_error_on_the_synthetic_set():
    found = regression(pool=1, pool_steps=1000)
    images, targets = synthetic()
    losses = []
    for _ in range(2):
        theta = found.pack()["thetas"].clone()
        losses.append(found._steps.gradient(theta, images[None], targets[None])[1].item())
        for iteration in range(30):
            found.iterate(iteration, images, targets)
    assert losses[1] < 0.7 * losses[0]


def test_a_pool_that_is_unpacked_goes_on_as_the_one_that_was_packed():
    images, targets = synthetic()
    one, other = regression(), regression()
    for iteration in range(9):
        one.iterate(iteration, images, targets)
    other.unpack({name: tensor.clone() for name, tensor in one.pack().items()})
    for iteration in range(9, 20):
        a, b = one.iterate(iteration, images, targets), other.iterate(iteration, images, targets)
        assert a.loss == b.loss
        assert torch.equal(a.gradient.images, b.gradient.images)


def test_the_preparation_s_steps_are_the_students_ages_and_are_counted_until_it_is_done():
    found = regression(pool=3, pool_steps=6)
    images, targets, seen = *synthetic(), []
    total, done = found.preparation()
    assert done == 0
    found.prepare(images, targets, lambda: seen.append(found.preparation()))
    assert seen == [(total, step) for step in range(1, total + 1)]
    assert total == found.pack()["ages"].sum() > 0
    found.iterate(0, images, targets)
    assert found.preparation() == (total, total)
