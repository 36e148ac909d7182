"""The life of objects on a real API server, with the operator as its own process under its own rights."""

from __future__ import annotations

import json
import signal
import time

from kubernetes import client

from limbeck_operator import api
from tests.cluster.kubelet import play, pods_of, succeed, until
from tests.cluster.operating import OUTCOME


def test_a_distillation_runs_and_says_what_came_of_it(objects, start):
    replica = start()
    until(lambda: replica.get("readyz")[0] == 200, "readiness")
    objects.create("one", {"backoffLimit": 2, "ttlSecondsAfterFinished": 3600})
    job = until(lambda: objects.job("one"), "a Job")
    assert job.spec.backoff_limit == 2
    assert job.metadata.owner_references[0].uid == objects.get("one")["metadata"]["uid"]
    arguments = job.spec.template.spec.containers[0].args
    status = ["--status", "$(LIMBECK_POD_IP):8081"]
    assert arguments == ["run", "/etc/limbeck/one.yaml", *status, "--outcome", "/dev/termination-log"]
    spec = json.loads(job.spec.template.metadata.annotations["limbeck.dev/spec"])
    assert spec["spec"]["output"] == {"uri": "gs://b/out"}
    assert until(lambda: objects.condition("one", "Progressing"), "a condition")[0] == "True"
    succeed(objects.admin, objects.namespace, objects.pod("one"), OUTCOME)
    until(lambda: objects.condition("one", "Complete") == ("True", "Complete"), "completion")
    status = objects.get("one")["status"]
    assert status["result"]["recoveredGap"] == 0.61
    assert (status["result"]["model"], status["result"]["version"]) == ("digits", 3)
    assert status["links"] == {"mlflow": "http://mlflow/#/run"}
    assert status["stages"] == [{"name": "distill", "state": "Complete", "seconds": 12.5, "reused": False}]
    assert status["observedGeneration"] == 1
    assert {"Started", "Complete"} <= set(
        until(lambda: len(objects.events("one")) >= 2 and objects.events("one"), "events")
    )
    objects.delete("one")
    until(lambda: objects.job("one") is None, "garbage collection")
    health, text = replica.get("metrics")
    assert health == 200
    assert 'limbeck_reconciles_total{kind="Distillation",outcome="done"}' in text
    assert replica.stop() == 0


def test_failures_are_retried_and_told(objects, start):
    start()
    objects.create("unlucky", {"backoffLimit": 1})
    for number in (1, 2):
        pod = objects.pod("unlucky", number)
        play(objects.admin, objects.namespace, pod, "Failed", exit_code=1, message="teacher: the disk is full\n")
    until(lambda: objects.condition("unlucky", "Failed") == ("True", "BackoffLimitExceeded"), "failure", 90)
    failed = next(e for e in objects.get("unlucky")["status"]["conditions"] if e["type"] == "Failed")
    assert failed["message"] == "teacher: the disk is full"
    objects.create("wrong", {"backoffLimit": 5})
    pod = objects.pod("wrong")
    play(objects.admin, objects.namespace, pod, "Failed", exit_code=2, message="spec.source.uri: no such bucket\n")
    until(lambda: objects.condition("wrong", "Failed") == ("True", "InvalidInput"), "failure without retries")
    assert len(pods_of(objects.admin, objects.namespace, "wrong")) == 1


def test_suspended_and_resumed(objects, start):
    start()
    objects.create("patient", {"suspend": True})
    until(lambda: objects.condition("patient", "Suspended") == ("True", "SuspendedBySpec"), "suspension")
    assert objects.job("patient") is None
    objects.patch("patient", {"spec": {"execution": {"suspend": False}}})
    objects.pod("patient")
    objects.patch("patient", {"spec": {"execution": {"suspend": True}}})
    until(lambda: objects.job("patient").spec.suspend, "a suspended Job")
    until(lambda: objects.condition("patient", "Suspended")[0] == "True", "suspension")
    assert "startTime" not in objects.get("patient")["status"]
    objects.patch("patient", {"spec": {"execution": {"suspend": False}}})
    until(lambda: not objects.job("patient").spec.suspend, "a resumed Job")


