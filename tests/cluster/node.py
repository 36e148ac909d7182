"""A node for tests: it runs the pods that are bound to it as processes of this machine, and reports as a kubelet does.

True are scheduling, the order and the life of containers, their file systems, users and rights, volumes, service
accounts, addresses, probes and status. Not true is the image: whatever image a container names, it sees this machine's
root file system, with nothing in /tmp and in the user's home, and the virtual environment of the tests first in PATH;
only an image whose name begins with `missing/` is not found. Services have no proxy: their names are their ready pods'
addresses, so that a port must be its target port. Resources are counted by the scheduler and not enforced.
"""

from __future__ import annotations

import os
import platform
import shutil
import subprocess
import sys
import threading
import time
import traceback
from collections.abc import Callable, Mapping
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from types import TracebackType
from typing import Any

from kubernetes import client
from urllib3.exceptions import HTTPError

from tests.cluster.container import now
from tests.cluster.control_plane import ControlPlane
from tests.cluster.network import Network, hosts, service_addresses
from tests.cluster.pod import Image, Pod, Surroundings
from tests.cluster.wire import Wire

ROOT = Path(__file__).parent.parent.parent
_TURN_SECONDS, _SLOW_TURN_SECONDS, _START_SECONDS = 0.2, 1.0, 30.0
_PATH = "/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin"
_OURS = "limbeck.dev/test-node"  # label of the volumes that a node has made
_TRIAL = """
mount --make-rprivate / && mount -t tmpfs tmpfs /mnt && mkdir /mnt/u /mnt/w /mnt/r &&
mount -t overlay overlay -o lowerdir=/,upperdir=/mnt/u,workdir=/mnt/w /mnt/r &&
ip link add trial0 type bridge && ip link add trial1 type veth peer name trial2
"""


def missing(binaries: Path) -> str:
    """Why there can be no node here, in one line; nothing where there can.

    Args:
        binaries: folder of the control plane's.
    """
    if sys.platform != "linux" or os.geteuid() != 0:
        return "a test node takes root on Linux"
    absent = [name for name in ("ip", "nsenter", "unshare", "mount") if shutil.which(name) is None]
    if absent:
        return f"a test node takes {absent[0]}, of iproute2 or util-linux"
    if not (binaries / "kube-scheduler").is_file():
        return f"a test node takes a kube-scheduler, and {binaries} has none"
    trial = ["unshare", "--mount", "--net", "--pid", "--ipc", "--uts", "--fork", "sh", "-c", _TRIAL]
    done = subprocess.run(trial, capture_output=True, text=True, check=False, timeout=60)
    said = done.stderr.strip().splitlines()
    return (
        f"a test node takes namespaces, an overlay, a bridge: {said[-1] if said else 'no'}" if done.returncode else ""
    )


