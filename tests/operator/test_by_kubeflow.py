"""The pure reconcile of a Distillation that runs on Kubeflow: for everything that can be seen, what is decided."""

from __future__ import annotations

from datetime import UTC, datetime, timedelta
from typing import Any

import pytest

from limbeck.kubeflow import Run, Task
from limbeck.outcome import Outcome
from limbeck_operator import api
from limbeck_operator.by_kubeflow import names_of, run_name
from limbeck_operator.conditions import timestamp
from limbeck_operator.distillation import reconcile
from limbeck_operator.observed import Looked, Observed
from limbeck_operator.plan import Delete, Plan
from tests.operator.test_distillation import said

NOW = datetime(2026, 11, 24, 12, 0, tzinfo=UTC)
AGO = timestamp(NOW - timedelta(minutes=10))
NAME = run_name({"name": "one", "uid": "u1"}, AGO)
OUTCOME = Outcome(source_fingerprint="f", digest="d", images=5, recovered_gap=0.5, links={"mlflow": "m"})
SOON = NOW + timedelta(seconds=15)


def distillation(execution: dict[str, Any] | None = None, *, kept: bool = True, **status: Any) -> dict[str, Any]:
    settings = {"backend": "kubeflow"} | (execution or {})
    spec = {"source": {"uri": "gs://b/in"}, "output": {"uri": "gs://b/out"}, "execution": settings}
    metadata: dict[str, Any] = {
        "name": "one",
        "namespace": "ns",
        "uid": "u1",
        "generation": 2,
        "resourceVersion": "7",
        "finalizers": [api.FINALIZER] if kept else [],
    }
    document = {"apiVersion": api.API_VERSION, "kind": api.DISTILLATION, "metadata": metadata, "spec": spec}
    return document | ({"status": status} if status else {})


def run(state: str, *tasks: tuple[str, str], name: str = NAME, said: str = "", id: str = "r1") -> Run:  # noqa: A002
    return Run(id, name, state, f"http://kubeflow/{id}", [Task(f"t-{t}", t, s) for t, s in tasks], said)


def seen(document: dict[str, Any], *runs: Run, trouble: str | None = None) -> Plan:
    return reconcile(Observed(document, kubeflow=Looked(runs, trouble)), NOW)


def reference(state: str, name: str = NAME) -> dict[str, Any]:
    return {"id": "r1", "name": name, "state": state}


FAILED = {
    "completionTime": AGO,
    "startTime": AGO,
    "conditions": [
        {"type": "Failed", "status": "True", "reason": "x", "message": "", "lastTransitionTime": AGO}
        | {"observedGeneration": 2}
    ],
}


def test_a_new_one_is_kept_first_then_begun_then_submitted():
    plan = reconcile(Observed(distillation(kept=False)), NOW)
    assert plan == Plan(finalizer=True)
    plan = reconcile(Observed(distillation()), NOW)
    assert said(plan)["Progressing"] == ("True", "Submitting")
    assert (plan.status["startTime"], plan.submit) == (timestamp(NOW), None)
    begun = distillation() | {"status": plan.status}
    unknown = reconcile(Observed(begun), NOW)
    assert (unknown.submit, unknown.status, unknown.again) == (None, None, SOON)
    plan = seen(begun)
    assert plan.submit is not None
    assert plan.submit.name == names_of(begun)[0] == run_name({"name": "one", "uid": "u1"}, timestamp(NOW))
    assert plan.submit.distillation.metadata.name == "one"
    assert plan.again == SOON


def test_what_runs_shows_its_tasks():
    tasks = ("fingerprint", "SUCCEEDED"), ("ingest", "SUCCEEDED"), ("teacher", "RUNNING"), ("targets", "PENDING")
    plan = seen(distillation(startTime=AGO), run("RUNNING", *tasks))
    assert said(plan)["Progressing"] == ("True", "Running")
    assert plan.status["kubeflow"] == reference("RUNNING")
    assert plan.status["links"] == {"kubeflow": "http://kubeflow/r1"}
    assert [(stage["name"], stage["state"]) for stage in plan.status["stages"]] == [
        ("fingerprint", "Complete"),
        ("ingest", "Complete"),
        ("teacher", "Running"),
        ("targets", "Pending"),
    ]
    assert plan.status["progress"] == {"stage": "teacher", "lastUpdatedTime": timestamp(NOW)}
    assert [event.reason for event in plan.events] == ["Started"]
    assert (plan.again, plan.submit, plan.terminate) == (SOON, None, [])
    again = reconcile(
        Observed(distillation() | {"status": plan.status}, kubeflow=Looked([run("RUNNING", *tasks)])),
        NOW + timedelta(seconds=15),
    )
    assert (again.status, again.events) == (None, [])


