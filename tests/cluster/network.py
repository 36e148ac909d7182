"""The network of a node's pods: a bridge on which each has an address; this machine is on it, and nothing beyond."""

from __future__ import annotations

import itertools
import json
import os
import random
import re
import subprocess
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

_PREFIX = "lbk"
_BRIDGE = re.compile(rf"{_PREFIX}(\d+)-\d+")
_numbers = itertools.count()


class Network:
    """A bridge of this process, with a subnet of 198.19.0.0/16: that is of RFC 2544's range, as the service address.

    Args:
        service_address: of the API server, which is on the bridge.
    """

    def __init__(self, service_address: str) -> None:
        self._service = service_address
        self._bridge = f"{_PREFIX}{os.getpid()}-{next(_numbers)}"
        self._taken: dict[str, str] = {}  # by address: the pod's uid
        self._subnet = ""

    @property
    def gateway(self) -> str:
        """The node's own address."""
        return f"{self._subnet}.1"

    def start(self) -> None:
        """Make the bridge, and take those away whose process is gone."""
        links = json.loads(_ip("-json address show"))
        for name in (link["ifname"] for link in links):
            found = _BRIDGE.fullmatch(name)
            if found and (name == self._bridge or not Path(f"/proc/{found[1]}").exists()):
                _ip(f"link delete {name}")
        used = {address["local"].rpartition(".")[0] for link in links for address in link["addr_info"]}
        free = [f"198.19.{number}" for number in range(256) if f"198.19.{number}" not in used]
        self._subnet = random.choice(free)
        _ip(
            f"link add {self._bridge} type bridge",
            f"address add {self.gateway}/24 dev {self._bridge}",
            f"address add {self._service}/32 dev {self._bridge}",
            f"link set {self._bridge} up",
        )

    def stop(self) -> None:
        """Take the bridge away. The pods' ends go with their namespaces."""
        _ip(f"link delete {self._bridge}")

    def attach(self, uid: str, process: int) -> str:
        """Connect the network namespace of a process; its new address."""
        address = next(a for n in range(2, 255) if (a := f"{self._subnet}.{n}") not in self._taken)
        end = f"{_PREFIX}{uid.replace('-', '')[:12]}"
        _ip(
            f"link add {end} type veth peer name eth0 netns {process}",
            f"link set {end} master {self._bridge}",
            f"link set {end} up",
        )
        _ip(
            "link set lo up",
            f"address add {address}/24 dev eth0",
            "link set eth0 up",
            f"route add default via {self.gateway}",
            namespace=process,
        )
        self._taken[address] = uid
        return address

    def release(self, uid: str) -> None:
        """Have a pod's address be free again."""
        self._taken = {address: owner for address, owner in self._taken.items() if owner != uid}


def service_addresses(
    service: Mapping[str, Any], pods: Iterable[tuple[Mapping[str, Any], str, bool]]
) -> tuple[list[str], str]:
    """Where a service is found: the addresses of its ready pods, since there is no proxy.

    Args:
        service: the object.
        pods: of every namespace: the object, its address ("" for none), and whether it is ready.

    Returns:
        The addresses, and why there are none that could be: a port that a proxy would have to translate.
    """
    spec = service["spec"]
    selector = spec.get("selector")
    addresses = []
    for pod, address, ready in pods:
        labels = pod["metadata"].get("labels") or {}
        same = pod["metadata"]["namespace"] == service["metadata"]["namespace"]
        if not selector or not same or not selector.items() <= labels.items():
            continue
        for port in spec.get("ports") or []:
            target = _port_of(pod, port.get("targetPort", port["port"]))
            if target != port["port"]:
                return (
                    [],
                    f"its port {port['port']} is {target} of its pods, and the test node has no proxy: same is meant",
                )
        if address and (ready or spec.get("publishNotReadyAddresses")):
            addresses.append(address)
    return sorted(addresses), ""


def hosts(namespace: str, services: Mapping[tuple[str, str], list[str]]) -> str:
    """The lines of a hosts file, as a pod of a namespace sees the services.

    Args:
        namespace: of the pod.
        services: addresses, by namespace and name.
    """
    lines = []
    for (where, name), addresses in sorted(services.items()):
        names = [f"{name}.{where}.svc.cluster.local", f"{name}.{where}.svc", f"{name}.{where}"]
        if where == namespace:
            names.append(name)
        lines += [f"{address} {' '.join(names)}\n" for address in addresses]
    return "".join(lines)


def _port_of(pod: Mapping[str, Any], port: int | str) -> int | None:
    """The number of a port, which may be named by one of the pod's containers."""
    if isinstance(port, int):
        return port
    named = [entry for c in pod["spec"]["containers"] for entry in c.get("ports") or [] if entry.get("name") == port]
    return int(named[0]["containerPort"]) if named else None


def _ip(*commands: str, namespace: int | None = None) -> str:
    inside = ["nsenter", f"--net=/proc/{namespace}/ns/net"] if namespace is not None else []
    if len(commands) == 1:
        command, given = [*inside, "ip", *commands[0].split()], ""
    else:
        command, given = [*inside, "ip", "-batch", "-"], "\n".join(commands)
    done = subprocess.run(command, input=given, capture_output=True, text=True, check=False, timeout=30)
    if done.returncode:
        raise RuntimeError(f"ip {'; '.join(commands)}: {done.stderr.strip()}")
    return done.stdout
