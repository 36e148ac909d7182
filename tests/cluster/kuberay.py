"""KubeRay, as far as the operator sees it: its own definition of RayClusters, and what its controller says of them."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from datetime import UTC, datetime
from typing import Any

import pytest
from kubernetes import client

from tests.cluster.kubelet import until
from tests.fanout import kuberay_release

_PLACE = ("ray.io", "v1")
_DEFINITION = "rayclusters.ray.io"


@contextmanager
def installed(admin: Any) -> Iterator[None]:
    """The API server knows RayClusters; afterwards it does not, as other tests want it."""
    definition, why = kuberay_release.definition()
    if definition is None:
        pytest.skip(why)
    versions = [entry for entry in definition["spec"]["versions"] if entry["name"] == "v1"]
    definition["spec"]["versions"] = versions  # one is half of a megabyte
    extensions = client.ApiextensionsV1Api(admin)
    extensions.create_custom_resource_definition(definition)
    try:
        until(lambda: _knows(admin), "KubeRay's definition")
        yield
    finally:
        extensions.delete_custom_resource_definition(_DEFINITION)
        until(lambda: not _knows(admin) and not _is_defined(extensions), "the definition's end")


def _knows(admin: Any) -> bool:
    try:
        found = client.CustomObjectsApi(admin).get_api_resources(*_PLACE)
    except client.ApiException as error:
        if error.status == 404:
            return False
        raise
    return any(entry.name == "rayclusters" for entry in found.resources)


def _is_defined(extensions: Any) -> bool:
    found = extensions.list_custom_resource_definition(field_selector=f"metadata.name={_DEFINITION}")
    return bool(found.items)


class Clusters:
    """The RayClusters of a namespace."""

    def __init__(self, admin: Any, namespace: str) -> None:
        self._custom, self._namespace = client.CustomObjectsApi(admin), namespace

    def get(self, name: str) -> dict[str, Any] | None:
        found = self._custom.list_namespaced_custom_object(*_PLACE, self._namespace, "rayclusters")["items"]
        return next((entry for entry in found if entry["metadata"]["name"] == name), None)

    def say(self, name: str, state: str, **more: Any) -> None:
        """What KubeRay's controller says of a cluster that is not ready yet, or no longer."""
        self._patch(name, {"state": state, **more})

    def provision(self, name: str) -> None:
        """Have all pods of a cluster be ready."""
        now = datetime.now(UTC).strftime("%Y-%m-%dT%H:%M:%SZ")
        provisioned = {"type": "RayClusterProvisioned", "status": "True", "reason": "AllPodRunningAndReadyFirstTime"}
        condition = provisioned | {"lastTransitionTime": now, "message": "all Ray Pods are ready for the first time"}
        self._patch(name, {"state": "ready", "conditions": [condition]})

    def _patch(self, name: str, status: dict[str, Any]) -> None:
        place = (*_PLACE, self._namespace, "rayclusters", name)
        self._custom.patch_namespaced_custom_object_status(*place, {"status": status})
