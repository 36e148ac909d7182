"""What every reconcile of a Distillation builds its plan from, whoever runs the stages. Pure."""

from __future__ import annotations

from collections.abc import Mapping
from datetime import datetime, timedelta
from typing import Any, Protocol

from limbeck.outcome import Outcome
from limbeck_operator import api, bounds
from limbeck_operator.conditions import Said, conditions, holds, instant, reason_of, timestamp
from limbeck_operator.plan import Delete, Event, Plan, Suspend

SUSPENDED, PROGRESSING, COMPLETE, FAILED = "Suspended", "Progressing", "Complete", "Failed"

_NOT_SUSPENDED = Said(SUSPENDED, False, "NotSuspended", "it is not suspended")


class Backend(Protocol):
    """Who runs the stages of a Distillation."""

    def obstacle(self) -> Plan | None:
        """What is to be done where nothing can be, for now; None where there is no obstacle."""

    def ended(self) -> Plan | None:
        """What is to be done when the run has ended; None while it has not."""

    def suspend(self) -> Plan:
        """Have the run stop, and keep what is finished."""

    def expire(self) -> Plan:
        """End what has taken too long."""

    def go_on(self) -> Plan:
        """Have it run, and say how far it is."""


class Draft:
    """A plan in the making."""

    def __init__(self, document: Mapping[str, Any], now: datetime) -> None:
        self.object, self.now = document, now
        self.metadata: Mapping[str, Any] = document["metadata"]
        self.status: Mapping[str, Any] = document.get("status") or {}
        self.delete: list[Delete] = []
        self.events: list[Event] = []

    @property
    def name(self) -> str:
        """Of the object."""
        return str(self.metadata["name"])

    @property
    def started(self) -> str | None:
        """When work on it began, as the status has it."""
        return self.status.get("startTime")

    def is_deleted(self) -> bool:
        """Whether it is being deleted."""
        return self.metadata.get("deletionTimestamp") is not None

    def has_finalizer(self) -> bool:
        """Whether it is kept until what it has outside the cluster is ended."""
        return api.FINALIZER in (self.metadata.get("finalizers") or [])

    # what it can come to

    def going(self, reason: str, message: str, **changes: Any) -> dict[str, Any]:
        """The status of work under way."""
        started = self.started or timestamp(self.now)
        return self.next(_NOT_SUSPENDED, Said(PROGRESSING, True, reason, message), startTime=started, **changes)

    def waiting(self, reason: str, message: str, look: timedelta | None) -> Plan:
        """It cannot go on, until something changes; looked at again after a while."""
        if reason_of(self.status, PROGRESSING) != reason:
            self.event(reason, message, warning=True)
        status = self.next(_NOT_SUSPENDED, Said(PROGRESSING, False, reason, message))
        return self.make(status, again=None if look is None else self.now + look)

    def suspended(
        self,
        *,
        suspend: list[Suspend] | None = None,
        terminate: list[str] | None = None,
        again: datetime | None = None,
        **changes: Any,
    ) -> Plan:
        """It is suspended; the status changes beside that, too."""
        if not holds(self.status, SUSPENDED):
            self.event("Suspended", "suspended; what is finished is kept")
        why = "SuspendedBySpec", "spec.execution.suspend is true"
        said = Said(SUSPENDED, True, *why), Said(PROGRESSING, False, *why)
        status = self.next(*said, startTime=None, progress=None, **changes)
        return self.make(status, again=again, suspend=suspend, terminate=terminate)

    def complete(self, outcome: Outcome | None, **changes: Any) -> Plan:
        """It is complete; None where nobody can say any more what came of it."""
        given: dict[str, Any] = {}
        result = None
        if outcome is not None:
            told = outcome.model_dump(mode="json", by_alias=True, exclude_none=True, exclude={"links", "stages"})
            result = bounds.result(told)
        if outcome is None or result is None:
            message = "complete; what came of it is in the output, since nobody could say it here"
        else:
            links = {**(self.status.get("links") or {}), **changes.get("links", {}), **bounds.links(outcome.links)}
            given = {"result": result, "links": links}
            if outcome.stages:
                given["stages"] = bounds.stages(
                    {"name": stage.name, "state": "Complete", "seconds": stage.seconds, "reused": stage.reused}
                    for stage in outcome.stages
                )
            message = _in_words(outcome)
        self.event("Complete", message)
        status = self.next(
            _NOT_SUSPENDED,
            Said(PROGRESSING, False, "Complete", message),
            Said(COMPLETE, True, "Complete", message),
            **{**changes, **given, "completionTime": timestamp(self.now), "progress": None},
        )
        return self.make(status, again=self.now)

    def fail(self, reason: str, message: str, *, terminate: list[str] | None = None, **changes: Any) -> Plan:
        """It has failed, for good."""
        self.event(reason, message, warning=True)
        status = self.next(
            _NOT_SUSPENDED,
            Said(PROGRESSING, False, reason, message),
            Said(FAILED, True, reason, message),
            **{**changes, "completionTime": timestamp(self.now), "progress": None},
        )
        return self.make(status, again=self.now, terminate=terminate)

    # what it is made of

    def next(self, *said: Said, **changes: Any) -> dict[str, Any]:
        """The status with these conditions and changes; None takes a field away."""
        generation = self.metadata.get("generation", 0)
        status = {**self.status, **changes, "observedGeneration": generation}
        status["conditions"] = conditions(self.status, said, generation, self.now)
        return {name: value for name, value in status.items() if value is not None}

    def make(self, status: dict[str, Any], *, again: datetime | None = None, **given: Any) -> Plan:
        """The plan; `given` are its other fields, None for nothing."""
        return Plan(
            delete=self.delete,
            status=status if status != self.status else None,
            events=self.events,
            again=again,
            **{name: value for name, value in given.items() if value is not None},
        )

    def event(self, reason: str, message: str, *, warning: bool = False, first: str | None = None) -> None:
        """Record an event; with `first`, only if the status does not have that field yet."""
        if first is None or self.status.get(first) is None:
            self.events.append(Event(reason, message, "Warning" if warning else "Normal"))

    def deadline(self, seconds: int | None) -> datetime | None:
        """When work has taken so long."""
        if seconds is None:
            return None
        return (self.now if self.started is None else instant(self.started)) + timedelta(seconds=seconds)


def _in_words(outcome: Outcome) -> str:
    parts = [f"{outcome.images} synthetic images"]
    if outcome.recovered_gap is not None:
        parts.append(f"recovered gap {outcome.recovered_gap:.2f}")
    if outcome.model is not None:
        champion = ", the champion" if outcome.champion else ""
        parts.append(f"registered as {outcome.model}, version {outcome.version}{champion}")
    return "; ".join(parts)
