"""The KubeRay RayCluster that a run asks for, as a manifest. Pure: what creates it is the operator or the pipeline."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from limbeck.spec import Execution, RayCluster, RayNode, RayWorkerGroup

API_VERSION = "ray.io/v1"
RAY_VERSION = "2.60.0"  # of the image; the autoscaler's behaviour follows it
OBJECT_STORE = 128 * 2**20  # bytes of a node, here as on a cluster: nothing large goes through it
LONGEST_NAME = 53  # KubeRay's limit, so that the names it derives fit

TOKEN_KEY = "auth_token"  # noqa: S105 - the name of a key; KubeRay puts the token there
_TMP = "/tmp"  # noqa: S108 - the pod's own
_PORTS = {"gcs-server": 6379, "dashboard": 8265, "client": 10001}
_GROUP = 65532  # the image's, to which new volumes are made writable
CONTAINER_SECURITY = {
    "allowPrivilegeEscalation": False,
    "capabilities": {"drop": ["ALL"]},
    "readOnlyRootFilesystem": True,
    "runAsNonRoot": True,
    "seccompProfile": {"type": "RuntimeDefault"},
}


def ray_cluster(
    name: str,
    namespace: str,
    execution: Execution,
    *,
    labels: Mapping[str, str] | None = None,
    owner: Mapping[str, Any] | None = None,
) -> dict[str, Any]:
    """The manifest of the RayCluster of `execution.ray.cluster`.

    Args:
        name: of the object; at most 53 characters.
        namespace: where it is created.
        execution: its ray.cluster is given; image and service account are defaults of the pods.
        labels: of the object and of its pods.
        owner: an ownerReference; the cluster goes when the owner goes.

    Raises:
        ValueError: the name is too long, no cluster is asked for, or there is no image.
    """
    cluster = execution.ray.cluster
    if cluster is None:
        raise ValueError("execution.ray.cluster is not given")
    image = cluster.image or execution.image
    if image is None:
        raise ValueError("neither execution.ray.cluster.image nor execution.image is given")
    if len(name) > LONGEST_NAME:
        raise ValueError(f"{name} has {len(name)} characters, KubeRay takes {LONGEST_NAME}")
    labels = dict(labels or {})
    metadata: dict[str, Any] = {"name": name, "namespace": namespace, "labels": labels}
    if owner is not None:
        metadata["ownerReferences"] = [dict(owner)]
    spec: dict[str, Any] = {
        "rayVersion": RAY_VERSION,
        "authOptions": {"mode": cluster.authentication},
        "enableInTreeAutoscaling": cluster.autoscaling,
        "headGroupSpec": _head(cluster.head, image, execution, labels),
        "workerGroupSpecs": [_workers(group, image, execution, labels, cluster) for group in cluster.worker_groups],
    }
    if cluster.autoscaling:
        spec["autoscalerOptions"] = {
            "idleTimeoutSeconds": cluster.idle_timeout_seconds,
            "securityContext": CONTAINER_SECURITY,
        }
    return {"apiVersion": API_VERSION, "kind": "RayCluster", "metadata": metadata, "spec": spec}


def cluster_address(name: str, namespace: str) -> str:
    """The `execution.ray.address` of such a cluster, from any pod."""
    return f"http://{name}-head-svc.{namespace}.svc:{_PORTS['dashboard']}"


def token_environment(name: str, cluster: RayCluster) -> list[dict[str, Any]]:
    """The environment of a container that connects to such a cluster: the token, from KubeRay's secret."""
    if cluster.authentication == "disabled":
        return []
    secret = {"secretKeyRef": {"name": name, "key": TOKEN_KEY}}
    return [{"name": "RAY_AUTH_MODE", "value": "token"}, {"name": "RAY_AUTH_TOKEN", "valueFrom": secret}]


def _head(node: RayNode, image: str, execution: Execution, labels: Mapping[str, str]) -> dict[str, Any]:
    ports = [{"name": name, "containerPort": port} for name, port in _PORTS.items()]
    return {
        "serviceType": "ClusterIP",
        # no CPUs to schedule on: experts are trained on workers, and the head must stay alive
        "rayStartParams": {"dashboard-host": "0.0.0.0", "num-cpus": "0", **_common_params()},  # noqa: S104 - in its pod
        "template": _pod(node, "ray-head", image, execution, labels, ports=ports),
    }


