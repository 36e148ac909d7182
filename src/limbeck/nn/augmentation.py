"""Augmentation that students see on both sides: experts on real images, the inner loop on synthetic ones.

An image is mirrored or not and shifted by whole pixels, zeros coming in. That is a linear map which sends every pixel
to one place or to none, so its adjoint, which carries a gradient back to the image, is another gather: exact, without
autograd, and the same bits on every run. After Zhao and Bilen, 2021, who augment both sides alike.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

_SHARE = 8  # shifts go up to this part of the side


@dataclass(frozen=True)
class Moves:
    """What is done to each of a batch's images; all i64[..., b], or bool for `mirrored`."""

    mirrored: Tensor
    down: Tensor  # pixels that the image moves down; up where negative
    right: Tensor

    @classmethod
    def draw(cls, shape: Sequence[int], image_size: int, generator: torch.Generator) -> Moves:
        """Moves at random, on the CPU, for images f32[*shape, 3, s, s] with s = `image_size`."""
        most = max(1, image_size // _SHARE)
        mirrored = torch.randint(2, tuple(shape), generator=generator).bool()
        down, right = torch.randint(-most, most + 1, (2, *shape), generator=generator)
        return cls(mirrored, down, right)

    @classmethod
    def stack(cls, moves: Sequence[Moves]) -> Moves:
        """Those of several networks, with a leading dimension more."""
        return cls(*(torch.stack(parts) for parts in zip(*(m._parts() for m in moves), strict=True)))

    def to(self, device: torch.device) -> Moves:
        """The same on a device."""
        return Moves(*(part.to(device) for part in self._parts()))

    def steps(self) -> list[Moves]:
        """Those of shape [p, N, b], one after another: N of shape [p, b]."""
        return [Moves(*parts) for parts in zip(*(part.unbind(1) for part in self._parts()), strict=True)]

    def _parts(self) -> tuple[Tensor, Tensor, Tensor]:
        return self.mirrored, self.down, self.right

    def __call__(self, images: Tensor) -> Tensor:
        """The images f[..., b, 3, s, s], first mirrored, then shifted."""
        side = torch.arange(images.shape[-1], device=images.device)
        rows, columns = side - self.down[..., None], side - self.right[..., None]
        return _gather(images, rows, torch.where(self.mirrored[..., None], len(side) - 1 - columns, columns), columns)

    def adjoint(self, gradient: Tensor) -> Tensor:
        """The gradient f[..., b, 3, s, s] with respect to the images, of that with respect to the moved ones."""
        side = torch.arange(gradient.shape[-1], device=gradient.device)
        unmirrored = torch.where(self.mirrored[..., None], len(side) - 1 - side, side)
        rows, columns = side + self.down[..., None], unmirrored + self.right[..., None]
        return _gather(gradient, rows, columns, columns)


def randomly_moved(images: Tensor, generator: torch.Generator) -> Tensor:
    """Images f32[b, 3, s, s], each by moves of its own."""
    return Moves.draw(images.shape[:1], images.shape[-1], generator).to(images.device)(images)


def _gather(images: Tensor, rows: Tensor, columns: Tensor, bounded: Tensor) -> Tensor:
    """Pixel (rows[i], columns[j]) at (i, j); zero where the row or `bounded[j]` lies outside."""
    side = images.shape[-1]
    inside = ((rows >= 0) & (rows < side))[..., :, None] & ((bounded >= 0) & (bounded < side))[..., None, :]
    places = rows.clamp(0, side - 1)[..., :, None] * side + columns.clamp(0, side - 1)[..., None, :]
    flat = images.flatten(-2)
    index = places.flatten(-2)[..., None, :].expand(flat.shape)
    return (flat.gather(-1, index) * inside.flatten(-2)[..., None, :]).view(images.shape)
