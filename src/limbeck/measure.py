"""Time and peak memory of a piece of work, as the summary reports them."""

from __future__ import annotations

import resource
import sys
import time
from pathlib import Path
from types import TracebackType
from typing import ClassVar

import torch

from limbeck.memory import release_freed_memory


class MemoryPeak:
    """Measures, over a `with` block, wall time and peak memory: resident (host) and allocated on the accelerator.

    On Linux the kernel's high-water mark is reset at the start, so the peak is the block's own; elsewhere it is the
    process's so far. Blocks nest: the marks are the process's, so a block that is entered first hands what they show
    to those around it.
    """

    seconds = 0.0
    resident_before = 0
    resident_bytes = 0
    device_bytes = 0
    _open: ClassVar[list[MemoryPeak]] = []

    def __enter__(self) -> MemoryPeak:
        for outer in self._open:
            outer._look()
        release_freed_memory()
        self.resident_before = _reset_resident_peak()
        if torch.cuda.is_available():
            torch.cuda.reset_peak_memory_stats()
        self._open.append(self)
        self._started = time.monotonic()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.seconds = time.monotonic() - self._started
        self._look()
        self._open.remove(self)

    def _look(self) -> None:
        self.resident_bytes = max(self.resident_bytes, _resident_peak())
        if torch.cuda.is_available():
            self.device_bytes = max(self.device_bytes, torch.cuda.max_memory_allocated())


def _reset_resident_peak() -> int:
    if sys.platform == "linux":
        try:
            Path("/proc/self/clear_refs").write_text("5")
        except OSError:
            return _resident_peak()  # a container that forbids it: the process's peak so far
    return _resident_peak()


def _resident_peak() -> int:
    if sys.platform == "linux":
        for line in Path("/proc/self/status").read_text().splitlines():
            if line.startswith("VmHWM:"):
                return int(line.split()[1]) * 1024
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
