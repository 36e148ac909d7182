"""Exact sums over pixels, by channel: what a dataset's means and deviations are made of."""

from __future__ import annotations

import math
from collections.abc import Iterable
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

_AT_ONCE = 3 * 2**20  # bytes whose squares are held at a time


@dataclass(frozen=True)
class Moments:
    """Integers, so that the order of summation does not matter.

    Attributes:
        count: pixels of one channel.
        total: their sum, by channel.
        squares: the sum of their squares, by channel.
    """

    count: int = 0
    total: tuple[int, ...] = (0, 0, 0)
    squares: tuple[int, ...] = (0, 0, 0)

    @staticmethod
    def of(images: NDArray[np.uint8], count: int) -> Moments:
        """The sums over `uint8[n, 3, s, s]`, of which `count` are images and the others are zeros."""
        total, squares = np.zeros(3, np.int64), np.zeros(3, np.int64)
        side = images.shape[-1]
        each = max(1, _AT_ONCE // (3 * side * side))
        for start in range(0, len(images), each):
            rows = images[start : start + each].reshape(-1, 3, side * side)
            # uint32 holds the squares of 66,000 pixels, and so those of any row of 256 x 256
            kind = np.uint32 if side <= 256 else np.uint64
            total += rows.sum(2, kind).sum(0, np.int64)
            squares += np.multiply(rows, rows, dtype=np.uint16).sum(2, kind).sum(0, np.int64)
        return Moments(count * side * side, tuple(total.tolist()), tuple(squares.tolist()))

    @staticmethod
    def sum(several: Iterable[Moments]) -> Moments:
        """Those of all images together."""
        found = list(several)
        return Moments(
            sum(one.count for one in found),
            tuple(sum(values) for values in zip(*(one.total for one in found), strict=True)),
            tuple(sum(values) for values in zip(*(one.squares for one in found), strict=True)),
        )

    def mean(self) -> list[float]:
        """Mean by channel, where white is 1."""
        return [total / (255 * self.count) for total in self.total]

    def std(self) -> list[float]:
        """Standard deviation by channel, where white is 1; at least 1/255, so that one can divide by it."""
        variances = [
            (self.count * squares - total**2) / self.count**2
            for total, squares in zip(self.total, self.squares, strict=True)
        ]
        return [max(math.sqrt(variance), 1.0) / 255 for variance in variances]
