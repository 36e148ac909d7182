"""A Distillation that a Job of its name runs, beside a RayCluster where it asks for one. Pure."""

from __future__ import annotations

from collections.abc import Mapping
from datetime import datetime, timedelta
from typing import Any

from pydantic import ValidationError

from limbeck.outcome import Outcome
from limbeck.spec import Distillation
from limbeck.standing import Standing
from limbeck_operator import api, bounds
from limbeck_operator.conditions import holds, reason_of
from limbeck_operator.drafting import COMPLETE, FAILED, Draft
from limbeck_operator.manifests import CONTAINER, cluster_name, is_owned, ray_cluster_of, run_job, settings_of
from limbeck_operator.observed import Observed
from limbeck_operator.plan import Delete, Limit, Plan, Suspend

_LOOK_AT_CLUSTER, _LOOK_FOR_KIND = timedelta(seconds=5), timedelta(seconds=30)
_NO_POD = "WaitingForPod", "the Job has no pod yet"
_REASONS = {
    "PodFailurePolicy": "InvalidInput",
    "BackoffLimitExceeded": "BackoffLimitExceeded",
    "DeadlineExceeded": "DeadlineExceeded",
}
_IMAGE = ("ErrImagePull", "ImagePullBackOff", "InvalidImageName")
_CONFIGURATION = ("CreateContainerConfigError", "CreateContainerError")


