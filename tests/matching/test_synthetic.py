"""The synthetic set's own parameters: any form of the targets, and the mean of the last sets."""

from __future__ import annotations

from typing import Any

import pytest
import torch

from limbeck.matching.synthetic import SyntheticSet
from limbeck.matching.unroll import SyntheticGradient
from limbeck.spec import Distill

CPU = torch.device("cpu")


def draws(*shape, seed=0):
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed))


def made(**settings: Any) -> SyntheticSet:
    given = {"iterations": 10, "optimizer": "sgd", "momentum": 0.0, "pixel_step": 0.1, "target_step": 0.1} | settings
    return SyntheticSet(draws(6, 3, 4, 4), draws(6, 5, seed=1), 0.1, Distill(**given), 4, CPU)


def pulled(synthetic: SyntheticSet, iteration: int, goal: torch.Tensor) -> None:
    """A step towards smaller images, targets near `goal` and a higher rate."""
    now = synthetic.now
    gradient = SyntheticGradient(now.images.clone(), now.targets - goal, torch.tensor(-1.0))
    synthetic.step(gradient, iteration)


def test_targets_of_a_rank_start_as_the_best_approximation_and_keep_it():
    synthetic, whole = made(target_rank=2, iterations=200), draws(6, 5, seed=1)
    left, values, right = torch.linalg.svd(whole)
    torch.testing.assert_close(synthetic.now.targets, left[:, :2] * values[:2] @ right[:2])
    for iteration in range(200):
        pulled(synthetic, iteration, draws(6, 5, seed=9))
    assert torch.linalg.matrix_rank(synthetic.now.targets, rtol=1e-5) == 2
    values = torch.linalg.svdvals(draws(6, 5, seed=9))
    distance = (synthetic.now.targets - draws(6, 5, seed=9)).norm()
    assert distance == pytest.approx(values[2:].norm().item(), rel=0.05)  # no matrix of rank 2 is nearer


@pytest.mark.parametrize("rank", [5, 6, 100])
def test_a_rank_that_is_no_limit_changes_nothing(rank):
    assert torch.equal(made(target_rank=rank).now.targets, draws(6, 5, seed=1))


def test_small_images_are_enlarged_and_learned_as_they_are_kept():
    synthetic = made(downsampling=2)
    start = synthetic.now
    assert (start.images.shape, start.stored.shape) == ((6, 3, 4, 4), (6, 3, 2, 2))
    given = torch.nn.functional.avg_pool2d(draws(6, 3, 4, 4), 2)
    enlarged = torch.nn.functional.interpolate(given, size=4, mode="bilinear", align_corners=False)
    torch.testing.assert_close(start.images, enlarged)
    gradient = draws(6, 3, 4, 4, seed=5)
    small = start.stored.clone().requires_grad_()
    shown = torch.nn.functional.interpolate(small, size=4, mode="bilinear", align_corners=False)
    (expected,) = torch.autograd.grad(shown, small, gradient)
    synthetic.step(SyntheticGradient(gradient, torch.zeros(6, 5), torch.tensor(0.0)), 0)
    torch.testing.assert_close(synthetic.now.stored, small.detach() - 0.1 * expected)


def test_the_result_is_the_mean_of_the_last_sets_and_without_it_the_last():
    goal = torch.zeros(6, 5)
    for share, count in ((0.0, 1), (0.3, 3), (1.0, 10)):
        synthetic, seen = made(average_last=share), []
        for iteration in range(10):
            pulled(synthetic, iteration, goal)
            seen.append(synthetic.now.images.clone())
        torch.testing.assert_close(synthetic.result.images, torch.stack(seen[-count:]).mean(0))


@pytest.mark.parametrize("settings", [{}, {"target_rank": 3}, {"average_last": 0.5}, {"optimizer": "adam"}])
def test_what_is_unpacked_goes_on_as_what_was_packed(settings):
    one, other, goal = made(**settings), made(**settings), torch.zeros(6, 5)
    for iteration in range(7):
        pulled(one, iteration, goal)
    tensors, values = one.pack()
    other.unpack({name: tensor.detach().clone() for name, tensor in tensors.items()}, values)
    for synthetic in (one, other):
        for iteration in range(7, 10):
            pulled(synthetic, iteration, goal)
    for name in ("images", "targets", "rate"):
        assert torch.equal(getattr(one.result, name), getattr(other.result, name))
    assert one.now.rate > 0.1


def test_the_window_of_start_epochs_grows_to_its_width():
    growing = Distill(iterations=100, max_start_epoch=4, start_growth=0.5)
    assert [growing.start_epochs(i) for i in (0, 12, 13, 25, 37, 38, 49, 50, 99)] == [1, 1, 2, 3, 3, 4, 4, 4, 4]
    assert {Distill(iterations=100, max_start_epoch=4).start_epochs(i) for i in range(100)} == {4}
