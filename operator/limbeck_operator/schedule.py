"""The reconcile of a ScheduledDistillation: what is seen of it and its Distillations, and the time, give a plan. Pure.

Every time of the schedule is dealt with once: `status.lastScheduleTime` says up to where. So is every trigger by hand:
`status.lastTrigger` is the last. What one of them becomes has a name made of it, so that a plan that is carried out
twice makes nothing twice.

What must be asked outside the cluster's API, whether sources have changed and which champion to start from, a small Job
asks, the check of that one time or trigger. It is there before what it is for, and goes once that is dealt with.
"""

from __future__ import annotations

import hashlib
import json
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from datetime import datetime, timedelta
from typing import Any

from pydantic import ValidationError

from limbeck.cluster import check_for_cluster, check_for_kubeflow
from limbeck.errors import InputError
from limbeck.outcome import Outcome
from limbeck.spec import REGISTERED, Distillation, DistillationSpec, ScheduledDistillation
from limbeck.store import json_digest
from limbeck_operator import api
from limbeck_operator.bounds import short
from limbeck_operator.conditions import Said, conditions, holds, instant, reason_of, timestamp
from limbeck_operator.distillation import is_finished, model_of
from limbeck_operator.drafting import COMPLETE, FAILED
from limbeck_operator.inherit import Defaults, check_account, inherit
from limbeck_operator.manifests import CONTAINER, check_job, check_name, is_owned, owner_reference
from limbeck_operator.plan import Delete, Event, Plan
from limbeck_operator.times import Schedule, parse

SCHEDULED = "Scheduled"
_LOOK_AT_CHECK = timedelta(seconds=15)
_TOO_MANY = 100  # missed times, from which on they are not counted
_LONGEST, _LONGEST_TRIGGER = 1024, 253  # as the status has them

_MARK = re.compile(r"[A-Za-z0-9]([A-Za-z0-9_.-]{0,61}[A-Za-z0-9])?")  # name or value of a label
_PREFIX = re.compile(r"(?=.{1,253}$)[a-z0-9]([-a-z0-9]*[a-z0-9])?(\.[a-z0-9]([-a-z0-9]*[a-z0-9])?)*")


@dataclass(frozen=True)
class ObservedSchedule:
    """What a reconcile is given.

    Attributes:
        object: the ScheduledDistillation, as the API server has it.
        distillations: that have its label, in any order.
        checks: the Jobs of its own that look at sources and the champion.
        pods: of those Jobs, by the Job's name.
        defaults: of the operator.
    """

    object: Mapping[str, Any]
    distillations: Sequence[Mapping[str, Any]] = ()
    checks: Sequence[Mapping[str, Any]] = ()
    pods: Mapping[str, Sequence[Mapping[str, Any]]] = field(default_factory=dict)
    defaults: Defaults = field(default_factory=Defaults)


def read(document: Mapping[str, Any], defaults: Defaults) -> tuple[ScheduledDistillation, Schedule]:
    """The schedule that an object of the API server is.

    Raises:
        InputError: it is none that this operator can follow.
    """
    scheduled = model_of(document, ScheduledDistillation)
    namespace, name = document["metadata"]["namespace"], document["metadata"]["name"]
    template = scheduled.spec.template
    spec = inherit(template.spec.wire(), defaults, namespace, name)
    fields = {"apiVersion": api.API_VERSION, "kind": api.DISTILLATION, "metadata": {"name": name}}
    made = model_of({**fields, "spec": spec}, Distillation).spec
    check_for_cluster(made)
    check_account(made.execution, defaults, namespace)
    if made.execution.backend == "kubeflow":
        check_for_kubeflow(made)
    _check_marks("labels", template.labels, values=True)
    _check_marks("annotations", template.annotations, values=False)
    return scheduled, parse(scheduled.spec.schedule, scheduled.spec.time_zone)


def _check_marks(kind: str, marks: Mapping[str, str], *, values: bool) -> None:
    """See that the API server takes labels or annotations: the definition says no more than how long they may be."""
    for name, value in marks.items():
        prefix, _, own = name.rpartition("/")
        where = f"spec.template.{kind}"
        if not _MARK.fullmatch(own) or len(name) > 317 or ("/" in name and not _PREFIX.fullmatch(prefix)):
            raise InputError(where, f"{name!r} as a name", "at most 63 letters, digits, - _ and ., after DOMAIN/ say")
        if values and value and not _MARK.fullmatch(value):
            raise InputError(f"{where}.{name}", repr(value), "at most 63 letters, digits, - _ and .")


