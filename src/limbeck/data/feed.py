"""Batches of a dataset's images and targets, for every loop that trains or scores, from wherever the data lies.

Data that fits on an accelerator is copied there once and indexed there. Larger data stays in its files, and batches
are fetched ahead while the accelerator computes. On the CPU a batch is copied out of the files when it is asked for.
All three give the same bits.
"""

from __future__ import annotations

import logging
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass
from typing import Literal, Protocol

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from limbeck.data.ring import Ring, RowFile, gather
from limbeck.data.shards import ShardedImages

Way = Literal["resident", "streamed", "direct"]
"""Where batches come from: a copy on the device; the files, fetched ahead; the files, when asked for."""

_BLOCK_BYTES = 16 * 2**20  # of what is copied to the device at once

log = logging.getLogger(__name__)


@dataclass(frozen=True)
class Normalization:
    """Images as training sees them: x * scale + shift of bytes x, per channel; both f32[3, 1, 1] on the device."""

    scale: Tensor
    shift: Tensor

    @classmethod
    def of(cls, mean: NDArray[np.float32], std: NDArray[np.float32], device: torch.device) -> Normalization:
        """(x / 255 - mean) / std, with mean and std f32[3] in [0, 1] units."""
        scale = torch.tensor(1.0 / (255.0 * std.astype(np.float64)), dtype=torch.float32)
        shift = torch.tensor(-mean.astype(np.float64) / std, dtype=torch.float32)
        return cls(_channels(scale, device), _channels(shift, device))

    def __call__(self, raw: Tensor) -> Tensor:
        """Images f32[..., 3, s, s] of bytes uint8[..., 3, s, s], in memory of their own."""
        return raw.float().mul_(self.scale).add_(self.shift)


class Source(Protocol):
    """Finished batches by index."""

    @property
    def index_device(self) -> torch.device:
        """Where it reads indices."""

    def batch(self, indices: Tensor) -> tuple[Tensor, Tensor]:
        """Images f32[..., 3, s, s] and targets f32[..., d] at indices i64[...], on the device."""

    def stream(self, batches: Iterable[Tensor]) -> AbstractContextManager[Iterator[tuple[Tensor, Tensor]]]:
        """The same for each of many, in order."""


class Examples:
    """Images and their targets by index; without targets, those are f32[n, 0].

    Args:
        source: of their batches.
        count: how many there are.
        target_dimension: d.
        device: where batches are given.
    """

    def __init__(self, source: Source, count: int, target_dimension: int, device: torch.device) -> None:
        self._source = source
        self._count = count
        self.target_dimension = target_dimension
        self.device = device

    @classmethod
    def held(cls, images: Tensor, targets: Tensor, device: torch.device) -> Examples:
        """Normalised images f32[n, 3, s, s] and targets f32[n, d] that are in memory; moved to the device."""
        source = _Held(images.to(device), targets.to(device), lambda raw: raw)
        return cls(source, len(images), targets.shape[1], device)

    @classmethod
    def pixels(
        cls,
        images: ShardedImages | NDArray[np.uint8],
        device: torch.device,
        *,
        way: Way | None = None,
        say: Callable[[str], None] | None = None,
    ) -> Examples:
        """Images in [0, 1], without targets; `way` and `say` as for `normalized`."""
        scaling = Normalization(_channels(torch.full((3,), 1.0 / 255.0), device), _channels(torch.zeros(3), device))
        return cls._of_files(images, None, scaling, device, way, say)

    @classmethod
    def normalized(
        cls,
        images: ShardedImages | NDArray[np.uint8],
        mean: NDArray[np.float32],
        std: NDArray[np.float32],
        device: torch.device,
        targets: NDArray[np.float32] | None = None,
        *,
        way: Way | None = None,
        say: Callable[[str], None] | None = None,
    ) -> Examples:
        """Images as (x / 255 - mean) / std.

        Args:
            images: uint8[n, 3, s, s], mapped as a rule.
            mean: f32[3], in [0, 1] units.
            std: likewise.
            device: where batches are given.
            targets: f32[n, d], mapped as a rule.
            way: how; by default what fits: on an accelerator, "resident" where the data takes at most half of the free
                memory, else "streamed"; on the CPU "direct".
            say: told which way was taken on an accelerator, and why, in one line.

        Raises:
            ValueError: there are not as many targets as images.
        """
        return cls._of_files(images, targets, Normalization.of(mean, std, device), device, way, say)

    @classmethod
    def _of_files(
        cls,
        images: ShardedImages | NDArray[np.uint8],
        targets: NDArray[np.float32] | None,
        normalization: Normalization,
        device: torch.device,
        way: Way | None,
        say: Callable[[str], None] | None,
    ) -> Examples:
        if targets is None:
            targets = np.empty((len(images), 0), np.float32)
        if len(targets) != len(images):
            raise ValueError(f"{len(targets)} targets for {len(images)} images")
        if way is None:
            way, reason = _fitting(device, images.nbytes + targets.nbytes)
            log.info(reason)
            if say is not None and device.type != "cpu":
                say(reason)
        source: Source
        if way == "resident":
            source = _Held(_on_device(images, device), _on_device(targets, device), normalization)
        elif way == "streamed":
            source = Ring(images, targets, normalization, device)
        else:
            source = _Direct(images, targets, normalization, device)
        return cls(source, len(images), targets.shape[1], device)

    def __len__(self) -> int:
        return self._count

    @property
    def index_device(self) -> torch.device:
        """Where indices cost least: those of a whole epoch are best moved there at once."""
        return self._source.index_device

    def __getitem__(self, indices: Tensor) -> tuple[Tensor, Tensor]:
        """Images f32[..., 3, s, s] and targets f32[..., d] at indices i64[...], on the device, in memory of their own.

        Raises:
            IndexError: one is out of range.
        """
        return self._source.batch(indices)

    def feed(self, batches: Iterable[Tensor]) -> AbstractContextManager[Iterator[tuple[Tensor, Tensor]]]:
        """A context in which images and targets of many batches come one after another, as `self[batch]` gives them.

        Args:
            batches: indices i64[...] of each; a few are drawn ahead. None is larger than the first.

        Raises:
            IndexError: one is out of range.
        """
        return self._source.stream(batches)

    def subset(self, indices: Tensor) -> Examples:
        """Those at indices i64[m], in that order, as examples 0 to m - 1; nothing is copied."""
        chosen = _Subset(self._source, indices.to(self._source.index_device))
        return Examples(chosen, len(indices), self.target_dimension, self.device)


