"""A real control plane for tests: etcd, kube-apiserver and kube-controller-manager as processes of this machine.

By default there are no nodes: tests play the kubelet, see `kubelet`. With `nodes`, pods are bound and run, see `node`.
"""

from __future__ import annotations

import ctypes
import json
import os
import random
import secrets
import signal
import socket
import subprocess
import time
from collections.abc import Callable
from dataclasses import dataclass
from datetime import datetime
from pathlib import Path
from typing import Any

import yaml
from cryptography.hazmat.primitives import serialization
from cryptography.hazmat.primitives.asymmetric import rsa
from kubernetes import client, config

_START_SECONDS, _STOP_SECONDS = 180.0, 5.0
_CONTROLLERS = (
    "garbage-collector-controller",
    "job-controller",
    "namespace-controller",
    "serviceaccount-controller",
    "root-ca-certificate-publisher-controller",
)
_CONTROLLERS_OF_NODES = (
    "clusterrole-aggregation-controller",
    "deployment-controller",
    "disruption-controller",
    "endpointslice-controller",
    "persistentvolume-binder-controller",
    "persistentvolume-protection-controller",
    "persistentvolumeclaim-protection-controller",
    "replicaset-controller",
    "ttl-after-finished-controller",
)
_DIE_WITH_PARENT = 1  # PR_SET_PDEATHSIG
_AUDIT = {  # who asked for what, of service accounts: the operators of tests
    "apiVersion": "audit.k8s.io/v1",
    "kind": "Policy",
    "omitStages": ["RequestReceived"],
    "rules": [{"level": "Metadata", "userGroups": ["system:serviceaccounts"]}, {"level": "None"}],
}


@dataclass(frozen=True)
class Asked:
    """A request to the API server, by its audit log.

    Attributes:
        account: the service account, as NAMESPACE:NAME.
        agent: the user agent.
        verb: of Kubernetes, such as list.
        resource: such as jobs.batch, or jobs.batch/status; a path where it was for none.
        namespace: that it was about; empty for all.
        code: of the answer.
        received: when it came.
        answered: when the answer was sent, or begun in the case of a watch.
    """

    account: str
    agent: str
    verb: str
    resource: str
    namespace: str
    code: int
    received: datetime
    answered: datetime

    @property
    def writes(self) -> bool:
        return self.verb not in ("get", "list", "watch")


