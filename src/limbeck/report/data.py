"""What the report is made from."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt

from limbeck.summary import Summary

Images = npt.NDArray[np.uint8]
Floats = npt.NDArray[np.floating[Any]]


@dataclass(frozen=True, eq=False)
class ReportData:
    """A run's summary with the history and the pictures that the summary does not hold.

    Attributes:
        summary: The run's summary.
        iterations: int64[k], the iterations of distillation that were logged; may be empty.
        matching_losses: float[k], the matching loss at each of them.
        learning_rates: float[k], the learned inner learning rate at each of them.
        synthetic: uint8[m, 3, s, s], the synthetic images.
        initial: uint8[m, 3, s, s], the real images that the synthetic ones started from, in the same order;
            None where they started from noise.
        real: uint8[r, 3, s, s], some real images of the source, drawn at random.

    Raises:
        ValueError: A shape or a dtype is not as above.
    """

    summary: Summary
    iterations: npt.NDArray[np.int64]
    matching_losses: Floats
    learning_rates: Floats
    synthetic: Images
    initial: Images | None
    real: Images

    def __post_init__(self) -> None:
        history = {a.shape for a in (self.iterations, self.matching_losses, self.learning_rates)}
        if len(history) != 1 or self.iterations.ndim != 1:
            raise ValueError(f"the histories have the shapes {sorted(history)}; they must all be [k]")
        for name, images in (("synthetic", self.synthetic), ("initial", self.initial), ("real", self.real)):
            if images is not None and (images.dtype != np.uint8 or images.ndim != 4 or images.shape[1] != 3):
                raise ValueError(f"{name} is {images.dtype}{list(images.shape)}; it must be uint8[n, 3, s, s]")
        if self.initial is not None and len(self.initial) != len(self.synthetic):
            raise ValueError(
                f"{len(self.initial)} initial images for {len(self.synthetic)} synthetic ones; "
                "there must be one each, in the same order"
            )
