"""The RayCluster manifest: what KubeRay's own published schema takes, and what a run asked for."""

from __future__ import annotations

import copy
from pathlib import Path
from typing import Any

import jsonschema
import pytest

from limbeck.fanout.kuberay import LONGEST_NAME, RAY_VERSION, cluster_address, ray_cluster, token_environment
from limbeck.spec import Execution
from tests.fanout import kuberay_release

FULL = {
    "image": "registry.example/limbeck@sha256:" + "0" * 64,
    "serviceAccount": "distiller",
    "ray": {
        "workers": 8,
        "cluster": {
            "autoscaling": True,
            "idleTimeoutSeconds": 120,
            "head": {"cpu": "1", "memory": "4Gi"},
            "workerGroups": [
                {
                    "name": "h100",
                    "replicas": 1,
                    "minReplicas": 0,
                    "maxReplicas": 8,
                    "cpu": "8",
                    "memory": "64Gi",
                    "gpus": 1,
                    "gpuType": "NVIDIA-H100-80GB-HBM3",
                    "nodeSelector": {"pool": "spot"},
                    "tolerations": [
                        {"key": "nvidia.com/gpu", "operator": "Exists", "effect": "NoSchedule"},
                        {"key": "spot", "value": "true", "effect": "NoExecute", "tolerationSeconds": 30},
                    ],
                },
                {"name": "cpu", "replicas": 2},
            ],
        },
    },
}
OWNER = {"apiVersion": "limbeck.dev/v1alpha1", "kind": "Distillation", "name": "d", "uid": "u", "controller": True}


def execution(**changes: Any) -> Execution:
    document = copy.deepcopy(FULL) | changes
    return Execution.model_validate(document)


def strict(schema: Any) -> Any:
    """A structural schema that refuses what an API server would silently drop."""
    if isinstance(schema, list):
        return [strict(entry) for entry in schema]
    if not isinstance(schema, dict):
        return schema
    result = {name: strict(value) for name, value in schema.items()}
    if isinstance(result.get("properties"), dict) and not schema.get("x-kubernetes-preserve-unknown-fields"):
        result.setdefault("additionalProperties", False)
    return result


@pytest.fixture(scope="session")
def published() -> jsonschema.Draft202012Validator:
    definition, why = kuberay_release.definition()
    if definition is None:
        pytest.skip(why)
    (version,) = [entry for entry in definition["spec"]["versions"] if entry["name"] == "v1"]
    schema = strict(version["schema"]["openAPIV3Schema"])
    schema["properties"]["metadata"] = {"type": "object"}
    return jsonschema.Draft202012Validator(schema)


def problems(published: jsonschema.Draft202012Validator, manifest: dict[str, Any]) -> list[str]:
    return [f"{error.json_path}: {error.message}" for error in published.iter_errors(manifest)]


@pytest.mark.parametrize(
    "asked",
    [
        execution(),
        execution(ray={"cluster": {}}),
        execution(ray={"cluster": {"authentication": "disabled", "image": "other:1"}}, serviceAccount=None),
    ],
    ids=["everything", "defaults", "no token"],
)
def test_kuberay_s_published_schema_takes_it(published, asked):
    manifest = ray_cluster("run-1", "team", asked, labels={"app": "limbeck"}, owner=OWNER)
    assert problems(published, manifest) == []


def test_the_schema_would_see_a_mistake(published):
    manifest = ray_cluster("run-1", "team", execution())
    manifest["spec"]["workerGroupSpecs"][0]["maxReplica"] = 3
    manifest["spec"]["headGroupSpec"]["template"]["spec"]["containers"][0]["resource"] = {}
    del manifest["spec"]["workerGroupSpecs"][1]["groupName"]
    found = " ".join(problems(published, manifest))
    assert all(word in found for word in ("maxReplica", "'resource' was unexpected", "'groupName' is a required"))


def test_groups_carry_what_was_asked_for():
    manifest = ray_cluster("run-1", "team", execution(), labels={"app": "limbeck"}, owner=OWNER)
    assert manifest["metadata"]["ownerReferences"] == [OWNER]
    spec = manifest["spec"]
    assert spec["enableInTreeAutoscaling"] is True
    assert spec["autoscalerOptions"]["idleTimeoutSeconds"] == 120
    gpu, cpu = spec["workerGroupSpecs"]
    assert (gpu["minReplicas"], gpu["replicas"], gpu["maxReplicas"]) == (0, 1, 8)
    assert (cpu["minReplicas"], cpu["replicas"], cpu["maxReplicas"]) == (2, 2, 2)
    pod = gpu["template"]["spec"]
    assert pod["nodeSelector"] == {"pool": "spot", "nvidia.com/gpu.product": "NVIDIA-H100-80GB-HBM3"}
    assert pod["tolerations"][0] == {"key": "nvidia.com/gpu", "operator": "Exists", "effect": "NoSchedule"}
    assert pod["tolerations"][1]["tolerationSeconds"] == 30
    assert pod["serviceAccountName"] == "distiller"
    (container,) = pod["containers"]
    assert container["image"] == FULL["image"]
    assert container["resources"]["limits"] == {"cpu": "8", "memory": "64Gi", "nvidia.com/gpu": "1"}
    assert "nvidia.com/gpu" not in cpu["template"]["spec"]["containers"][0]["resources"]["limits"]
    assert spec["headGroupSpec"]["rayStartParams"]["num-cpus"] == "0"


