"""The Ray cluster that a task has for itself: made before it, deleted after it, or by a later task if it was killed."""

from __future__ import annotations

import base64
import json
import os
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any, TypeVar

from limbeck.errors import WorkError
from limbeck.fanout.kuberay import LONGEST_NAME, TOKEN_KEY, cluster_address, ray_cluster
from limbeck.interrupt import StopRequest
from limbeck.spec import Distillation
from limbeck.store import json_digest

_GROUP, _VERSION, _PLURAL = "ray.io", "v1", "rayclusters"
_NAMESPACE = Path("/var/run/secrets/kubernetes.io/serviceaccount/namespace")
_READY_SECONDS, _LOOK = 1800.0, 2.0  # an autoscaler may first have to add nodes
_RUN_LABEL, _STAGE_LABEL = "limbeck.dev/distillation", "limbeck.dev/stage"
_TIMEOUTS = (10, 60)  # seconds to connect, and until an answer comes

T = TypeVar("T")


@contextmanager
def with_cluster(distillation: Distillation, stage: str, stop: StopRequest) -> Iterator[Distillation]:
    """The spec with the address of the cluster that its `execution.ray.cluster` asks for, which lives inside the block.

    Args:
        distillation: the spec; it asks for a cluster.
        stage: that the cluster is for.
        stop: looked at while the cluster is waited for.

    Raises:
        WorkError: Kubernetes has no RayCluster, does not let this pod make one, or it does not get ready.
        Stopped: a stop was asked for.
    """
    ray = distillation.spec.execution.ray
    assert ray.cluster is not None
    clusters, pod, run = _Clusters(), os.environ["LIMBECK_POD_NAME"], distillation.metadata.name
    clusters.remove_left(run)
    name = _name(run, stage, pod)
    manifest = ray_cluster(
        name,
        clusters.namespace,
        distillation.spec.execution,
        labels={_RUN_LABEL: run, _STAGE_LABEL: stage},
        owner={"apiVersion": "v1", "kind": "Pod", "name": pod, "uid": clusters.pod(pod).metadata.uid},
    )
    clusters.create(manifest)
    try:
        clusters.wait(name, stop)
        if ray.cluster.authentication == "token":
            os.environ |= {"RAY_AUTH_MODE": "token", "RAY_AUTH_TOKEN": clusters.token(name)}
        yield _with_address(distillation, cluster_address(name, clusters.namespace))
    finally:
        clusters.remove(name)


def remove_clusters(distillation: Distillation) -> None:
    """Delete the clusters of a run whose pods have ended without doing so: killed ones, which their clusters outlive.

    Raises:
        WorkError: Kubernetes does not let this pod look for them.
    """
    if distillation.spec.execution.ray.cluster is not None:
        _Clusters().remove_left(distillation.metadata.name)


class _Clusters:
    """The RayClusters of this pod's namespace; where Kubernetes refuses, a `WorkError` names the missing right."""

    def __init__(self) -> None:
        from kubernetes import client, config

        config.load_incluster_config()
        self.namespace = _NAMESPACE.read_text().strip()
        self._core, self._objects = client.CoreV1Api(), client.CustomObjectsApi()
        self._failure = client.ApiException
        self._place = (_GROUP, _VERSION, self.namespace, _PLURAL)

    def _ask(self, right: str, call: Callable[..., T], *arguments: Any, **options: Any) -> T | None:
        """The answer; None where there is no such thing."""
        try:
            return call(*arguments, **options, _request_timeout=_TIMEOUTS)
        except self._failure as error:
            if error.status == 404:
                return None
            if error.status in (401, 403):
                raise WorkError(f"the pod's service account may not {right} in {self.namespace}") from None
            raise WorkError(f"Kubernetes did not {right}: {error.reason}") from None

    def pod(self, name: str) -> Any:
        """A pod; None where there is none."""
        return self._ask("get pods", self._core.read_namespaced_pod, name, self.namespace)

    def token(self, name: str) -> str:
        """What a cluster asks its users for."""
        found = self._ask("get secrets", self._core.read_namespaced_secret, name, self.namespace)
        if found is None:
            raise WorkError(f"RayCluster {name} has no secret with its token, which KubeRay 1.5 and later make")
        return base64.b64decode(found.data[TOKEN_KEY]).decode()

    def create(self, manifest: dict[str, Any]) -> None:
        """Create one."""
        made = self._ask("create rayclusters", self._objects.create_namespaced_custom_object, *self._place, manifest)
        if made is None:
            raise WorkError("this Kubernetes has no RayCluster; install KubeRay, or give execution.ray.address")

    def wait(self, name: str, stop: StopRequest) -> None:
        """Until the head can be reached and the workers are there."""
        deadline, state = time.monotonic() + _READY_SECONDS, "nothing yet"
        while time.monotonic() < deadline:
            stop.check()
            try:
                found = self._objects.get_namespaced_custom_object(*self._place, name, _request_timeout=_TIMEOUTS)
            except self._failure as error:
                if error.status in (401, 403):
                    raise WorkError(f"the pod's service account may not get rayclusters in {self.namespace}") from None
                if error.status == 404:
                    raise WorkError(f"RayCluster {name} was deleted while it was waited for") from None
                now = f"Kubernetes answers {error.status}"
            else:
                status = found.get("status", {})
                conditions = {entry["type"]: entry["status"] for entry in status.get("conditions", [])}
                if conditions.get("RayClusterProvisioned") == "True" or status.get("state") == "ready":
                    return
                now = status.get("reason") or status.get("state") or "no pods yet"
            if now != state:
                sys.stderr.write(f"RayCluster {name}: {now}\n")
            state = now
            time.sleep(_LOOK)
        raise WorkError(f"RayCluster {name} was not ready after {_READY_SECONDS:g} s: {state}")

    def remove(self, name: str) -> None:
        """Delete one, if it is there; where that fails, the next task does it, or the exit task."""
        try:
            self._ask("delete rayclusters", self._objects.delete_namespaced_custom_object, *self._place, name)
        except WorkError as error:
            sys.stderr.write(f"RayCluster {name} was not deleted: {error}\n")

    def remove_left(self, run: str) -> None:
        """Delete those of a run whose pods have ended, or are gone."""
        selector = f"{_RUN_LABEL}={run}"
        found = self._ask(
            "list rayclusters",
            self._objects.list_namespaced_custom_object,
            *self._place,
            label_selector=selector,
        )
        for cluster in (found or {}).get("items", []):
            owners = [o["name"] for o in cluster["metadata"].get("ownerReferences", []) if o["kind"] == "Pod"]
            pods = [self.pod(owner) for owner in owners]
            if owners and all(pod is None or pod.status.phase in ("Succeeded", "Failed") for pod in pods):
                self.remove(cluster["metadata"]["name"])


def _name(run: str, stage: str, pod: str) -> str:
    """Of the cluster: another one for every pod, so that a retry does not meet its predecessor's."""
    digest = json_digest(pod)[:10]
    return f"lb-{run[: LONGEST_NAME - len(stage) - len(digest) - 5]}-{stage}-{digest}"  # begins with a letter, always


def _with_address(distillation: Distillation, address: str) -> Distillation:
    document = distillation.model_dump(mode="json", by_alias=True)
    document["spec"]["execution"]["ray"] |= {"address": address, "cluster": None}
    return Distillation.model_validate_json(json.dumps(document))
