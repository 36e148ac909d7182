"""Two views of a batch: random in the seed and the purpose alone, and pictures still."""

from __future__ import annotations

import pytest
import torch

from limbeck.spec import Augmentation
from limbeck.ssl.views import Views

PIXELS = torch.rand(6, 3, 8, 8, generator=torch.Generator().manual_seed(0))
ALL = Augmentation(color_jitter=1.0, blur=0.5, rotation=30.0, grayscale=0.5)
NONE = Augmentation(min_crop=1.0, flip=0.0, color_jitter=0.0, grayscale=0.0)


def test_views_are_repeatable_and_change_with_seed_and_purpose():
    views = Views(ALL, 8)
    torch.manual_seed(1)
    first = views(PIXELS, 0, 3, 4)
    torch.manual_seed(2)
    before = torch.get_rng_state()
    again = Views(ALL, 8)(PIXELS, 0, 3, 4)
    assert torch.equal(torch.get_rng_state(), before)
    assert torch.equal(first[0], again[0])
    assert torch.equal(first[1], again[1])
    assert not torch.equal(first[0], first[1])
    for seed, *purpose in ((1, 3, 4), (0, 4, 4), (0, 3, 5)):
        assert not torch.equal(views(PIXELS, seed, *purpose)[0], first[0])


@pytest.mark.parametrize(
    "settings",
    [
        ALL,
        Augmentation(),
        Augmentation(min_crop=0.0),
        Augmentation(color_jitter=2.0, grayscale=1.0, blur=1.0, flip=1.0, rotation=180.0, min_crop=0.01),
        Augmentation(min_crop=1.0, flip=0.0, color_jitter=0.0, grayscale=0.0, blur=1.0),
    ],
    ids=["all", "default", "crops of nothing", "the most", "blur alone"],
)
@pytest.mark.parametrize("size", [4, 8, 20])
def test_views_are_pictures_of_the_same_shape(settings, size):
    pixels = torch.rand(16, 3, size, size, generator=torch.Generator().manual_seed(0))
    views = Views(settings, size)
    for step in range(8):
        for view in views(pixels, 0, step):
            assert view.shape == pixels.shape
            assert torch.isfinite(view).all()
            assert view.min() >= 0.0
            assert view.max() <= 1.0


def test_every_image_gets_its_own_augmentation():
    same = PIXELS[:1].expand(16, -1, -1, -1)
    first, second = Views(ALL, 8)(same, 0)
    assert len({view.numpy().tobytes() for view in torch.cat([first, second])}) > 24


def test_without_augmentation_the_views_are_the_images():
    for view in Views(NONE, 8)(PIXELS, 0):
        assert torch.equal(view, PIXELS)


def test_views_follow_their_images():
    """The pairs belong together: a view is nearer to its own image than to another, on average over mild views."""
    mild = Augmentation(min_crop=0.9, flip=0.0, color_jitter=0.1, grayscale=0.0)
    first, second = Views(mild, 8)(PIXELS, 0)
    distance = (first[:, None] - second[None]).square().mean((2, 3, 4))
    assert torch.equal(distance.argmin(1), torch.arange(6))


def test_views_are_made_by_the_fast_kernels_and_the_wish_for_deterministic_ones_outlasts_them(monkeypatch):
    views, seen = Views(ALL, 8), []
    pipeline = views._pipeline

    def spy(images):
        seen.append(torch.are_deterministic_algorithms_enabled())
        if len(seen) == 2:
            raise RuntimeError("in the middle")
        return pipeline(images)

    monkeypatch.setattr(views, "_pipeline", spy)
    before = torch.are_deterministic_algorithms_enabled(), torch.is_deterministic_algorithms_warn_only_enabled()
    try:
        torch.use_deterministic_algorithms(True, warn_only=True)
        views(PIXELS, 0)
        with pytest.raises(RuntimeError, match="in the middle"):
            views(PIXELS, 0)
        assert torch.are_deterministic_algorithms_enabled()
        assert torch.is_deterministic_algorithms_warn_only_enabled()
    finally:
        torch.use_deterministic_algorithms(before[0], warn_only=before[1])
    assert seen == [False, False]