class Node:
    """A node of a control plane that was made with `nodes=True`; it works from `with` to the block's end.

    Args:
        control_plane: whose pods it runs.
        folder: for volumes and logs.
        name: of the node.
        environment: variables of every container, beneath what its manifest says.
        say: takes a line for each thing that happens.
        entrypoint: what a container runs that has no command.
        cpu: how much the node says to have.
        memory: how much the node says to have.
        claims_mode: of a new volume's folder: by default that of a new disk, which root alone may write to, and the
            group that a pod's fsGroup names.
    """

    def __init__(
        self,
        control_plane: ControlPlane,
        folder: Path,
        *,
        name: str = "node",
        environment: Mapping[str, str] | None = None,
        say: Callable[[str], None] | None = None,
        entrypoint: tuple[str, ...] = ("limbeck",),
        cpu: str = "32",
        memory: str = "64Gi",
        claims_mode: int = 0o755,
    ) -> None:
        self.name, self._folder, self._claims_mode = name, folder.resolve(), claims_mode
        self._say = say or (lambda line: None)
        self._wire = Wire(control_plane.client())
        self._network = Network(control_plane.service_address)
        self._probing = ThreadPoolExecutor(8, "probe")
        path = f"{sys.prefix}/bin:{_PATH}"
        image = _image({"PATH": path, "LANG": "C.UTF-8"} | dict(environment or {}), entrypoint)
        self._allocatable = {"cpu": cpu, "memory": memory, "pods": "110", "ephemeral-storage": "100Gi"}
        service = (control_plane.service_address, control_plane.port)
        self._around = Surroundings(self._wire, self._network, image, self._allocatable, service, self._probing)
        self._pods: dict[str, Pod] = {}
        self._services: dict[tuple[str, str], list[str]] = {}
        self._found: list[dict[str, Any]] = []
        self._slow_turn, self._told = 0.0, set[str]()
        self._stopped, self._registered = threading.Event(), threading.Event()
        # One thread starts every process, and each of those dies with that very thread.
        self._thread = threading.Thread(target=self._work, name=f"node {name}")

    def __enter__(self) -> Node:
        self._network.start()
        self._thread.start()
        if not self._registered.wait(_START_SECONDS):
            self.stop()
            raise RuntimeError(f"the node was not registered within {_START_SECONDS:g} s")
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.stop()

    def stop(self) -> None:
        """Leave nothing running; logs stay."""
        self._stopped.set()
        self._thread.join()
        self._probing.shutdown()
        self._network.stop()

    def logs(self, namespace: str, pod_prefix: str, container: str) -> Path:
        """The log of a container of the newest pod whose name begins so; also of one that is gone.

        Raises:
            LookupError: there is none; with those that there are.
        """
        found = sorted(
            (self._folder / "logs" / namespace).glob(f"{pod_prefix}*/{container}.log"),
            key=lambda file: file.parent.stat().st_mtime_ns,
        )
        if not found:
            there = sorted(str(file.relative_to(self._folder)) for file in self._folder.glob("logs/*/*/*.log"))
            raise LookupError(f"no log of {namespace}/{pod_prefix}*/{container}; there are {there}")
        return found[-1]

    def addresses(self, namespace: str, service: str) -> list[str]:
        """Where the ready pods of a service are reached, from here as from pods."""
        return list(self._services.get((namespace, service), []))

    def _work(self) -> None:
        try:
            while not self._stopped.wait(_TURN_SECONDS):
                try:
                    if not self._registered.is_set():
                        self._register()
                    self._turn()
                except (client.ApiException, HTTPError) as error:
                    self._tell_once(f"the API server: {str(error).strip().splitlines()[0]}")
                except Exception:  # a node that has stopped would look like one that is slow
                    self._tell_once(f"the test node failed: {traceback.format_exc()}")
        finally:
            for pod in self._pods.values():
                pod.kill()
            shutil.rmtree(self._folder / "pods", ignore_errors=True)

    def _register(self) -> None:
        labels = {
            "kubernetes.io/hostname": self.name,
            "kubernetes.io/os": "linux",
            "kubernetes.io/arch": {"x86_64": "amd64", "aarch64": "arm64"}.get(platform.machine(), platform.machine()),
        }
        self._wire.post("/api/v1/nodes", {"metadata": {"name": self.name, "labels": labels}})
        path = f"/api/v1/nodes/{self.name}"
        ready = {"type": "Ready", "status": "True", "reason": "KubeletReady", "message": "it is a test node"}
        ready |= {"lastHeartbeatTime": now(), "lastTransitionTime": now()}
        status = {
            "capacity": self._allocatable,
            "allocatable": self._allocatable,
            "conditions": [ready],
            "addresses": [{"type": "InternalIP", "address": self._network.gateway}],
        }
        self._wire.patch(f"{path}/status", {"status": status})
        # A new node is tainted as not ready until the node controller has seen that it is; there is none.
        self._wire.patch(path, {"spec": {"taints": None}})
        self._registered.set()
        self._say(f"node {self.name} is ready")

    def _turn(self) -> None:
        """Look at everything, and do what is due."""
        found = self._wire.items("/api/v1/pods", fieldSelector=f"spec.nodeName={self.name}")
        there = {pod["metadata"]["uid"]: pod for pod in found}
        for uid in set(self._pods) - set(there):
            pod = self._pods.pop(uid)
            pod.say("gone")
            pod.kill()
        for uid, manifest in there.items():
            if uid not in self._pods:
                self._pods[uid] = self._new(manifest)
            self._step(self._pods[uid], manifest)
        if time.monotonic() >= self._slow_turn:
            self._found = self._wire.items("/api/v1/services")
            self._claims()
            self._slow_turn = time.monotonic() + _SLOW_TURN_SECONDS
        self._resolve()

    def _new(self, manifest: dict[str, Any]) -> Pod:
        metadata = manifest["metadata"]
        name = f"{metadata['namespace']}/{metadata['name']}"
        self._say(f"{name}: is to run here")
        logs = self._folder / "logs" / metadata["namespace"] / f"{metadata['name']}_{metadata['uid'][:8]}"
        logs.mkdir(parents=True, exist_ok=True)
        folder = self._folder / "pods" / metadata["uid"]
        return Pod(manifest, self._around, folder, logs, lambda line: self._say(f"{name}: {line}"))

    def _step(self, pod: Pod, manifest: dict[str, Any]) -> None:
        try:
            pod.step(manifest)
        except (client.ApiException, HTTPError):
            raise
        except Exception:  # one pod that this node cannot run must not keep it from the others
            self._tell_once(f"{pod.namespace}/{pod.name}: the test node failed: {traceback.format_exc()}")
        status = pod.status()
        change = {"metadata": {"uid": pod.uid}, "status": status}
        if status != pod.reported and self._wire.patch(f"{pod.path}/status", change):
            pod.reported = status
        metadata = manifest["metadata"]
        if metadata.get("deletionTimestamp") and pod.has_ended and metadata.get("deletionGracePeriodSeconds") != 0:
            self._wire.delete(pod.path, {"gracePeriodSeconds": 0, "preconditions": {"uid": pod.uid}})

    def _resolve(self) -> None:
        """Have services' names lead to the pods that are ready."""
        pods = [(pod.manifest, pod.address, pod.is_ready) for pod in self._pods.values() if not pod.has_ended]
        services = {}
        for service in self._found:
            key = (service["metadata"]["namespace"], service["metadata"]["name"])
            services[key], refusal = service_addresses(service, pods)
            if refusal:
                self._tell_once(f"service {key[0]}/{key[1]} LEADS NOWHERE: {refusal}")
        for key, addresses in services.items():
            if self._services.get(key, []) != addresses:
                self._say(f"service {key[0]}/{key[1]}: {', '.join(addresses) or 'no pod is ready'}")
        self._services = services
        own = {("default", "kubernetes"): [self._around.service[0]]}
        for pod in self._pods.values():
            pod.hosts(hosts(pod.namespace, services | own))

    def _claims(self) -> None:
        """Give claims their volumes, as a provisioner would, and take away what nobody claims any more."""
        claims = self._wire.items("/api/v1/persistentvolumeclaims")
        held = {claim["metadata"]["uid"] for claim in claims}
        for claim in claims:
            if not claim["spec"].get("volumeName"):
                self._provide(claim)
        for volume in self._wire.items("/api/v1/persistentvolumes", labelSelector=f"{_OURS}={self.name}"):
            if volume["spec"]["claimRef"]["uid"] not in held and not volume["metadata"].get("deletionTimestamp"):
                self._wire.delete(f"/api/v1/persistentvolumes/{volume['metadata']['name']}")
                shutil.rmtree(volume["spec"]["hostPath"]["path"], ignore_errors=True)

    def _provide(self, claim: dict[str, Any]) -> None:
        metadata, spec = claim["metadata"], claim["spec"]
        folder = self._folder / "claims" / metadata["uid"]
        if folder.exists():  # it is being bound
            return
        folder.mkdir(parents=True)
        folder.chmod(self._claims_mode)
        reference = {"apiVersion": "v1", "kind": "PersistentVolumeClaim"}
        reference |= {key: metadata[key] for key in ("namespace", "name", "uid")}
        volume = {
            "metadata": {"name": f"pvc-{metadata['uid']}", "labels": {_OURS: self.name}},
            "spec": {
                "capacity": {"storage": spec["resources"]["requests"]["storage"]},
                "accessModes": spec["accessModes"],
                "storageClassName": spec.get("storageClassName") or "",
                "persistentVolumeReclaimPolicy": "Retain",  # this node does what a provisioner's Delete would
                "volumeMode": spec.get("volumeMode", "Filesystem"),
                "hostPath": {"path": str(folder)},
                "claimRef": reference,
            },
        }
        self._wire.post("/api/v1/persistentvolumes", volume)
        self._say(f"{metadata['namespace']}/{metadata['name']}: a volume for this claim")

    def _tell_once(self, line: str) -> None:
        if line not in self._told:
            self._told.add(line)
            self._say(line)


def _image(environment: Mapping[str, str], entrypoint: tuple[str, ...]) -> Image:
    """This machine as an image: nothing of its user's but the interpreter, its environment and this code."""
    needed = {path.resolve() for path in (ROOT, Path(sys.prefix), Path(sys.base_prefix))}
    passed = {folder for path in needed for folder in path.parents} - {Path("/")}
    closed = {folder for folder in passed if folder.stat().st_mode & 0o005 != 0o005}
    emptied = _outermost({Path("/tmp"), Path.home()} - {Path("/")} | closed)
    device = Path("/").stat().st_dev  # the overlay has nothing of other file systems
    unseen = {p for p in needed if p.stat().st_dev != device or any(p.is_relative_to(e) for e in emptied)}
    return Image(environment, entrypoint, tuple(map(str, emptied)), tuple(map(str, _outermost(unseen))))


def _outermost(folders: set[Path]) -> list[Path]:
    return sorted(folder for folder in folders if not folders & set(folder.parents))