def test_edited_while_suspended_it_runs_what_it_says_then(objects, start):
    start()
    objects.create("one")
    first = objects.pod("one")
    until(lambda: "startTime" in (objects.get("one").get("status") or {}), "its start")
    objects.patch("one", {"spec": {"execution": {"suspend": True}}})
    until(lambda: objects.condition("one", "Suspended") == ("True", "SuspendedBySpec"), "suspension")
    objects.patch("one", {"spec": {"seed": 7, "execution": {"suspend": False}}})

    def runs_it() -> bool:
        job = objects.job("one")  # there may be none for a moment
        return (
            job and not job.spec.suspend and '"seed": 7' in job.spec.template.metadata.annotations["limbeck.dev/spec"]
        )

    until(runs_it, "a Job of the new settings")
    assert objects.pod("one") != first


def test_its_limits_may_be_edited_while_it_runs(objects, start):
    start()
    objects.create("one", {"activeDeadlineSeconds": 3600})
    objects.pod("one")
    until(lambda: "startTime" in (objects.get("one").get("status") or {}), "its start")
    objects.patch("one", {"spec": {"execution": {"activeDeadlineSeconds": 7200, "backoffLimit": 5}}})
    until(lambda: objects.job("one").spec.active_deadline_seconds == 7200, "a later deadline")
    assert objects.job("one").spec.backoff_limit == 5
    objects.patch("one", {"spec": {"execution": {"activeDeadlineSeconds": None}}})
    until(lambda: objects.job("one").spec.active_deadline_seconds is None, "no deadline")


def test_it_ends_at_its_deadline_and_goes_after_its_time(objects, start):
    start()
    objects.create("slow", {"activeDeadlineSeconds": 3, "ttlSecondsAfterFinished": 2})
    objects.pod("slow")
    until(lambda: objects.condition("slow", "Failed") == ("True", "DeadlineExceeded"), "the deadline")
    until(lambda: objects.get("slow") is None, "its end")
    until(lambda: objects.job("slow") is None, "its Job's end")
    time.sleep(2)
    assert objects.get("slow") is None


def test_what_cannot_run_says_why(objects, start):
    start()
    objects.create("here", output={"uri": "results"})
    until(lambda: objects.condition("here", "Progressing") == ("False", "InvalidSpec"), "a condition")
    objects.patch("here", {"spec": {"output": {"uri": "gs://b/out"}}})
    until(lambda: objects.condition("here", "Progressing")[0] == "True", "recovery")
    objects.create("rays", {"image": "limbeck:1", "ray": {"cluster": {}}})
    until(lambda: objects.condition("rays", "Progressing") == ("False", "RayClusterUnavailable"), "no KubeRay")


def test_a_schedule_runs_is_triggered_once_and_skips_what_is_unchanged(objects, start):
    start()
    objects.schedule("often", "* * * * *")
    child = until(lambda: [d["metadata"]["name"] for d in objects.all()], "a child", 90)[0]
    assert child.startswith("often-")
    succeed(objects.admin, objects.namespace, objects.pod(child), OUTCOME)
    until(lambda: "lastDone" in (objects.get("often", api.SCHEDULES).get("status") or {}), "what it has done")
    check = until(
        lambda: [
            job.metadata.name
            for job in client.BatchV1Api(objects.admin).list_namespaced_job(objects.namespace).items
            if job.metadata.name.endswith("-check")
        ],
        "a look at the sources",
        90,
    )[0]
    succeed(objects.admin, objects.namespace, objects.pod(check), {"sourceFingerprint": "f00d"})
    status = until(lambda: (found := objects.get("often", api.SCHEDULES)["status"]).get("lastSkip") and found, "a skip")
    assert status["lastSkip"]["reason"] == "Unchanged"
    assert len(objects.all()) == 1
    until(lambda: objects.job(check) is None, "the check's end")
    objects.patch("often", {"metadata": {"annotations": {api.TRIGGER: "now"}}}, api.SCHEDULES)
    until(lambda: len(objects.all()) == 2, "a triggered child")
    until(lambda: objects.get("often", api.SCHEDULES)["status"].get("lastTrigger") == "now", "the trigger")
    time.sleep(2)
    assert len(objects.all()) == 2
    objects.delete("often", api.SCHEDULES)
    until(lambda: not objects.all(), "garbage collection")


