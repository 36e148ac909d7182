"""The pure reconcile of a Distillation: for everything that can be seen, what is decided."""

from __future__ import annotations

import json
from copy import deepcopy
from datetime import UTC, datetime, timedelta
from typing import Any

import pytest

from limbeck_operator import api
from limbeck_operator.conditions import timestamp
from limbeck_operator.distillation import reconcile
from limbeck_operator.observed import Observed
from limbeck_operator.plan import Delete, Limit, Plan, Suspend

NOW = datetime(2026, 11, 24, 12, 0, tzinfo=UTC)
AGO = timestamp(NOW - timedelta(minutes=10))
OUTCOME = {"sourceFingerprint": "f", "digest": "d", "images": 5, "recoveredGap": 0.5, "links": {"mlflow": "m"}}


def distillation(execution: dict[str, Any] | None = None, **status: Any) -> dict[str, Any]:
    spec = {"source": {"uri": "gs://b/in"}, "output": {"uri": "gs://b/out"}, "execution": execution or {}}
    metadata = {"name": "one", "namespace": "ns", "uid": "u1", "generation": 2, "resourceVersion": "7"}
    return {"apiVersion": api.API_VERSION, "kind": api.DISTILLATION, "metadata": metadata, "spec": spec} | (
        {"status": status} if status else {}
    )


def child(kind: str, name: str, spec: dict[str, Any] | None = None, owner: str = "u1", **status: Any) -> dict[str, Any]:
    references = [{"uid": owner, "controller": True, "kind": api.DISTILLATION, "name": "one"}]
    metadata = {"name": name, "namespace": "ns", "uid": f"{kind}-uid", "ownerReferences": references}
    return {"kind": kind, "metadata": metadata, "spec": spec or {}, "status": status}


def job(spec: dict[str, Any] | None = None, owner: str = "u1", **status: Any) -> dict[str, Any]:
    return child("Job", "one", spec, owner, **status)


def ended(condition: str, reason: str = "") -> dict[str, Any]:
    return {"conditions": [{"type": condition, "status": "True", "reason": reason, "message": "said by Kubernetes"}]}


def pod(phase: str, state: dict[str, Any] | None = None, **status: Any) -> dict[str, Any]:
    containers = [{"name": "limbeck", "state": state}] if state is not None else []
    return {"metadata": {"name": "one-x"}, "status": {"phase": phase, "containerStatuses": containers} | status}


def over(code: int, message: str = "") -> dict[str, Any]:
    return {"terminated": {"exitCode": code, "message": message, "reason": "Error"}}


def said(plan: Plan) -> dict[str, tuple[str, str]]:
    assert plan.status is not None
    return {entry["type"]: (entry["status"], entry["reason"]) for entry in plan.status["conditions"]}


def condition(kind: str, reason: str, status: str = "True") -> dict[str, Any]:
    return {
        "type": kind,
        "status": status,
        "reason": reason,
        "message": "",
        "lastTransitionTime": AGO,
        "observedGeneration": 2,
    }


COMPLETE = {"conditions": [condition("Complete", "Complete")], "completionTime": AGO, "startTime": AGO}
RAY = {"image": "limbeck:1", "ray": {"cluster": {}}}


def test_a_new_one_gets_its_job():
    plan = reconcile(Observed(distillation({"backoffLimit": 4, "activeDeadlineSeconds": 60})), NOW)
    (manifest,) = plan.create
    assert (manifest["kind"], manifest["metadata"]["name"]) == ("Job", "one")
    assert (manifest["spec"]["backoffLimit"], manifest["spec"]["activeDeadlineSeconds"]) == (4, 60)
    assert said(plan) == {"Suspended": ("False", "NotSuspended"), "Progressing": ("True", "WaitingForPod")}
    assert plan.status["startTime"] == timestamp(NOW)
    assert plan.status["observedGeneration"] == 2
    assert plan.again == NOW + timedelta(seconds=60)
    assert [event.reason for event in plan.events] == ["Started"]


