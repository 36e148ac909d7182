"""Two random views of a batch of images, augmented as a batch by kornia."""

from __future__ import annotations

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
        with seeded(seed, "views", *purpose):
            both = self._pipeline(torch.cat([pixels, pixels])).clamp(0.0, 1.0)
        first, second = both.chunk(2)
        return first, second
