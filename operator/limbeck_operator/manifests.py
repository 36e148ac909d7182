"""The children of the operator's objects, as manifests. Pure."""

from __future__ import annotations

import json
import re
from collections.abc import Mapping
from typing import Any

from limbeck.fanout.kuberay import (
    CONTAINER_SECURITY,
    LONGEST_NAME,
    Seen,
    cluster_address,
    pod_security,
    ray_cluster,
    token_environment,
)
from limbeck.spec import Distillation, Execution, Resources, StageName
from limbeck.store import json_digest
from limbeck_operator import api
from limbeck_operator.inherit import Defaults

CONTAINER = "limbeck"
OUTCOME = "/dev/termination-log"  # where Kubernetes looks for what a container says when it ends
STATUS_PORT = 8081  # where a run says how far it is
_ADDRESS = "LIMBECK_POD_IP"
_FOLDER = "/etc/limbeck"
_SPEC = f"{api.GROUP}/spec"  # annotation of a pod, which it sees as a file
_WRONG_INPUT = 2  # exit code of a run that no retry can help
FREE = ("suspend", "activeDeadlineSeconds", "backoffLimit", "ttlSecondsAfterFinished")  # of execution, once started
_LONGEST_NAME = 63  # of a Job, which is a label of its pods
_SCRATCH, _SHARED_MEMORY = "100Gi", "2Gi"  # bounds of a pod's /tmp and /dev/shm; nothing of them is set aside
_GRACE_SECONDS = 120  # for saving what is being trained
_UNITS = {"m": 1e-3, "": 1.0, "k": 1e3, "M": 1e6, "G": 1e9, "T": 1e12, "P": 1e15, "E": 1e18, "n": 1e-9, "u": 1e-6}
_UNITS |= {f"{unit}i": 2.0 ** (10 * (power + 1)) for power, unit in enumerate("KMGTPE")}


def owner_reference(owner: Mapping[str, Any]) -> dict[str, Any]:
    """The reference that makes an object a child of `owner`, which it goes with."""
    metadata = owner["metadata"]
    return {
        "apiVersion": api.API_VERSION,
        "kind": owner["kind"],
        "name": metadata["name"],
        "uid": metadata["uid"],
        "controller": True,
        "blockOwnerDeletion": False,
    }


def is_owned(child: Mapping[str, Any], owner: Mapping[str, Any]) -> bool:
    """Whether `owner` controls `child`."""
    references = child["metadata"].get("ownerReferences") or []
    return any(entry["uid"] == owner["metadata"]["uid"] and entry.get("controller") for entry in references)


def cluster_name(name: str) -> str:
    """The RayCluster of the Distillation of that name."""
    if len(name) + 3 <= LONGEST_NAME:
        return f"lb-{name}"
    return f"lb-{name[: LONGEST_NAME - 14]}-{json_digest(name)[:10]}"


def check_name(name: str) -> str:
    """The Job that looks at things before the Distillation of that name is made."""
    if len(name) + 6 <= _LONGEST_NAME:
        return f"{name}-check"
    return f"{name[: _LONGEST_NAME - 15]}-{json_digest(name)[:8]}-check"


def run_job(owner: Mapping[str, Any], distillation: Distillation, defaults: Defaults) -> dict[str, Any]:
    """The Job that runs a Distillation.

    Args:
        owner: the Distillation as the cluster has it.
        distillation: the same, read; a Ray cluster that it asks for is there.
        defaults: of the operator.
    """
    execution = distillation.spec.execution
    file = f"{_FOLDER}/{distillation.metadata.name}.yaml"
    arguments = ["run", file, "--status", f"$({_ADDRESS}):{STATUS_PORT}", "--outcome", OUTCOME]
    job = _job(owner, distillation, defaults, arguments, _most(execution.resources), role="run")
    (container,) = job["spec"]["template"]["spec"]["containers"]
    container["ports"] = [{"name": "status", "containerPort": STATUS_PORT}]
    container["env"].insert(0, {"name": _ADDRESS, "valueFrom": {"fieldRef": {"fieldPath": "status.podIP"}}})
    job["metadata"]["annotations"] = {api.CONTENT: settings_of(owner)}
    job["spec"]["backoffLimit"] = execution.backoff_limit
    if execution.active_deadline_seconds is not None:
        job["spec"]["activeDeadlineSeconds"] = execution.active_deadline_seconds
    return job