class ControlPlane:
    """One control plane.

    Args:
        binaries: folder of etcd, kube-apiserver and kube-controller-manager.
        folder: for data, logs and kubeconfigs.
        nodes: that there will be nodes. Then there are a scheduler and the controllers of Deployments, volume claims,
            disruption budgets and of Jobs' time to live, too, and the API server listens on every interface, so that
            pods reach it as `service_address`, which its certificate names.
    """

    def __init__(self, binaries: Path, folder: Path, *, nodes: bool = False) -> None:
        self._binaries, self._folder, self._nodes = binaries, folder, nodes
        folder.mkdir(parents=True, exist_ok=True)
        self._processes: dict[str, subprocess.Popen[bytes]] = {}
        self._token = secrets.token_hex(16)
        self.port, self._etcd, self._etcd_peer, self._manager, self._scheduler = _free_ports(5)
        self.url = f"https://127.0.0.1:{self.port}"
        # With nodes this address is put on an interface of this machine, so it is one that no network of it should
        # have: of the range that RFC 2544 keeps for benchmarks.
        services = f"198.18.{random.randrange(256)}" if nodes else "10.0.0"
        self._services, self.service_address = f"{services}.0/24", f"{services}.1"
        self.admin = folder / "admin.kubeconfig"

    def start(self) -> None:
        """Start everything, and wait until a pod could be made."""
        key = rsa.generate_private_key(public_exponent=65537, key_size=2048)
        (self._folder / "accounts.key").write_bytes(
            key.private_bytes(
                serialization.Encoding.PEM, serialization.PrivateFormat.PKCS8, serialization.NoEncryption()
            )
        )
        (self._folder / "tokens.csv").write_text(f'{self._token},admin,admin,"system:masters"\n')
        (self._folder / "audit.yaml").write_text(yaml.safe_dump(_AUDIT))
        self._run(
            "etcd",
            f"--data-dir={self._folder / 'etcd'}",
            f"--listen-client-urls=http://127.0.0.1:{self._etcd}",
            f"--advertise-client-urls=http://127.0.0.1:{self._etcd}",
            f"--listen-peer-urls=http://127.0.0.1:{self._etcd_peer}",
            f"--initial-advertise-peer-urls=http://127.0.0.1:{self._etcd_peer}",
            f"--initial-cluster=default=http://127.0.0.1:{self._etcd_peer}",
            "--unsafe-no-fsync",
            "--log-level=warn",
        )
        self.start_apiserver()
        self._kubeconfig(self.admin, self._token)
        self._run(
            "kube-controller-manager",
            f"--kubeconfig={self.admin}",
            f"--service-account-private-key-file={self._folder / 'accounts.key'}",
            f"--root-ca-file={self._folder / 'certificates' / 'apiserver.crt'}",
            f"--controllers={','.join(_CONTROLLERS + (_CONTROLLERS_OF_NODES if self._nodes else ()))}",
            "--use-service-account-credentials=false",
            "--leader-elect=false",
            f"--secure-port={self._manager}",
            f"--cert-dir={self._folder / 'certificates'}",
            "--concurrent-gc-syncs=2",
        )
        if self._nodes:
            self._run(
                "kube-scheduler",
                f"--kubeconfig={self.admin}",
                "--leader-elect=false",
                f"--secure-port={self._scheduler}",
                f"--cert-dir={self._folder / 'certificates'}",
            )
        core = client.CoreV1Api(self.client())
        self._until(lambda: _there(core.read_namespaced_service_account, "default", "default"), "an account")

    def stop(self) -> None:
        """Leave nothing running."""
        for name in ("kube-scheduler", "kube-controller-manager", "kube-apiserver", "etcd"):
            self._end(name)

    def start_apiserver(self) -> None:
        """Start the API server, and wait until it is ready."""
        certificates = self._folder / "certificates"
        self._run(
            "kube-apiserver",
            f"--etcd-servers=http://127.0.0.1:{self._etcd}",
            f"--cert-dir={certificates}",
            f"--secure-port={self.port}",
            f"--bind-address={'0.0.0.0' if self._nodes else '127.0.0.1'}",
            "--advertise-address=127.0.0.1",
            f"--service-cluster-ip-range={self._services}",
            "--authorization-mode=RBAC",
            f"--audit-policy-file={self._folder / 'audit.yaml'}",
            f"--audit-log-path={self._folder / 'audit.log'}",
            f"--token-auth-file={self._folder / 'tokens.csv'}",
            "--service-account-issuer=https://kubernetes.default.svc",
            f"--service-account-key-file={self._folder / 'accounts.key'}",
            f"--service-account-signing-key-file={self._folder / 'accounts.key'}",
        )
        self._until(self._is_ready, "kube-apiserver")

    def stop_apiserver(self) -> None:
        """End the API server; etcd keeps what is stored."""
        self._end("kube-apiserver")

    def restart_apiserver(self) -> None:
        """End the API server, and start it again."""
        self.stop_apiserver()
        self.start_apiserver()

    def pause_etcd(self) -> None:
        """Stop etcd, so that the API server answers nothing that needs it."""
        self._processes["etcd"].send_signal(signal.SIGSTOP)

    def resume_etcd(self) -> None:
        """Have etcd go on."""
        self._processes["etcd"].send_signal(signal.SIGCONT)

    def client(self, kubeconfig: Path | None = None) -> Any:
        """A client of the API server, by default the administrator's."""
        settings = client.Configuration()
        config.load_kube_config(str(kubeconfig or self.admin), client_configuration=settings)
        return client.ApiClient(settings)

    def account(self, namespace: str, name: str) -> Path:
        """A kubeconfig of a service account, which is made if it is not there."""
        core = client.CoreV1Api(self.client())
        if not _there(core.read_namespaced_service_account, name, namespace):
            core.create_namespaced_service_account(namespace, {"metadata": {"name": name}})
        request = {"spec": {"expirationSeconds": 3600 * 10}}
        token = core.create_namespaced_service_account_token(name, namespace, request).status.token
        path = self._folder / f"{namespace}-{name}.kubeconfig"
        self._kubeconfig(path, token, namespace)
        return path

    def asked(self, account: str) -> list[Asked]:
        """What a service account (NAMESPACE:NAME) has asked for, in the order in which it came.

        A request whose answer was sent only now may not be among it yet.
        """
        found = {}
        with (self._folder / "audit.log").open() as log:
            for line in log:
                if f'"system:serviceaccount:{account}"' in line and line.endswith("\n"):
                    entry = json.loads(line)
                    found.setdefault(entry["auditID"], _asked(account, entry))  # a watch is there twice
        return sorted(found.values(), key=lambda entry: entry.received)

    def memory(self) -> dict[str, int]:
        """Resident bytes of each process."""
        found = {}
        for name, process in self._processes.items():
            for line in Path(f"/proc/{process.pid}/status").read_text().splitlines():
                if line.startswith("VmRSS"):
                    found[name] = int(line.split()[1]) * 1024
        return found

    def _kubeconfig(self, path: Path, token: str, namespace: str = "default") -> None:
        document = {
            "apiVersion": "v1",
            "kind": "Config",
            "current-context": "test",
            "contexts": [{"name": "test", "context": {"cluster": "test", "user": "test", "namespace": namespace}}],
            "clusters": [
                {
                    "name": "test",
                    "cluster": {
                        "server": self.url,
                        "certificate-authority": str(self._folder / "certificates" / "apiserver.crt"),
                    },
                }
            ],
            "users": [{"name": "test", "user": {"token": token}}],
        }
        path.write_text(yaml.safe_dump(document))

    def _run(self, name: str, *arguments: str) -> None:
        parent = os.getpid()

        def die_with_parent() -> None:
            ctypes.CDLL(None).prctl(_DIE_WITH_PARENT, signal.SIGKILL)
            if os.getppid() != parent:
                os._exit(1)

        log = (self._folder / f"{name}.log").open("ab")
        self._processes[name] = subprocess.Popen(
            [str(self._binaries / name), *arguments],
            stdout=log,
            stderr=subprocess.STDOUT,
            stdin=subprocess.DEVNULL,
            preexec_fn=die_with_parent,
            start_new_session=True,
        )
        log.close()

    def _end(self, name: str) -> None:
        process = self._processes.pop(name, None)
        if process is None:
            return
        process.send_signal(signal.SIGCONT)
        process.terminate()
        try:
            process.wait(_STOP_SECONDS)
        except subprocess.TimeoutExpired:
            process.kill()
            process.wait()

    def _is_ready(self) -> bool:
        if not (self._folder / "certificates" / "apiserver.crt").is_file():
            return False
        if not self.admin.is_file():
            self._kubeconfig(self.admin, self._token)
        answer = self.client().call_api(
            "/readyz", "GET", auth_settings=["BearerToken"], response_type="str", _request_timeout=5
        )
        return bool(answer[1] == 200)

    def _until(self, holds: Callable[[], bool], what: str) -> None:
        deadline, last = time.monotonic() + _START_SECONDS, "it never answered"
        while time.monotonic() < deadline:
            for name, process in self._processes.items():
                if process.poll() is not None:
                    raise RuntimeError(f"{name} ended with {process.returncode}:\n{self._tail(name)}")
            try:
                if holds():
                    return
            except Exception as error:  # not there yet, in one of many ways
                last = str(error)
            time.sleep(0.1)
        raise RuntimeError(f"no {what} after {_START_SECONDS:g} s: {last}\n{self._tail('kube-apiserver')}")

    def _tail(self, name: str) -> str:
        return (self._folder / f"{name}.log").read_text(errors="replace")[-3000:]


def _asked(account: str, entry: dict[str, Any]) -> Asked:
    reference = entry.get("objectRef")
    resource = entry["requestURI"].partition("?")[0]
    if reference is not None:
        resource = ".".join(part for part in (reference["resource"], reference.get("apiGroup")) if part)
        resource = "/".join(part for part in (resource, reference.get("subresource")) if part)
    return Asked(
        account=account,
        agent=entry.get("userAgent", ""),
        verb=entry["verb"],
        resource=resource,
        namespace=(reference or {}).get("namespace", ""),
        code=entry["responseStatus"]["code"],
        received=datetime.fromisoformat(entry["requestReceivedTimestamp"]),
        answered=datetime.fromisoformat(entry["stageTimestamp"]),
    )


def _there(read: Callable[..., Any], *arguments: str) -> bool:
    try:
        read(*arguments, _request_timeout=10)
    except client.ApiException as error:
        if error.status == 404:
            return False
        raise
    return True


def _free_ports(number: int) -> list[int]:
    sockets = [socket.socket() for _ in range(number)]
    try:
        for entry in sockets:
            entry.bind(("127.0.0.1", 0))
        return [int(entry.getsockname()[1]) for entry in sockets]
    finally:
        for entry in sockets:
            entry.close()