@dataclass(frozen=True)
class _Held:
    """In memory, on the device."""

    images: Tensor
    targets: Tensor
    finish: Callable[[Tensor], Tensor]

    @property
    def index_device(self) -> torch.device:
        return self.images.device

    def batch(self, indices: Tensor) -> tuple[Tensor, Tensor]:
        indices = indices.to(self.images.device)
        return self.finish(self.images[indices]), self.targets[indices]

    def stream(self, batches: Iterable[Tensor]) -> AbstractContextManager[Iterator[tuple[Tensor, Tensor]]]:
        return nullcontext(map(self.batch, batches))


@dataclass(frozen=True)
class _Direct:
    """In files, read when asked for."""

    images: RowFile
    targets: RowFile
    finish: Callable[[Tensor], Tensor]
    device: torch.device

    @property
    def index_device(self) -> torch.device:
        return torch.device("cpu")

    def batch(self, indices: Tensor) -> tuple[Tensor, Tensor]:
        images = self._rows(self.images, torch.uint8, indices)
        return self.finish(images.to(self.device)), self._rows(self.targets, torch.float32, indices).to(self.device)

    def _rows(self, rows: RowFile, dtype: torch.dtype, indices: Tensor) -> Tensor:
        flat = torch.empty(indices.numel(), *rows.shape[1:], dtype=dtype)
        gather(rows, indices.cpu().numpy().reshape(-1), flat.numpy())
        return flat.view(*indices.shape, *rows.shape[1:])

    def stream(self, batches: Iterable[Tensor]) -> AbstractContextManager[Iterator[tuple[Tensor, Tensor]]]:
        return nullcontext(map(self.batch, batches))


@dataclass(frozen=True)
class _Subset:
    """Some rows of another source."""

    source: Source
    indices: Tensor

    @property
    def index_device(self) -> torch.device:
        return self.indices.device

    def batch(self, indices: Tensor) -> tuple[Tensor, Tensor]:
        return self.source.batch(self.indices[indices.to(self.indices.device)])

    def stream(self, batches: Iterable[Tensor]) -> AbstractContextManager[Iterator[tuple[Tensor, Tensor]]]:
        return self.source.stream(self.indices[batch.to(self.indices.device)] for batch in batches)


def _channels(values: Tensor, device: torch.device) -> Tensor:
    return values.to(device)[:, None, None]


def _fitting(device: torch.device, size: int) -> tuple[Way, str]:
    """How `size` bytes are best fed to a device, and the reason in words."""
    needed = f"images and targets take {_gibibytes(size)}"
    if device.type != "cuda":
        return "direct", f"{needed}; they are read from their files batch by batch"
    free = _free_bytes(device)
    there = f"{_gibibytes(free)} of the accelerator's memory are free"
    if size <= free // 2:
        return "resident", f"{needed} and {there}: they are copied there"
    return "streamed", f"{needed} and {there}, half of it for the work: batches are streamed from their files"


def _free_bytes(device: torch.device) -> int:
    """What nobody holds of an accelerator's memory, torch's own cache of freed memory included."""
    cached = torch.cuda.memory_reserved(device) - torch.cuda.memory_allocated(device)
    return torch.cuda.mem_get_info(device)[0] + cached


def _gibibytes(size: int) -> str:
    return f"{size / 2**30:.1f} GiB" if size >= 2**30 else f"{size / 2**20:.1f} MiB"


def _on_device(rows: ShardedImages | NDArray[np.generic], device: torch.device) -> Tensor:
    """A copy of all rows on the device, made in blocks: there is never another in this machine's memory."""
    block = max(1, _BLOCK_BYTES * len(rows) // max(1, rows.nbytes))
    first = torch.from_numpy(np.array(rows[:1]))
    there = torch.empty((len(rows), *first.shape[1:]), dtype=first.dtype, device=device)
    for start in range(0, len(rows), block):
        there[start : start + block] = torch.from_numpy(np.array(rows[start : start + block]))
    return there


def batches_of(count: int, size: int) -> Sequence[Tensor]:
    """Indices 0 to count - 1 in order, i64, in batches of at most `size` that differ by one at most."""
    return torch.arange(count).tensor_split(-(-count // size))
