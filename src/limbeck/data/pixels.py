"""Pixels as whole numbers 0 to 255 and as normalised floats, and the way between the two."""

from __future__ import annotations

from dataclasses import dataclass
from functools import cached_property

import torch
from torch import Tensor

from limbeck.data.feed import Normalization


@dataclass(frozen=True)
class PixelGrid:
    """The 256 values that a normalised pixel of each channel takes.

    Attributes:
        mean: f32[3], in [0, 1] units.
        std: f32[3], likewise.
    """

    mean: Tensor
    std: Tensor

    @cached_property
    def _normalization(self) -> Normalization:
        return Normalization.of(self.mean.numpy(), self.std.numpy(), torch.device("cpu"))

    def nearest(self, images: Tensor) -> Tensor:
        """Round images f32[m, 3, s, s] to uint8[m, 3, s, s]; what is outside 0 to 255 becomes the bound."""
        return viewable(images, self.mean, self.std)

    def normalised(self, raw: Tensor) -> Tensor:
        """Normalise uint8[m, 3, s, s] to f32[m, 3, s, s], on the CPU, bit by bit as real images are."""
        return self._normalization(raw.cpu())

    @cached_property
    def bounds(self) -> tuple[Tensor, Tensor]:
        """The values of 0 and of 255, each f32[3, 1, 1], on the CPU."""
        low, high = (self.normalised(torch.full((3, 1, 1), value, dtype=torch.uint8)) for value in (0, 255))
        return low, high


def unit_pixels(images: Tensor, mean: Tensor, std: Tensor) -> Tensor:
    """Images f32[m, 3, s, s], normalised with mean f32[3] and std f32[3], in [0, 1]."""
    return (images * std[:, None, None] + mean[:, None, None]).clamp(0.0, 1.0)


def viewable(images: Tensor, mean: Tensor, std: Tensor) -> Tensor:
    """Images f32[m, 3, s, s], normalised with mean f32[3] and std f32[3], as uint8[m, 3, s, s]."""
    return unit_pixels(images, mean, std).mul(255.0).round().to(torch.uint8)
