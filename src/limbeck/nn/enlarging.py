"""Synthetic images that are kept smaller than networks see them, and enlarged for training.

Natural images are smooth: two of half the side hold more than one of the whole, in half the pixels (Kim et al., 2022,
who keep several in the place of one). Enlarging is linear, one matrix for rows and columns, so its adjoint is exact.
"""

from __future__ import annotations

import torch
from torch import Tensor
from torch.nn import functional


class Enlarging:
    """From r x r pixels to s x s by bilinear interpolation; nothing at all where they are equal.

    Args:
        stored: r, the side at which images are kept.
        shown: s, the side at which networks see them.
        device: where both are.
    """

    def __init__(self, stored: int, shown: int, device: torch.device) -> None:
        self._stored, self._matrix = stored, None
        if stored != shown:
            lines = torch.eye(stored)[:, None]  # each pixel of a line alone
            enlarged = functional.interpolate(lines, size=shown, mode="linear", align_corners=False)
            self._matrix = enlarged[:, 0].T.contiguous().to(device)  # f32[s, r]

    def __call__(self, images: Tensor) -> Tensor:
        """Images f32[m, 3, s, s] of f32[m, 3, r, r]."""
        return images if self._matrix is None else self._matrix @ images @ self._matrix.T

    def adjoint(self, gradient: Tensor) -> Tensor:
        """The gradient f32[m, 3, r, r] with respect to small images, of that with respect to the enlarged ones."""
        return gradient if self._matrix is None else self._matrix.T @ gradient @ self._matrix

    def shrink(self, images: Tensor) -> Tensor:
        """Small images f32[m, 3, r, r] of f32[m, 3, s, s]: means over areas."""
        return images if self._matrix is None else functional.adaptive_avg_pool2d(images, self._stored)