@pytest.mark.parametrize(
    ("state", "words", "condition", "reason", "message"),
    [
        ("SUCCEEDED", OUTCOME.text(), "Complete", "Complete", "5 synthetic images; recovered gap 0.50"),
        ("SUCCEEDED", "", "Complete", "Complete", "complete; what came of it is in the output"),
        ("FAILED", "teacher: the disk is full", "Failed", "RunFailed", "teacher: the disk is full"),
        ("FAILED", "", "Failed", "RunFailed", "its run on Kubeflow ended as failed"),
        ("CANCELED", "", "Failed", "RunCanceled", "its run was terminated on Kubeflow"),
    ],
)
def test_it_ends_as_its_run_does(state, words, condition, reason, message):
    plan = seen(distillation(startTime=AGO, kubeflow=reference("RUNNING")), run(state, said=words))
    assert said(plan)[condition] == ("True", reason)
    assert plan.status["conditions"][-1]["message"].startswith(message)
    assert plan.status["completionTime"] == timestamp(NOW)
    assert plan.status["kubeflow"] == reference(state)
    assert ("result" in plan.status) == (words == OUTCOME.text())
    finished = distillation() | {"status": plan.status}
    assert seen(finished, run(state)) == Plan(finalizer=False)


def test_suspended_it_is_terminated_and_another_run_goes_on_when_that_has_ended():
    running = distillation({"suspend": True}, startTime=AGO, kubeflow=reference("RUNNING"))
    plan = seen(running, run("RUNNING"))
    assert plan.terminate == ["r1"]
    assert said(plan)["Suspended"] == ("True", "SuspendedBySpec")
    assert "startTime" not in plan.status
    assert plan.again == SOON
    resumed = distillation() | {"status": plan.status}
    begun = seen(resumed, run("CANCELING"))
    assert begun.status["startTime"] == timestamp(NOW)
    waiting = seen(resumed | {"status": begun.status}, run("CANCELING"))
    assert said(waiting)["Progressing"] == ("True", "WaitingForEarlierRun")
    assert (waiting.terminate, waiting.submit) == ([], None)  # it was asked for
    after = seen(resumed | {"status": waiting.status}, run("CANCELED"))
    assert after.submit.name not in ("", NAME)


def test_a_run_that_was_submitted_unseen_is_not_lost_by_suspending():
    plan = reconcile(Observed(distillation({"suspend": True}, startTime=AGO)), NOW)
    assert plan.status["kubeflow"] == {"name": NAME, "state": "PENDING"}
    suspended = distillation({"suspend": True}) | {"status": plan.status}
    assert names_of(suspended) == (NAME,)
    found = seen(suspended, run("RUNNING"))
    assert (found.terminate, found.status["kubeflow"]) == (["r1"], reference("RUNNING"))
    not_there = seen(suspended)
    assert not_there.status["kubeflow"]["state"] == "CANCELED"
    assert not_there.again is None


def test_resumed_within_the_second_it_is_submitted_all_the_same():
    suspended = seen(distillation({"suspend": True}, kubeflow={"name": NAME, "state": "PENDING"}))
    resumed = distillation(startTime=AGO, kubeflow=suspended.status["kubeflow"])
    assert names_of(resumed) == (NAME,)
    assert seen(resumed).submit.name == NAME


def test_resumed_within_the_second_that_its_run_began_in_it_waits_for_another_name():
    resumed = distillation(kubeflow=reference("CANCELED"))
    began = NOW - timedelta(minutes=10)
    plan = reconcile(Observed(resumed, kubeflow=Looked([run("CANCELED")])), began + timedelta(milliseconds=900))
    assert plan == Plan(again=began + timedelta(milliseconds=1900))
    plan = reconcile(Observed(resumed, kubeflow=Looked([run("CANCELED")])), plan.again)
    begun = resumed | {"status": plan.status}
    assert names_of(begun) != (NAME,)
    assert seen(begun, run("CANCELED")).submit.name == names_of(begun)[0]


def test_what_is_suspended_from_the_start_asks_nobody():
    document = distillation({"suspend": True}, kept=False)
    assert names_of(document) == ()
    plan = reconcile(Observed(document), NOW)
    assert (plan.again, plan.terminate, plan.finalizer) == (None, [], None)


def test_the_deadline_terminates_it():
    late = distillation({"activeDeadlineSeconds": 600}, startTime=AGO, kubeflow=reference("RUNNING"))
    plan = seen(late, run("RUNNING"))
    assert said(plan)["Failed"] == ("True", "DeadlineExceeded")
    assert plan.terminate == ["r1"]
    after = distillation({"activeDeadlineSeconds": 600}) | {"status": plan.status}
    assert seen(after, run("RUNNING")).terminate == ["r1"]  # as long as it runs
    assert seen(after, run("CANCELING")) == Plan(finalizer=False)
    early = reconcile(Observed(late, kubeflow=Looked([run("RUNNING")])), NOW - timedelta(seconds=5))
    assert early.again == NOW


