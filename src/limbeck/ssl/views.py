"""Two random views of a batch of images, augmented as a batch by kornia."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor

from limbeck.seeding import seeded
from limbeck.spec import Augmentation


class Views:
    """Makes the two views that a self-supervised objective compares (Chen et al., 2020, section 3)."""

    def __init__(self, settings: Augmentation, image_size: int) -> None:
        from kornia import augmentation as kornia

        steps: list[Any] = []
        if settings.min_crop < 1.0:
            steps.append(
                kornia.RandomResizedCrop((image_size, image_size), scale=(settings.min_crop, 1.0), ratio=(0.75, 4 / 3))
            )
        if settings.rotation:
            steps.append(kornia.RandomRotation(settings.rotation, p=1.0))
        if settings.flip:
            steps.append(kornia.RandomHorizontalFlip(p=settings.flip))
        if settings.color_jitter:
            j = settings.color_jitter
            steps.append(
                kornia.ColorJiggle(min(0.8 * j, 1.0), min(0.8 * j, 1.0), min(0.8 * j, 1.0), min(0.2 * j, 0.5), p=0.8)
            )
        if settings.grayscale:
            steps.append(kornia.RandomGrayscale(p=settings.grayscale))
        if settings.blur:
            kernel = max(3, image_size // 10 | 1)
            steps.append(kornia.RandomGaussianBlur((kernel, kernel), (0.1, 2.0), p=settings.blur))
        self._pipeline = kornia.AugmentationSequential(*steps, data_keys=["input"]) if steps else None

    @torch.no_grad()
    def __call__(self, pixels: Tensor, seed: int, *purpose: str | int) -> tuple[Tensor, Tensor]:
        """Two views, each f32[b, 3, s, s] in [0, 1], of pixels f32[b, 3, s, s] in [0, 1]; random in (seed, purpose)."""
        if self._pipeline is None:
            return pixels, pixels
        with seeded(seed, "views", *purpose), _forward_only():
            both = self._pipeline(torch.cat([pixels, pixels])).clamp(0.0, 1.0)
        first, second = both.chunk(2)
        return first, second


@contextmanager
def _forward_only() -> Iterator[None]:
    """Inside the block the usual kernels are used also where deterministic ones are asked for.

    Going forward these give the same bits every time too. But where deterministic ones are asked for, torch makes every
    interpolation on an accelerator of a chain of indexing that can be differentiated so, and a crop is one
    interpolation an image: on an H100 1,024 views took 0.70 s instead of 0.04 s.
    """
    asked, warn_only = (
        torch.are_deterministic_algorithms_enabled(),
        torch.is_deterministic_algorithms_warn_only_enabled(),
    )
    torch.use_deterministic_algorithms(False)
    try:
        yield
    finally:
        torch.use_deterministic_algorithms(asked, warn_only=warn_only)
