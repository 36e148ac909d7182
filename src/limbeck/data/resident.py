"""Images on the device as uint8, turned to floats in the batch: what every training loop draws from."""

from __future__ import annotations

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from limbeck.data.shards import ShardedImages


class ResidentImages:
    """uint8 images [n, 3, s, s] as f32 batches.

    On an accelerator that has room for them the images are copied there once, as uint8. Else, and on the CPU, they
    stay where they are, a memory map included, and only a batch is copied.
    """

    def __init__(
        self, images: ShardedImages | NDArray[np.uint8], scale: Tensor, shift: Tensor, device: torch.device
    ) -> None:
        self.device = device
        self._scale, self._shift = scale.to(device)[:, None, None], shift.to(device)[:, None, None]
        self._mapped = images
        self._resident = torch.tensor(np.asarray(images), device=device) if _has_room(device, images.nbytes) else None

    @classmethod
    def pixels(cls, images: ShardedImages | NDArray[np.uint8], device: torch.device) -> ResidentImages:
        """Batches in [0, 1]."""
        return cls(images, torch.full((3,), 1.0 / 255.0), torch.zeros(3), device)

    @classmethod
    def normalized(
        cls,
        images: ShardedImages | NDArray[np.uint8],
        mean: NDArray[np.float32],
        std: NDArray[np.float32],
        device: torch.device,
    ) -> ResidentImages:
        """Batches of (x / 255 - mean) / std; mean and std f32[3] in [0, 1] units."""
        scale = torch.tensor(1.0 / (255.0 * std.astype(np.float64)), dtype=torch.float32)
        shift = torch.tensor(-mean.astype(np.float64) / std, dtype=torch.float32)
        return cls(images, scale, shift, device)

    def __len__(self) -> int:
        return len(self._mapped)

    def __getitem__(self, indices: Tensor) -> Tensor:
        """The images f32[..., 3, s, s] at indices i64[...], on the device or the CPU."""
        if self._resident is not None:
            raw = self._resident[indices.to(self.device)]
        else:
            raw = torch.from_numpy(self._mapped[indices.cpu().numpy()]).to(self.device)
        return raw.float().mul_(self._scale).add_(self._shift)


def _has_room(device: torch.device, size: int) -> bool:
    """Whether `size` bytes fit on an accelerator with as much left for the work; the CPU needs no copy."""
    return device.type == "cuda" and size <= torch.cuda.mem_get_info(device)[0] // 2