@pytest.mark.parametrize(
    ("pods", "reason"),
    [
        ([], "WaitingForPod"),
        ([pod("Pending")], "Pending"),
        ([pod("Pending", {"waiting": {"reason": "ImagePullBackOff", "message": "no such image"}})], "ImagePullBackOff"),
        (
            [pod("Pending", conditions=[{"type": "PodScheduled", "status": "False", "reason": "Unschedulable"}])],
            "Unschedulable",
        ),
        ([pod("Failed", over(1)), pod("Running", {"running": {}})], "Running"),
        ([pod("Failed", over(1))], "WaitingForPod"),
    ],
)
def test_work_under_way_says_what_its_newest_pod_says(pods, reason):
    plan = reconcile(Observed(distillation(startTime=AGO), job(), pods), NOW)
    assert said(plan)["Progressing"] == ("True", reason)
    assert plan.create == []


@pytest.mark.parametrize(
    ("why", "reason"),
    [
        ("BackoffLimitExceeded", "BackoffLimitExceeded"),
        ("PodFailurePolicy", "InvalidInput"),
        ("DeadlineExceeded", "DeadlineExceeded"),
        ("SomethingNew", "JobFailed"),
    ],
)
def test_a_failed_job_fails_it_in_the_words_of_its_pod(why, reason):
    pods = [pod("Failed", over(1, "first\n")), pod("Failed", over(1, "note\nthe disk is full\n"))]
    plan = reconcile(Observed(distillation(startTime=AGO), job(**ended("Failed", why)), pods), NOW)
    assert said(plan)["Failed"] == ("True", reason)
    assert plan.status["conditions"][-1]["message"] == "the disk is full"
    assert plan.status["completionTime"] == timestamp(NOW)
    without = reconcile(Observed(distillation(startTime=AGO), job(**ended("Failed", why))), NOW)
    assert without.status["conditions"][-1]["message"] == "said by Kubernetes"


def test_a_complete_job_completes_it_with_what_the_pod_said():
    pods = [pod("Succeeded", over(0, json.dumps(OUTCOME)))]
    plan = reconcile(Observed(distillation(startTime=AGO), job(**ended("Complete")), pods), NOW)
    assert said(plan)["Complete"] == ("True", "Complete")
    assert plan.status["result"] == {"sourceFingerprint": "f", "digest": "d", "images": 5, "recoveredGap": 0.5}
    assert plan.status["links"] == {"mlflow": "m"}


@pytest.mark.parametrize("pods", [[], [pod("Succeeded", over(0, "{cut"))]])
def test_a_complete_job_whose_pod_is_gone_completes_it_all_the_same(pods):
    plan = reconcile(Observed(distillation(startTime=AGO), job(**ended("Complete")), pods), NOW)
    assert said(plan)["Complete"] == ("True", "Complete")
    assert "result" not in plan.status


def test_a_retry_is_counted_and_told_once():
    seen = Observed(distillation({"backoffLimit": 2}, startTime=AGO), job(failed=1), [pod("Failed", over(1, "bad"))])
    plan = reconcile(seen, NOW)
    assert plan.status["retries"] == 1
    assert [(event.reason, event.message) for event in plan.events] == [("Retrying", "try 1 of 3 has failed: bad")]
    again = reconcile(Observed(seen.object | {"status": plan.status}, seen.job, seen.pods), NOW)
    assert (again.status, again.events) == (None, [])


def test_suspended_and_resumed():
    plan = reconcile(Observed(distillation({"suspend": True})), NOW)
    assert said(plan)["Suspended"] == ("True", "SuspendedBySpec")
    assert (plan.create, plan.suspend, plan.again) == ([], [], None)
    running = distillation({"suspend": True, "activeDeadlineSeconds": 1}, startTime=AGO, progress={"stage": "distill"})
    plan = reconcile(Observed(running, job()), NOW)  # however late: a suspended one has no deadline
    assert plan.suspend == [Suspend("one", True)]
    assert not {"startTime", "progress"} & set(plan.status)
    resumed = distillation({"activeDeadlineSeconds": 60}) | {"status": plan.status}
    plan = reconcile(Observed(resumed, job({"suspend": True})), NOW)
    assert plan.suspend == [Suspend("one", False)]
    assert plan.status["startTime"] == timestamp(NOW)
    assert plan.status["conditions"][0]["lastTransitionTime"] == timestamp(NOW)


