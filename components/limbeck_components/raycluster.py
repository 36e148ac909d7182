"""The Ray cluster that a task has for itself: made before it, deleted after it, and gone when the task's pod is."""

from __future__ import annotations

import base64
import json
import os
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from limbeck.errors import WorkError
from limbeck.fanout.kuberay import LONGEST_NAME, TOKEN_KEY, cluster_address, ray_cluster
from limbeck.spec import Distillation
from limbeck.store import json_digest

_GROUP, _VERSION, _PLURAL = "ray.io", "v1", "rayclusters"
_NAMESPACE = Path("/var/run/secrets/kubernetes.io/serviceaccount/namespace")
_READY_SECONDS, _LOOK = 1800.0, 2.0  # an autoscaler may first have to add nodes


@contextmanager
def with_cluster(distillation: Distillation, stage: str) -> Iterator[Distillation]:
    """The spec with the address of the cluster that `execution.ray.cluster` asks for; as it is where none is asked for.

    Raises:
        WorkError: Kubernetes has no RayCluster, does not let this pod make one, or it does not get ready.
    """
    execution = distillation.spec.execution
    if execution.ray.cluster is None:
        yield distillation
        return
    from kubernetes import client, config

    config.load_incluster_config()
    namespace, pod = _NAMESPACE.read_text().strip(), os.environ["LIMBECK_POD_NAME"]
    core, objects = client.CoreV1Api(), client.CustomObjectsApi()
    name = _name(distillation.metadata.name, stage, pod)
    manifest = ray_cluster(
        name,
        namespace,
        execution,
        labels={"limbeck.dev/distillation": distillation.metadata.name, "limbeck.dev/stage": stage},
        owner=_owner(core, pod, namespace),
    )
    try:
        objects.create_namespaced_custom_object(_GROUP, _VERSION, namespace, _PLURAL, manifest)
    except client.ApiException as error:
        raise WorkError(_refusal(error, name, namespace)) from None
    try:
        _wait(objects, namespace, name, client.ApiException)
        if execution.ray.cluster.authentication == "token":
            token = core.read_namespaced_secret(name, namespace).data[TOKEN_KEY]
            os.environ |= {"RAY_AUTH_MODE": "token", "RAY_AUTH_TOKEN": base64.b64decode(token).decode()}
        yield _with_address(distillation, cluster_address(name, namespace))
    finally:
        try:
            objects.delete_namespaced_custom_object(_GROUP, _VERSION, namespace, _PLURAL, name)
        except client.ApiException as error:
            if error.status != 404:
                sys.stderr.write(f"RayCluster {name} was not deleted ({error.reason}); it goes with this pod\n")


def _name(run: str, stage: str, pod: str) -> str:
    """Of the cluster: another one for every pod, so that a retry does not meet its predecessor's."""
    digest = json_digest(pod)[:10]
    return f"lb-{run[: LONGEST_NAME - len(stage) - len(digest) - 5]}-{stage}-{digest}"  # begins with a letter, always


def _owner(core: Any, pod: str, namespace: str) -> dict[str, Any]:
    uid = core.read_namespaced_pod(pod, namespace).metadata.uid
    return {"apiVersion": "v1", "kind": "Pod", "name": pod, "uid": uid}


def _refusal(error: Any, name: str, namespace: str) -> str:
    if error.status == 404:
        return "this Kubernetes has no RayCluster; install KubeRay, or give execution.ray.address"
    if error.status == 403:
        return f"the service account may not create RayClusters in {namespace}"
    return f"RayCluster {name} was not created: {error.reason}"


def _wait(objects: Any, namespace: str, name: str, failure: type[Exception]) -> None:
    """Until the head can be reached and the workers are there."""
    deadline, state = time.monotonic() + _READY_SECONDS, "nothing yet"
    while time.monotonic() < deadline:
        try:
            found = objects.get_namespaced_custom_object(_GROUP, _VERSION, namespace, _PLURAL, name)
        except failure as error:
            state = str(error).splitlines()[0]
        else:
            status = found.get("status", {})
            conditions = {entry["type"]: entry["status"] for entry in status.get("conditions", [])}
            if conditions.get("RayClusterProvisioned") == "True" or status.get("state") == "ready":
                return
            state = status.get("reason") or status.get("state") or "no pods yet"
        time.sleep(_LOOK)
    raise WorkError(f"RayCluster {name} was not ready after {_READY_SECONDS:g} s: {state}")


def _with_address(distillation: Distillation, address: str) -> Distillation:
    document = distillation.model_dump(mode="json", by_alias=True)
    document["spec"]["execution"]["ray"] |= {"address": address, "cluster": None}
    return Distillation.model_validate_json(json.dumps(document))