def test_every_pod_meets_the_restricted_security_standard():
    spec = ray_cluster("run-1", "team", execution())["spec"]
    for group in (spec["headGroupSpec"], *spec["workerGroupSpecs"]):
        pod = group["template"]["spec"]
        assert pod["securityContext"] == {"runAsNonRoot": True, "seccompProfile": {"type": "RuntimeDefault"}}
        for container in pod["containers"]:
            security = container["securityContext"]
            assert security["allowPrivilegeEscalation"] is False
            assert security["readOnlyRootFilesystem"] is True
            assert security["capabilities"] == {"drop": ["ALL"]}
        assert all(volume["emptyDir"]["sizeLimit"] for volume in pod["volumes"])


def test_without_autoscaling_a_group_keeps_its_replicas():
    asked = execution(ray={"cluster": {"workerGroups": [{"replicas": 3, "minReplicas": 0, "maxReplicas": 9}]}})
    spec = ray_cluster("run-1", "team", asked)["spec"]
    (group,) = spec["workerGroupSpecs"]
    assert (group["minReplicas"], group["replicas"], group["maxReplicas"]) == (3, 3, 3)
    assert spec["enableInTreeAutoscaling"] is False
    assert "autoscalerOptions" not in spec


def test_it_is_pure_and_says_what_is_missing():
    asked = execution()
    one, other = ray_cluster("run-1", "team", asked), ray_cluster("run-1", "team", asked)
    assert one == other
    one["spec"]["workerGroupSpecs"][1]["template"]["spec"]["containers"][0]["resources"]["limits"]["cpu"] = "99"
    assert ray_cluster("run-1", "team", asked) == other
    with pytest.raises(ValueError, match=r"execution\.ray\.cluster is not given"):
        ray_cluster("run-1", "team", execution(ray={}))
    with pytest.raises(ValueError, match="image"):
        ray_cluster("run-1", "team", execution(image=None))
    with pytest.raises(ValueError, match="53"):
        ray_cluster("n" * (LONGEST_NAME + 1), "team", asked)


def test_how_to_connect_to_it():
    cluster = execution().ray.cluster
    assert cluster is not None
    assert cluster_address("run-1", "team") == "http://run-1-head-svc.team.svc:8265"
    mode, token = token_environment("run-1", cluster)
    assert mode == {"name": "RAY_AUTH_MODE", "value": "token"}
    assert token["valueFrom"] == {"secretKeyRef": {"name": "run-1", "key": "auth_token"}}
    disabled = execution(ray={"cluster": {"authentication": "disabled"}}).ray.cluster
    assert disabled is not None
    assert token_environment("run-1", disabled) == []


def test_ray_s_version_is_the_one_that_is_pinned():
    pins = (Path(__file__).parents[2] / "constraints.txt").read_text().splitlines()
    assert f"ray=={RAY_VERSION}" in pins


def test_all_pods_see_the_secrets_and_volumes_of_the_spec(published):
    secrets = [{"name": "mlflow", "environment": {"MLFLOW_TRACKING_TOKEN": "token"}}]
    secrets += [{"name": "bucket", "mountPath": "/var/secrets/bucket"}]
    volumes = [{"claim": "photos", "mountPath": "/data"}]
    manifest = ray_cluster("c", "team", execution(secrets=secrets, volumes=volumes, imagePullSecrets=["registry"]))
    assert problems(published, manifest) == []
    groups = [manifest["spec"]["headGroupSpec"], *manifest["spec"]["workerGroupSpecs"]]
    assert len(groups) == 3
    for group in groups:
        pod = group["template"]["spec"]
        (container,) = pod["containers"]
        reference = {"secretKeyRef": {"name": "mlflow", "key": "token"}}
        assert {"name": "MLFLOW_TRACKING_TOKEN", "valueFrom": reference} in container["env"]
        mounted = {entry["mountPath"]: entry["name"] for entry in container["volumeMounts"]}
        sources = {entry["name"]: entry for entry in pod["volumes"]}
        assert sources[mounted["/var/secrets/bucket"]]["secret"] == {"secretName": "bucket"}
        assert sources[mounted["/data"]]["persistentVolumeClaim"] == {"claimName": "photos"}
        assert pod["imagePullSecrets"] == [{"name": "registry"}]
