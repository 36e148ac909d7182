"""Parts of a source that can only be read from its beginning, whose images come in whatever order it holds them."""

from __future__ import annotations

import os
from collections.abc import Iterator, Sequence
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from limbeck.data.parts import Chunk, PartJob, PartRecord, decoded, working, write_part
from limbeck.data.sources.listing import Reader
from limbeck.interrupt import StopRequest
from limbeck.progress import Bar


def make_in_one_pass(
    jobs: Sequence[PartJob], reader: Reader, threads: int, bar: Bar, stop: StopRequest
) -> Iterator[tuple[PartJob, PartRecord]]:
    """Have parts made from one reading of all their images; each is given as soon as its last image has come.

    Until then its images lie in a file of their places, so that one part at a time is held in memory.

    Args:
        jobs: the parts.
        reader: reads the images of all of them that are not reused.
        threads: that decode.
        bar: counts images.
        stop: looked at between chunks of images.

    Raises:
        InputError: the source turns out to be corrupt.
        WorkError: the storage failed or the disk is full.
        Stopped: it was asked for.
    """
    scattered = {job.number: _Scattered(job) for job in jobs}
    wanted = np.concatenate([job.wanted for job in jobs])
    homes = np.repeat([job.number for job in jobs], [len(job.wanted) for job in jobs])
    first = {job.number: int(start) for job, start in zip(jobs, np.cumsum([0, *map(_length, jobs)]), strict=False)}
    try:
        for part in scattered.values():
            bar.advance(part.reused)
        if any(part.waiting for part in scattered.values()):
            for chunk in decoded(reader, jobs[0].uri, jobs[0].image_size, threads):
                stop.check()
                found = np.searchsorted(wanted, chunk.indices)
                for number in np.unique(homes[found]).tolist():
                    here = np.flatnonzero(homes[found] == number)
                    part = scattered[number]
                    part.put(found[here] - first[number], chunk, here)
                    if not part.waiting:
                        yield scattered.pop(number).finish()
                bar.advance(len(found))
        for number in list(scattered):
            yield scattered.pop(number).finish()
    finally:
        for part in scattered.values():
            part.forget()


def _length(job: PartJob) -> int:
    return len(job.wanted)


class _Scattered:
    """A part whose images come one by one."""

    def __init__(self, job: PartJob) -> None:
        self._job = job
        self._path: Path = job.path.with_suffix(".rows")
        self._missing = np.ones(len(job.wanted), np.bool_) if job.earlier is None else job.earlier.rows < 0
        self._bad: dict[int, str] = {}
        self.waiting = int(self._missing.sum())
        self.reused = len(self._missing) - self.waiting
        self._row = 3 * job.image_size**2
        self.forget()  # what a cut run left

    def put(self, places: NDArray[np.int64], chunk: Chunk, here: NDArray[np.int64]) -> None:
        """Keep the images `here` of a chunk, which belong to these places of the part."""
        with working(f"{self._path}: cannot be written"):
            handle = os.open(self._path, os.O_WRONLY | os.O_CREAT, 0o644)
            try:
                for place, row in zip(places.tolist(), here.tolist(), strict=True):
                    if row in chunk.bad:
                        self._bad[place] = chunk.bad[row]
                    elif os.pwrite(handle, chunk.images[row], place * self._row) != self._row:
                        raise OSError("the disk is full")
            finally:
                os.close(handle)
        self.waiting -= int(self._missing[places].sum())
        self._missing[places] = False

    def finish(self) -> tuple[PartJob, PartRecord]:
        """Turn them into the part's file."""
        side = self._job.image_size
        rows = np.zeros((len(self._job.wanted), 3, side, side), np.uint8)
        if self._path.exists():
            with working(f"{self._path}: cannot be read"), self._path.open("rb", buffering=0) as file:
                rest = rows.data.cast("B")
                while count := file.readinto(rest):
                    rest = rest[count:]
        record = write_part(self._job, rows, self._bad, self._missing)
        self.forget()
        return self._job, record

    def forget(self) -> None:
        """Remove what was kept."""
        self._path.unlink(missing_ok=True)