def settings_of(document: Mapping[str, Any]) -> str:
    """Digest of the settings of a Distillation that its Job is made of, and keeps."""
    spec = dict(document.get("spec") or {})
    execution = {name: value for name, value in (spec.pop("execution", None) or {}).items() if name not in FREE}
    return json_digest({**spec, "execution": execution})


def check_job(
    owner: Mapping[str, Any], distillation: Distillation, defaults: Defaults, *, champion: bool
) -> dict[str, Any]:
    """The light Job that says what the sources of a schedule's Distillation are by now.

    Args:
        owner: the schedule.
        distillation: that is to be made of it.
        defaults: of the operator.
        champion: whether it shall say, too, which champion the Distillation could start from.
    """
    name = distillation.metadata.name
    arguments = ["fingerprint", f"{_FOLDER}/{name}.yaml", "--outcome", OUTCOME]
    if champion:
        arguments.append("--champion")
    small = Resources(cpu="500m", memory="1Gi")
    job = _job(owner, distillation, defaults, arguments, small, role="check", name=check_name(name))
    job["spec"] |= {"backoffLimit": 2, "activeDeadlineSeconds": 3600}
    job["metadata"]["annotations"] = {api.CHECKED: json_digest(job["spec"])}
    return job


def _job(
    owner: Mapping[str, Any],
    distillation: Distillation,
    defaults: Defaults,
    arguments: list[str],
    resources: Resources,
    *,
    role: str,
    name: str | None = None,
) -> dict[str, Any]:
    metadata = owner["metadata"]
    of = api.OF if owner["kind"] == api.DISTILLATION else api.OF_SCHEDULE
    labels = {api.BY: api.MANAGER, of: metadata["name"], api.ROLE: role}
    spec = distillation.spec.model_dump(mode="json", by_alias=True, exclude_none=True)
    ray = spec["execution"]["ray"]
    if ray.pop("cluster", None) is not None:  # the operator has made it
        ray["address"] = cluster_address(cluster_name(distillation.metadata.name), metadata["namespace"])
    document = {
        "apiVersion": api.API_VERSION,
        "kind": api.DISTILLATION,
        "metadata": {"name": distillation.metadata.name},
        "spec": spec,
    }
    return {
        "apiVersion": "batch/v1",
        "kind": "Job",
        "metadata": {
            "name": name or metadata["name"],
            "namespace": metadata["namespace"],
            "labels": labels,
            "ownerReferences": [owner_reference(owner)],
        },
        "spec": {
            "template": {
                "metadata": {"labels": labels, "annotations": {_SPEC: json.dumps(document, sort_keys=True)}},
                "spec": _pod(distillation, defaults, arguments, resources),
            },
            "podFailurePolicy": {
                "rules": [
                    {
                        "action": "FailJob",
                        "onExitCodes": {"containerName": CONTAINER, "operator": "In", "values": [_WRONG_INPUT]},
                    },
                    {"action": "Ignore", "onPodConditions": [{"type": "DisruptionTarget", "status": "True"}]},
                ]
            },
        },
    }