@dataclass(frozen=True)
class _Look:
    """What a check has come to.

    Attributes:
        outcome: what it said; None where it has failed.
        words: why, then.
    """

    outcome: Outcome | None
    words: str = ""


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
            self._scheduled, self._times = read(self._object, self._observed.defaults)
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
        if any(manifest["kind"] == api.DISTILLATION for manifest in self._create):
            due, again = None, self._now  # the next look sees what was triggered, as all that runs already
        else:
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
        late = deadline is not None and self._now - self._begun(latest) > timedelta(seconds=deadline)
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

    def _name_at(self, due: datetime) -> str:
        return f"{self._metadata['name']}-{int(due.timestamp()) // 60}"

    def _begun(self, due: datetime) -> datetime:
        """From when on a start can be late: its time, or the end of its check, which was begun in time."""
        check = self._checks.get(check_name(self._name_at(due)))
        if check is None:
            return due
        ended = [
            instant(entry.get("lastTransitionTime") or timestamp(self._now))
            for entry in (check.get("status") or {}).get("conditions") or []
            if entry["type"] in (COMPLETE, FAILED) and entry["status"] == "True"
        ]
        return min(ended, default=self._now)

    def _at(self, due: datetime) -> datetime | None:
        """What is to be done about a time that is due; when to look again, if that is not decided yet."""
        name = self._name_at(due)
        if any(entry["metadata"]["name"] == name for entry in self._mine):
            self._dealt_with(due)
            return None
        active = self._active()
        if active and self._spec.concurrency_policy == "Forbid":
            running = ", ".join(entry["metadata"]["name"] for entry in active)
            self._skip(due, "StillRunning", f"{running} still runs")
            return None
        look, before = None, self._fingerprint_before()
        if before is not None or self._from_champion:
            look = self._look(name, {api.SCHEDULED_AT: timestamp(due)})
            if look is None:
                return self._now + _LOOK_AT_CHECK
            if before is not None and look.outcome is not None and look.outcome.source_fingerprint == before:
                done = self._status["lastDone"]["name"]
                self._skip(due, "Unchanged", f"unchanged, skipped: sources and settings are those of {done}")
                return None
        if self._spec.concurrency_policy == "Replace":
            for entry in active:
                self._event("Replaced", f"deleted {entry['metadata']['name']}, in favour of {name}")
                self._remove(api.DISTILLATION, entry)
        self._make(name, {api.SCHEDULED_AT: timestamp(due)}, look)
        self._dealt_with(due)
        return None

    def _fingerprint_before(self) -> str | None:
        """What the sources must no longer be; None where a time is not left out for being unchanged."""
        done = self._status.get("lastDone")
        if not self._spec.only_if_source_changed or done is None or done.get("content") != self._content():
            return None
        before: str | None = done["result"].get("sourceFingerprint")
        return before

    @property
    def _from_champion(self) -> bool:
        return self._spec.warm_start == "champion"

    def _look(self, name: str, marks: Mapping[str, str]) -> _Look | None:
        """What the check for a Distillation of that name has come to; None until then, and it is made if need be.

        Args:
            name: of the Distillation.
            marks: annotations that say what the check is for.
        """
        manifest = check_job(
            self._object, self._inheriting(name), self._observed.defaults, champion=self._from_champion
        )
        job = self._checks.get(manifest["metadata"]["name"])
        if job is None:
            manifest["metadata"]["annotations"] |= marks
            self._create.append(manifest)
            return None
        if job["metadata"].get("deletionTimestamp") is not None:
            return None  # another one is made when it is gone
        checked = manifest["metadata"]["annotations"][api.CHECKED]
        if (job["metadata"].get("annotations") or {}).get(api.CHECKED) != checked:  # the schedule was edited since
            self._remove("Job", job)
            return None
        status = job.get("status") or {}
        if not holds(status, FAILED) and not holds(status, COMPLETE):
            return None
        look = self._read(job)
        if look.outcome is None:
            what, so = "the sources could not be looked at", "is made to find out"
            if self._from_champion:
                what, so = "sources and champion could not be looked at", "is made from real images"
            self._event("CheckFailed", f"{what} ({look.words}), so {name} {so}", warning=True)
        return look

    def _read(self, job: Mapping[str, Any]) -> _Look:
        """What a check that has ended has said."""
        if holds(job["status"], FAILED):
            return _Look(None, self._words(job))
        said = [_message(pod, succeeded=True) for pod in self._observed.pods.get(job["metadata"]["name"], ())]
        try:
            found = [Outcome.model_validate_json(text) for text in said if text]
        except ValidationError:
            found = []
        return _Look(found[-1]) if found else _Look(None, f"Job {job['metadata']['name']} has left no outcome")

    def _champion(self, look: _Look | None) -> str | None:
        """The registered set that a check has found to start from, by its version, which does not move."""
        outcome = None if look is None else look.outcome
        if not self._from_champion or outcome is None or outcome.version is None or not outcome.champion:
            return None
        if outcome.model != self._spec.template.spec.registry.name or outcome.version < 1:
            return None
        return f"{REGISTERED}{outcome.model}/{outcome.version}"

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
        self._status["lastSkip"] = {"time": timestamp(due), "reason": reason, "message": message[:_LONGEST]}
        self._event("Skipped", f"{timestamp(due)}: {message}", warning=reason == "TooLate")

    def _new_trigger(self) -> str | None:
        """The value of the annotation, where it is not dealt with."""
        value: str | None = (self._metadata.get("annotations") or {}).get(api.TRIGGER)
        if not value:
            return None
        value = short(value, _LONGEST_TRIGGER)  # as the status has room for it
        return value if value != self._status.get("lastTrigger") else None

    def _trigger(self) -> datetime | None:
        """Run once for every new value of the annotation, whatever the schedule and the sources say."""
        value = self._new_trigger()
        if value is None:
            return None
        active = self._active()
        name = f"{self._metadata['name']}-t{hashlib.sha256(value.encode()).hexdigest()[:8]}"
        if not any(entry["metadata"]["name"] == name for entry in self._mine):
            if active and self._spec.concurrency_policy == "Forbid":
                check = self._checks.get(check_name(name))
                if check is not None:  # when its turn comes there may be another champion
                    self._remove("Job", check)
                return self._now + _LOOK_AT_CHECK  # it waits for them to end, which is looked at then, too
            look = None
            if self._from_champion:
                look = self._look(name, {api.TRIGGERED_BY: value})
                if look is None:
                    return self._now + _LOOK_AT_CHECK
            if active and self._spec.concurrency_policy == "Replace":
                for entry in active:
                    self._event("Replaced", f"deleted {entry['metadata']['name']}, in favour of {name}")
                    self._remove(api.DISTILLATION, entry)
            self._make(name, {api.TRIGGERED_BY: value}, look)
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
        """Those beyond the history limits go, the oldest first; checks go once what they are for is dealt with."""
        for kind, limit in (
            (COMPLETE, self._spec.successful_runs_history_limit),
            (FAILED, self._spec.failed_runs_history_limit),
        ):
            ended = [entry for entry in self._mine if holds(entry.get("status") or {}, kind)]
            ended.sort(key=lambda entry: entry["status"].get("completionTime") or "")
            for entry in ended[: max(0, len(ended) - limit)]:
                self._remove(api.DISTILLATION, entry)
        since, trigger = self._since(), self._new_trigger()
        for check in self._checks.values():
            marks = check["metadata"].get("annotations") or {}
            at, by = marks.get(api.SCHEDULED_AT), marks.get(api.TRIGGERED_BY)
            due = at is not None and instant(at) > since and not self._spec.suspend
            if not due and (by is None or by != trigger):
                self._remove("Job", check)

    def _remove(self, kind: str, entry: Mapping[str, Any]) -> None:
        if entry["metadata"].get("deletionTimestamp") is None:
            self._delete.append(Delete(kind, entry["metadata"]["name"], entry["metadata"]["uid"]))

    def _content(self) -> str:
        """Digest of the settings that shape the set."""
        return json_digest(self._spec.template.spec.content())

    def _distillation(self, name: str, start: str | None = None) -> Distillation:
        """The Distillation of that name; `start` is the registered set that it starts from."""
        spec = self._spec.template.spec.wire()
        if start is not None:
            spec["distill"]["warmStart"] = start
        fields = {"apiVersion": api.API_VERSION, "kind": api.DISTILLATION, "metadata": {"name": name}}
        return Distillation.model_validate_json(json.dumps({**fields, "spec": spec}))

    def _inheriting(self, name: str) -> Distillation:
        """The Distillation of that name with what it will be given, as its check needs it."""
        made = self._distillation(name)
        spec = inherit(made.spec.wire(), self._observed.defaults, self._metadata["namespace"], name)
        return made.model_copy(update={"spec": DistillationSpec.model_validate_json(json.dumps(spec))})

    def _make(self, name: str, annotations: Mapping[str, str], look: _Look | None) -> None:
        template, start = self._spec.template, self._champion(look)
        document = self._distillation(name, start)
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
        self._event("Created", f"created Distillation {name}{self._start_in_words(look, start)}")

    def _start_in_words(self, look: _Look | None, start: str | None) -> str:
        if not self._from_champion:
            return ""
        if start is not None:
            return f", which starts from {start}"
        model = self._spec.template.spec.registry.name
        why = f": {model} has no champion that fits" if look is not None and look.outcome is not None else ""
        return f", which starts from real images{why}"

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