def test_the_deadline():
    late = distillation({"activeDeadlineSeconds": 600}, startTime=AGO)
    plan = reconcile(Observed(late, job()), NOW)
    assert said(plan)["Failed"] == ("True", "DeadlineExceeded")
    assert plan.delete == [Delete("Job", "one", "Job-uid")]
    early = reconcile(Observed(late, job()), NOW - timedelta(seconds=1))
    assert "Failed" not in said(early)
    assert early.again == NOW
    done = reconcile(Observed(late, job(**ended("Complete"))), NOW)  # what is complete is not late
    assert said(done)["Complete"] == ("True", "Complete")


@pytest.mark.parametrize("ttl", [None, 0, 599, 601])
def test_what_is_finished_makes_nothing_and_goes_after_its_time(ttl):
    execution = {} if ttl is None else {"ttlSecondsAfterFinished": ttl}
    plan = reconcile(Observed(distillation(execution, **COMPLETE)), NOW)  # its Job is gone, too
    assert (plan.create, plan.status) == ([], None)
    gone = ttl is not None and ttl < 600
    assert plan.delete == ([Delete(api.DISTILLATION, "one", "u1")] if gone else [])
    assert plan.again == (NOW + timedelta(seconds=1) if ttl == 601 else None)


def test_a_ray_cluster_is_made_before_and_deleted_after():
    plan = reconcile(Observed(distillation(RAY)), NOW)
    assert [manifest["kind"] for manifest in plan.create] == ["RayCluster"]
    assert said(plan)["Progressing"] == ("True", "WaitingForRayCluster")
    cluster = child("RayCluster", "lb-one", state="unhealthy")
    waiting = reconcile(Observed(distillation(RAY, startTime=AGO), cluster=cluster), NOW)
    assert waiting.create == []
    cluster["status"] = {"state": "ready"}
    ready = reconcile(Observed(distillation(RAY, startTime=AGO), cluster=cluster), NOW)
    (made,) = ready.create
    spec = json.loads(made["spec"]["template"]["metadata"]["annotations"]["limbeck.dev/spec"])["spec"]
    assert spec["execution"]["ray"]["address"] == "http://lb-one-head-svc.ns.svc:8265"
    assert "cluster" not in spec["execution"]["ray"]
    variables = {entry["name"] for entry in made["spec"]["template"]["spec"]["containers"][0]["env"]}
    assert {"RAY_AUTH_MODE", "RAY_AUTH_TOKEN"} <= variables
    gone = [Delete("RayCluster", "lb-one", "RayCluster-uid")]
    assert (
        reconcile(Observed(distillation(RAY, startTime=AGO), job(**ended("Complete")), (), cluster), NOW).delete == gone
    )
    assert reconcile(Observed(distillation(RAY, **COMPLETE), None, (), cluster), NOW).delete == gone
    suspended = distillation(RAY | {"suspend": True}, startTime=AGO)
    assert reconcile(Observed(suspended, None, (), cluster), NOW).delete == gone


def test_without_kuberay_it_says_so_and_looks_again():
    plan = reconcile(Observed(distillation(RAY), has_ray=False), NOW)
    assert said(plan)["Progressing"] == ("False", "RayClusterUnavailable")
    assert plan.again == NOW + timedelta(seconds=30)


def test_what_is_not_its_own_is_left_alone():
    plan = reconcile(Observed(distillation(), job(owner="u2", **ended("Complete"))), NOW)
    assert said(plan)["Progressing"] == ("False", "NameTaken")
    assert (plan.create, plan.delete, plan.suspend) == ([], [], [])
    assert reconcile(Observed(distillation(**COMPLETE), cluster=child("RayCluster", "x", owner="u2")), NOW).delete == []


def test_a_job_that_is_being_deleted_is_waited_for():
    going = job()
    going["metadata"]["deletionTimestamp"] = AGO
    plan = reconcile(Observed(distillation(startTime=AGO), going), NOW)
    assert said(plan)["Progressing"] == ("False", "JobBeingDeleted")
    assert plan.create == []


