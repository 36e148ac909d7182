"""The synthetic set's own parameters: any form of the targets, and the mean of the last sets."""

from __future__ import annotations

import math
from typing import Any

import pytest
import torch

from limbeck.data.feed import Examples
from limbeck.data.pixels import PixelGrid
from limbeck.matching.synthetic import DivergedError, Start, SyntheticSet
from limbeck.matching.unroll import SyntheticGradient
from limbeck.nn.enlarging import Enlarging
from limbeck.spec import Distill

CPU = torch.device("cpu")


def draws(*shape, seed=0):
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed))


GRID = PixelGrid(torch.tensor([0.4, 0.5, 0.6]), torch.tensor([0.2, 0.25, 0.3]))
USUAL = {"iterations": 10, "optimizer": "sgd", "momentum": 0.0, "pixel_step": 0.1, "target_step": 0.1}


def made(**settings: Any) -> SyntheticSet:
    given = USUAL | {"pixels": "float32"} | settings
    return SyntheticSet(Start(draws(6, 3, 4, 4), draws(6, 5, seed=1), 0.1), Distill(**given), 4, GRID, CPU)


def pulled(synthetic: SyntheticSet, iteration: int, goal: torch.Tensor) -> None:
    """A step towards smaller images, targets near `goal` and a higher rate."""
    now = synthetic.now
    gradient = SyntheticGradient(now.images.clone(), now.targets - goal, torch.tensor(-1.0))
    synthetic.step(gradient, iteration)


def test_targets_of_a_rank_start_as_the_best_approximation_and_keep_it():
    synthetic, whole = made(target_rank=2, iterations=200, rate_step=0.0), draws(6, 5, seed=1)
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


# ---- whole pixels


def bytes_of(images: torch.Tensor) -> torch.Tensor:
    return (images * GRID.std[:, None, None] + GRID.mean[:, None, None]) * 255


def test_pixels_of_a_uint8_set_stay_in_range_at_every_step_and_end_as_whole_numbers():
    synthetic = made(pixels="uint8", pixel_step=5.0, downsampling=2, rate_step=0.0)
    for iteration in range(10):
        pixels = bytes_of(synthetic.now.stored)
        assert pixels.min() >= -1e-3
        assert pixels.max() <= 255 + 1e-3
        gradient = SyntheticGradient(draws(6, 3, 4, 4, seed=iteration), torch.zeros(6, 5), torch.tensor(0.0))
        synthetic.step(gradient, iteration)
    result = synthetic.result
    raw = GRID.nearest(result.stored)
    assert torch.equal(GRID.normalised(raw), result.stored)
    assert {0, 255} <= set(raw.flatten().tolist())  # the steps were large enough to reach both bounds
    assert torch.equal(result.images, Enlarging(2, 4, CPU)(result.stored))
    assert not torch.equal(synthetic.now.stored, result.stored)  # learned between the whole numbers


def test_pixels_of_a_float32_set_have_no_bounds():
    pixels = bytes_of(made(downsampling=1).result.stored)
    assert pixels.min() < 0.0
    assert pixels.max() > 255.0


def test_whole_pixels_are_normalised_as_real_images_are():
    raw = torch.arange(256, dtype=torch.uint8).repeat(3, 1).view(1, 3, 16, 16)
    examples = Examples.normalized(raw.numpy(), GRID.mean.numpy(), GRID.std.numpy(), CPU)
    real, _ = examples[torch.tensor([0])]
    assert torch.equal(GRID.normalised(raw), real)
    assert torch.equal(GRID.nearest(real), raw)
    settings = Distill(**USUAL)
    kept = SyntheticSet(Start(real, torch.zeros(1, 2), 0.1), settings, 32, GRID, CPU).now.stored
    assert torch.equal(kept, real)  # a real image is in range already


# ---- the learning rate stays near its start


