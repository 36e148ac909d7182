"""The targets of a dataset's images on disk: written as the teacher gives them, then mapped, never loaded whole."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from numpy.typing import NDArray

from limbeck.checkpoint import load_tensors, save_tensors
from limbeck.data.mapped import Mapped, create_mapped, open_mapped
from limbeck.errors import WorkError

FILE = "targets.safetensors"
STANDARDIZATION_FILE = "standardization.safetensors"

_TENSOR = "targets"
_RAISED = 0.01  # of the mean eigenvalue
_BLOCK = 4096  # rows; sums are taken over blocks of this size, so that they do not depend on the teacher's batches


def write_targets(
    folder: Path,
    count: int,
    representations: Iterable[NDArray[np.float32]],
    *,
    standardize: bool,
    components: int = 0,
    whitening: float = 0.0,
    between: Callable[[], None] = lambda: None,
) -> None:
    """Write the targets of a dataset, and what makes them of the representations.

    A representation r becomes the target (r - center) / scale: center is the mean of every dimension, scale the
    deviation over all of them, so that their ratios stay. Without `standardize` they are 0 and 1. With `components` or
    `whitening` that is projected onto the eigenvectors of its covariance, the k of the largest eigenvalues, each of
    which is divided by its eigenvalue to the power whitening / 2; with `standardize` all are then brought to unit
    variance by one common factor again.

    Args:
        folder: where targets f32[n, k] go into `targets.safetensors`, and center f32[d], scale f32[] and, if projected,
            projection f32[d, k] into `standardization.safetensors`. The first has this name only when it is finished.
        count: n.
        representations: f32[b, d] each, n rows together.
        standardize: whether to.
        components: k, at most d; 0 is d.
        whitening: from 0, the components as they vary, to 1, all of one variance.
        between: called after every block of rows, once all of them are there.

    Raises:
        WorkError: a representation is not finite, or the disk is full.
    """
    partial, raw = folder / f".{FILE}.partial", folder / f".{FILE}.raw"
    projected = bool(components or whitening)
    mapped, moments = _written(raw if projected else partial, count, representations)
    center, scale = np.zeros(mapped.shape[1], np.float32), np.float32(1.0)
    if standardize:
        center, scale = moments.mean.astype(np.float32), np.float32(max(moments.deviation, 1e-12))
        _standardize(mapped, center, scale, between)
    made_by = {"center": torch.from_numpy(center), "scale": torch.tensor(float(scale))}
    if projected:
        projection = _projection(mapped, components, whitening, between, to_unit=standardize)
        _project(mapped, projection, partial, between)
        made_by["projection"] = torch.from_numpy(projection)
        del mapped  # before its file
        raw.unlink()
    else:
        mapped.flush()
    save_tensors(folder / STANDARDIZATION_FILE, made_by)
    partial.replace(folder / FILE)


def _written(path: Path, count: int, representations: Iterable[NDArray[np.float32]]) -> tuple[Mapped, _Moments]:
    """Representations as they come, f32[n, d], in a file of that path, and their moments."""
    filled, summed, moments = 0, 0, _Moments()
    for rows in representations:
        if not filled:
            mapped = create_mapped(path, _TENSOR, (count, rows.shape[1]), np.float32)
        mapped[filled : filled + len(rows)] = rows
        filled += len(rows)
        while summed < filled and (filled - summed >= _BLOCK or filled == count):
            moments.add(mapped[summed : summed + _BLOCK])
            summed = min(summed + _BLOCK, count)
    if filled != count:
        raise ValueError(f"{filled} representations of {count} images")
    return mapped, moments


def _blocks(rows: Mapped | NDArray[np.float32], between: Callable[[], None]) -> Iterator[slice]:
    """Slices over all rows; `between` is called after each."""
    for start in range(0, len(rows), _BLOCK):
        yield slice(start, start + _BLOCK)
        between()


def _standardize(rows: Mapped, center: NDArray[np.float32], scale: np.float32, between: Callable[[], None]) -> None:
    for part in _blocks(rows, between):
        block = rows[part]
        block -= center
        block /= scale


def _project(rows: Mapped, projection: NDArray[np.float32], path: Path, between: Callable[[], None]) -> None:
    """Write rows f32[n, d] times the projection f32[d, k] to a file of that path."""
    targets = create_mapped(path, _TENSOR, (len(rows), projection.shape[1]), np.float32)
    for part in _blocks(rows, between):
        targets[part] = rows[part] @ projection
    targets.flush()


def open_targets(folder: Path) -> Mapped:
    """The targets f32[n, d] of a folder, as a read-only memory map.

    Raises:
        InputError: the file is missing or damaged.
    """
    return open_mapped(folder / FILE, _TENSOR)


@dataclass(frozen=True)
class Standardization:
    """What makes targets of representations: r becomes (r - center) / scale, times the projection if there is one."""

    center: torch.Tensor  # f32[d]
    scale: torch.Tensor  # f32[]
    projection: torch.Tensor | None  # f32[d, k]

    def __call__(self, representations: torch.Tensor) -> torch.Tensor:
        """The targets f32[m, k] of representations f32[m, d]; k is d where they are not projected."""
        targets = (representations - self.center) / self.scale
        return targets if self.projection is None else targets @ self.projection


def read_standardization(folder: Path) -> Standardization:
    """What made the targets of a folder."""
    tensors, _ = load_tensors(folder / STANDARDIZATION_FILE)
    return Standardization(tensors["center"], tensors["scale"], tensors.get("projection"))


def _projection(
    rows: NDArray[np.float32], components: int, whitening: float, between: Callable[[], None], *, to_unit: bool
) -> NDArray[np.float32]:
    """The matrix f32[d, k] that takes rows f32[n, d] to their principal components, more or less of one variance.

    Eigenvalues are raised by a hundredth of their mean before anything is divided by them: dimensions that hardly vary
    would be noise, brought to size. The largest entry of every eigenvector is positive, so that a column does not
    depend on the solver's choice of a sign.
    """
    mean = np.zeros(rows.shape[1])
    for part in _blocks(rows, between):
        mean += rows[part].sum(0, dtype=np.float64) / len(rows)
    covariance = np.zeros((rows.shape[1], rows.shape[1]))
    for part in _blocks(rows, between):
        block = rows[part].astype(np.float64) - mean
        covariance += block.T @ block
    values, vectors = np.linalg.eigh(covariance / max(1, len(rows) - 1))
    kept = min(components or len(values), len(values))
    values, vectors = np.maximum(values[::-1], 0.0), vectors[:, ::-1]
    vectors = vectors * np.where(vectors[np.abs(vectors).argmax(0), range(len(values))] < 0.0, -1.0, 1.0)
    factors = (values + max(_RAISED * values.mean(), 1e-12)) ** (-whitening / 2.0)
    if to_unit:
        factors /= math.sqrt(max((values * factors**2)[:kept].mean(), 1e-24))
    projection: NDArray[np.float32] = np.ascontiguousarray((vectors * factors)[:, :kept], np.float32)
    return projection


class _Moments:
    """Mean and deviation in float64, of rows about the first block's mean: a large common offset costs no digits."""

    def __init__(self) -> None:
        self._count = 0

    def add(self, block: NDArray[np.float32]) -> None:
        """Take f32[b, d] in.

        Raises:
            WorkError: a number is not finite.
        """
        rows = block.astype(np.float64)
        if not np.isfinite(rows.sum()):
            raise WorkError("targets: the teacher gives representations that are not finite; train or import another")
        if not self._count:
            self._pivot = rows.mean(0)
            self._sum, self._squares = np.zeros_like(self._pivot), np.zeros_like(self._pivot)
        rows -= self._pivot
        self._count += len(rows)
        self._sum += rows.sum(0)
        self._squares += np.square(rows, out=rows).sum(0)

    @property
    def mean(self) -> NDArray[np.float64]:
        """f64[d]."""
        mean: NDArray[np.float64] = self._pivot + self._sum / self._count
        return mean

    @property
    def deviation(self) -> float:
        """Of all numbers about their dimension's mean."""
        about_mean = self._squares - self._sum**2 / self._count
        return math.sqrt(max(0.0, about_mean.sum()) / max(1, self._count * len(about_mean) - 1))
