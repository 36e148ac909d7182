"""The journal: what happened in a run, a line of JSON each, until MLflow has it.

Every command writes a journal of its own; it and its sender hold a lock on it. Lines can be sent again without harm:
runs are found by their keys, points by their steps, files by their names.
"""

from __future__ import annotations

import fcntl
import os
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Annotated, Literal

from pydantic import BaseModel, ConfigDict, Field, TypeAdapter, ValidationError

Status = Literal["FINISHED", "FAILED", "KILLED"]


class _Line(BaseModel):
    model_config = ConfigDict(frozen=True, extra="forbid")


class Data(_Line):
    """A dataset that a run reads, or that a figure was measured on."""

    name: str
    digest: str  # 32 hexadecimal digits at most: MLflow takes no more than 36
    uri: str  # without credentials
    images: int
    context: Literal["real", "evaluation", "synthetic"]


class Began(_Line):
    """A run of a spec begins, or goes on."""

    event: Literal["began"] = "began"
    key: str  # equal keys are one run
    name: str
    experiment: str
    run_id: str | None  # of a run that somebody else has opened for this process
    stage_alone: bool  # then that run is the stage's own, not the parent of several
    tags: dict[str, str]
    params: dict[str, str]
    system_metrics: bool


class Read(_Line):
    """The run, or one of its stages, reads datasets."""

    event: Literal["read"] = "read"
    stage: str | None  # its label; None: the run itself
    data: list[Data]


class StageBegan(_Line):
    """A stage begins, or goes on."""

    event: Literal["stageBegan"] = "stageBegan"
    stage: str
    key: str  # of its result: another result is another run
    tags: dict[str, str]
    params: dict[str, str]


class Point(_Line):
    """A metric at a step."""

    name: str
    step: int
    milliseconds: int  # since 1970
    value: float
    data: Data | None = None  # what it was measured on


class Points(_Line):
    """Metrics of a stage."""

    event: Literal["points"] = "points"
    stage: str
    points: list[Point]


class Picture(_Line):
    """A picture at a step of a stage."""

    event: Literal["picture"] = "picture"
    stage: str
    name: str
    step: int
    file: str  # beside the journal


class Document(_Line):
    """A text file of the run itself."""

    event: Literal["document"] = "document"
    name: str
    text: str


class StageEnded(_Line):
    """A stage has ended."""

    event: Literal["stageEnded"] = "stageEnded"
    stage: str
    status: Status


class Ended(_Line):
    """The command has ended."""

    event: Literal["ended"] = "ended"
    status: Status


Event = Annotated[
    Began | Read | StageBegan | Points | Picture | Document | StageEnded | Ended, Field(discriminator="event")
]
_EVENTS: TypeAdapter[Event] = TypeAdapter(Event)


def now() -> int:
    """Milliseconds since 1970."""
    return time.time_ns() // 1_000_000


class Journal:
    """The journal of this command, in a folder that other commands' journals may lie in."""

    def __init__(self, folder: Path) -> None:
        folder.mkdir(parents=True, exist_ok=True)
        self.path = folder / f"{time.time_ns()}-{os.getpid()}.jsonl"
        unlocked = self.path.with_suffix(".new")
        self._file = unlocked.open("a+", encoding="utf-8")  # NFS shares a lock only with who may read
        fcntl.flock(self._file, fcntl.LOCK_SH)  # shared with the sender, which may outlive the command
        unlocked.rename(self.path)  # nobody sees it without its lock

    def write(self, event: Event) -> None:
        """Append an event; another process sees it at once."""
        self._file.write(event.model_dump_json() + "\n")
        self._file.flush()

    def picture_file(self, name: str) -> Path:
        """Where a picture of that name belongs."""
        return self.path.with_name(f"{self.path.stem}-{name}.png")

    def close(self) -> None:
        """Give up the lock: whoever comes next may send what is left.

        Raises:
            OSError: a line that could not be written before still cannot be.
        """
        self._file.close()


class Reader:
    """Reads a journal that may still grow.

    Args:
        path: the journal.
        hold: whether nobody else may send it from now on, also when its command is gone.
    """

    def __init__(self, path: Path, *, hold: bool = False) -> None:
        self.path = path
        self._file = path.open("rb")
        self._rest = b""
        if hold:
            fcntl.flock(self._file, fcntl.LOCK_SH)

    def next(self) -> Event | None:
        """The next event; None while there is none.

        Raises:
            ValidationError: the line is none that this version of limbeck writes; the next call reads the next one.
        """
        self._rest += self._file.readline()
        if not self._rest.endswith(b"\n"):
            return None
        line, self._rest = self._rest, b""
        return _EVENTS.validate_json(line)

    def remove(self) -> None:
        """Remove the journal and its pictures: all of it was sent."""
        self._file.close()
        for file in self.path.parent.glob(f"{self.path.stem}[.-]*"):
            file.unlink(missing_ok=True)

    def set_aside(self) -> Path:
        """Give it a name that nobody looks for: nothing can be done with it, and it is not ours to throw away."""
        self._file.close()
        return self.path.rename(self.path.with_suffix(".unreadable"))


def key_of(path: Path) -> str | None:
    """The key of the run that a journal is of; None where it does not say, or is gone."""
    try:
        began = Reader(path).next()
    except (FileNotFoundError, ValidationError):
        return None
    return began.key if isinstance(began, Began) else None


def others(folder: Path, own: Path) -> list[Path]:
    """The other journals of a folder, oldest first; who wants to send one claims it."""
    return [path for path in sorted(folder.glob("*.jsonl")) if path != own]


@contextmanager
def claimed(path: Path) -> Iterator[bool]:
    """Whether the journal's command and its sender are gone; nobody else will send it, inside the block."""
    try:
        handle = path.open("r+b")  # and gives one alone only to who may write
    except FileNotFoundError:
        yield False
        return
    with handle:
        try:
            fcntl.flock(handle, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            yield False
        else:
            yield path.exists()  # it may have been sent and removed before the lock was taken
