"""What the operator may do is what it does, and no more: its roles, beside the audit log of what it asked for."""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Iterable
from contextlib import suppress
from typing import Any

import pytest
from kubernetes import client

from limbeck_operator import api
from tests.cluster.kubelet import succeed, until
from tests.cluster.kuberay import Clusters, installed
from tests.cluster.operating import ACCOUNT, OUTCOME, Objects, fresh_namespace, granted, replicas
from tests.pipelines.kubeflow import Kubeflow


@pytest.fixture(scope="module", autouse=True)
def kuberay(admin, defined):
    with installed(admin):
        yield


@pytest.fixture
def kubeflow():
    server = Kubeflow()
    yield server
    server.close()


def rights_of(roles: Iterable[dict[str, Any]]) -> set[tuple[str, str]]:
    """(verb, resource) of roles."""
    found = set()
    for rule in (rule for role in roles for rule in role["rules"]):
        assert set(rule) == {"apiGroups", "resources", "verbs"}
        for group in rule["apiGroups"]:
            for resource, _, part in (entry.partition("/") for entry in rule["resources"]):
                name = f"{resource}.{group}" if group else resource
                found |= {(verb, f"{name}/{part}" if part else name) for verb in rule["verbs"]}
    return found


@pytest.mark.parametrize("file", ["role.yaml", "clusterrole.yaml"])
def test_each_right_is_needed_and_none_is_missing(admin, control_plane, kubeflow, namespace, tmp_path, file):
    everywhere = file == "clusterrole.yaml"
    options = ["--lease-namespace", namespace] if everywhere else ["--namespace", namespace]
    options += ["--kubeflow-host", kubeflow.host, "--kubeflow-seconds", "1"]
    with granted(admin, file, namespace) as roles, fresh_namespace(admin) as other:
        account = control_plane.account(namespace, ACCOUNT)
        home = Objects(admin, namespace)
        away = Objects(admin, other) if everywhere else home
        with replicas(account, tmp_path, *options) as start:
            mine = (namespace, other, "")  # other tests' namespaces are on their way out

            def asked() -> list[Any]:
                return [e for e in control_plane.asked(f"{namespace}:{ACCOUNT}") if e.namespace in mine]

            def used() -> set[tuple[str, str]]:
                return {(entry.verb, entry.resource) for entry in asked() if not entry.resource.startswith("/")}

            a_job_that_it_does_not_know(home, "found", {"activeDeadlineSeconds": 3, "ttlSecondsAfterFinished": 1})
            start()
            a_name_that_is_taken(away, "often", lambda: ("get", "distillations.limbeck.dev") in used())
            a_ray_cluster_for_a_while(home)
            a_run_on_kubeflow(home, kubeflow)
            for objects in {home, away}:
                objects.create("one")
                succeed(objects.admin, objects.namespace, objects.pod("one"), OUTCOME)
                until(lambda objects=objects: objects.condition("one", "Complete"), "completion")
            until(lambda: home.get("found") is None, "an end after its time")
            with suppress(AssertionError):  # the log may be a little behind
                until(lambda: rights_of(roles) <= used(), "all that it ever asks for", 10)
            assert used() == rights_of(roles)
            assert [entry for entry in asked() if entry.code in (401, 403)] == []
            assert {entry.namespace for entry in asked() if entry.resource.startswith("leases")} == {namespace}
            if not everywhere:
                assert {e.namespace for e in asked() if not e.resource.startswith("/")} == {namespace}


def a_job_that_it_does_not_know(objects: Objects, name: str, execution: dict[str, Any]) -> None:
    """Its own, but without the label by which it looks for Jobs: so it is found when it is to be made."""
    objects.create(name, execution)
    owner = {"apiVersion": api.API_VERSION, "kind": api.DISTILLATION, "name": name, "controller": True}
    owner["uid"] = objects.get(name)["metadata"]["uid"]
    pod = {"restartPolicy": "Never", "containers": [{"name": "limbeck", "image": "limbeck"}]}
    job = {"metadata": {"name": name, "ownerReferences": [owner]}, "spec": {"template": {"spec": pod}}}
    client.BatchV1Api(objects.admin).create_namespaced_job(objects.namespace, job)


def a_name_that_is_taken(objects: Objects, schedule: str, is_noticed: Callable[[], bool]) -> None:
    """A schedule is triggered while its Distillation's name is somebody else's, and goes on when it no longer is."""
    name = f"{schedule}-t{hashlib.sha256(b'now').hexdigest()[:8]}"
    objects.create(name, {"suspend": True})
    objects.schedule(schedule, "0 0 1 1 *")
    objects.patch(schedule, {"metadata": {"annotations": {api.TRIGGER: "now"}}}, api.SCHEDULES)
    until(is_noticed, "a look at whose one it is")
    objects.delete(name)
    objects.pod(name)
    until(lambda: objects.get(schedule, api.SCHEDULES)["status"].get("lastTrigger") == "now", "the trigger")


def a_ray_cluster_for_a_while(objects: Objects) -> None:
    clusters = Clusters(objects.admin, objects.namespace)
    objects.create("rays", {"image": "limbeck:1", "ray": {"cluster": {}}})
    until(lambda: clusters.get("lb-rays"), "a RayCluster")
    clusters.provision("lb-rays")
    objects.pod("rays")
    objects.patch("rays", {"spec": {"execution": {"suspend": True}}})
    until(lambda: clusters.get("lb-rays") is None, "the RayCluster's end")


def a_run_on_kubeflow(objects: Objects, kubeflow: Kubeflow) -> None:
    objects.create("elsewhere", {"backend": "kubeflow"})
    until(lambda: kubeflow.runs, "a run")
    objects.delete("elsewhere")
    until(lambda: objects.get("elsewhere") is None, "its end")
