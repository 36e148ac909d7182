"""A Distillation whose pipeline runs on Kubeflow Pipelines. Pure.

A run's name holds the object's uid and when work on it began, so that one that was submitted is found again, whatever
the operator remembers. The object has a finalizer as long as a run of it may be under way, and not for ever.
"""

from __future__ import annotations

from collections.abc import Mapping
from datetime import datetime, timedelta
from typing import Any

from pydantic import ValidationError

from limbeck.kubeflow import CANCELED, CANCELING, DONE, SUCCEEDED, Run, Task
from limbeck.outcome import Outcome
from limbeck.spec import Distillation
from limbeck_operator import bounds
from limbeck_operator.conditions import instant, reason_of, timestamp
from limbeck_operator.drafting import PROGRESSING, Draft
from limbeck_operator.observed import Looked, Observed
from limbeck_operator.plan import Plan, Submit

_PATIENCE = timedelta(minutes=10)  # with a Kubeflow that does not answer, before the object goes without its run's end
_UNAVAILABLE = "KubeflowUnavailable"
_SUBMITTED = "its pipeline is submitted to Kubeflow"
_STATES = {
    "SUCCEEDED": "Complete",
    "SKIPPED": "Complete",
    "FAILED": "Failed",
    "CANCELED": "Failed",
    "PENDING": "Pending",
}


def run_name(metadata: Mapping[str, Any], started: str) -> str:
    """What a run is called that belongs to an object, for the time that work on it began at."""
    return f"{metadata['name']}-{metadata['uid'][:13]}-{int(instant(started).timestamp())}"


def names_of(document: Mapping[str, Any]) -> tuple[str, ...]:
    """The runs that Kubeflow is to be asked about: that of now, and an earlier one that may not have ended yet."""
    status = document.get("status") or {}
    known = status.get("kubeflow") or {"name": None, "state": CANCELED}
    names = [] if known["state"] in DONE else [known["name"]]
    if status.get("startTime") is not None:
        name = run_name(document["metadata"], status["startTime"])
        is_over = (
            known["state"] in DONE and known["state"] != CANCELED
        )  # suspended and resumed, it may be submitted yet
        if name not in names and not (name == known["name"] and is_over):
            names.append(name)
    return tuple(names)


