"""What a stage shows of itself while it works: figures by step, and pictures; `UNSEEN` is for when nobody looks."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Protocol

import numpy as np
from numpy.typing import NDArray


class Live(Protocol):
    """Where a stage shows what it has reached. A resumed stage may show again what it has shown before."""

    def figures(self, step: int, values: Mapping[str, float]) -> None:
        """Figures (a loss, say) at a step of the stage's own counting."""

    def picture(self, step: int, name: str, pixels: NDArray[np.uint8]) -> None:
        """A picture, uint8[height, width, 3]."""


class _Unseen:
    def figures(self, step: int, values: Mapping[str, float]) -> None:
        pass

    def picture(self, step: int, name: str, pixels: NDArray[np.uint8]) -> None:
        pass


UNSEEN: Live = _Unseen()