class ByJob:
    """See `Backend`."""

    def __init__(self, draft: Draft, observed: Observed, distillation: Distillation) -> None:
        self._draft, self._observed, self._distillation = draft, observed, distillation
        self._execution = distillation.spec.execution
        self._job = observed.job

    def obstacle(self) -> Plan | None:
        """See `Backend`."""
        for kind, child in (("Job", self._job), ("RayCluster", self._observed.cluster)):
            if child is not None and not is_owned(child, self._draft.object):
                message = f"there is a {kind} of this name that is not its own"
                return self._draft.waiting("NameTaken", message, _LOOK_FOR_KIND)
        if self._job is not None and self._job["metadata"].get("deletionTimestamp") is not None:
            message = "its Job is being deleted; another is made then"
            return self._draft.waiting("JobBeingDeleted", message, _LOOK_AT_CLUSTER)
        return None

    def ended(self) -> Plan | None:
        """See `Backend`."""
        status = {} if self._job is None else self._job.get("status") or {}
        if holds(status, COMPLETE):
            drop_cluster(self._draft, self._observed)
            return self._draft.complete(self._outcome())
        if not holds(status, FAILED):
            return None
        reason = reason_of(status, FAILED) or "JobFailed"
        words = self._last_words() or next(
            (entry.get("message") or "" for entry in status.get("conditions") or [] if entry["type"] == FAILED), ""
        )
        drop_cluster(self._draft, self._observed)
        return self._draft.fail(_REASONS.get(reason, "JobFailed"), words or f"its Job has failed: {reason}")

    def suspend(self) -> Plan:
        """Its Job stays, without pods; its cluster goes."""
        drop_cluster(self._draft, self._observed)
        if self._job is None or self._job["spec"].get("suspend"):
            return self._draft.suspended()
        return self._draft.suspended(suspend=[Suspend(self._job["metadata"]["name"], True)])

    def expire(self) -> Plan:
        """Its Job goes, so that its pods do."""
        if self._job is not None:
            metadata = self._job["metadata"]
            self._draft.delete.append(Delete("Job", metadata["name"], metadata["uid"]))
        drop_cluster(self._draft, self._observed)
        seconds = self._execution.active_deadline_seconds
        return self._draft.fail("DeadlineExceeded", f"it took longer than execution.activeDeadlineSeconds, {seconds}")

    def go_on(self) -> Plan:
        """Its cluster first, where it asks for one, then its Job."""
        draft, job = self._draft, self._job
        deadline = draft.deadline(self._execution.active_deadline_seconds)
        if self._execution.ray.cluster is not None:
            waiting = self._cluster()
            if waiting is not None:
                return waiting
        if job is None:
            draft.event("Started", f"created Job {draft.name}", first="startTime")
            status = draft.going(*_NO_POD)  # which is so until there is one: one write less
            manifest = run_job(draft.object, self._distillation, self._observed.defaults)
            return draft.make(status, create=[manifest], again=deadline)
        if self._is_of_other_settings(job):
            draft.delete.append(Delete("Job", job["metadata"]["name"], job["metadata"]["uid"]))
            status = draft.going("JobBeingDeleted", "its settings have changed; another Job is made")
            return draft.make(status, again=draft.now + _LOOK_AT_CLUSTER)
        suspend = []
        if job["spec"].get("suspend"):
            suspend = [Suspend(job["metadata"]["name"], False)]
            draft.event("Resumed", "resumed; it goes on from what is finished")
        retries = (job.get("status") or {}).get("failed") or 0
        if retries > (draft.status.get("retries") or 0):
            said = self._last_words()
            tried = f"try {retries} of {self._execution.backoff_limit + 1} has failed"
            draft.event("Retrying", f"{tried}: {said}" if said else tried, warning=True)
        reason, message = self._pods_say()
        again = self._ask_again(reason, deadline)
        status = draft.going(reason, message, retries=retries, **self._progress())
        return draft.make(status, limit=self._limits(job), suspend=suspend, again=again)

    def _limits(self, job: Mapping[str, Any]) -> list[Limit]:
        """What has been edited since its Job was made and may be at any time."""
        execution, spec = self._execution, job["spec"]
        wanted = {"backoffLimit": execution.backoff_limit, "activeDeadlineSeconds": execution.active_deadline_seconds}
        if api.CONTENT not in (job["metadata"].get("annotations") or {}):
            return []  # it is not as this operator makes them
        changed = {name: value for name, value in wanted.items() if spec.get(name) != value}
        return [Limit(job["metadata"]["name"], job["metadata"]["uid"], changed)] if changed else []

    def _is_of_other_settings(self, job: Mapping[str, Any]) -> bool:
        """Whether a Job that does not work yet, or no longer, was made before its settings were edited."""
        if not job["spec"].get("suspend") and self._draft.started is not None:
            return False  # once it has started they stay
        known = job["metadata"].get("annotations") or {}
        return api.CONTENT in known and known[api.CONTENT] != settings_of(self._draft.object)

    def _ask_again(self, reason: str, deadline: datetime | None) -> datetime | None:
        """A pod that runs is asked how far it is, again and again."""
        if reason != "Running":
            return deadline
        again = self._draft.now + self._observed.every
        return again if deadline is None else min(again, deadline)

    def _progress(self) -> dict[str, Any]:
        """What the status says of how far the work is; what it said before, where the pod has not answered."""
        standing = self._observed.standing
        if standing is None or not standing.run:
            return {}
        stages = [stage.model_dump(mode="json", by_alias=True, exclude_none=True) for stage in standing.stages]
        links = bounds.links(standing.links)
        changes: dict[str, Any] = {"stages": bounds.stages(stages), "progress": _progress_of(standing)}
        if links:
            changes["links"] = {**(self._draft.status.get("links") or {}), **links}
        return changes

    def _cluster(self) -> Plan | None:
        """What is to be done until its RayCluster is ready; None when it is."""
        draft, name = self._draft, cluster_name(self._draft.name)
        if not self._observed.has_ray:
            message = "this cluster has no RayClusters (ray.io/v1); install KubeRay, or give execution.ray.address"
            return draft.waiting("RayClusterUnavailable", message, _LOOK_FOR_KIND)
        cluster, again = self._observed.cluster, draft.now + _LOOK_AT_CLUSTER
        if cluster is None:
            draft.event("RayClusterCreated", f"created RayCluster {name}", first="startTime")
            status = draft.going("WaitingForRayCluster", f"RayCluster {name} is made")
            manifest = ray_cluster_of(draft.object, self._execution, self._observed.defaults)
            return draft.make(status, create=[manifest], again=again)
        found = cluster.get("status") or {}
        ready = holds(found, "RayClusterProvisioned") or found.get("state") == "ready"
        if ready and cluster["metadata"].get("deletionTimestamp") is None:
            return None
        said = found.get("reason") or found.get("state") or "no pods yet"
        return draft.make(draft.going("WaitingForRayCluster", f"RayCluster {name}: {said}"), again=again)

    def _pods_say(self) -> tuple[str, str]:
        """(reason, message) of work under way, from the newest pod."""
        for pod in reversed(self._observed.pods):
            status = pod.get("status") or {}
            for container in status.get("containerStatuses") or []:
                waiting = (container.get("state") or {}).get("waiting") or {}
                if waiting.get("reason") in (*_IMAGE, *_CONFIGURATION):
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
        return _NO_POD

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


def drop_cluster(draft: Draft, observed: Observed) -> None:
    """Have its RayCluster go."""
    cluster = observed.cluster
    if cluster is None or not is_owned(cluster, draft.object):
        return
    if cluster["metadata"].get("deletionTimestamp") is None:
        draft.delete.append(Delete("RayCluster", cluster["metadata"]["name"], cluster["metadata"]["uid"]))


def _progress_of(standing: Standing) -> dict[str, Any] | None:
    if standing.stage is None:
        return None
    told = {"stage", "percentage", "estimated_remaining_seconds", "metrics", "last_updated_time"}
    return bounds.progress(standing.model_dump(mode="json", by_alias=True, exclude_none=True, include=told))


def _terminated(pod: Mapping[str, Any]) -> Mapping[str, Any] | None:
    for container in (pod.get("status") or {}).get("containerStatuses") or []:
        if container["name"] == CONTAINER:
            ended: Mapping[str, Any] | None = (container.get("state") or {}).get("terminated")
            return ended
    return None