def test_a_job_that_somebody_deleted_is_made_again():
    plan = reconcile(Observed(distillation(startTime=AGO)), NOW)
    assert len(plan.create) == 1
    assert plan.status["startTime"] == AGO


@pytest.mark.parametrize(
    ("change", "words"),
    [
        ({"output": {"uri": "results"}}, "spec.output.uri: results is on this machine"),
        ({"source": {"uri": "s3://user:password@host/x"}}, "has credentials"),
        ({"distill": {"size": 3, "fraction": 0.5}}, "either size or fraction"),
        (
            {"execution": {"backend": "kubeflow", "resources": {"teacher": {"memory": "8e"}}}},
            "spec.execution.resources.teacher.memory",
        ),
    ],
)
def test_what_cannot_run_says_why_and_recovers(change, words):
    document = distillation()
    mended = deepcopy(document)
    document["spec"] |= change
    plan = reconcile(Observed(document), NOW)
    assert said(plan)["Progressing"] == ("False", "InvalidSpec")
    assert words in plan.status["conditions"][1]["message"]
    assert "password" not in plan.status["conditions"][1]["message"]
    assert len(reconcile(Observed(mended | {"status": plan.status}), NOW).create) == 1


def test_one_that_is_being_deleted_is_left_to_go():
    document = distillation()
    document["metadata"]["deletionTimestamp"] = AGO
    assert reconcile(Observed(document), NOW) == Plan()


@pytest.mark.parametrize("execution", [{}, {"suspend": True}, RAY, {"ttlSecondsAfterFinished": 5}])
@pytest.mark.parametrize("made", [None, job(), job(**ended("Complete")), job(**ended("Failed", "PodFailurePolicy"))])
def test_it_settles(execution, made):
    """The plan of what a plan has led to says nothing new."""
    first = reconcile(Observed(distillation(execution), made), NOW)
    document = distillation(execution) | {"status": first.status}
    second = reconcile(Observed(document, made), NOW)
    third = reconcile(Observed(document | {"status": second.status or first.status}, made), NOW)
    assert third.status is None
    assert third.events == []


def test_edited_while_suspended_it_has_another_job_of_the_new_settings():
    made = reconcile(Observed(distillation()), NOW).create[0]
    mine = job({"suspend": True})
    mine["metadata"]["annotations"] = made["metadata"]["annotations"]
    document = distillation({"backoffLimit": 9, "activeDeadlineSeconds": 60})  # which may change at any time
    assert reconcile(Observed(document, mine), NOW).suspend == [Suspend("one", False)]
    document["spec"]["seed"] = 7
    plan = reconcile(Observed(document, mine), NOW)
    assert (plan.delete, plan.suspend) == ([Delete("Job", "one", "Job-uid")], [])
    document["status"] = plan.status
    (another,) = reconcile(Observed(document), NOW).create
    assert another["metadata"]["annotations"] != made["metadata"]["annotations"]


def test_edited_before_its_start_was_noted_it_has_another_job_and_never_once_it_was():
    mine = job({})
    mine["metadata"]["annotations"] = reconcile(Observed(distillation()), NOW).create[0]["metadata"]["annotations"]
    document = distillation()
    document["spec"]["seed"] = 7
    assert reconcile(Observed(document, mine), NOW).delete == [Delete("Job", "one", "Job-uid")]
    assert reconcile(Observed(document | {"status": {"startTime": AGO}}, mine), NOW).delete == []


def test_limits_that_are_edited_while_it_runs_are_its_job_s():
    made = reconcile(Observed(distillation({"activeDeadlineSeconds": 3600})), NOW).create[0]
    mine = job(made["spec"])
    mine["metadata"]["annotations"] = made["metadata"]["annotations"]
    same = distillation({"activeDeadlineSeconds": 3600}, startTime=AGO)
    assert reconcile(Observed(same, mine), NOW).limit == []
    edited = reconcile(Observed(distillation({"backoffLimit": 9}, startTime=AGO), mine), NOW)
    assert edited.limit == [Limit("one", "Job-uid", {"backoffLimit": 9, "activeDeadlineSeconds": None})]
