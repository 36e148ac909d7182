"""The operator as a process, and the objects of a namespace as a user sees them."""

from __future__ import annotations

import os
import signal
import socket
import subprocess
import sys
import urllib.error
import urllib.request
from pathlib import Path
from typing import Any

from kubernetes import client

from limbeck_operator import api
from tests.cluster.kubelet import pods_of, until

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
