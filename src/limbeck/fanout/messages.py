"""What the processes of a fan-out tell each other: the job, once, and events, a line of JSON each."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Annotated, Any, Literal

import numpy as np
from pydantic import BaseModel, ConfigDict, Field, TypeAdapter

from limbeck.spec import DistillationSpec

EVENT = "limbeck-event: "  # what a line of the driver's output begins with, among whatever else is printed there
TOKEN_ADVICE = "it asks for a token; set RAY_AUTH_MODE=token and RAY_AUTH_TOKEN to the cluster's"  # noqa: S105
FOLDER_MARK = ".ray"  # the file of a folder by which workers know that it is the command's
STOP = "stop"  # the line that asks the driver to stop at the next safe point


class _Message(BaseModel):
    model_config = ConfigDict(frozen=True, extra="forbid")


class Place(_Message):
    """A finished result."""

    stage: str
    key: str
    digest: str


class Made(_Message):
    """The identity of the result to make, as `store.Identity`."""

    stage: str
    version: int
    section: dict[str, Any]
    inputs: dict[str, str]


class Parts(_Message):
    """Parts of a dataset to make, as `limbeck.data.plan` numbers them. A worker lists the source itself."""

    uri: str
    format: str
    fingerprint: str  # of the source, as the command has seen it
    limit: int | None
    ranges: list[tuple[int, int]]  # their numbers, from the first of each to before the second
    folder: str  # of the store: where they go
    mark: str  # what the folder's FOLDER_MARK says; who reads something else there is in another folder of that name

    @property
    def numbers(self) -> list[int]:
        """All of them, ascending."""
        return [number for first, end in self.ranges for number in range(first, end)]


def ranges_of(numbers: Sequence[int]) -> list[tuple[int, int]]:
    """Ascending numbers as ranges, from the first of each to before the second: there may be very many."""
    array = np.asarray(numbers)
    breaks = np.flatnonzero(np.diff(array) != 1) + 1
    return [(int(run[0]), int(run[-1]) + 1) for run in np.split(array, breaks) if len(run)]


class Job(_Message):
    """What the workers are to do, and where."""

    spec: DistillationSpec
    store: str  # URL or absolute path
    folder: str  # the command's working directory, which relative paths of the spec refer to
    inputs: dict[str, Place]
    experts: list[int] = []  # to train; ...
    result: Made | None = None  # ... or the result of distill to make together; ...
    parts: Parts | None = None  # ... or the parts of a dataset to make
    name: str  # of the stage
    version: str  # limbeck's
    address: str | None  # of the cluster; None: Ray is started here, and ended
    temporary: str  # folder of a Ray that is started here
    workers: int | None  # as many as there is room for, when None
    most: int  # workers that have something to do
    cpus: float  # that a worker reserves

    @property
    def log(self) -> str:
        """The folder of the store that logs go to."""
        return f"logs/{self.name}"


class Said(_Message):
    """A line for the user."""

    event: Literal["said"] = "said"
    line: str


class Connecting(_Message):
    """The driver is up, and asks the cluster."""

    event: Literal["connecting"] = "connecting"


class Connected(_Message):
    """The cluster answers."""

    event: Literal["connected"] = "connected"


class Progress(_Message):
    """How far all workers are together."""

    event: Literal["progress"] = "progress"
    done: int
    note: str


class Failure(_Message):
    """One expert that was not made; without a cause: not tried."""

    index: int
    cause: str | None


class Ended(_Message):
    """The last event: how it went."""

    event: Literal["ended"] = "ended"
    untrained: list[Failure] = []
    stopped: bool = False
    error: str | None = None  # the whole failed
    where: str | None = None  # the field of the spec that is to blame, if one is


Event = Annotated[Said | Connecting | Connected | Progress | Ended, Field(discriminator="event")]
_EVENTS: TypeAdapter[Event] = TypeAdapter(Event)


def event_line(event: Event) -> str:
    """The event as a line."""
    return EVENT + event.model_dump_json() + "\n"


def read_event(line: str) -> Event | None:
    """The event that a line is, or None when it is something else."""
    _, found, text = line.partition(EVENT)
    return _EVENTS.validate_json(text) if found else None
