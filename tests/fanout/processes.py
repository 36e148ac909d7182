"""The command in a process of its own, as a user runs it, and the processes of the Ray that belongs to it."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
import uuid
from collections.abc import Callable
from pathlib import Path
from typing import TypeVar

T = TypeVar("T")
MARK = "LIMBECK_TEST_MARK"


class LimbeckProcess:
    """`limbeck ARGUMENTS`, started; all processes that it starts carry a mark in their environment."""

    def __init__(
        self,
        *arguments: object,
        cwd: Path,
        environment: dict[str, str] | None = None,
        module: str = "limbeck.cli",
    ) -> None:
        self.mark = uuid.uuid4().hex
        self._err = cwd / f"stderr-{self.mark}"
        with self._err.open("w") as err:
            self.process = subprocess.Popen(
                [sys.executable, "-m", module, *map(str, arguments)],
                cwd=cwd,
                stdout=subprocess.PIPE,
                stderr=err,
                text=True,
                env={**os.environ, MARK: self.mark, **(environment or {})},
            )

    def ends(self, timeout: float = 300.0) -> int:
        """The exit code."""
        try:
            self.process.communicate(timeout=timeout)
        except subprocess.TimeoutExpired:
            self.process.kill()
            raise AssertionError(f"still running after {timeout} s:\n{self.err}") from None
        return self.process.returncode

    @property
    def err(self) -> str:
        return self._err.read_text()

    @property
    def problems(self) -> list[str]:
        """What it says at the end."""
        return self.err.strip().splitlines()

    def pids(self, name: str) -> list[int]:
        """Its descendants whose command line has `name` in it."""
        return marked(self.mark, name)


def marked(mark: str, name: str = "") -> list[int]:
    found = []
    for folder in Path("/proc").glob("[0-9]*"):
        try:
            command = (folder / "cmdline").read_bytes().replace(b"\0", b" ").decode()
            if command and name in command and f"{MARK}={mark}".encode() in (folder / "environ").read_bytes():
                found.append(int(folder.name))
        except OSError:
            continue
    return sorted(found)


def kill(*pids: int) -> None:
    for pid in pids:
        try:
            os.kill(pid, signal.SIGKILL)
        except ProcessLookupError:
            continue


def wait_for(look: Callable[[], T], seconds: float, what: str) -> T:
    """What `look` gives, as soon as it is true."""
    deadline = time.monotonic() + seconds
    while time.monotonic() < deadline:
        found = look()
        if found:
            return found
        time.sleep(0.1)
    raise AssertionError(f"no {what} within {seconds} s")
