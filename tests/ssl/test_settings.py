"""Numeric settings of the teacher have the effect that the spec states: the views, the optimiser, the head."""

from __future__ import annotations

import math
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from limbeck.checkpoint import Checkpoint
from limbeck.data.dataset import ImageDataset
from limbeck.data.shards import ShardedImages
from limbeck.interrupt import StopRequest
from limbeck.nn.encoders import ConvNet, EncoderConfig, build_encoder
from limbeck.nn.flat import flatten
from limbeck.seeding import generator
from limbeck.spec import Augmentation, Teacher
from limbeck.ssl.objectives import build_objective
from limbeck.ssl.training import train_ssl
from limbeck.ssl.views import Views

STILL = {"min_crop": 1.0, "flip": 0.0, "color_jitter": 0.0, "grayscale": 0.0, "blur": 0.0, "rotation": 0.0}
SIDE, MANY = 16, 600


def views(pixels: torch.Tensor, **changes: float) -> torch.Tensor:
    """Both views of each image, f32[2n, 3, s, s], with this alone switched on."""
    return torch.cat(Views(Augmentation(**STILL | changes), pixels.shape[-1])(pixels, 0))


def noise(count: int = MANY) -> torch.Tensor:
    return torch.rand(count, 3, SIDE, SIDE, generator=torch.Generator().manual_seed(0))


def ramp(count: int = MANY) -> torch.Tensor:
    """Red rises to the right, green downwards, from 0.2 to 0.8."""
    line = torch.linspace(0.2, 0.8, SIDE)
    red, green = line.expand(SIDE, SIDE), line[:, None].expand(SIDE, SIDE)
    return torch.stack([red, green, red]).expand(count, 3, SIDE, SIDE)


def changed(pixels: torch.Tensor, seen: torch.Tensor) -> torch.Tensor:
    return (seen - torch.cat([pixels, pixels])).abs().amax((1, 2, 3)) > 0


@pytest.mark.parametrize("flip", [0.0, 0.25, 1.0])
def test_flip_is_the_share_of_views_that_are_mirrored(flip):
    pixels = noise()
    seen, twice = views(pixels, flip=flip), torch.cat([pixels, pixels])
    mirrored = changed(pixels, seen)
    assert torch.equal(seen[mirrored], twice.flip(-1)[mirrored])
    assert mirrored.float().mean().item() == pytest.approx(flip, abs=0.06)


@pytest.mark.parametrize("share", [0.0, 0.25, 1.0])
def test_grayscale_is_the_share_of_views_without_colour(share):
    seen = views(noise(), grayscale=share)
    gray = (seen - seen[:, :1]).abs().amax((1, 2, 3)) < 1e-5
    assert gray.float().mean().item() == pytest.approx(share, abs=0.06)


@pytest.mark.parametrize("share", [0.0, 0.25, 1.0])
def test_blur_is_the_share_of_views_that_are_blurred(share):
    pixels = noise()
    seen = views(pixels, blur=share)
    blurred = changed(pixels, seen)
    narrow = 0.04  # widths are drawn from 0.1 to 2 pixels; the narrowest of them reach no neighbour
    assert blurred.float().mean().item() == pytest.approx((1 - narrow) * share, abs=0.06)
    if share:
        assert seen[blurred].var((2, 3)).mean() < pixels.var((2, 3)).mean()


@pytest.mark.parametrize("smallest", [0.2, 0.5, 0.9])
def test_min_crop_is_the_smallest_share_of_the_area_that_a_view_keeps(smallest):
    seen = views(ramp(), min_crop=smallest)
    width = (seen[:, 0].amax((1, 2)) - seen[:, 0].amin((1, 2))) / 0.6
    height = (seen[:, 1].amax((1, 2)) - seen[:, 1].amin((1, 2))) / 0.6
    area = width * height
    assert smallest - 0.12 < area.min().item() < smallest + 0.06  # a crop's edges lie between pixels
    assert area.max().item() > 0.9


