"""Distillations whose pipeline runs on Kubeflow: a real API server, and a strict stand-in for Kubeflow's."""

from __future__ import annotations

import json
import random
import signal
import time
from collections import Counter
from typing import Any

import pytest
from kubernetes import client

from limbeck_operator import api
from tests.cluster.kubelet import succeed, until
from tests.cluster.operating import OUTCOME, Objects
from tests.pipelines.kubeflow import Kubeflow, state, task
from tests.soak import times

KILLS = times(4, 8)


@pytest.fixture
def kubeflow():
    server = Kubeflow()
    yield server
    server.close()


@pytest.fixture
def operate(start, kubeflow):
    return lambda *options: start("--kubeflow-host", kubeflow.host, "--kubeflow-seconds", "1", *options)


def on_kubeflow(objects: Objects, name: str, **execution: Any) -> None:
    objects.create(name, {"backend": "kubeflow", **execution})


def run_of(kubeflow: Kubeflow, name: str, number: int = 1) -> dict[str, Any]:
    """The newest run of an object that has had so many."""

    def found() -> Any:
        runs = [run for run in list(kubeflow.runs.values()) if run["display_name"].startswith(f"{name}-")]
        return len(runs) >= number and runs[-1]

    return until(found, f"run {number} of {name}")


def finalizers(objects: Objects, name: str) -> list[str]:
    return objects.get(name)["metadata"].get("finalizers") or []


def test_a_distillation_runs_as_a_pipeline(objects, operate, kubeflow):
    operate()
    on_kubeflow(objects, "one", image="limbeck:test")
    run = run_of(kubeflow, "one")
    until(lambda: finalizers(objects, "one") == [api.FINALIZER], "it is kept until its run has ended")
    run |= state("RUNNING", task("ingest", "SUCCEEDED"), task("teacher", "RUNNING"))
    until(lambda: objects.condition("one", "Progressing") == ("True", "Running"), "it runs", 60)
    status = objects.get("one")["status"]
    assert status["progress"]["stage"] == "teacher"
    assert status["links"]["kubeflow"] == f"{kubeflow.host}/#/runs/details/{run['run_id']}"
    assert objects.job("one") is None
    kubeflow.logs["pod-9"] = f"limbeck outcome: {json.dumps(OUTCOME)}\n"
    run |= state("SUCCEEDED", task("register", "SUCCEEDED", "pod-9"))
    until(lambda: objects.condition("one", "Complete") == ("True", "Complete"), "completion", 60)
    status = objects.get("one")["status"]
    assert (status["result"]["recoveredGap"], status["result"]["version"]) == (0.61, 3)
    assert set(status["links"]) == {"kubeflow", "mlflow"}
    until(lambda: finalizers(objects, "one") == [], "it is kept no longer")
    objects.delete("one")
    until(lambda: objects.get("one") is None, "its end")
    assert len(kubeflow.runs) == 1


def test_it_is_terminated_when_suspended_or_deleted(objects, operate, kubeflow):
    operate()
    on_kubeflow(objects, "one")
    first = run_of(kubeflow, "one")
    first |= state("RUNNING")
    objects.patch("one", {"spec": {"execution": {"suspend": True}}})
    until(lambda: first["state"] == "CANCELING", "the run's termination", 60)
    until(lambda: objects.condition("one", "Suspended") == ("True", "SuspendedBySpec"), "it is said", 60)
    first["state"] = "CANCELED"
    until(lambda: objects.get("one")["status"]["kubeflow"]["state"] == "CANCELED", "the run's end", 60)
    objects.patch("one", {"spec": {"execution": {"suspend": False}}})
    second = run_of(kubeflow, "one", 2)
    assert second["display_name"] != first["display_name"]
    second |= state("RUNNING")
    objects.delete("one")
    until(lambda: objects.get("one") is None, "its end", 60)
    assert second["state"] == "CANCELING"


def test_edited_while_suspended_to_be_a_job_it_is_one(objects, operate, kubeflow):
    operate()
    on_kubeflow(objects, "one")
    run = run_of(kubeflow, "one")
    run |= state("RUNNING")
    objects.patch("one", {"spec": {"execution": {"suspend": True}}})
    until(lambda: run["state"] == "CANCELING", "the run's termination", 60)
    objects.patch("one", {"spec": {"execution": {"backend": "job", "suspend": False}}})
    succeed(objects.admin, objects.namespace, objects.pod("one"), OUTCOME)
    until(lambda: objects.condition("one", "Complete") == ("True", "Complete"), "completion", 60)
    assert finalizers(objects, "one") == []


def test_made_from_a_copy_with_its_finalizer_it_goes_all_the_same(objects, operate, namespace):
    operate()
    document = {
        "apiVersion": api.API_VERSION,
        "kind": api.DISTILLATION,
        "metadata": {"name": "copy", "finalizers": [api.FINALIZER]},
        "spec": {"source": {"uri": "gs://b/in"}, "execution": {"backend": "kubeflow", "suspend": True}},
    }
    custom = client.CustomObjectsApi(objects.admin)
    custom.create_namespaced_custom_object(api.GROUP, api.VERSION, namespace, api.DISTILLATIONS, document)
    objects.delete("copy")
    until(lambda: objects.get("copy") is None, "its end")


def test_a_failure_is_told_in_the_words_of_the_stage(objects, operate, kubeflow):
    operate()
    on_kubeflow(objects, "bad")
    kubeflow.logs["pod-1"] = "limbeck failed: teacher: the disk is full\n"
    run_of(kubeflow, "bad").update(state("FAILED", task("teacher", "FAILED", "pod-1")))
    until(lambda: objects.condition("bad", "Failed") == ("True", "RunFailed"), "failure", 60)
    failed = next(e for e in objects.get("bad")["status"]["conditions"] if e["type"] == "Failed")
    assert failed["message"] == "teacher: the disk is full"


def test_without_kubeflow_it_says_so_and_others_go_on(objects, start, operate, kubeflow):
    replica = start()
    on_kubeflow(objects, "one")
    until(lambda: objects.condition("one", "Progressing") == ("False", "KubeflowUnavailable"), "a condition")
    assert finalizers(objects, "one") == []
    replica.stop()
    kubeflow.fails = [lambda method, path: 403] * 1000
    operate()
    objects.create("other")
    until(lambda: objects.job("other"), "a Job beside it")

    def refused() -> bool:
        conditions = objects.get("one")["status"]["conditions"]
        return any("not allowed (403)" in entry["message"] for entry in conditions)

    until(refused, "the reason", 60)
    kubeflow.fails = []
    run_of(kubeflow, "one")


def test_killed_at_any_moment_it_submits_nothing_twice(objects, operate, kubeflow):
    chance = random.Random(11)
    kubeflow.slow = 0.05  # so that kills fall between a request and its answer
    for kill in range(KILLS):
        replica = operate("--lease-seconds", "1")
        on_kubeflow(objects, f"k{kill}")
        until(replica.leads, "a leader")
        time.sleep(chance.uniform(0.5, 4.0))
        replica.stop(signal.SIGKILL)
    operate("--lease-seconds", "1")
    for kill in range(KILLS):
        run_of(kubeflow, f"k{kill}").update(state("SUCCEEDED"))
    names = [f"k{kill}" for kill in range(KILLS)]
    until(lambda: all(objects.condition(name, "Complete") for name in names), "completion of all", 120)
    twice = {
        name: number
        for name, number in Counter(r["display_name"] for r in kubeflow.runs.values()).items()
        if number > 1
    }
    assert twice == {}
    assert len(kubeflow.runs) == KILLS