def test_a_schedule_s_distillations_start_from_the_champion_of_then(objects, start):
    start()
    name = "warm-" + "n" * 47  # the longest, which leaves its checks the least room
    settings = {"registry": {"name": "digits"}, "distill": {"size": 10}}
    spec = {"source": {"uri": "gs://b/pictures"}, "output": {"uri": "gs://b/out"}} | settings
    objects.schedule(name, "* * * * *", suspend=True, warmStart="champion", template={"spec": spec})

    def check() -> str:
        """The check that is there, whose end is not said yet."""
        jobs = client.BatchV1Api(objects.admin).list_namespaced_job(objects.namespace).items
        found = [j for j in jobs if j.metadata.name.endswith("-check") and not j.status.completion_time]
        return found[0].metadata.name if found else ""

    def child(version: int) -> dict | None:
        start = f"models:/digits/{version}"
        return next((d for d in objects.all() if d["spec"]["distill"].get("warmStart") == start), None)

    objects.patch(name, {"metadata": {"annotations": {api.TRIGGER: "now"}}}, api.SCHEDULES)
    triggered = until(check, "a check for the trigger")
    assert objects.job(triggered).spec.template.spec.containers[0].args[-1] == "--champion"
    assert objects.all() == []
    found = {"sourceFingerprint": "f00d", "model": "digits", "champion": True}
    succeed(objects.admin, objects.namespace, objects.pod(triggered), found | {"version": 3})
    first = until(lambda: child(3), "a child that starts from version 3")["metadata"]["name"]
    until(lambda: objects.job(triggered) is None, "the check's end")
    spec = json.loads(
        until(lambda: objects.job(first), "its Job").spec.template.metadata.annotations["limbeck.dev/spec"]
    )
    assert spec["spec"]["distill"]["warmStart"] == "models:/digits/3"
    succeed(objects.admin, objects.namespace, objects.pod(first), OUTCOME)
    until(lambda: objects.condition(first, "Complete"), "completion")

    objects.patch(name, {"spec": {"suspend": False}}, api.SCHEDULES)
    timed = until(check, "a check for its next time", 90)
    succeed(objects.admin, objects.namespace, objects.pod(timed), found | {"sourceFingerprint": "new", "version": 4})
    second = until(lambda: child(4), "a child that starts from version 4")
    annotations = second["metadata"]["annotations"]
    assert annotations["limbeck.dev/content"] == objects.get(first)["metadata"]["annotations"]["limbeck.dev/content"]
    until(lambda: objects.job(timed) is None, "the check's end")
    assert len(objects.all()) == 2


def test_another_replica_takes_over(objects, start):
    first = start()
    until(first.leads, "a leader")
    second = start()
    until(lambda: second.get("readyz")[0] == 200, "a warm standby")
    assert not second.leads()
    objects.create("before")
    until(lambda: objects.job("before"), "a Job")
    first.stop(signal.SIGKILL)
    killed = time.monotonic()
    objects.create("after")
    until(lambda: objects.job("after"), "a Job by the second replica", 40)
    assert time.monotonic() - killed < 20.0
    assert second.leads()
    third = start()
    until(lambda: third.get("readyz")[0] == 200, "a warm standby")
    assert second.stop() == 0
    stopped = time.monotonic()
    until(third.leads, "the lease, which was given up", 20)
    assert time.monotonic() - stopped < 8.0
