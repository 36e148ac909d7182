"""The reconcile of a Distillation: what is seen of it and its children, and the time, give a plan. Pure."""

from __future__ import annotations

import json
from collections.abc import Mapping
from datetime import datetime, timedelta
from typing import Any, TypeVar

from pydantic import BaseModel, ValidationError

from limbeck.cluster import check_for_cluster, check_for_kubeflow
from limbeck.errors import InputError
from limbeck.spec import Distillation
from limbeck_operator import api
from limbeck_operator.by_job import ByJob, drop_cluster
from limbeck_operator.by_kubeflow import ByKubeflow, let_go
from limbeck_operator.conditions import holds, instant, timestamp
from limbeck_operator.drafting import COMPLETE, FAILED, PROGRESSING, Backend, Draft
from limbeck_operator.inherit import Defaults, check_account, inherit
from limbeck_operator.observed import Observed
from limbeck_operator.plan import Delete, Plan

M = TypeVar("M", bound=BaseModel)


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


def read(document: Mapping[str, Any], defaults: Defaults) -> Distillation:
    """The Distillation that an object of the API server is, with what it inherits.

    Raises:
        InputError: it is none that this operator can run.
    """
    metadata = document["metadata"]
    spec = inherit(document.get("spec") or {}, defaults, metadata["namespace"], metadata["name"])
    distillation = model_of({**document, "spec": spec}, Distillation)
    check_for_cluster(distillation.spec)
    check_account(distillation.spec.execution, defaults, metadata["namespace"])
    if distillation.spec.execution.backend == "kubeflow":
        check_for_kubeflow(distillation.spec)
    return distillation


def reconcile(observed: Observed, now: datetime) -> Plan:
    """What is to be done about a Distillation.

    Args:
        observed: what is there.
        now: the time, with a time zone.
    """
    draft = Draft(observed.object, now)
    if draft.is_deleted():  # its children go with it
        return let_go(draft, observed.kubeflow, draft.metadata["deletionTimestamp"], observed.every) or Plan()
    try:
        distillation = read(observed.object, observed.defaults)
    except InputError as error:
        return Plan() if is_finished(draft.status) else draft.waiting("InvalidSpec", str(error), None)
    execution = distillation.spec.execution
    if is_finished(draft.status):
        return _finished(draft, observed, execution.ttl_seconds_after_finished)
    backend: Backend
    if execution.backend == "kubeflow":
        backend = ByKubeflow(draft, observed, distillation)
    else:
        left = let_go(draft, observed.kubeflow, _stopped(draft), observed.every)
        if left is not None:  # it was Kubeflow's, until it was edited while suspended
            return left
        backend = ByJob(draft, observed, distillation)
    stopped = backend.obstacle() or backend.ended()
    if stopped is not None:
        return stopped
    if execution.suspend:
        return backend.suspend()
    deadline = draft.deadline(execution.active_deadline_seconds)
    if deadline is not None and deadline <= now:
        return backend.expire()
    return backend.go_on()


def _stopped(draft: Draft) -> str:
    """Since when what Progressing says holds: it was suspended then."""
    said = (entry for entry in draft.status.get("conditions") or [] if entry["type"] == PROGRESSING)
    return next((str(entry["lastTransitionTime"]) for entry in said), timestamp(draft.now))


def _finished(draft: Draft, observed: Observed, ttl: int | None) -> Plan:
    """Nothing more is made; what it no longer needs goes, and in the end itself."""
    drop_cluster(draft, observed)
    left = let_go(draft, observed.kubeflow, draft.status["completionTime"], observed.every)
    if left is not None:
        return left
    again = None
    if ttl is not None:
        again = instant(draft.status["completionTime"]) + timedelta(seconds=ttl)
        if again <= draft.now:
            mine = Delete(api.DISTILLATION, draft.name, draft.metadata["uid"])
            return Plan(delete=[*draft.delete, mine])
    return Plan(delete=draft.delete, again=again)