class ByKubeflow:
    """See `Backend`."""

    def __init__(self, draft: Draft, observed: Observed, distillation: Distillation) -> None:
        self._draft, self._observed, self._distillation = draft, observed, distillation
        self._execution = distillation.spec.execution
        started = draft.started
        self._name = None if started is None else run_name(draft.metadata, started)
        looked = observed.kubeflow
        self._looked = looked
        self._run = None if looked is None else next((run for run in looked.runs if run.name == self._name), None)

    def obstacle(self) -> Plan | None:
        """See `Backend`."""
        return None

    def ended(self) -> Plan | None:
        """See `Backend`."""
        run = self._run
        if run is None or not run.is_done:
            return None
        if run.state == SUCCEEDED:
            return self._draft.complete(_outcome(run), kubeflow=_reference(run), **self._shown(run))
        if run.state == CANCELED:
            message = run.said or "its run was terminated on Kubeflow"
            return self._draft.fail("RunCanceled", message, kubeflow=_reference(run), **self._shown(run))
        message = run.said or f"its run on Kubeflow ended as {run.state.lower()}"
        return self._draft.fail("RunFailed", message, kubeflow=_reference(run), **self._shown(run))

    def suspend(self) -> Plan:
        """Its run is terminated; after that another goes on from what is finished."""
        active, unsure = _active(self._looked), self._looked is None or self._looked.trouble is not None
        known = self._draft.status.get("kubeflow")
        if active:
            known = _reference(active[0])
        elif unsure and self._name is not None and (known or {}).get("name") != self._name:
            known = {"name": self._name, "state": "PENDING"}  # perhaps it was submitted
        elif not unsure and known is not None and known["state"] not in DONE:
            known = {**known, "state": CANCELED}
        is_over = known is None or known["state"] in DONE
        again = None if is_over else self._draft.now + self._observed.every
        return self._draft.suspended(terminate=_to_terminate(active), again=again, kubeflow=known)

    def expire(self) -> Plan:
        """Its run is terminated."""
        seconds = self._execution.active_deadline_seconds
        message = f"it took longer than execution.activeDeadlineSeconds, {seconds}"
        return self._draft.fail("DeadlineExceeded", message, terminate=_to_terminate(_active(self._looked)))

    def go_on(self) -> Plan:
        """Its run is submitted once no earlier one is under way."""
        draft, looked = self._draft, self._looked
        if looked is not None and looked.trouble is not None:
            return draft.waiting(_UNAVAILABLE, looked.trouble, self._observed.every)
        if not draft.has_finalizer():
            return Plan(finalizer=True)
        if self._name is None:
            known = draft.status.get("kubeflow") or {}
            if "id" in known and known["name"] == run_name(draft.metadata, timestamp(draft.now)):
                # suspended and resumed in one second: another run would have the name of the one that was terminated
                return Plan(again=draft.now + timedelta(seconds=1))
            return draft.make(draft.going("Submitting", _SUBMITTED), again=draft.now)
        again = self._again()
        if looked is None:
            return Plan(again=again)
        earlier = [run for run in _active(looked) if run.name != self._name]
        if earlier:
            status = draft.going("WaitingForEarlierRun", f"{earlier[0].link} is being terminated")
            return draft.make(status, terminate=_to_terminate(earlier), again=again)
        if self._run is None:
            submit = Submit(self._name, self._distillation)
            if reason_of(draft.status, PROGRESSING) == _UNAVAILABLE:  # until it is there: it may be refused once more
                return Plan(submit=submit, again=again)
            return draft.make(draft.going("Submitting", _SUBMITTED), submit=submit, again=again)
        known = draft.status.get("kubeflow") or {}
        if known.get("name") != self._run.name:
            draft.event("Started", f"submitted to Kubeflow: {self._run.link}")
        reason = {"RUNNING": "Running", CANCELING: "Canceling"}.get(self._run.state, "Pending")
        message = f"{self._run.link}: {self._run.state.lower()}"
        changes = {"kubeflow": _reference(self._run), **self._shown(self._run)}
        return draft.make(draft.going(reason, message, **changes), again=again)

    def _again(self) -> datetime:
        again = self._draft.now + self._observed.every
        deadline = self._draft.deadline(self._execution.active_deadline_seconds)
        return again if deadline is None else min(again, deadline)

    def _shown(self, run: Run) -> dict[str, Any]:
        """What the status says of the tasks of a run."""
        stages: dict[str, dict[str, Any]] = {}
        for task in run.tasks:
            stages[task.name] = _stage(task)
        links = {**(self._draft.status.get("links") or {}), **bounds.links({"kubeflow": run.link})}
        changes: dict[str, Any] = {"stages": bounds.stages(stages.values()), "links": links}
        running = [name for name, stage in stages.items() if stage["state"] == "Running"]
        if not running:
            return {**changes, "progress": None}
        before = self._draft.status.get("progress") or {}
        stage = bounds.short(running[-1])
        since = before.get("lastUpdatedTime") if before.get("stage") == stage else None
        progress = {"stage": stage, "lastUpdatedTime": since or timestamp(self._draft.now)}
        return {**changes, "progress": progress}


def let_go(draft: Draft, looked: Looked | None, since: str, every: timedelta) -> Plan | None:
    """What is to be done about what an object still has on Kubeflow, though nothing may run for it any more.

    Args:
        draft: of the object's plan.
        looked: what Kubeflow has last said of its runs.
        since: when it was finished, or deleted.
        every: how often Kubeflow may be asked.

    Returns:
        None where there is nothing.
    """
    if not draft.has_finalizer():
        return None
    impatient = draft.now - instant(since) >= _PATIENCE
    again = draft.now + every
    if names_of(draft.object) and not impatient:
        if looked is None or looked.trouble is not None:
            return Plan(again=again)
        active = _active(looked)
        if _to_terminate(active):
            return Plan(terminate=_to_terminate(active), again=again)
    return Plan(finalizer=False)


def _active(looked: Looked | None) -> list[Run]:
    return [] if looked is None else [run for run in looked.runs if not run.is_done]


def _to_terminate(active: list[Run]) -> list[str]:
    return [run.id for run in active if run.state != CANCELING]


def _reference(run: Run) -> dict[str, Any]:
    return {"id": run.id, "name": run.name, "state": run.state}


def _stage(task: Task) -> dict[str, Any]:
    stage: dict[str, Any] = {"name": task.name, "state": _STATES.get(task.state, "Running")}
    if task.began is not None and task.ended is not None and task.ended > task.began:
        stage["seconds"] = round((task.ended - task.began).total_seconds(), 1)
    return stage


def _outcome(run: Run) -> Outcome | None:
    try:
        return Outcome.model_validate_json(run.said)
    except ValidationError:
        return None
