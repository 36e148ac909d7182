"""The images of a dataset in files of some 64 MiB each: mapped, not loaded, and read as one array."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from limbeck.data.mapped import Mapped, open_mapped
from limbeck.errors import InputError

TENSOR = "images"
_SHARD_BYTES = 64 * 2**20


def shard_file(index: int) -> str:
    """The name of a shard's file."""
    return f"images-{index:05d}.safetensors"


def shard_rows(image_size: int) -> int:
    """Images in every shard but the last: a function of their size alone, so that equal images give equal files."""
    return max(1, _SHARD_BYTES // (3 * image_size * image_size))


class ShardedImages:
    """`uint8[n, 3, s, s]` in several files, indexed like one array; only what is asked for is read.

    Args:
        shards: memory maps `uint8[m, 3, s, s]`, all but the last of the same length.
    """

    def __init__(self, shards: Sequence[Mapped]) -> None:
        self._shards = list(shards)
        self._rows = len(self._shards[0])
        self.shape: tuple[int, int, int, int] = (sum(map(len, self._shards)), *self._shards[0].shape[1:])

    @classmethod
    def open(cls, folder: Path, count: int, image_size: int) -> ShardedImages:
        """Those of a dataset's folder.

        Raises:
            InputError: a file is missing, damaged, or holds another number of images.
        """
        rows = shard_rows(image_size)
        shards = []
        for index, first in enumerate(range(0, count, rows)):
            shard = open_mapped(folder / shard_file(index), TENSOR)
            expected = (min(rows, count - first), 3, image_size, image_size)
            if shard.shape != expected or shard.dtype != np.uint8:
                raise InputError(str(folder / shard_file(index)), f"{shard.dtype} {shard.shape}", f"uint8 {expected}")
            shards.append(shard)
        if not shards:
            raise InputError(str(folder), "a dataset without images")
        return cls(shards)

    def __len__(self) -> int:
        return self.shape[0]

    @property
    def nbytes(self) -> int:
        """Bytes of all images."""
        return sum(shard.nbytes for shard in self._shards)

    def __getitem__(self, indices: NDArray[np.integer[Any]] | slice | int) -> NDArray[np.uint8]:
        """A copy of the images at indices i64[...]: uint8[..., 3, s, s].

        Raises:
            IndexError: one is out of range.
        """
        if isinstance(indices, slice):
            indices = np.arange(*indices.indices(len(self)))
        wanted = np.asarray(indices, np.int64)
        out = np.empty((*wanted.shape, *self.shape[1:]), np.uint8)
        self.gather(wanted.reshape(-1), out.reshape(-1, *self.shape[1:]))
        return out

    def gather(self, indices: NDArray[np.int64], out: NDArray[np.uint8]) -> None:
        """Copy the images at indices i64[m], none negative, into `out`, uint8[m, 3, s, s], in that order.

        Raises:
            IndexError: one is out of range.
        """
        if indices.size and (indices.min() < 0 or indices.max() >= len(self)):
            raise IndexError(f"an index outside 0 to {len(self) - 1}")
        if len(self._shards) == 1:
            np.take(self._shards[0], indices, axis=0, out=out, mode="clip")
            return
        homes, rows = np.divmod(indices, self._rows)
        for home in np.unique(homes):
            here = np.flatnonzero(homes == home)
            out[here] = self._shards[home][rows[here]]

    def __array__(self, dtype: Any = None, copy: bool | None = None) -> NDArray[Any]:
        """All of them, in memory."""
        whole = self[:]
        return whole if dtype is None else whole.astype(dtype)