def test_deleted_it_goes_once_its_run_is_terminated():
    document = distillation(startTime=AGO, kubeflow=reference("RUNNING"))
    document["metadata"]["deletionTimestamp"] = timestamp(NOW)
    assert reconcile(Observed(document), NOW) == Plan(again=SOON)
    assert seen(document, run("RUNNING")) == Plan(terminate=["r1"], again=SOON)
    assert seen(document, run("CANCELING")) == Plan(finalizer=False)
    assert seen(document) == Plan(finalizer=False)
    assert seen(document, trouble="it does not answer") == Plan(again=SOON)


def test_no_kubeflow_keeps_it_for_ever():
    document = distillation(startTime=AGO, kubeflow=reference("RUNNING"))
    document["metadata"]["deletionTimestamp"] = AGO
    assert seen(document, trouble="it does not answer") == Plan(finalizer=False)
    assert reconcile(Observed(document), NOW) == Plan(finalizer=False)
    document["spec"] = {"not": "valid"}
    assert seen(document, trouble="it does not answer") == Plan(finalizer=False)


def test_what_never_ran_goes_at_once():
    document = distillation()
    document["metadata"]["deletionTimestamp"] = timestamp(NOW)
    assert reconcile(Observed(document), NOW) == Plan(finalizer=False)
    without = distillation(kept=False)
    without["metadata"]["deletionTimestamp"] = timestamp(NOW)
    assert reconcile(Observed(without), NOW) == Plan()


def test_a_kubeflow_that_does_not_answer_is_told():
    plan = seen(distillation(kept=False), trouble="Kubeflow at http://k: not allowed (403)")
    assert said(plan)["Progressing"] == ("False", "KubeflowUnavailable")
    assert (plan.finalizer, plan.submit, plan.again) == (None, None, SOON)
    assert [event.message for event in plan.events] == ["Kubeflow at http://k: not allowed (403)"]
    running = distillation(startTime=AGO, kubeflow=reference("RUNNING"))
    plan = seen(running, trouble="it does not answer")
    assert plan.status["startTime"] == AGO
    assert said(seen(running | {"status": plan.status}, run("RUNNING")))["Progressing"] == ("True", "Running")


def test_after_its_time_it_goes_but_not_before_its_run():
    finished = distillation({"ttlSecondsAfterFinished": 5}, **FAILED, kubeflow=reference("RUNNING"))
    assert seen(finished, run("RUNNING")).delete == []
    late = distillation({"ttlSecondsAfterFinished": 5}, kept=False, **FAILED, kubeflow=reference("CANCELED"))
    assert seen(late).delete == [Delete(api.DISTILLATION, "one", "u1")]


def test_names_fit_kubeflow_and_tell_objects_and_times_apart():
    metadata = {"name": "n" * 63, "uid": "0b0e8f5c-7a8e-4a39-9d0c-1f1f2f3f4f5f"}
    assert len(run_name(metadata, AGO)) <= 128
    assert run_name(metadata, AGO) != run_name(metadata, timestamp(NOW))
    assert run_name(metadata, AGO) != run_name(metadata | {"uid": "0b0e8f5c-7a8f-4a39-9d0c-1f1f2f3f4f5f"}, AGO)


def test_given_to_a_job_while_suspended_it_first_lets_its_run_go():
    progressing = {"type": "Progressing", "status": "False", "reason": "SuspendedBySpec", "lastTransitionTime": AGO}
    status = {"kubeflow": reference("RUNNING"), "conditions": [progressing | {"message": "", "observedGeneration": 1}]}
    fresh = progressing | {"message": "", "observedGeneration": 1, "lastTransitionTime": timestamp(NOW)}
    document = distillation({"backend": "job"}, **{**status, "conditions": [fresh]})
    assert reconcile(Observed(document), NOW).finalizer is None
    assert seen(document, run("RUNNING")).terminate == ["r1"]
    assert seen(document, run("CANCELED")) == Plan(finalizer=False)
    assert seen(distillation({"backend": "job"}, **status), trouble="no answer") == Plan(finalizer=False)
    assert seen(distillation({"backend": "job"}, kept=False, **status)).create[0]["kind"] == "Job"


def test_a_submission_that_is_refused_again_and_again_is_told_once():
    document, reasons = distillation(startTime=AGO), []
    for _ in range(5):
        for plan in (seen(document), seen(document, trouble="Kubeflow at http://k: no such image")):
            reasons += [event.reason for event in plan.events]
            document = document | ({"status": plan.status} if plan.status else {})
        assert seen(document).submit is not None
    assert reasons == ["KubeflowUnavailable"]
    assert said(seen(document, run("RUNNING")))["Progressing"] == ("True", "Running")
