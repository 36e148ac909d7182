from __future__ import annotations

from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
from kubernetes import client

from limbeck_operator.crds import crds
from tests.cluster import binaries
from tests.cluster.control_plane import ControlPlane
from tests.cluster.kubelet import until
from tests.cluster.operating import ACCOUNT, Objects, Replica, fresh_namespace, granted, replicas


@pytest.fixture(scope="session")
def control_plane(tmp_path_factory: pytest.TempPathFactory) -> Iterator[ControlPlane]:
    """A real API server with its etcd and controllers; one for all tests."""
    folder, why = binaries.find()
    if folder is None:
        pytest.skip(why)
    plane = ControlPlane(folder, tmp_path_factory.mktemp("control-plane"))
    try:
        plane.start()
        yield plane
    finally:
        plane.stop()


@pytest.fixture(scope="session")
def admin(control_plane: ControlPlane) -> Any:
    """A client that may do everything."""
    return control_plane.client()


@pytest.fixture
def namespace(admin: Any) -> Iterator[str]:
    """A namespace of the test's own."""
    with fresh_namespace(admin) as name:
        yield name


@pytest.fixture(scope="session")
def defined(admin: Any) -> None:
    """The API server knows Distillations and ScheduledDistillations."""
    extensions = client.ApiextensionsV1Api(admin)
    for definition in crds().values():
        extensions.create_custom_resource_definition(definition)

    def established() -> bool:
        found = extensions.list_custom_resource_definition().items
        conditions = [{c.type: c.status for c in entry.status.conditions or []} for entry in found]
        return len(found) == 2 and all(entry.get("Established") == "True" for entry in conditions)

    until(established, "the definitions")


@pytest.fixture
def account(admin, control_plane, defined, namespace) -> Iterator[Path]:
    """A kubeconfig with the operator's rights of --namespace mode: a Role of one namespace, and nothing else."""
    with granted(admin, "role.yaml", namespace):
        yield control_plane.account(namespace, ACCOUNT)


@pytest.fixture
def start(account, namespace, tmp_path) -> Iterator[Callable[..., Replica]]:
    with replicas(account, tmp_path, "--namespace", namespace) as begin:
        yield begin


@pytest.fixture
def objects(admin, defined, namespace) -> Objects:
    return Objects(admin, namespace)
