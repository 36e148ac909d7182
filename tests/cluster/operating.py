"""The operator as a process, and the objects of a namespace as a user sees them."""

from __future__ import annotations

import os
import signal
import socket
import subprocess
import sys
import urllib.error
import urllib.request
import uuid
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import yaml
from kubernetes import client

from limbeck_operator import api
from tests.cluster.kubelet import pods_of, until

RIGHTS = Path(__file__).parent.parent.parent / "operator" / "rbac"
ACCOUNT = "operator"  # a service account
COMMAND = (sys.executable, "-m", "limbeck.cli", "operator")
OUTCOME = {
    "sourceFingerprint": "f00d",
    "digest": "ab" * 32,
    "images": 28,
    "model": "digits",
    "version": 3,
    "champion": True,
    "recoveredGap": 0.61,
    "links": {"mlflow": "http://mlflow/#/run"},
    "stages": [{"name": "distill", "seconds": 12.5, "reused": False}],
}


@contextmanager
def fresh_namespace(admin: Any) -> Iterator[str]:
    """A namespace of its own."""
    name = f"test-{uuid.uuid4().hex[:8]}"
    core = client.CoreV1Api(admin)
    core.create_namespace({"metadata": {"name": name}})
    try:
        yield name
    finally:
        core.delete_namespace(name)


@contextmanager
def granted(admin: Any, file: str, namespace: str) -> Iterator[list[dict[str, Any]]]:
    """The service account of a namespace has the roles of a file of operator/rbac, which are given."""
    rights = client.RbacAuthorizationV1Api(admin)
    roles = list(yaml.safe_load_all((RIGHTS / file).read_text()))
    everywhere = [role["metadata"]["name"] for role in roles if role["kind"] == "ClusterRole"]
    for role in roles:
        name = role["metadata"]["name"]
        binding = {
            "metadata": {"name": name},
            "roleRef": {"apiGroup": "rbac.authorization.k8s.io", "kind": role["kind"], "name": name},
            "subjects": [{"kind": "ServiceAccount", "name": ACCOUNT, "namespace": namespace}],
        }
        if name in everywhere:
            rights.create_cluster_role(role)
            rights.create_cluster_role_binding(binding)
        else:
            rights.create_namespaced_role(namespace, role)
            rights.create_namespaced_role_binding(namespace, binding)
    try:
        yield roles
    finally:
        for name in everywhere:  # the others go with the namespace
            rights.delete_cluster_role_binding(name)
            rights.delete_cluster_role(name)


class Replica:
    """One operator process."""

    def __init__(self, kubeconfig: Path, log: Path, *options: str) -> None:
        with socket.socket() as free:
            free.bind(("127.0.0.1", 0))
            self.port = free.getsockname()[1]
        self.log = log
        with log.open("ab") as out:
            self.process = subprocess.Popen(
                [*COMMAND, "--kubeconfig", str(kubeconfig), "--port", str(self.port), *options],
                stdout=out,
                stderr=out,
                env={**os.environ, "LIMBECK_POD_NAME": log.stem},
            )

    def get(self, path: str) -> tuple[int, str]:
        try:
            with urllib.request.urlopen(f"http://127.0.0.1:{self.port}/{path}", timeout=5) as answer:
                return answer.status, answer.read().decode()
        except urllib.error.HTTPError as error:
            return error.code, error.read().decode()

    def leads(self) -> bool:
        return "limbeck_leader 1.0" in self.get("metrics")[1]

    def stop(self, how: signal.Signals = signal.SIGTERM) -> int:
        self.process.send_signal(how)
        return self.process.wait(30)


@contextmanager
def replicas(account: Path, folder: Path, *options: str) -> Iterator[Callable[..., Replica]]:
    """Starts replicas, with these options and more; none is left afterwards, and what they have said is shown."""
    started: list[Replica] = []

    def begin(*more: str) -> Replica:
        started.append(Replica(account, folder / f"operator-{len(started)}.log", *options, *more))
        return started[-1]

    try:
        yield begin
    finally:
        for replica in started:
            if replica.process.poll() is None:
                replica.stop(signal.SIGKILL)
            sys.stderr.write(replica.log.read_text())


class Objects:
    """The objects of a namespace, as a user sees them."""

    def __init__(self, admin: Any, namespace: str) -> None:
        self.admin, self.namespace = admin, namespace
        self._custom, self._batch = client.CustomObjectsApi(admin), client.BatchV1Api(admin)

    def create(self, name: str, execution: dict[str, Any] | None = None, **more: Any) -> None:
        spec = {"source": {"uri": "gs://b/pictures"}, "output": {"uri": "gs://b/out"}, "execution": execution or {}}
        self.make(api.DISTILLATION, api.DISTILLATIONS, name, spec | more)

    def schedule(self, name: str, schedule: str, **more: Any) -> None:
        template = {"source": {"uri": "gs://b/pictures"}, "output": {"uri": "gs://b/out"}}
        spec = {"schedule": schedule, "template": {"spec": template}} | more
        self.make(api.SCHEDULE, api.SCHEDULES, name, spec)

    def make(self, kind: str, plural: str, name: str, spec: dict[str, Any]) -> None:
        document = {"apiVersion": api.API_VERSION, "kind": kind, "metadata": {"name": name}, "spec": spec}
        self._custom.create_namespaced_custom_object(api.GROUP, api.VERSION, self.namespace, plural, document)

    def patch(self, name: str, change: dict[str, Any], plural: str = api.DISTILLATIONS) -> None:
        self._custom.patch_namespaced_custom_object(api.GROUP, api.VERSION, self.namespace, plural, name, change)

    def delete(self, name: str, plural: str = api.DISTILLATIONS) -> None:
        self._custom.delete_namespaced_custom_object(api.GROUP, api.VERSION, self.namespace, plural, name)

    def get(self, name: str, plural: str = api.DISTILLATIONS) -> dict[str, Any] | None:
        return next((entry for entry in self.all(plural) if entry["metadata"]["name"] == name), None)

    def all(self, plural: str = api.DISTILLATIONS) -> list[dict[str, Any]]:
        found = self._custom.list_namespaced_custom_object(
            api.GROUP, api.VERSION, self.namespace, plural, _request_timeout=10
        )
        return list(found["items"])

    def condition(self, name: str, kind: str, plural: str = api.DISTILLATIONS) -> tuple[str, str] | None:
        conditions = ((self.get(name, plural) or {}).get("status") or {}).get("conditions") or []
        return next(((entry["status"], entry["reason"]) for entry in conditions if entry["type"] == kind), None)

    def job(self, name: str) -> Any:
        found = self._batch.list_namespaced_job(self.namespace, _request_timeout=10).items
        return next((job for job in found if job.metadata.name == name), None)

    def pod(self, job: str, number: int = 1) -> str:
        """The name of the newest pod of a Job that has had so many."""
        pods = until(
            lambda: len(found := pods_of(self.admin, self.namespace, job)) >= number and found, f"pod {number}"
        )
        return str(pods[-1].metadata.name)

    def events(self, name: str) -> list[str]:
        found = client.CoreV1Api(self.admin).list_namespaced_event(self.namespace, _request_timeout=10).items
        return [entry.reason for entry in found if entry.involved_object.name == name]
