"""Stopping: Ctrl-C and SIGTERM ask the work to stop at its next safe point; a second one stops it at once."""

from __future__ import annotations

import signal
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from types import FrameType


class Stopped(Exception):  # noqa: N818 - not an error: the user asked for it
    """The user asked to stop; what was finished is kept, and the same command goes on from there."""


class StopRequest:
    """A flag that long loops look at between steps."""

    def __init__(self) -> None:
        self.requested = False

    def check(self) -> None:
        """Raise `Stopped` when a stop was asked for."""
        if self.requested:
            raise Stopped


@contextmanager
def stop_on_signals() -> Iterator[StopRequest]:
    """Inside the block, the first SIGINT or SIGTERM sets the request; the second interrupts at once."""
    request = StopRequest()

    def handle(number: int, frame: FrameType | None) -> None:
        if request.requested:
            raise KeyboardInterrupt
        request.requested = True
        sys.stderr.write("stopping at the next safe point; once more to stop at once\n")

    previous = {number: signal.signal(number, handle) for number in (signal.SIGINT, signal.SIGTERM)}
    try:
        yield request
    finally:
        for number, handler in previous.items():
            signal.signal(number, handler)