def _workers(
    group: RayWorkerGroup, image: str, execution: Execution, labels: Mapping[str, str], cluster: RayCluster
) -> dict[str, Any]:
    accelerators = {group.gpu_resource: str(group.gpus)} if group.gpus else {}
    selector = {group.gpu_type_label: group.gpu_type} if group.gpu_type is not None else {}
    fixed = group.replicas
    return {
        "groupName": group.name,
        "replicas": group.replicas,
        "minReplicas": group.fewest if cluster.autoscaling else fixed,
        "maxReplicas": group.most if cluster.autoscaling else max(1, fixed),
        "rayStartParams": _common_params(),
        "template": _pod(group, "ray-worker", image, execution, labels, accelerators=accelerators, selector=selector),
    }


def _common_params() -> dict[str, str]:
    return {"object-store-memory": str(OBJECT_STORE)}


def _pod(
    node: RayNode,
    container: str,
    image: str,
    execution: Execution,
    labels: Mapping[str, str],
    *,
    ports: list[dict[str, Any]] | None = None,
    accelerators: Mapping[str, str] | None = None,
    selector: Mapping[str, str] | None = None,
) -> dict[str, Any]:
    amounts = {"cpu": node.cpu, "memory": node.memory, **(accelerators or {})}
    seen = Seen(execution)
    spec: dict[str, Any] = {
        "containers": [
            {
                "name": container,
                "image": image,
                "resources": {"requests": amounts, "limits": amounts},
                "env": [
                    {"name": "HOME", "value": _TMP},
                    {"name": "XDG_CACHE_HOME", "value": f"{_TMP}/cache"},
                    *seen.environment,
                ],
                "securityContext": CONTAINER_SECURITY,
                "volumeMounts": [
                    {"name": "tmp", "mountPath": _TMP},
                    {"name": "shm", "mountPath": "/dev/shm"},  # noqa: S108
                    *seen.mounts,
                ],
                **({"ports": ports} if ports else {}),
            }
        ],
        "securityContext": pod_security(execution),
        "volumes": [
            {"name": "tmp", "emptyDir": {"sizeLimit": node.scratch}},
            {"name": "shm", "emptyDir": {"medium": "Memory", "sizeLimit": node.shared_memory}},
            *seen.volumes,
        ],
    }
    if execution.image_pull_secrets:
        spec["imagePullSecrets"] = [{"name": name} for name in execution.image_pull_secrets]
    nodes = {**node.node_selector, **(selector or {})}
    if nodes:
        spec["nodeSelector"] = nodes
    if node.tolerations:
        spec["tolerations"] = [
            {name: value for name, value in toleration.wire().items() if value is not None}
            for toleration in node.tolerations
        ]
    if execution.service_account is not None:
        spec["serviceAccountName"] = execution.service_account
    return {"metadata": {"labels": dict(labels)}, "spec": spec}


def pod_security(execution: Execution) -> dict[str, Any]:
    """The security context of pods, which are not root and yet write to their volumes."""
    writable = {"fsGroup": _GROUP, "fsGroupChangePolicy": "OnRootMismatch"} if execution.volumes else {}
    return {"runAsNonRoot": True, "seccompProfile": {"type": "RuntimeDefault"}, **writable}


class Seen:
    """What pods see of `execution.secrets` and `execution.volumes`."""

    def __init__(self, execution: Execution) -> None:
        self.environment: list[dict[str, Any]] = []
        self.mounts: list[dict[str, Any]] = []
        self.volumes: list[dict[str, Any]] = []
        for secret in execution.secrets:
            for variable, key in secret.environment.items():
                reference = {"secretKeyRef": {"name": secret.name, "key": key}}
                self.environment.append({"name": variable, "valueFrom": reference})
            if secret.mount_path is not None:
                self._mount({"secret": {"secretName": secret.name}}, secret.mount_path, read_only=True)
        for volume in execution.volumes:
            self._mount({"persistentVolumeClaim": {"claimName": volume.claim}}, volume.mount_path, read_only=False)

    def _mount(self, source: dict[str, Any], path: str, *, read_only: bool) -> None:
        name = f"mount-{len(self.volumes)}"
        self.volumes.append({"name": name, **source})
        self.mounts.append({"name": name, "mountPath": path, **({"readOnly": True} if read_only else {})})
