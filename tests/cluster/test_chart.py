"""The chart on a real API server: it takes every combination of values, upgrades keep objects, its rights suffice."""

from __future__ import annotations

import json
import os
import shutil
import signal
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import yaml
from kubernetes import client

from limbeck.spec import Distillation
from limbeck_operator import api
from limbeck_operator.crds import crds
from limbeck_operator.inherit import Defaults
from limbeck_operator.manifests import check_job, ray_cluster_of, run_job
from tests.charts.rendering import CHART, COMBINATIONS, TRYING_OUT, find, pods, render, text, tool
from tests.cluster.kubelet import play, succeed, until
from tests.cluster.operating import OUTCOME, Objects, Replica

DISTILLATIONS = "distillations.limbeck.dev"
RESTRICTED = {"metadata": {"labels": {"pod-security.kubernetes.io/enforce": "restricted"}}}


@pytest.fixture
def restricted(admin, namespace) -> str:
    """A namespace that takes only pods of the Pod Security Standard restricted."""
    client.CoreV1Api(admin).patch_namespace(namespace, RESTRICTED)
    return namespace


@pytest.fixture(scope="module")
def monitored(admin, defined) -> None:
    """The API server knows the Prometheus operator's kinds, whatever is in them."""
    extensions = client.ApiextensionsV1Api(admin)
    free = {"openAPIV3Schema": {"type": "object", "x-kubernetes-preserve-unknown-fields": True}}
    for kind in ("ServiceMonitor", "PrometheusRule"):
        plural = f"{kind.lower()}s"
        spec = {
            "group": "monitoring.coreos.com",
            "scope": "Namespaced",
            "names": {"kind": kind, "plural": plural},
            "versions": [{"name": "v1", "served": True, "storage": True, "schema": free}],
        }
        name = f"{plural}.monitoring.coreos.com"
        extensions.create_custom_resource_definition({"metadata": {"name": name}, "spec": spec})

    def established() -> bool:
        found = client.CustomObjectsApi(admin).get_api_resources("monitoring.coreos.com", "v1")
        return len(found.resources) == 2

    until(established, "the Prometheus operator's kinds")


class Cluster:
    """The commands that people use, as the administrator."""

    def __init__(self, kubeconfig: Path, folder: Path) -> None:
        homes = {f"HELM_{name}_HOME": str(folder / name) for name in ("CACHE", "CONFIG", "DATA")}
        self.environment = {**os.environ, **homes, "KUBECONFIG": str(kubeconfig)}

    def kubectl(self, *arguments: str, given: str = "") -> str:
        return self._run([tool("kubectl"), *arguments], given)

    def helm(self, helm: str, *arguments: str, values: dict[str, Any] | None = None) -> str:
        command = [tool(helm), *arguments, *(() if values is None else ("-f", "-"))]
        return self._run(command, json.dumps(values or {}))

    def _run(self, command: list[str], given: str) -> str:
        done = subprocess.run(
            command, input=given, capture_output=True, text=True, check=False, timeout=120, env=self.environment
        )
        assert done.returncode == 0, done.stderr
        return done.stdout


@pytest.fixture
def cluster(control_plane, tmp_path) -> Cluster:
    return Cluster(control_plane.admin, tmp_path)


@pytest.mark.parametrize("values", COMBINATIONS.values(), ids=COMBINATIONS)
def test_the_api_server_takes_every_combination(values, admin, cluster, monitored, namespace):
    account = {"metadata": {"name": "limbeck-test"}}  # without which no pod is taken, and a dry run makes none
    client.CoreV1Api(admin).create_namespaced_service_account(namespace, account)
    if values and "crds" not in values:  # they are large, and the same as by default
        values = {**values, "crds": {"enabled": False}}
    rendered = text(values, namespace=namespace)
    said = cluster.kubectl("apply", "-n", namespace, "--dry-run=server", "--validate=strict", "-f", "-", given=rendered)
    assert said.count("(server dry run)") == len(render(values, namespace=namespace))


@pytest.fixture
def admit(admin, restricted):
    """Has the API server judge a pod template."""

    def judged(template: dict[str, Any]) -> None:
        spec = {**template["spec"], "serviceAccountName": "default"}
        metadata = {**template.get("metadata", {}), "name": "one", "namespace": restricted}
        client.CoreV1Api(admin).create_namespaced_pod(
            restricted, {"metadata": metadata, "spec": spec}, dry_run="All", field_validation="Strict"
        )

    core = client.CoreV1Api(admin)
    until(lambda: core.read_namespaced_service_account("default", restricted), "an account")
    return judged


@pytest.mark.parametrize("values", COMBINATIONS.values(), ids=COMBINATIONS)
def test_a_restricted_namespace_takes_every_pod_of_the_chart(values, admit):
    for template in pods(render(values)).values():
        admit(template)


