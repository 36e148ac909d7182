"""The reconcile of a ScheduledDistillation: what is seen of it and its Distillations, and the time, give a plan. Pure.

Every time of the schedule is dealt with once: `status.lastScheduleTime` says up to where. What one time becomes has a
name made of that time, so that a plan that is carried out twice makes nothing twice.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from datetime import datetime, timedelta
from typing import Any

from pydantic import ValidationError

from limbeck.cluster import check_for_cluster
from limbeck.errors import InputError
from limbeck.outcome import Outcome
from limbeck.spec import Distillation, ScheduledDistillation
from limbeck.store import json_digest
from limbeck_operator import api
from limbeck_operator.conditions import Said, conditions, holds, instant, reason_of, timestamp
from limbeck_operator.distillation import is_finished, model_of
from limbeck_operator.drafting import COMPLETE, FAILED
from limbeck_operator.inherit import Defaults
from limbeck_operator.manifests import CONTAINER, check_job, is_owned, owner_reference
from limbeck_operator.plan import Delete, Event, Plan
from limbeck_operator.times import Schedule, parse

SCHEDULED = "Scheduled"
_LOOK_AT_CHECK = timedelta(seconds=15)
_TOO_MANY = 100  # missed times, from which on they are not counted


@dataclass(frozen=True)
class ObservedSchedule:
    """What a reconcile is given.

    Attributes:
        object: the ScheduledDistillation, as the API server has it.
        distillations: that have its label, in any order.
        checks: the Jobs of its own that look at sources.
        pods: of those Jobs, by the Job's name.
        defaults: of the operator.
    """

    object: Mapping[str, Any]
    distillations: Sequence[Mapping[str, Any]] = ()
    checks: Sequence[Mapping[str, Any]] = ()
    pods: Mapping[str, Sequence[Mapping[str, Any]]] = field(default_factory=dict)
    defaults: Defaults = field(default_factory=Defaults)


def read(document: Mapping[str, Any]) -> tuple[ScheduledDistillation, Schedule]:
    """The schedule that an object of the API server is.

    Raises:
        InputError: it is none that this operator can follow.
    """
    scheduled = model_of(document, ScheduledDistillation)
    check_for_cluster(scheduled.spec.template.spec)
    if scheduled.spec.warm_start != "never":
        raise InputError("spec.warmStart", scheduled.spec.warm_start, "never: sets of MLflow start no run yet")
    return scheduled, parse(scheduled.spec.schedule, scheduled.spec.time_zone)


def reconcile_schedule(observed: ObservedSchedule, now: datetime) -> Plan:
    """What is to be done about a schedule.

    Args:
        observed: what is there.
        now: the time, with a time zone.
    """
    return _Reconcile(observed, now).plan()


class _Reconcile:
    def __init__(self, observed: ObservedSchedule, now: datetime) -> None:
        self._observed, self._now = observed, now
        self._object, self._metadata = observed.object, observed.object["metadata"]
        self._status: dict[str, Any] = dict(observed.object.get("status") or {})
        self._before = dict(self._status)
        self._mine = sorted(
            (entry for entry in observed.distillations if is_owned(entry, self._object)),
            key=lambda entry: (entry["metadata"]["creationTimestamp"], entry["metadata"]["name"]),
        )
        self._checks = {entry["metadata"]["name"]: entry for entry in observed.checks if is_owned(entry, self._object)}
        self._delete: list[Delete] = []
        self._create: list[dict[str, Any]] = []
        self._events: list[Event] = []

    def plan(self) -> Plan:
        if self._metadata.get("deletionTimestamp") is not None:
            return Plan()  # its children go with it
        self._tell_of_children()
        try:
            self._scheduled, self._times = read(self._object)
        except InputError as error:
            if reason_of(self._status, SCHEDULED) != "InvalidSpec":
                self._event("InvalidSpec", str(error), warning=True)
            return self._done(Said(SCHEDULED, False, "InvalidSpec", str(error)), None)
        self._spec = self._scheduled.spec
        self._begin_anew()
        self._clean_up()
        again = self._trigger()
        if self._spec.suspend:
            return self._done(Said(SCHEDULED, False, "Suspended", "spec.suspend is true"), again)
        due = self._due()
        waiting = None if due is None else self._at(due)
        if waiting is not None:
            again = waiting if again is None else min(again, waiting)
        coming = self._times.next_after(self._now)
        self._status["nextScheduleTime"] = timestamp(coming)
        again = coming if again is None else min(again, coming)
        return self._done(Said(SCHEDULED, True, "Waiting", "it waits for its next time"), again)

    # times

    def _begin_anew(self) -> None:
        """What passed under another schedule, while it was suspended or invalid, is not made up for."""
        followed = f"{self._spec.schedule} {self._spec.time_zone}"
        resumed = not self._spec.suspend and reason_of(self._before, SCHEDULED) in ("Suspended", "InvalidSpec")
        if resumed or self._before.get("followed", followed) != followed:
            self._dealt_with(self._now)
        self._status["followed"] = followed

    def _since(self) -> datetime:
        """Up to when everything is dealt with."""
        created = instant(self._metadata["creationTimestamp"])
        last = self._status.get("lastScheduleTime")
        return created if last is None else max(created, instant(last))

    def _due(self) -> datetime | None:
        """The latest time that is not dealt with; those before it are missed, as is itself when it is too late."""
        since, deadline = self._since(), self._spec.starting_deadline_seconds
        count, latest = self._times.missed(since, self._now, limit=_TOO_MANY)
        if latest is None:
            return None
        late = deadline is not None and self._now - latest > timedelta(seconds=deadline)
        missed = count if late else count - 1
        if missed:
            self._status["missed"] = (self._status.get("missed") or 0) + missed
            more = " or more" if count >= _TOO_MANY else ""
            self._event(
                "MissedSchedule", f"missed {missed}{more} of its times, before {timestamp(latest)}", warning=True
            )
        if late:
            self._skip(latest, "TooLate", f"it could not start within {deadline} s of its time")
            return None
        if missed:  # counted once
            self._status["lastScheduleTime"] = timestamp(latest - timedelta(seconds=1))
        return latest

    def _at(self, due: datetime) -> datetime | None:
        """What is to be done about a time that is due; when to look again, if that is not decided yet."""
        name = f"{self._metadata['name']}-{int(due.timestamp()) // 60}"
        if any(entry["metadata"]["name"] == name for entry in self._mine):
            self._dealt_with(due)
            return None
        active = self._active()
        if active and self._spec.concurrency_policy == "Forbid":
            running = ", ".join(entry["metadata"]["name"] for entry in active)
            self._skip(due, "StillRunning", f"{running} still runs")
            return None
        if self._spec.only_if_source_changed and self._status.get("lastDone") is not None:
            unchanged = self._unchanged(due, name)
            if unchanged is None:
                return self._now + _LOOK_AT_CHECK
            if unchanged:
                done = self._status["lastDone"]["name"]
                self._skip(due, "Unchanged", f"unchanged, skipped: sources and settings are those of {done}")
                return None
        if self._spec.concurrency_policy == "Replace":
            for entry in active:
                self._event("Replaced", f"deleted {entry['metadata']['name']}, in favour of {name}")
                self._remove(api.DISTILLATION, entry)
        self._make(name, {api.SCHEDULED_AT: timestamp(due)})
        self._dealt_with(due)
        return None

    def _unchanged(self, due: datetime, name: str) -> bool | None:
        """Whether sources and settings are those of the last that completed; None while that is found out."""
        done = self._status["lastDone"]
        before: str | None = done["result"].get("sourceFingerprint")
        if done.get("content") != self._content() or before is None:
            return False
        job = self._checks.get(f"{name}-check")
        if job is None:
            distillation = self._distillation(name)
            labels = {api.OF_SCHEDULE: self._metadata["name"]}
            manifest = check_job(self._object, f"{name}-check", distillation, self._observed.defaults, labels)
            manifest["metadata"]["annotations"] = {api.SCHEDULED_AT: timestamp(due)}
            self._create.append(manifest)
            return None
        status = job.get("status") or {}
        if holds(status, FAILED):
            message = f"the sources could not be looked at ({self._words(job)}), so {name} is made to find out"
            self._event("CheckFailed", message, warning=True)
            return False
        if not holds(status, COMPLETE):
            return None
        said = [_message(pod, succeeded=True) for pod in self._observed.pods.get(job["metadata"]["name"], ())]
        try:
            return any(Outcome.model_validate_json(text).source_fingerprint == before for text in said if text)
        except ValidationError:
            return False

    def _words(self, job: Mapping[str, Any]) -> str:
        for pod in reversed(self._observed.pods.get(job["metadata"]["name"], ())):
            message = _message(pod, succeeded=False)
            if message:
                return message.strip().splitlines()[-1]
        return f"see Job {job['metadata']['name']}"

    def _dealt_with(self, until: datetime) -> None:
        last = self._status.get("lastScheduleTime")
        if last is None or instant(last) < until:
            self._status["lastScheduleTime"] = timestamp(until)

    def _skip(self, due: datetime, reason: str, message: str) -> None:
        self._dealt_with(due)
        self._status["lastSkip"] = {"time": timestamp(due), "reason": reason, "message": message}
        self._event("Skipped", f"{timestamp(due)}: {message}", warning=reason == "TooLate")

    def _trigger(self) -> datetime | None:
        """Run once for every new value of the annotation, whatever the schedule and the sources say."""
        value = (self._metadata.get("annotations") or {}).get(api.TRIGGER)
        if not value or value == self._status.get("lastTrigger"):
            return None
        active = self._active()
        name = f"{self._metadata['name']}-t{hashlib.sha256(value.encode()).hexdigest()[:8]}"
        if not any(entry["metadata"]["name"] == name for entry in self._mine):
            if active and self._spec.concurrency_policy == "Forbid":
                return self._now + _LOOK_AT_CHECK  # it waits for them to end, which is looked at then, too
            if active and self._spec.concurrency_policy == "Replace":
                for entry in active:
                    self._event("Replaced", f"deleted {entry['metadata']['name']}, in favour of {name}")
                    self._remove(api.DISTILLATION, entry)
            self._make(name, {api.TRIGGERED_BY: value})
        self._status["lastTrigger"] = value
        return None

    # children

    def _active(self) -> list[Mapping[str, Any]]:
        gone = {entry.uid for entry in self._delete}
        return [
            entry
            for entry in self._mine
            if not is_finished(entry.get("status") or {})
            and entry["metadata"].get("deletionTimestamp") is None
            and entry["metadata"]["uid"] not in gone
        ]

    def _tell_of_children(self) -> None:
        """What the status says of the Distillations, from themselves."""
        complete = [
            entry for entry in self._mine if holds(entry.get("status") or {}, COMPLETE) and "result" in entry["status"]
        ]
        if complete:
            last = max(complete, key=lambda entry: entry["status"]["completionTime"])
            known = self._status.get("lastDone")
            if known is None or known["completionTime"] <= last["status"]["completionTime"]:
                done: dict[str, Any] = {
                    "name": last["metadata"]["name"],
                    "completionTime": last["status"]["completionTime"],
                    "content": (last["metadata"].get("annotations") or {}).get(api.CONTENT),
                    "result": last["status"]["result"],
                }
                self._status["lastDone"] = {name: value for name, value in done.items() if value is not None}
                self._status["lastSuccessfulTime"] = last["status"]["completionTime"]

    def _clean_up(self) -> None:
        """Those beyond the history limits go, the oldest first; checks go once their time is dealt with."""
        for kind, limit in (
            (COMPLETE, self._spec.successful_runs_history_limit),
            (FAILED, self._spec.failed_runs_history_limit),
        ):
            ended = [entry for entry in self._mine if holds(entry.get("status") or {}, kind)]
            ended.sort(key=lambda entry: entry["status"].get("completionTime") or "")
            for entry in ended[: max(0, len(ended) - limit)]:
                self._remove(api.DISTILLATION, entry)
        since = self._since()
        for check in self._checks.values():
            at = (check["metadata"].get("annotations") or {}).get(api.SCHEDULED_AT)
            if at is None or instant(at) <= since:
                self._remove("Job", check)

    def _remove(self, kind: str, entry: Mapping[str, Any]) -> None:
        if entry["metadata"].get("deletionTimestamp") is None:
            self._delete.append(Delete(kind, entry["metadata"]["name"], entry["metadata"]["uid"]))

    def _content(self) -> str:
        """Digest of the settings that shape the set."""
        return json_digest(self._spec.template.spec.content())

    def _distillation(self, name: str) -> Distillation:
        spec = self._spec.template.spec
        fields = {"apiVersion": api.API_VERSION, "kind": api.DISTILLATION, "metadata": {"name": name}}
        return Distillation.model_validate_json(json.dumps({**fields, "spec": spec.wire()}))

    def _make(self, name: str, annotations: Mapping[str, str]) -> None:
        template = self._spec.template
        document = self._distillation(name)
        self._create.append(
            {
                "apiVersion": api.API_VERSION,
                "kind": api.DISTILLATION,
                "metadata": {
                    "name": name,
                    "namespace": self._metadata["namespace"],
                    "labels": {
                        **template.labels,
                        api.BY: api.MANAGER,
                        api.OF_SCHEDULE: self._metadata["name"],
                    },
                    "annotations": {**template.annotations, api.CONTENT: self._content(), **annotations},
                    "ownerReferences": [owner_reference(self._object)],
                },
                "spec": document.spec.model_dump(mode="json", by_alias=True, exclude_none=True),
            }
        )
        self._event("Created", f"created Distillation {name}")

    # what is said

    def _event(self, reason: str, message: str, *, warning: bool = False) -> None:
        self._events.append(Event(reason, message, "Warning" if warning else "Normal"))

    def _done(self, said: Said, again: datetime | None) -> Plan:
        generation = self._metadata.get("generation", 0)
        self._status["observedGeneration"] = generation
        self._status["conditions"] = conditions(self._before, [said], generation, self._now)
        if not said.status:
            self._status.pop("nextScheduleTime", None)
        self._status["active"] = [
            {"name": entry["metadata"]["name"], "uid": entry["metadata"]["uid"]} for entry in self._active()
        ][:100]
        return Plan(
            delete=self._delete,
            create=self._create,
            status=self._status if self._status != self._before else None,
            events=self._events,
            again=again,
        )


def _message(pod: Mapping[str, Any], *, succeeded: bool) -> str | None:
    """What a pod's container said when it ended so; None where it has not."""
    for container in (pod.get("status") or {}).get("containerStatuses") or []:
        ended = (container.get("state") or {}).get("terminated")
        if container["name"] == CONTAINER and ended is not None and (ended.get("exitCode") == 0) == succeeded:
            return str(ended.get("message") or "")
    return None
