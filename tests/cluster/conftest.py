from __future__ import annotations

import signal
import sys
import uuid
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import yaml
from kubernetes import client

from limbeck_operator.crds import crds
from tests.cluster import binaries
from tests.cluster.control_plane import ControlPlane
from tests.cluster.kubelet import until
from tests.cluster.operating import Objects, Replica

ROOT = Path(__file__).parent.parent.parent


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
    name = f"test-{uuid.uuid4().hex[:8]}"
    core = client.CoreV1Api(admin)
    core.create_namespace({"metadata": {"name": name}})
    yield name
    core.delete_namespace(name)


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
def account(admin, control_plane, defined, namespace) -> Path:
    """A kubeconfig with the operator's rights of --namespace mode: a Role of one namespace, and nothing else."""
    role = yaml.safe_load((ROOT / "operator" / "rbac" / "role.yaml").read_text())
    rights = client.RbacAuthorizationV1Api(admin)
    rights.create_namespaced_role(namespace, role)
    binding = {
        "metadata": {"name": "limbeck-operator"},
        "roleRef": {"apiGroup": "rbac.authorization.k8s.io", "kind": "Role", "name": role["metadata"]["name"]},
        "subjects": [{"kind": "ServiceAccount", "name": "operator", "namespace": namespace}],
    }
    rights.create_namespaced_role_binding(namespace, binding)
    return control_plane.account(namespace, "operator")


@pytest.fixture
def start(account, namespace, tmp_path) -> Iterator[Callable[..., Replica]]:
    started: list[Replica] = []

    def begin(*options: str) -> Replica:
        log = tmp_path / f"operator-{len(started)}.log"
        started.append(Replica(account, log, "--namespace", namespace, *options))
        return started[-1]

    yield begin
    for replica in started:
        if replica.process.poll() is None:
            replica.stop(signal.SIGKILL)
        sys.stderr.write(replica.log.read_text())


@pytest.fixture
def objects(admin, defined, namespace) -> Objects:
    return Objects(admin, namespace)
