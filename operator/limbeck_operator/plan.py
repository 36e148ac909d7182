"""What a reconcile has decided: data, which the executor carries out in the order of the fields."""

from __future__ import annotations

from dataclasses import dataclass, field
from datetime import datetime
from typing import Any, Literal

from limbeck.spec import Distillation


@dataclass(frozen=True)
class Delete:
    """An object to delete, if it is still the one that was seen."""

    kind: str
    name: str
    uid: str


@dataclass(frozen=True)
class Suspend:
    """A Job to suspend, or to resume."""

    name: str
    suspend: bool


@dataclass(frozen=True)
class Limit:
    """How often and how long a Job may try from now on.

    Attributes:
        name: of the Job.
        uid: of it.
        limits: fields of its spec; None for none.
    """

    name: str
    uid: str
    limits: dict[str, int | None]


@dataclass(frozen=True)
class Submit:
    """A pipeline to submit to Kubeflow.

    Attributes:
        name: of its run.
        distillation: whose pipeline it is.
    """

    name: str
    distillation: Distillation


@dataclass(frozen=True)
class Event:
    """What a person would want to know."""

    reason: str
    message: str
    type: Literal["Normal", "Warning"] = "Normal"


@dataclass(frozen=True)
class Plan:
    """What is to be done about one object.

    Attributes:
        delete: children, or the object itself.
        create: manifests of children; one that exists and is the object's own is left as it is.
        limit: changes of Jobs.
        suspend: likewise.
        terminate: runs on Kubeflow, by their ids.
        submit: a run on Kubeflow.
        finalizer: whether the object is to have one; None where that stays. The rest is planned anew after that.
        status: all of the new status; None where it stays.
        events: to record once the status is written.
        again: when to look again though nothing happens; None for not at all.
    """

    delete: list[Delete] = field(default_factory=list)
    create: list[dict[str, Any]] = field(default_factory=list)
    limit: list[Limit] = field(default_factory=list)
    suspend: list[Suspend] = field(default_factory=list)
    terminate: list[str] = field(default_factory=list)
    submit: Submit | None = None
    finalizer: bool | None = None
    status: dict[str, Any] | None = None
    events: list[Event] = field(default_factory=list)
    again: datetime | None = None