def test_a_restricted_namespace_takes_every_pod_of_the_operator(admit):
    execution = {
        "secrets": [{"name": "key", "mountPath": "/key", "environment": {"TOKEN": "token"}}],
        "volumes": [{"claim": "data", "mountPath": "/data"}],
        "resources": {"distill": {"cpu": "1", "gpus": 1, "sharedMemory": "1Gi"}},
        "ray": {"cluster": {"workerGroups": [{"name": "workers"}]}},
    }
    metadata = {"name": "one", "namespace": "lab", "uid": "u"}
    document = {"apiVersion": api.API_VERSION, "kind": api.DISTILLATION, "metadata": metadata}
    spec = {"source": {"uri": "gs://b/pictures"}, "output": {"uri": "gs://b/out"}, "execution": execution}
    distillation = Distillation.model_validate(document | {"spec": spec})
    defaults = Defaults(image="limbeck:0.1.0")
    ray = ray_cluster_of(document, distillation.spec.execution, defaults)["spec"]
    jobs = run_job(document, distillation, defaults), check_job(document, distillation, defaults, champion=False)
    templates = [job["spec"]["template"] for job in jobs]
    templates += [ray["headGroupSpec"]["template"], *(group["template"] for group in ray["workerGroupSpecs"])]
    for template in templates:
        admit(template)
        empty = [volume["emptyDir"] for volume in template["spec"]["volumes"] if "emptyDir" in volume]
        assert all(volume.get("sizeLimit") for volume in empty)
        assert template["spec"]["securityContext"]["fsGroup"] == 65532  # so that it may write to its volumes


def test_a_restricted_namespace_refuses_a_pod_that_may_do_more(admit):
    with pytest.raises(client.ApiException, match='violates PodSecurity \\\\"restricted'):
        admit({"spec": {"containers": [{"name": "one", "image": "limbeck"}]}})


@pytest.fixture
def chart(tmp_path) -> Path:
    """The chart, but for what it asks of Kubernetes' version: an API server that is built here says none."""
    copy = tmp_path / "chart"
    shutil.copytree(CHART, copy)
    described = copy / "Chart.yaml"
    described.write_text("".join(line for line in described.open() if not line.startswith("kubeVersion")))
    return copy


@pytest.fixture
def earlier(chart, tmp_path) -> Path:
    """The chart of an earlier version, whose Distillations had no seed."""
    copy = tmp_path / "earlier"
    shutil.copytree(chart, copy)
    file = copy / "files" / "crds" / "distillations.yaml"
    definition = yaml.safe_load(file.read_text())
    schema = definition["spec"]["versions"][0]["schema"]["openAPIV3Schema"]
    del schema["properties"]["spec"]["properties"]["seed"]
    del schema["x-kubernetes-validations"]
    file.write_text(yaml.safe_dump(definition))
    return copy


@pytest.fixture
def restored(admin, cluster, defined):
    """The definitions are as they were, after the test."""
    yield
    for definition in crds().values():
        cluster.kubectl("apply", "--server-side", "--force-conflicts", "-f", "-", given=json.dumps(definition))


def test_kubectl_brings_the_definitions_up_to_date_and_keeps_objects(cluster, earlier, objects, restored):
    def apply(chart: Path) -> None:
        folder = str(chart / "files" / "crds")
        cluster.kubectl("apply", "--server-side", "--force-conflicts", "-f", folder)

    _upgraded(cluster, objects, lambda: apply(earlier), lambda: apply(CHART))


@pytest.mark.parametrize(("first", "second"), [("helm3", "helm4"), ("helm4", "helm4")])
def test_an_upgrade_brings_the_definitions_up_to_date_and_keeps_objects(
    first, second, cluster, chart, earlier, objects, restored
):
    place = ("-n", objects.namespace)
    values = {**TRYING_OUT, "fullnameOverride": objects.namespace}
    adopt = ("--take-ownership", *(() if first == "helm3" else ("--force-conflicts",)))
    _upgraded(
        cluster,
        objects,
        lambda: cluster.helm(first, "install", "limbeck", str(earlier), *place, *adopt, values=values),
        lambda: cluster.helm(second, "upgrade", "limbeck", str(chart), *place, values=values),
    )
    cluster.helm(second, "uninstall", "limbeck", *place)
    kept = cluster.kubectl("get", "crd,pvc,dist", *place, "-o", "name").split()
    assert f"customresourcedefinition.apiextensions.k8s.io/{DISTILLATIONS}" in kept
    assert "distillation.limbeck.dev/one" in kept
    assert f"persistentvolumeclaim/{objects.namespace}-results" in kept
    assert "deployment" not in cluster.kubectl("get", "deployment", *place, "-o", "name")
    cluster.helm(second, "install", "limbeck", str(chart), *place, values=values)  # finds what it has left
    cluster.helm(second, "uninstall", "limbeck", *place)


