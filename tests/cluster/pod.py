"""One pod on a node: from its sandbox and its volumes, over its containers' lives, to its end; and its status."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import time
from collections.abc import Callable, Mapping
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from tests.cluster import podspec, volumes
from tests.cluster.container import Container, launch, now
from tests.cluster.launcher import STOP
from tests.cluster.network import Network
from tests.cluster.podspec import NotYetError, Source, expand
from tests.cluster.wire import Wire

_RETRY_SECONDS = 1.0
_ENDED = ("Succeeded", "Failed")


@dataclass(frozen=True)
class Image:
    """What stands in for every image: this machine.

    Args:
        environment: of each container, beneath what its manifest says.
        entrypoint: command of a container that says none.
        emptied: folders that are empty in it.
        binds: folders that are there in spite of that, or though they are on another file system than the root.
    """

    environment: Mapping[str, str]
    entrypoint: tuple[str, ...]
    emptied: tuple[str, ...]
    binds: tuple[str, ...]


@dataclass(frozen=True)
class Surroundings:
    """What a pod is run in.

    Args:
        wire: to the API server.
        network: of the node.
        image: of every container.
        allocatable: of the node.
        service: address and port of the API server, as pods see it.
        probing: threads for probes.
    """

    wire: Wire
    network: Network
    image: Image
    allocatable: Mapping[str, str]
    service: tuple[str, int]
    probing: ThreadPoolExecutor


class Pod:
    """One pod.

    Args:
        manifest: the object.
        around: what it is run in.
        folder: for what is gone with it.
        logs: for its containers' logs, which stay.
        say: takes lines on what happens.
    """

    def __init__(
        self, manifest: dict[str, Any], around: Surroundings, folder: Path, logs: Path, say: Callable[[str], None]
    ) -> None:
        self.manifest, self._around, self._folder, self.say = manifest, around, folder, say
        metadata, spec = manifest["metadata"], manifest["spec"]
        self.uid, self.namespace, self.name = metadata["uid"], metadata["namespace"], metadata["name"]
        self.path = f"/api/v1/namespaces/{self.namespace}/pods/{self.name}"
        self.address = ""
        self.reported: dict[str, Any] | None = None  # what the API server was told last
        self._sandbox: subprocess.Popen[bytes] | None = None
        self._volumes = volumes.Volumes()
        self._since, self._started, self._next = now(), time.monotonic(), 0.0
        self._why: dict[str, str] = {}  # why the whole pod has failed
        self._is_ending = False
        self._conditions: dict[str, dict[str, str]] = {}
        policy = spec["restartPolicy"]
        once = "OnFailure" if policy == "Always" else policy
        folders = folder / "containers"

        def container(entry: dict[str, Any], restarts: str) -> Container:
            place, log = folders / entry["name"], logs / f"{entry['name']}.log"
            return Container(entry, restarts, place, log, self._settings, around.probing, say)

        self._init = [container(entry, once) for entry in spec.get("initContainers") or []]
        self._main = [container(entry, policy) for entry in spec["containers"]]
        for entry in podspec.unknown(manifest):
            say(f"NOT DONE by the test node: {entry}")

    @property
    def phase(self) -> str:
        """As its status has it."""
        codes = [container.exit_code for container in self._main]
        if self._is_ending:
            if any(container.is_running for container in self._init + self._main):
                return "Running"
            return "Succeeded" if not self._why and all(code == 0 for code in codes) else "Failed"
        if any(container.exit_code not in (None, 0) for container in self._init):
            return "Failed"
        if all(code is not None for code in codes):
            return "Succeeded" if all(code == 0 for code in codes) else "Failed"
        return "Running" if any(container.was_started for container in self._main) else "Pending"

    @property
    def is_ready(self) -> bool:
        """Whether services lead to it."""
        return not self._is_ending and all(container.ready for container in self._main)

    @property
    def has_ended(self) -> bool:
        """Whether nothing of it runs or will."""
        return self.phase in _ENDED

    def step(self, manifest: dict[str, Any]) -> None:
        """Do what is due.

        Args:
            manifest: the object as it is by now.
        """
        self.manifest = manifest
        if self.has_ended:
            self._release()
            return
        for container in self._init + self._main:
            container.poll()
        self._end_if_asked()
        if self._is_ending:
            for container in self._init + self._main:
                if not container.is_running:
                    container.settle()
        elif self._sandbox is not None or self._prepare():
            waiting = next((container for container in self._init if container.exit_code != 0), None)
            for container in [waiting] if waiting else self._main:
                container.keep(self.address)
        if self.has_ended:
            self._release()

    def hosts(self, services: str) -> None:
        """Have its containers find services so, from now on."""
        file = self._folder / "hosts"
        if file.exists():
            own = f"127.0.0.1 localhost\n{self.address} {self._hostname}\n"
            write_in_place(file, own + services)

    def kill(self) -> None:
        """Leave nothing of it."""
        for container in self._init + self._main:
            container.kill()
        self._release()
        shutil.rmtree(self._folder, ignore_errors=True)

    def status(self) -> dict[str, Any]:
        """As the API server is to have it."""
        initialized = all(container.exit_code == 0 for container in self._init)
        phase = self.phase
        holds = {
            "PodReadyToStartContainers": self._sandbox is not None,
            "Initialized": initialized,
            "ContainersReady": self.is_ready,
            "Ready": self.is_ready,
        }
        for kind, value in holds.items():
            entry = {"type": kind, "status": str(value)}
            if not value and kind.endswith("Ready"):
                entry["reason"] = "PodCompleted" if phase == "Succeeded" else "ContainersNotReady"
            old = self._conditions.get(kind, {})
            changed = old.get("status") != entry["status"]
            self._conditions[kind] = entry | {"lastTransitionTime": now() if changed else old["lastTransitionTime"]}
        main = [container.status() for container in self._main]
        for entry in main:
            if not initialized and entry["state"].get("waiting", {}).get("reason") == "ContainerCreating":
                entry["state"] = {"waiting": {"reason": "PodInitializing"}}
        return {
            "phase": phase,
            "startTime": self._since,
            "hostIP": self._around.network.gateway,
            "hostIPs": [{"ip": self._around.network.gateway}],
            "conditions": list(self._conditions.values()),
            "containerStatuses": main,
            **({"initContainerStatuses": [c.status() for c in self._init]} if self._init else {}),
            **({"podIP": self.address, "podIPs": [{"ip": self.address}]} if self.address else {}),
            **self._why,
        }

    @property
    def _hostname(self) -> str:
        return str(self.manifest["spec"].get("hostname") or self.name)[:63]

    def _source(self) -> Source:
        around = self._around
        read = lambda kind, name: around.wire.get(f"/api/v1/namespaces/{self.namespace}/{kind}/{name}")  # noqa: E731
        return Source(self.manifest, self.address, around.network.gateway, around.allocatable, read)

    def _prepare(self) -> bool:
        """Make the sandbox and the volumes; whether they are there."""
        if time.monotonic() < self._next:
            return False
        self._folder.mkdir(parents=True, exist_ok=True)
        try:
            self._volumes = volumes.prepare(self._source(), self._folder / "volumes", self._around.wire)
        except NotYetError as error:
            self._next = time.monotonic() + _RETRY_SECONDS
            if self._main[0].state != (state := {"waiting": {"reason": error.reason, "message": str(error)}}):
                self._main[0].state = state
                self.say(f"waits: {error}")
            return False
        for container in self._main:
            container.state = {"waiting": {"reason": "ContainerCreating"}}
        settings = {"parent": os.getpid(), "hostname": self._hostname, "memory": self._volumes.memory}
        (self._folder / "sandbox.json").write_text(json.dumps(settings))
        (self._folder / "hosts").touch()
        (self._folder / "hostname").write_text(f"{self._hostname}\n")
        # Nobody listens there, which is told at once: names are in the hosts file or nowhere.
        (self._folder / "resolv.conf").write_text(f"nameserver {self._around.network.gateway}\n")
        self._sandbox = launch("sandbox", self._folder / "sandbox.json", subprocess.PIPE)
        assert self._sandbox.stdout is not None
        try:
            if self._sandbox.stdout.readline() != b"ready\n":
                raise RuntimeError("its sandbox has ended")
            self.address = self._around.network.attach(self.uid, self._sandbox.pid)
        except Exception:
            self._release()
            raise
        self.say(f"has the address {self.address}")
        return True

    def _settings(self, spec: podspec.Object) -> dict[str, Any]:
        """What the launcher needs to start a container."""
        assert self._sandbox is not None
        image, source = self._around.image, self._source()
        host, port = self._around.service
        rights = podspec.rights(spec, self.manifest)
        said = {"KUBERNETES_SERVICE_HOST": host, "KUBERNETES_SERVICE_PORT": str(port)}
        said |= podspec.environment(spec, source)
        environment = {"HOSTNAME": self._hostname, "HOME": "/root" if rights["uid"] == 0 else "/"}
        environment |= image.environment | said
        mounts = [[path, path, True] for path in image.binds]
        mounts += [[str(self._folder / name), f"/etc/{name}", False] for name in ("hosts", "hostname", "resolv.conf")]
        command = spec.get("command") or list(image.entrypoint)
        return rights | {
            "sandbox": self._sandbox.pid,
            "arguments": [expand(text, said) for text in [*command, *(spec.get("args") or [])]],
            "environment": environment,
            "cwd": spec.get("workingDir") or "/",
            "emptied": list(image.emptied),
            "mounts": mounts + self._volumes.mounts(spec, said, self._sandbox.pid),
        }

    def _end_if_asked(self) -> None:
        metadata, spec = self.manifest["metadata"], self.manifest["spec"]
        limit = spec.get("activeDeadlineSeconds")
        if metadata.get("deletionTimestamp"):
            # The API server has added the grace to the time of the request; a shorter one may be asked for since.
            left = datetime.fromisoformat(metadata["deletionTimestamp"]) - datetime.now(UTC)
            grace = min(left.total_seconds() + 1, metadata.get("deletionGracePeriodSeconds", 30))
        elif limit is not None and time.monotonic() - self._started > limit:
            self._why = {"reason": "DeadlineExceeded", "message": "Pod was active on the node longer than specified"}
            grace = spec["terminationGracePeriodSeconds"]
        else:
            return
        self._is_ending = True
        for container in self._init + self._main:
            container.ready = False
            container.stop(max(0.0, float(grace)))

    def _release(self) -> None:
        """Give back what containers ran in."""
        if self._sandbox is not None:
            self._sandbox.send_signal(STOP)
            self._sandbox.wait()
            assert self._sandbox.stdout is not None
            self._sandbox.stdout.close()
            self._sandbox = None
            self._around.network.release(self.uid)


def write_in_place(file: Path, text: str) -> None:
    """Change a file that is mounted elsewhere, in one write: padded, so that no reader sees it cut short."""
    old = file.read_text()
    if old.rstrip("\n") != text.rstrip("\n"):
        with file.open("r+b", buffering=0) as handle:
            handle.write(text.encode().ljust(len(old.encode()), b"\n"))