def _pod(distillation: Distillation, defaults: Defaults, arguments: list[str], resources: Resources) -> dict[str, Any]:
    execution = distillation.spec.execution
    environment: list[dict[str, Any]] = [
        {"name": "HOME", "value": "/tmp"},  # noqa: S108 - the pod's own
        {"name": "USER", "value": "limbeck"},  # whoever looks the user up in /etc/passwd finds none
        {"name": "XDG_CACHE_HOME", "value": "/tmp/cache"},  # noqa: S108
    ]
    mounts: list[dict[str, Any]] = [
        {"name": "spec", "mountPath": _FOLDER, "readOnly": True},
        {"name": "tmp", "mountPath": "/tmp"},  # noqa: S108
        {"name": "shm", "mountPath": "/dev/shm"},  # noqa: S108
    ]
    field = {"fieldPath": f"metadata.annotations['{_SPEC}']"}
    shm = {"medium": "Memory", "sizeLimit": resources.shared_memory or _SHARED_MEMORY}
    volumes: list[dict[str, Any]] = [
        {"name": "spec", "downwardAPI": {"items": [{"path": f"{distillation.metadata.name}.yaml", "fieldRef": field}]}},
        {"name": "tmp", "emptyDir": {"sizeLimit": _SCRATCH}},
        {"name": "shm", "emptyDir": shm},
    ]
    seen = Seen(execution)
    ray = execution.ray
    if ray.cluster is not None:
        environment += token_environment(cluster_name(distillation.metadata.name), ray.cluster)
    environment += seen.environment
    mounts += seen.mounts
    volumes += seen.volumes
    amounts = {"cpu": resources.cpu, "memory": resources.memory}
    if resources.gpus:
        amounts[resources.gpu_resource] = str(resources.gpus)
    amounts = {resource: amount for resource, amount in amounts.items() if amount is not None}
    pod: dict[str, Any] = {
        "restartPolicy": "Never",
        "terminationGracePeriodSeconds": _GRACE_SECONDS,
        "enableServiceLinks": False,
        "containers": [
            {
                "name": CONTAINER,
                "image": execution.image or defaults.image,
                "command": ["limbeck"],
                "args": arguments,
                "workingDir": "/tmp",  # noqa: S108
                "env": environment,
                "resources": {"requests": amounts, "limits": amounts},
                "terminationMessagePath": OUTCOME,
                "terminationMessagePolicy": "FallbackToLogsOnError",
                "securityContext": CONTAINER_SECURITY,
                "volumeMounts": mounts,
            }
        ],
        "securityContext": pod_security(execution),
        "volumes": volumes,
    }
    account = execution.service_account or defaults.service_account
    if account is not None:
        pod["serviceAccountName"] = account
    if execution.image_pull_secrets:
        pod["imagePullSecrets"] = [{"name": name} for name in execution.image_pull_secrets]
    if resources.node_selector:
        pod["nodeSelector"] = dict(resources.node_selector)
    if resources.tolerations:
        pod["tolerations"] = [
            {key: value for key, value in toleration.wire().items() if value is not None}
            for toleration in resources.tolerations
        ]
    return pod


def ray_cluster_of(owner: Mapping[str, Any], execution: Execution, defaults: Defaults) -> dict[str, Any]:
    """The RayCluster that a Distillation asks for."""
    metadata = owner["metadata"]
    execution = execution.model_copy(
        update={
            "image": execution.image or defaults.image,
            "service_account": execution.service_account or defaults.service_account,
        }
    )
    return ray_cluster(
        cluster_name(metadata["name"]),
        metadata["namespace"],
        execution,
        labels={api.BY: api.MANAGER, api.OF: metadata["name"]},
        owner=owner_reference(owner),
    )


def _most(resources: Mapping[StageName, Resources]) -> Resources:
    """What one pod needs that does every stage: the most of each amount, and all that is asked of its node."""
    stages = [entry for _, entry in sorted(resources.items())]
    gpus = [entry for entry in stages if entry.gpus]
    selector = {label: value for entry in stages for label, value in entry.node_selector.items()}
    tolerations = {json.dumps(t.wire(), sort_keys=True): t for entry in stages for t in entry.tolerations}
    return Resources(
        cpu=_largest([entry.cpu for entry in stages]),
        memory=_largest([entry.memory for entry in stages]),
        shared_memory=_largest([entry.shared_memory for entry in stages]),
        gpus=max((entry.gpus or 0 for entry in gpus), default=None),
        gpu_resource=gpus[0].gpu_resource if gpus else "nvidia.com/gpu",
        node_selector=selector,
        tolerations=list(tolerations.values()),
    )


def _largest(amounts: list[str | None]) -> str | None:
    return max((amount for amount in amounts if amount is not None), key=quantity, default=None)


def quantity(text: str) -> float:
    """A Kubernetes quantity, such as 500m or 4Gi, as a number."""
    number, unit = re.fullmatch(r"([0-9.]+)([A-Za-z]*)", text).groups()  # type: ignore[union-attr]
    return float(number) * _UNITS[unit]