def _upgraded(cluster: Cluster, objects: Objects, before: Any, after: Any) -> None:
    before()
    until(lambda: "seed" not in _fields(cluster), "the earlier definition")
    objects.create("one")
    uid = objects.get("one")["metadata"]["uid"]
    after()
    until(lambda: "seed" in _fields(cluster), "the new definition")
    found = until(lambda: (one := objects.get("one")) and "seed" in one["spec"] and one, "the default of a new field")
    assert (found["metadata"]["uid"], found["spec"]["seed"]) == (uid, 0)


def _fields(cluster: Cluster) -> list[str]:
    definition = json.loads(cluster.kubectl("get", "crd", DISTILLATIONS, "-o", "json"))
    return list(definition["spec"]["versions"][0]["schema"]["openAPIV3Schema"]["properties"]["spec"]["properties"])


@pytest.mark.parametrize(("helm", "scope"), [("helm3", "cluster"), ("helm4", "namespace")])
def test_helm_test_distils_with_the_rights_of_the_chart_alone(
    helm, scope, admin, cluster, control_plane, chart, objects, restricted, tmp_path
):
    """Pods are played: the operator's and the test's run here, as their accounts; the run's says that it is done."""
    values = {**TRYING_OUT, "fullnameOverride": restricted, "rbac": {"scope": scope}, "crds": {"enabled": False}}
    place = ("-n", restricted)
    cluster.helm(helm, "install", "limbeck", str(chart), *place, values=values)
    rendered = render(values, helm, namespace=restricted)
    replica = _operator(control_plane, rendered, restricted, tmp_path)
    testing = subprocess.Popen(
        [tool(helm), "test", "limbeck", *place], env=cluster.environment, stdout=subprocess.PIPE, text=True
    )
    try:
        name = f"{restricted}-test"
        core = client.CoreV1Api(admin)
        pod = until(lambda: core.read_namespaced_pod(name, restricted), "the pod of helm test")
        spec = tmp_path / "distillation.yaml"
        spec.write_text(find(rendered, "ConfigMap", name)["data"]["distillation.yaml"])
        arguments = [str(spec) if part.startswith("/") else part for part in pod.spec.containers[0].args]
        account = control_plane.account(restricted, name)
        command = [sys.executable, "-m", "limbeck_operator.acceptance", *arguments, "--kubeconfig", str(account)]
        accepting = subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True)
        ran = objects.pod(name)  # which the namespace has taken
        made = core.read_namespaced_pod(ran, restricted)
        document = json.loads(made.metadata.annotations["limbeck.dev/spec"])["spec"]
        assert document["output"] == {"uri": "/var/lib/limbeck"}
        assert document["tracking"]["uri"] == f"http://{restricted}-mlflow.{restricted}.svc:5000"
        claims = [v.persistent_volume_claim.claim_name for v in made.spec.volumes if v.persistent_volume_claim]
        assert claims == [f"{restricted}-results"]
        succeed(admin, restricted, ran, OUTCOME)
        said, _ = accepting.communicate(timeout=60)
        assert accepting.returncode == 0, said
        assert f"{restricted}/{name}: recovered gap 0.61" in said.splitlines()
        play(admin, restricted, name, "Succeeded")
        report, _ = testing.communicate(timeout=60)
        assert testing.returncode == 0, report
        assert "Phase:          Succeeded" in report
        until(lambda: objects.get(name) is None, "deletion")
        left = cluster.kubectl("get", "role,rolebinding,configmap,serviceaccount", *place, "-o", "name").split()
        assert not [entry for entry in left if entry.endswith("-test")]
    finally:
        testing.kill()
        replica.stop(signal.SIGKILL)
        sys.stderr.write(replica.log.read_text())
        cluster.helm(helm, "uninstall", "limbeck", *place)


def _operator(control_plane: Any, rendered: list[dict[str, Any]], namespace: str, folder: Path) -> Replica:
    """The operator, as the Deployment would run it."""
    (container,) = pods(rendered)[f"{namespace}-operator"]["spec"]["containers"]
    file = folder / "defaults.yaml"
    file.write_text(find(rendered, "ConfigMap", f"{namespace}-defaults")["data"]["defaults.yaml"])
    own = [part for part in container["args"] if not part.startswith(("--defaults", "--port"))]
    account = control_plane.account(namespace, f"{namespace}-operator")
    replica = Replica(account, folder / "operator.log", *own, "--defaults", str(file))
    until(lambda: replica.leads(), "a leader")
    return replica
