"""A ring of buffers through which batches of mapped files reach the device while it computes.

Threads copy the rows of coming batches out of the maps into pinned memory. From there they are copied to buffers on
the accelerator, on a stream of its own, beside the work. Every buffer goes round: filled, sent, received, filled again;
events of the accelerator say when it may. Batches come in the order in which they were asked for, whatever the timing.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import dataclass
from itertools import islice
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from limbeck.data.shards import ShardedImages

RowFile = ShardedImages | NDArray[Any]

_DEPTH = 4  # batches under way; one is received, one is sent, the others are filled
_THREADS = 4


class Ring:
    """Batches of images and targets, fetched ahead.

    Args:
        images: uint8[n, 3, s, s].
        targets: f32[n, d].
        finish: makes of raw images on the device what is given, in memory of its own.
        device: where batches are given; on the CPU memory is not pinned and nothing is sent.
        depth: buffers, and so batches under way.
        threads: that read; reads of rows that are not in memory yet wait for the disk side by side.
    """

    index_device = torch.device("cpu")

    def __init__(
        self,
        images: RowFile,
        targets: RowFile,
        finish: Callable[[Tensor], Tensor],
        device: torch.device,
        *,
        depth: int = _DEPTH,
        threads: int = _THREADS,
    ) -> None:
        self._images, self._targets, self._finish = images, targets, finish
        self._device, self._depth, self._threads = device, depth, threads

    def batch(self, indices: Tensor) -> tuple[Tensor, Tensor]:
        """Images f32[..., 3, s, s] and targets f32[..., d] at indices i64[...]."""
        with self.stream([indices]) as batches:
            return next(batches)

    @contextmanager
    def stream(self, batches: Iterable[Tensor]) -> Iterator[Iterator[tuple[Tensor, Tensor]]]:
        """The same for each of many, in order; no thread is left when the context ends, however it ends.

        Args:
            batches: indices i64[...] of each, none more than the first; drawn by the caller's thread as buffers get
                free.
        """
        with ThreadPoolExecutor(self._threads, "limbeck-feed") as pool:
            side = torch.cuda.Stream(self._device) if self._device.type == "cuda" else None
            try:
                yield self._received(pool, side, iter(batches))
            finally:
                pool.shutdown(wait=False, cancel_futures=True)
                if side is not None:
                    side.synchronize()  # what is still being sent is written before its memory may be another's

    def _received(
        self, pool: ThreadPoolExecutor, side: torch.cuda.Stream | None, batches: Iterator[Tensor]
    ) -> Iterator[tuple[Tensor, Tensor]]:
        filling, sent = deque[_Filling](), deque[_Filling]()

        def fill(buffers: _Buffers, indices: Tensor) -> None:
            flat = indices.cpu().reshape(-1)
            filling.append(_Filling(buffers, indices.shape, pool.submit(self._gather, buffers, flat.numpy())))

        capacity = 0
        for indices in islice(batches, self._depth):
            capacity = capacity or indices.numel()
            fill(_Buffers(capacity, self._images.shape[1:], self._targets.shape[1], self._device), indices)
        while filling or sent:
            # all that is filled is sent, but nothing that is needed later is waited for
            while filling and (not sent or filling[0].is_ready()):
                filled = filling.popleft()
                filled.done.result()
                filled.buffers.send(side)
                sent.append(filled)
            first = sent.popleft()
            received = first.buffers.receive(first.shape, self._finish)
            following = next(batches, None)
            if following is not None:
                fill(first.buffers, following)
            yield received

    def _gather(self, buffers: _Buffers, indices: NDArray[np.int64]) -> None:
        if len(indices) > len(buffers.images):
            raise ValueError(f"a batch of {len(indices)} after a first one of {len(buffers.images)}")
        buffers.wait_until_sent()
        gather(self._images, indices, buffers.images.numpy()[: len(indices)])
        gather(self._targets, indices, buffers.targets.numpy()[: len(indices)])


class _Buffers:
    """Room for the rows of one batch here, and on the device, which on the CPU is the same room."""

    def __init__(self, capacity: int, image: tuple[int, ...], dimension: int, device: torch.device) -> None:
        self._sent_to_device = device.type == "cuda"
        self.images = torch.empty(capacity, *image, dtype=torch.uint8, pin_memory=self._sent_to_device)
        self.targets = torch.empty(capacity, dimension, pin_memory=self._sent_to_device)
        self._there = (self.images, self.targets)
        if self._sent_to_device:
            self._there = (torch.empty_like(self.images, device=device), torch.empty_like(self.targets, device=device))
            self._sent, self._received = torch.cuda.Event(), torch.cuda.Event()
            self._received.record(torch.cuda.current_stream(device))  # the room may be of a tensor still in use there

    def wait_until_sent(self) -> None:
        """Wait until the room here may be written again."""
        if self._sent_to_device:
            self._sent.synchronize()

    def send(self, side: torch.cuda.Stream | None) -> None:
        """Have what is here copied to the device, beside its work, once what is there was received."""
        if side is None:
            return
        side.wait_event(self._received)
        with torch.cuda.stream(side):
            for here, there in zip((self.images, self.targets), self._there, strict=True):
                there.copy_(here, non_blocking=True)
            self._sent.record(side)

    def receive(self, shape: torch.Size, finish: Callable[[Tensor], Tensor]) -> tuple[Tensor, Tensor]:
        """The batch, indices of which had this shape, in memory of its own, in the order of the device's work."""
        if self._sent_to_device:
            torch.cuda.current_stream(self._there[0].device).wait_event(self._sent)
        images, targets = (there[: shape.numel()].view(*shape, *there.shape[1:]) for there in self._there)
        batch = finish(images), targets.clone()
        if self._sent_to_device:
            self._received.record(torch.cuda.current_stream(self._there[0].device))
        return batch


@dataclass(frozen=True)
class _Filling:
    """A batch on its way."""

    buffers: _Buffers
    shape: torch.Size  # of its indices
    done: Future[None]  # when the buffers are filled

    def is_ready(self) -> bool:
        """Whether it can be sent at once; a failure is looked at when its turn has come, whenever it happened."""
        return self.done.done() and self.done.exception() is None


def gather(rows: RowFile, indices: NDArray[np.int64], out: NDArray[Any]) -> None:
    """Copy the rows at indices i64[m] into `out` [m, ...], in that order.

    Raises:
        IndexError: one is out of range.
    """
    if isinstance(rows, ShardedImages):
        rows.gather(indices, out)
        return
    if indices.size and (indices.min() < 0 or indices.max() >= len(rows)):
        raise IndexError(f"an index outside 0 to {len(rows) - 1}")
    np.take(rows, indices, axis=0, out=out, mode="clip")  # on a map, twice as fast as indexing, or as sorting first