@pytest.mark.parametrize(
    ("settings", "gradient"),
    [
        ({"rate_step": 1000.0, "optimizer": "adam"}, 1.0),
        ({"rate_step": 1000.0, "optimizer": "adam"}, -1.0),
        ({"rate_step": 10.0}, 1.0),
        ({"rate_step": 10.0}, -1.0),
        ({"rate_step": 1000.0}, 1e36),  # more than a float32 holds
    ],
)
def test_a_step_that_takes_the_rate_far_away_is_refused_and_named(settings, gradient):
    synthetic = made(**settings)
    zero = SyntheticGradient(torch.zeros(6, 3, 4, 4), torch.zeros(6, 5), torch.tensor(gradient))
    with pytest.raises(DivergedError, match=r"one step takes the inner learning rate from 0\.1 to .*distill\.rateStep"):
        synthetic.step(zero, 0)


@pytest.mark.parametrize(("gradient", "bound", "rate"), [(1.0, "lower", 0.001), (-1.0, "upper", 10.0)])
def test_a_rate_that_drifts_to_a_bound_is_held_there_and_then_refused(gradient, bound, rate):
    settings = {"rate_step": 0.1, "optimizer": "adam", "iterations": 300}
    synthetic, rates = made(**settings), list[float]()
    zero = SyntheticGradient(torch.zeros(6, 3, 4, 4), torch.zeros(6, 5), torch.tensor(gradient))

    def drift() -> None:
        nonlocal synthetic
        for iteration in range(300):
            synthetic.step(zero, iteration)
            rates.append(synthetic.now.rate.item())
            if len(rates) == 40:  # a cut there does not start the count again
                tensors, values = synthetic.pack()
                synthetic = made(**settings)
                synthetic.unpack({name: tensor.detach().clone() for name, tensor in tensors.items()}, values)

    with pytest.raises(DivergedError, match=f"stays at its {bound} bound, {rate:g};.*rateStep .now 0.1."):
        drift()
    held = [found for found in rates if found == pytest.approx(rate)]
    assert rates[-len(held) :] == held
    assert len(held) == 29  # a tenth of the iterations; the last of them is refused


def test_the_range_of_the_rate_and_its_steps_are_relative_to_where_it_starts():
    """Also where that is an earlier set's rate, not the spec's."""
    zero = SyntheticGradient(torch.zeros(6, 3, 4, 4), torch.zeros(6, 5), torch.tensor(1.0))
    for start in (0.004, 0.5):
        settings = Distill(**(USUAL | {"optimizer": "adam", "rate_step": start / 10, "iterations": 1000}))
        synthetic = SyntheticSet(Start(draws(6, 3, 4, 4), draws(6, 5), start), settings, 4, GRID, CPU)
        synthetic.step(zero, 0)
        assert synthetic.now.rate.item() == pytest.approx(start * math.exp(-0.1), rel=1e-3)


# ---- numbers that are not finite


@pytest.mark.parametrize("name", ["images", "targets", "rate"])
@pytest.mark.parametrize("value", [math.nan, math.inf])
def test_a_gradient_that_is_not_finite_changes_nothing_and_is_named(name, value):
    synthetic = made(optimizer="adam")
    before = synthetic.now
    parts = {"images": torch.zeros(6, 3, 4, 4), "targets": torch.zeros(6, 5), "rate": torch.tensor(0.0)}
    parts[name].view(-1)[-1] = value
    with pytest.raises(DivergedError, match=f"the gradient of the {name} is not finite; lower spec.distill"):
        synthetic.step(SyntheticGradient(**parts), 0)
    assert torch.equal(synthetic.now.images, before.images)
    assert torch.equal(synthetic.now.targets, before.targets)


@pytest.mark.parametrize(
    ("settings", "phrase"),
    [
        ({"pixel_step": 1e9}, "a step leaves images that are not finite; lower spec.distill.pixelStep"),
        (
            {"pixel_step": 1e9, "pixels": "uint8"},
            "a step leaves images that are not finite",
        ),  # clamped, it would look fine
        ({"target_step": 1e9}, "a step leaves targets that are not finite; lower spec.distill.targetStep"),
        ({"target_step": 1e9, "target_rank": 2}, "a step leaves targets that are not finite"),
    ],
)
def test_a_step_that_overflows_is_named(settings, phrase):
    gradient = SyntheticGradient(torch.full((6, 3, 4, 4), 1e30), torch.full((6, 5), 1e30), torch.tensor(0.0))
    with pytest.raises(DivergedError, match=phrase):
        made(**({"pixel_step": 0.0, "target_step": 0.0} | settings)).step(gradient, 0)
