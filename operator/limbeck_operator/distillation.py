"""The reconcile of a Distillation: what is seen of it and its children, and the time, give a plan. Pure."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from datetime import datetime, timedelta
from typing import Any, TypeVar

from pydantic import BaseModel, ValidationError

from limbeck.cluster import check_for_cluster
from limbeck.errors import InputError
from limbeck.outcome import Outcome
from limbeck.spec import Distillation
from limbeck_operator import api
from limbeck_operator.conditions import Said, conditions, holds, instant, reason_of, timestamp
from limbeck_operator.manifests import CONTAINER, Defaults, cluster_name, is_owned, ray_cluster_of, run_job
from limbeck_operator.plan import Delete, Event, Plan, Suspend

SUSPENDED, PROGRESSING, COMPLETE, FAILED = "Suspended", "Progressing", "Complete", "Failed"
_LOOK_AT_CLUSTER, _LOOK_FOR_KIND = timedelta(seconds=5), timedelta(seconds=30)

M = TypeVar("M", bound=BaseModel)


@dataclass(frozen=True)
class Observed:
    """What a reconcile is given.

    Attributes:
        object: the Distillation, as the API server has it.
        job: the Job of its name.
        pods: of that Job, the oldest first.
        cluster: the RayCluster of its name.
        has_ray: whether the API server knows RayClusters at all; only asked where one is wanted.
        defaults: of the operator.
    """

    object: Mapping[str, Any]
    job: Mapping[str, Any] | None = None
    pods: Sequence[Mapping[str, Any]] = ()
    cluster: Mapping[str, Any] | None = None
    has_ray: bool = True
    defaults: Defaults = field(default_factory=Defaults)


def is_finished(status: Mapping[str, Any]) -> bool:
    """Whether a Distillation is complete or has failed."""
    return holds(status, COMPLETE) or holds(status, FAILED)


def model_of(document: Mapping[str, Any], model: type[M]) -> M:
    """An object of the API server as the spec's model of it.

    Raises:
        InputError: it is none; CEL and the schema leave little that it could be.
    """
    fields = {name: document[name] for name in ("apiVersion", "kind", "metadata", "spec") if name in document}
    try:
        return model.model_validate_json(json.dumps(fields))
    except ValidationError as error:
        first = error.errors()[0]
        raise InputError(".".join(str(part) for part in first["loc"]), first["msg"]) from None


def read(document: Mapping[str, Any]) -> Distillation:
    """The Distillation that an object of the API server is.

    Raises:
        InputError: it is none that this operator can run.
    """
    distillation = model_of(document, Distillation)
    check_for_cluster(distillation.spec)
    if distillation.spec.execution.backend == "kubeflow":
        raise InputError("spec.execution.backend", "kubeflow", "job: this operator submits nothing to Kubeflow yet")
    return distillation


def reconcile(observed: Observed, now: datetime) -> Plan:
    """What is to be done about a Distillation.

    Args:
        observed: what is there.
        now: the time, with a time zone.
    """
    return _Reconcile(observed, now).plan()


class _Reconcile:
    def __init__(self, observed: Observed, now: datetime) -> None:
        self._observed, self._now = observed, now
        self._object = observed.object
        self._metadata = observed.object["metadata"]
        self._status: Mapping[str, Any] = observed.object.get("status") or {}
        self._delete: list[Delete] = []
        self._events: list[Event] = []

    def plan(self) -> Plan:
        if self._metadata.get("deletionTimestamp") is not None:
            return Plan()  # its children go with it
        try:
            distillation = read(self._object)
        except InputError as error:
            if is_finished(self._status):
                return Plan()
            return self._waiting("InvalidSpec", str(error), None)
        self._distillation = distillation
        self._execution = distillation.spec.execution
        if is_finished(self._status):
            return self._finished()
        foreign = self._foreign()
        if foreign is not None:
            return self._waiting("NameTaken", f"there is a {foreign} of this name that is not its own", _LOOK_FOR_KIND)
        job = self._observed.job
        if job is not None and job["metadata"].get("deletionTimestamp") is not None:
            return self._waiting("JobBeingDeleted", "its Job is being deleted; another is made then", _LOOK_AT_CLUSTER)
        ended = None if job is None else self._ended(job)
        if ended is not None:
            return ended
        if self._execution.suspend:
            return self._suspended()
        if self._left() <= timedelta(0):
            return self._too_long()
        return self._run()

    # what a Distillation can be

    def _finished(self) -> Plan:
        """Nothing more is made; what it no longer needs goes, and in the end itself."""
        self._drop_cluster()
        ttl, again = self._execution.ttl_seconds_after_finished, None
        if ttl is not None:
            again = instant(self._status["completionTime"]) + timedelta(seconds=ttl)
            if again <= self._now:
                mine = Delete(api.DISTILLATION, self._metadata["name"], self._metadata["uid"])
                return Plan(delete=[*self._delete, mine])
        return Plan(delete=self._delete, again=again)

    def _suspended(self) -> Plan:
        """Its Job stays, without pods; its cluster goes."""
        self._drop_cluster()
        job, suspend = self._observed.job, []
        if job is not None and not job["spec"].get("suspend"):
            suspend = [Suspend(job["metadata"]["name"], True)]
        if not holds(self._status, SUSPENDED):
            self._event("Suspended", "suspended; what is finished is kept")
        status = self._next(
            Said(SUSPENDED, True, "SuspendedBySpec", "spec.execution.suspend is true"),
            Said(PROGRESSING, False, "SuspendedBySpec", "spec.execution.suspend is true"),
            startTime=None,
            progress=None,
        )
        return self._make(status, suspend=suspend)

    def _run(self) -> Plan:
        """Its cluster first, where it asks for one, then its Job."""
        started = self._status.get("startTime") or timestamp(self._now)
        if self._execution.ray.cluster is not None:
            waiting = self._cluster(started)
            if waiting is not None:
                return waiting
        job = self._observed.job
        if job is None:
            status = self._going("JobCreated", f"Job {self._metadata['name']} is made", started)
            self._event("Started", f"created Job {self._metadata['name']}", first="startTime")
            return self._make(
                status,
                create=[run_job(self._object, self._distillation, self._observed.defaults)],
                again=self._deadline(),
            )
        suspend = []
        if job["spec"].get("suspend"):
            suspend = [Suspend(job["metadata"]["name"], False)]
            self._event("Resumed", "resumed; it goes on from what is finished")
        reason, message = self._pods_say()
        retries = (job.get("status") or {}).get("failed") or 0
        if retries > (self._status.get("retries") or 0):
            said = self._last_words()
            tried = f"try {retries} of {self._execution.backoff_limit + 1} has failed"
            self._event("Retrying", f"{tried}: {said}" if said else tried, warning=True)
        status = self._going(reason, message, started, retries=retries)
        return self._make(status, suspend=suspend, again=self._deadline())

    def _cluster(self, started: str) -> Plan | None:
        """What is to be done until its RayCluster is ready; None when it is."""
        name = cluster_name(self._metadata["name"])
        if not self._observed.has_ray:
            message = "this cluster has no RayClusters (ray.io/v1); install KubeRay, or give execution.ray.address"
            return self._waiting("RayClusterUnavailable", message, _LOOK_FOR_KIND)
        cluster = self._observed.cluster
        again = self._now + _LOOK_AT_CLUSTER
        if cluster is None:
            self._event("RayClusterCreated", f"created RayCluster {name}", first="startTime")
            status = self._going("WaitingForRayCluster", f"RayCluster {name} is made", started)
            manifest = ray_cluster_of(self._object, self._execution, self._observed.defaults)
            return self._make(status, create=[manifest], again=again)
        found = cluster.get("status") or {}
        ready = holds(found, "RayClusterProvisioned") or found.get("state") == "ready"
        if ready and cluster["metadata"].get("deletionTimestamp") is None:
            return None
        said = found.get("reason") or found.get("state") or "no pods yet"
        status = self._going("WaitingForRayCluster", f"RayCluster {name}: {said}", started)
        return self._make(status, again=again)

    def _ended(self, job: Mapping[str, Any]) -> Plan | None:
        """What is to be done when its Job has ended; None while it has not."""
        status = job.get("status") or {}
        if holds(status, COMPLETE):
            return self._complete()
        if not holds(status, FAILED):
            return None
        reason = reason_of(status, FAILED) or "JobFailed"
        why = {
            "PodFailurePolicy": "InvalidInput",
            "BackoffLimitExceeded": "BackoffLimitExceeded",
            "DeadlineExceeded": "DeadlineExceeded",
        }.get(reason, "JobFailed")
        words = self._last_words() or next(
            (entry.get("message") or "" for entry in status.get("conditions") or [] if entry["type"] == FAILED), ""
        )
        return self._fail(why, words or f"its Job has failed: {reason}")

    def _complete(self) -> Plan:
        outcome = self._outcome()
        given: dict[str, Any] = {}
        if outcome is None:
            message = "complete; what came of it is in the output, since the pod that knew is gone"
        else:
            result = outcome.model_dump(mode="json", by_alias=True, exclude_none=True, exclude={"links", "stages"})
            given = {"result": result, "links": outcome.links}
            given["stages"] = [
                {"name": stage.name, "state": "Complete", "seconds": stage.seconds, "reused": stage.reused}
                for stage in outcome.stages
            ]
            message = _in_words(outcome)
        self._event("Complete", message)
        self._drop_cluster()
        status = self._next(
            Said(SUSPENDED, False, "NotSuspended", "it is not suspended"),
            Said(PROGRESSING, False, "Complete", message),
            Said(COMPLETE, True, "Complete", message),
            completionTime=timestamp(self._now),
            progress=None,
            **given,
        )
        return self._make(status, again=self._now)

    def _too_long(self) -> Plan:
        """Its Job goes, so that its pods do."""
        job = self._observed.job
        if job is not None:
            self._delete.append(Delete("Job", job["metadata"]["name"], job["metadata"]["uid"]))
        seconds = self._execution.active_deadline_seconds
        return self._fail("DeadlineExceeded", f"it took longer than execution.activeDeadlineSeconds, {seconds}")

    def _fail(self, reason: str, message: str) -> Plan:
        self._event(reason, message, warning=True)
        self._drop_cluster()
        status = self._next(
            Said(SUSPENDED, False, "NotSuspended", "it is not suspended"),
            Said(PROGRESSING, False, reason, message),
            Said(FAILED, True, reason, message),
            completionTime=timestamp(self._now),
            progress=None,
        )
        return self._make(status, again=self._now)

    def _waiting(self, reason: str, message: str, look: timedelta | None) -> Plan:
        """It cannot go on, until something changes."""
        if reason_of(self._status, PROGRESSING) != reason:
            self._event(reason, message, warning=True)
        status = self._next(
            Said(SUSPENDED, False, "NotSuspended", "it is not suspended"),
            Said(PROGRESSING, False, reason, message),
        )
        return self._make(status, again=None if look is None else self._now + look)

    # what it is made of

    def _going(self, reason: str, message: str, started: str, **changes: Any) -> dict[str, Any]:
        return self._next(
            Said(SUSPENDED, False, "NotSuspended", "it is not suspended"),
            Said(PROGRESSING, True, reason, message),
            startTime=started,
            **changes,
        )

    def _next(self, *said: Said, **changes: Any) -> dict[str, Any]:
        """The status with these conditions and changes; None takes a field away."""
        generation = self._metadata.get("generation", 0)
        status = {**self._status, **changes, "observedGeneration": generation}
        status["conditions"] = conditions(self._status, said, generation, self._now)
        return {name: value for name, value in status.items() if value is not None}

    def _make(
        self,
        status: dict[str, Any],
        *,
        create: list[dict[str, Any]] | None = None,
        suspend: list[Suspend] | None = None,
        again: datetime | None = None,
    ) -> Plan:
        return Plan(
            delete=self._delete,
            create=create or [],
            suspend=suspend or [],
            status=status if status != self._status else None,
            events=self._events,
            again=again,
        )

    def _event(self, reason: str, message: str, *, warning: bool = False, first: str | None = None) -> None:
        """Record an event; with `first`, only if the status does not have that field yet."""
        if first is None or self._status.get(first) is None:
            self._events.append(Event(reason, message, "Warning" if warning else "Normal"))

    def _drop_cluster(self) -> None:
        cluster = self._observed.cluster
        if cluster is None or not is_owned(cluster, self._object):
            return
        if cluster["metadata"].get("deletionTimestamp") is None:
            self._delete.append(Delete("RayCluster", cluster["metadata"]["name"], cluster["metadata"]["uid"]))

    def _foreign(self) -> str | None:
        """The kind of a child's name that something else has."""
        for kind, child in (("Job", self._observed.job), ("RayCluster", self._observed.cluster)):
            if child is not None and not is_owned(child, self._object):
                return kind
        return None

    def _deadline(self) -> datetime | None:
        seconds = self._execution.active_deadline_seconds
        if seconds is None:
            return None
        started = self._status.get("startTime")
        return (self._now if started is None else instant(started)) + timedelta(seconds=seconds)

    def _left(self) -> timedelta:
        deadline = self._deadline()
        return timedelta.max if deadline is None else deadline - self._now

    def _pods_say(self) -> tuple[str, str]:
        """(reason, message) of work under way, from the newest pod."""
        for pod in reversed(self._observed.pods):
            status = pod.get("status") or {}
            for container in status.get("containerStatuses") or []:
                waiting = (container.get("state") or {}).get("waiting") or {}
                if waiting.get("reason") in ("ErrImagePull", "ImagePullBackOff", "InvalidImageName", *_CONFIGURATION):
                    return waiting["reason"], waiting.get("message") or waiting["reason"]
            if status.get("phase") == "Running":
                return "Running", f"pod {pod['metadata']['name']} runs"
            unscheduled = next(
                (
                    entry
                    for entry in status.get("conditions") or []
                    if entry["type"] == "PodScheduled" and entry["status"] == "False"
                ),
                None,
            )
            if unscheduled is not None:
                return unscheduled.get("reason") or "Unschedulable", unscheduled.get("message") or "no node takes it"
            if status.get("phase") in (None, "Pending"):
                return "Pending", f"pod {pod['metadata']['name']} is not running yet"
            break
        return "WaitingForPod", "the Job has no pod yet"

    def _last_words(self) -> str:
        """What the pod that failed last has said."""
        for pod in reversed(self._observed.pods):
            ended = _terminated(pod)
            if ended is None or not ended.get("exitCode"):
                continue
            lines = [line for line in (ended.get("message") or "").splitlines() if line.strip()]
            if lines:
                return str(lines[-1].strip())
            return f"exit code {ended['exitCode']}, {ended.get('reason') or 'no reason given'}"
        return ""

    def _outcome(self) -> Outcome | None:
        for pod in reversed(self._observed.pods):
            ended = _terminated(pod)
            if ended is not None and ended.get("exitCode") == 0:
                try:
                    return Outcome.model_validate_json(ended.get("message") or "")
                except ValidationError:
                    return None
        return None


_CONFIGURATION = ("CreateContainerConfigError", "CreateContainerError")


def _terminated(pod: Mapping[str, Any]) -> Mapping[str, Any] | None:
    for container in (pod.get("status") or {}).get("containerStatuses") or []:
        if container["name"] == CONTAINER:
            ended: Mapping[str, Any] | None = (container.get("state") or {}).get("terminated")
            return ended
    return None


def _in_words(outcome: Outcome) -> str:
    parts = [f"{outcome.images} synthetic images"]
    if outcome.recovered_gap is not None:
        parts.append(f"recovered gap {outcome.recovered_gap:.2f}")
    if outcome.model is not None:
        champion = ", the champion" if outcome.champion else ""
        parts.append(f"registered as {outcome.model}, version {outcome.version}{champion}")
    return "; ".join(parts)
