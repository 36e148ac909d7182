"""Finished parts: recorded, copied to where other machines find them, and found again."""

from __future__ import annotations

import hashlib
from collections import deque
from collections.abc import Callable, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from pathlib import Path

from pydantic import ValidationError

from limbeck.copies import Copies
from limbeck.data.parts import PartJob, PartRecord, working
from limbeck.data.plan import Plan

_BACKLOG = 2  # finished parts that wait to be copied


def write_record(job: PartJob, record: PartRecord) -> None:
    """Write the record of a part, whose file is there.

    Raises:
        WorkError: the disk is full.
    """
    partial_path = job.record_path.with_suffix(".json.partial")
    with working(f"{job.record_path}: cannot be written"):
        partial_path.write_text(record.model_dump_json(), encoding="utf-8")
        partial_path.replace(job.record_path)


def files_of(job: PartJob, record: PartRecord) -> list[Path]:
    """The files of a finished part, in the order in which they are copied: where the record is, all of it is."""
    return [job.path, job.record_path] if record.rows else [job.record_path]


def record_of(plan: Plan, number: int, text: bytes | str | None) -> PartRecord | None:
    """The record of a part, if a text is that of what the plan wants."""
    try:
        record = PartRecord.model_validate_json(text or "")
    except ValidationError:
        return None
    whole = record.rows + len(record.bad) == len(plan.part(number))
    return record if whole and record.inputs == plan.inputs(number) else None


def recover(plan: Plan, copies: Copies | None, number: int) -> PartRecord | None:
    """The record of a part that was finished, here or on another machine, if that still is what it says."""
    path, record_path = plan.path(number), plan.record_path(number)
    if copies is not None and not record_path.exists():
        copies.fetch(record_path)
    try:
        record = record_of(plan, number, record_path.read_bytes())
    except OSError:
        return None
    if record is None or not record.rows:
        return record
    if copies is not None and not path.exists():
        copies.fetch(path)
    try:
        with path.open("rb") as file:
            intact = hashlib.file_digest(file, "sha256").hexdigest() == record.sha256
    except OSError:
        return None
    return record if intact else None


class Copying:
    """Copies finished parts while others are made; what is not begun when all are made is left.

    Args:
        keep: copies a file; None where nobody needs copies.
    """

    def __init__(self, keep: Callable[[Path], None] | None) -> None:
        self._keep = keep
        self._pool = ThreadPoolExecutor(1)
        self._under_way: deque[Future[None]] = deque()

    def __enter__(self) -> Copying:
        return self

    def __exit__(self, *raised: object) -> None:
        self._pool.shutdown(wait=True, cancel_futures=True)

    def add(self, files: Sequence[Path]) -> None:
        """Have files copied, in this order; waits while too many do.

        Raises:
            WorkError: an earlier one could not be copied.
        """
        if self._keep is None:
            return
        while len(self._under_way) >= _BACKLOG:
            self._under_way.popleft().result()
        self._under_way.append(self._pool.submit(_keep_all, self._keep, files))

    def finish(self) -> None:
        """Wait until all are copied.

        Raises:
            WorkError: one could not be.
        """
        while self._under_way:
            self._under_way.popleft().result()


def _keep_all(keep: Callable[[Path], None], files: Sequence[Path]) -> None:
    for file in files:
        keep(file)
