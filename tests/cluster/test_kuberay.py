"""Ray clusters for Distillations that ask for one, with KubeRay's own definition of them; the test plays KubeRay."""

from __future__ import annotations

import json

import pytest

from tests.cluster.kubelet import succeed, until
from tests.cluster.kuberay import Clusters, installed
from tests.cluster.operating import ACCOUNT, OUTCOME, Objects, fresh_namespace, granted, replicas

RAYS = {"image": "limbeck:1", "ray": {"cluster": {}}}
ABSENT = ("False", "RayClusterUnavailable")


@pytest.fixture(scope="module")
def early(admin, control_plane, defined, tmp_path_factory):
    """A Distillation that asked for a Ray cluster before there was KubeRay, and an operator."""
    with (
        fresh_namespace(admin) as namespace,
        granted(admin, "role.yaml", namespace),
        replicas(
            control_plane.account(namespace, ACCOUNT), tmp_path_factory.mktemp("early"), "--namespace", namespace
        ) as start,
    ):
        start()
        objects = Objects(admin, namespace)
        objects.create("early", RAYS)
        until(lambda: objects.condition("early", "Progressing") == ABSENT, "no KubeRay")
        yield objects


@pytest.fixture(scope="module", autouse=True)
def kuberay(admin, early):
    with installed(admin):
        yield


@pytest.fixture
def clusters(admin, namespace) -> Clusters:
    return Clusters(admin, namespace)


def test_the_cluster_comes_before_the_job_and_goes_after_it(objects, clusters, start):
    start()
    objects.create("one", RAYS)
    cluster = until(lambda: clusters.get("lb-one"), "a RayCluster")
    (owner,) = cluster["metadata"]["ownerReferences"]
    assert (owner["uid"], owner["controller"]) == (objects.get("one")["metadata"]["uid"], True)
    clusters.say("lb-one", "failed", reason="no node has 8 GPUs")
    until(lambda: "no node has 8 GPUs" in message_of(objects, "one"), "KubeRay's words")
    assert objects.condition("one", "Progressing") == ("True", "WaitingForRayCluster")
    assert objects.job("one") is None
    clusters.provision("lb-one")
    pod = objects.pod("one")
    spec = json.loads(objects.job("one").spec.template.metadata.annotations["limbeck.dev/spec"])["spec"]
    assert spec["execution"]["ray"]["address"] == f"http://lb-one-head-svc.{objects.namespace}.svc:8265"
    succeed(objects.admin, objects.namespace, pod, OUTCOME)
    until(lambda: objects.condition("one", "Complete") == ("True", "Complete"), "completion")
    until(lambda: clusters.get("lb-one") is None, "the RayCluster's end")
    assert objects.job("one") is not None


def test_a_cluster_that_only_the_defaults_ask_for_is_waited_for_and_goes_too(objects, clusters, start, tmp_path):
    defaults = tmp_path / "defaults.yaml"
    defaults.write_text(json.dumps({"execution": RAYS}))
    start("--defaults", str(defaults))
    objects.create("one")
    until(lambda: clusters.get("lb-one"), "a RayCluster")
    clusters.provision("lb-one")
    succeed(objects.admin, objects.namespace, objects.pod("one"), OUTCOME)
    until(lambda: clusters.get("lb-one") is None, "the RayCluster's end")


def test_a_suspended_one_has_no_cluster_and_waits_for_another_when_it_is_resumed(objects, clusters, start):
    start()
    objects.create("one", RAYS)
    first = until(lambda: clusters.get("lb-one"), "a RayCluster")
    clusters.provision("lb-one")
    objects.pod("one")
    objects.patch("one", {"spec": {"execution": {"suspend": True}}})
    until(lambda: clusters.get("lb-one") is None, "the RayCluster's end")
    until(lambda: objects.job("one").spec.suspend, "a suspended Job")
    objects.patch("one", {"spec": {"execution": {"suspend": False}}})
    second = until(lambda: clusters.get("lb-one"), "another RayCluster")
    assert second["metadata"]["uid"] != first["metadata"]["uid"]
    until(lambda: objects.condition("one", "Progressing") == ("True", "WaitingForRayCluster"), "a wait for it")
    assert objects.job("one").spec.suspend
    clusters.provision("lb-one")
    until(lambda: not objects.job("one").spec.suspend, "a resumed Job")


def test_it_goes_with_its_distillation(objects, clusters, start):
    start()
    objects.create("one", RAYS)
    until(lambda: clusters.get("lb-one"), "a RayCluster")
    objects.delete("one")
    until(lambda: clusters.get("lb-one") is None, "garbage collection")


def test_once_kuberay_is_installed_what_has_waited_for_it_goes_on(early):
    clusters = Clusters(early.admin, early.namespace)
    until(lambda: clusters.get("lb-early"), "a RayCluster", 90)
    until(lambda: early.condition("early", "Progressing") == ("True", "WaitingForRayCluster"), "work on it")
    clusters.provision("lb-early")
    early.pod("early")


def message_of(objects: Objects, name: str) -> str:
    conditions = (objects.get(name).get("status") or {}).get("conditions") or []
    return next((entry["message"] for entry in conditions if entry["type"] == "Progressing"), "")
