"""What a user sees while the work runs: one bar a piece of work, one line a finished stage.

Stages are given a `Progress` and know nothing of terminals; `SILENT` is for callers that want none.
"""

from __future__ import annotations

import sys
import time
from collections.abc import Iterator
from contextlib import AbstractContextManager, contextmanager
from typing import Protocol

from limbeck.redact import redact_url


class Bar(Protocol):
    """One piece of work under way."""

    def advance(self, steps: int = 1, note: str = "") -> None:
        """Count `steps` more as done; `note` (a loss, say) stands beside the bar."""


class Progress(Protocol):
    """Where a stage reports how far it is."""

    def bar(self, title: str, total: int, unit: str, done: int = 0) -> AbstractContextManager[Bar]:
        """Open a bar over `total` units of which `done` were done in an earlier run."""

    def say(self, line: str) -> None:
        """Print one line that stays."""


class _NoBar:
    def advance(self, steps: int = 1, note: str = "") -> None:
        pass


class SilentProgress:
    """Reports nothing."""

    @contextmanager
    def bar(self, title: str, total: int, unit: str, done: int = 0) -> Iterator[Bar]:
        """See `Progress.bar`."""
        yield _NoBar()

    def say(self, line: str) -> None:
        """See `Progress.say`."""


SILENT: Progress = SilentProgress()


class TerminalProgress:
    """Bars with rate and time left on a terminal; in a log file, a line every `log_every` seconds instead."""

    def __init__(self, log_every: float = 30.0) -> None:
        from rich.console import Console

        self._console = Console(stderr=True, highlight=False, soft_wrap=True)
        self._log_every = log_every

    def say(self, line: str) -> None:
        """See `Progress.say`."""
        self._console.print(redact_url(line), markup=False)

    @contextmanager
    def bar(self, title: str, total: int, unit: str, done: int = 0) -> Iterator[Bar]:
        """See `Progress.bar`."""
        if self._console.is_terminal:
            with self._rich_bar(title, total, unit, done) as bar:
                yield bar
        else:
            yield _LogBar(title, total, unit, done, self._log_every)

    @contextmanager
    def _rich_bar(self, title: str, total: int, unit: str, done: int) -> Iterator[Bar]:
        from rich.progress import BarColumn, MofNCompleteColumn, TextColumn, TimeRemainingColumn
        from rich.progress import Progress as RichProgress

        columns = (
            TextColumn("  {task.description:<22}"),
            BarColumn(bar_width=28),
            MofNCompleteColumn(),
            TextColumn("{task.fields[rate]}"),
            TimeRemainingColumn(),
            TextColumn("{task.fields[note]}"),
        )
        with RichProgress(*columns, console=self._console, transient=True) as rich_progress:
            task = rich_progress.add_task(title, total=total, completed=done, rate="", note="")
            started, counted = time.monotonic(), 0

            class _RichBar:
                def advance(self, steps: int = 1, note: str = "") -> None:
                    nonlocal counted
                    counted += steps
                    rate = counted / max(time.monotonic() - started, 1e-9)
                    rich_progress.update(task, advance=steps, rate=f"{rate:,.3g} {unit}/s", note=note)

            yield _RichBar()


class _LogBar:
    def __init__(self, title: str, total: int, unit: str, done: int, every: float) -> None:
        self._title, self._total, self._unit, self._every = title, total, unit, every
        self._done, self._counted = done, 0
        self._started = self._printed = time.monotonic()

    def advance(self, steps: int = 1, note: str = "") -> None:
        self._done += steps
        self._counted += steps
        now = time.monotonic()
        if now - self._printed < self._every:
            return
        self._printed = now
        line = f"  {self._title}: {self._done}/{self._total} {self._unit}"
        if self._counted:
            rate = self._counted / max(now - self._started, 1e-9)
            line += f", {rate:,.3g}/s, {(self._total - self._done) / rate:,.0f} s left {note}"
        sys.stderr.write(line.rstrip() + "\n")
        sys.stderr.flush()