@pytest.mark.parametrize("strength", [0.1, 0.25])
def test_color_jitter_shifts_and_scales_by_up_to_0_8_of_its_strength_in_80_percent_of_the_views(strength):
    gray, value = torch.full((MANY // 4, 3, 4, 4), 0.4), 0.4  # saturation and hue leave it as it is
    jitter = Views(Augmentation(**STILL | {"color_jitter": strength}), 4)
    seen = torch.cat([view for seed in range(8) for view in jitter(gray, seed)]).mean((1, 2, 3))
    reach = 0.8 * strength  # of the brightness, which is added, and of the contrast, a factor, in either order
    darkest, brightest = value * (1 - reach) - reach, (value + reach) * (1 + reach)
    assert darkest - 1e-5 <= seen.min() < value - 0.8 * (value - darkest)
    assert brightest + 1e-5 >= seen.max() > value + 0.8 * (brightest - value)
    assert ((seen - value).abs() > 1e-5).float().mean().item() == pytest.approx(0.8, abs=0.05)


@pytest.mark.parametrize("degrees", [10.0, 45.0, 180.0])
def test_rotation_is_the_largest_angle_either_way(degrees):
    seen = views(ramp(), rotation=degrees)[:, 0]
    middle = slice(SIDE // 2 - 2, SIDE // 2 + 2)
    right = (seen[:, middle, SIDE // 2 + 1] - seen[:, middle, SIDE // 2 - 2]).mean(1)
    down = (seen[:, SIDE // 2 + 1, middle] - seen[:, SIDE // 2 - 2, middle]).mean(1)
    angle = torch.rad2deg(torch.atan2(down, right))
    assert angle.abs().max().item() == pytest.approx(degrees, rel=0.05)
    assert angle.min() < -0.8 * degrees
    assert angle.max() > 0.8 * degrees


# ---- training

IMAGES = np.random.default_rng(0).integers(0, 256, (40, 3, 8, 8), np.uint8)
ENCODER = EncoderConfig(
    "convnet", 8, 4, "none", 1
)  # a norm would leave the bias before it a gradient of rounding alone
TEACHER: dict[str, Any] = {"epochs": 3, "batch": 16, "projection": 8}


def trained(tmp_path: Path, settings: Teacher) -> tuple[ConvNet, list[float]]:
    one = np.full(3, 0.5, np.float32)
    dataset = ImageDataset(tmp_path, ShardedImages([IMAGES]), None, (), one, one, {})
    encoder = build_encoder(ENCODER, 0)
    checkpoint = Checkpoint(tmp_path, 1000.0)
    losses = train_ssl(
        encoder, dataset, settings, device=torch.device("cpu"), seed=0, checkpoint=checkpoint, stop=StopRequest()
    )
    assert isinstance(encoder, ConvNet)
    return encoder, losses


def plain(settings: Teacher) -> ConvNet:
    """The same by a plain loop: AdamW (Loshchilov and Hutter, 2019) written out, warm-up, cosine."""
    encoder = build_encoder(ENCODER, 0).train()
    objective = build_objective(settings, encoder.feature_dimension, 0)
    objective.head.train()
    parameters = [*encoder.parameters(), *objective.head.parameters()]
    first, second = ([torch.zeros_like(p) for p in parameters] for _ in range(2))
    make, adam, taken = Views(settings.augmentation, 8), settings.optimizer, 0
    steps = len(IMAGES) // settings.batch
    warm = adam.warmup_epochs * steps
    for epoch in range(settings.epochs):
        order = torch.randperm(len(IMAGES), generator=generator(0, "teacher", "order", epoch))
        for step in range(steps):
            rows = order[step * settings.batch : (step + 1) * settings.batch]
            pixels = torch.from_numpy(IMAGES)[rows].float() / 255
            seen = (torch.cat(make(pixels, 0, epoch, step)) - 0.5) / 0.5
            for p in parameters:
                p.grad = None
            objective(*encoder(seen).chunk(2)).backward()
            rate = adam.rate * (taken + 1) / warm if taken < warm else None
            if rate is None:
                done = (taken - warm) / (settings.epochs * steps - warm)
                rate = adam.rate * 0.5 * (1 + math.cos(math.pi * done))
            taken += 1
            with torch.no_grad():
                for p, m, v in zip(parameters, first, second, strict=True):
                    assert p.grad is not None
                    p *= 1 - rate * adam.weight_decay
                    m.mul_(0.9).add_(0.1 * p.grad)
                    v.mul_(0.999).add_(0.001 * p.grad**2)
                    p -= rate * (m / (1 - 0.9**taken)) / ((v / (1 - 0.999**taken)).sqrt() + 1e-8)
    assert isinstance(encoder, ConvNet)
    return encoder


@pytest.mark.parametrize(
    "changes",
    [
        {},
        {"epochs": 2},
        {"batch": 10},
        {"optimizer": {"rate": 0.01}},
        {"optimizer": {"weightDecay": 0.5, "rate": 0.01}},
        {"optimizer": {"warmupEpochs": 0}},
        {"optimizer": {"warmupEpochs": 2}},
        {"projection": 16},
        {"algorithm": "simclr", "temperature": 0.9},
        {"redundancyWeight": 0.5},
    ],
    ids=str,
)
def test_the_teacher_is_trained_as_a_plain_loop_with_these_settings_trains(tmp_path, changes):
    settings = Teacher.model_validate(TEACHER | changes)
    encoder, losses = trained(tmp_path, settings)
    assert len(losses) == settings.epochs
    torch.testing.assert_close(flatten(encoder), flatten(plain(settings)), rtol=1e-2, atol=2e-4)


@pytest.mark.parametrize("algorithm", ["barlowTwins", "simclr"])
def test_projection_is_the_dimension_that_the_loss_sees(algorithm):
    head = build_objective(Teacher(algorithm=algorithm, projection=24), 6, 0).head.eval()
    assert head(torch.zeros(4, 6)).shape == (4, 24)
