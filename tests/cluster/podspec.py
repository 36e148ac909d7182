"""What a pod's manifest asks for, worked out: environment, rights, fields, files of volumes."""

from __future__ import annotations

import base64
import json
import math
import re
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

from limbeck_operator.manifests import quantity

Object = Mapping[str, Any]

IMAGE_USER = 65532  # of every image here; numeric, so that runAsNonRoot can be judged
_DEFAULT_CAPABILITIES = {  # of a container that says nothing
    "CHOWN": 0,
    "DAC_OVERRIDE": 1,
    "FOWNER": 3,
    "FSETID": 4,
    "KILL": 5,
    "SETGID": 6,
    "SETUID": 7,
    "SETPCAP": 8,
    "NET_BIND_SERVICE": 10,
    "NET_RAW": 13,
    "SYS_CHROOT": 18,
    "MKNOD": 27,
    "AUDIT_WRITE": 29,
    "SETFCAP": 31,
}


class NotYetError(Exception):
    """What a container or a volume needs is not there, or not right; it is looked for again.

    Args:
        reason: the kubelet's word for it.
        message: what is missing.
    """

    def __init__(self, reason: str, message: str) -> None:
        super().__init__(message)
        self.reason = reason


@dataclass(frozen=True)
class Source:
    """What fields and references of a pod are resolved from.

    Args:
        pod: the object.
        address: of the pod.
        host: the node's address.
        allocatable: what the node has, where a container has no limit.
        read: an object by resource ("configmaps" or "secrets") and name, of the pod's namespace.
    """

    pod: Object
    address: str
    host: str
    allocatable: Mapping[str, str]
    read: Callable[[str, str], dict[str, Any] | None]

    def field(self, path: str) -> str:
        """A fieldRef's value."""
        metadata, spec = self.pod["metadata"], self.pod["spec"]
        found = re.fullmatch(r"metadata\.(labels|annotations)\['(.+)'\]", path)
        if found:
            return str((metadata.get(found[1]) or {}).get(found[2], ""))
        if path in ("metadata.labels", "metadata.annotations"):
            entries = (metadata.get(path.partition(".")[2]) or {}).items()
            return "\n".join(f"{key}={json.dumps(value)}" for key, value in sorted(entries))
        values = {
            "metadata.name": metadata["name"],
            "metadata.namespace": metadata["namespace"],
            "metadata.uid": metadata["uid"],
            "spec.nodeName": spec["nodeName"],
            "spec.serviceAccountName": spec.get("serviceAccountName", "default"),
            "status.podIP": self.address,
            "status.podIPs": self.address,
            "status.hostIP": self.host,
            "status.hostIPs": self.host,
        }
        if path not in values:
            raise NotYetError("CreateContainerConfigError", f"the test node knows no field {path}")
        return str(values[path])

    def amount(self, reference: Object, container: Object | None) -> str:
        """A resourceFieldRef's value: in units of its divisor, rounded up."""
        if container is None:
            name = reference["containerName"]
            container = next(c for c in self.pod["spec"]["containers"] if c["name"] == name)
        kind, _, resource = reference["resource"].partition(".")
        amounts = (container.get("resources") or {}).get(kind) or {}
        amount = amounts.get(resource, self.allocatable.get(resource, "0") if kind == "limits" else "0")
        divisor = quantity(reference.get("divisor", "1")) or 1.0
        return str(math.ceil(quantity(amount) / divisor))

    def data(self, resource: str, name: str, *, optional: bool, missing: str) -> dict[str, bytes] | None:
        """What a ConfigMap or a Secret holds."""
        found = self.read(resource, name)
        if found is None:
            if optional:
                return None
            raise NotYetError(missing, f'{resource[:-1]} "{name}" not found')
        if resource == "secrets":
            return {key: base64.b64decode(value) for key, value in (found.get("data") or {}).items()}
        texts = {key: value.encode() for key, value in (found.get("data") or {}).items()}
        return texts | {key: base64.b64decode(value) for key, value in (found.get("binaryData") or {}).items()}


def expand(text: str, environment: Mapping[str, str]) -> str:
    """$(NAME) is replaced where it is known, and $$ is a $."""
    known = lambda found: "$" if found[0] == "$$" else environment.get(found[1], found[0])  # noqa: E731
    return re.sub(r"\$\$|\$\(([^()]*)\)", known, text)


def environment(container: Object, source: Source) -> dict[str, str]:
    """What a container's env and envFrom say."""
    said: dict[str, str] = {}
    for entry in container.get("envFrom") or []:
        for kind, resource in (("configMapRef", "configmaps"), ("secretRef", "secrets")):
            if kind in entry:
                data = _required(source, resource, entry[kind])
                said |= {entry.get("prefix", "") + key: value.decode() for key, value in (data or {}).items()}
    for entry in container.get("env") or []:
        value = _value(entry, container, source, said)
        if value is not None:
            said[entry["name"]] = value
    return said


def _value(entry: Object, container: Object, source: Source, said: Mapping[str, str]) -> str | None:
    """The value of one variable; None for an optional one that there is none for."""
    origin = entry.get("valueFrom")
    if not origin:
        return expand(entry.get("value", ""), said)
    if "fieldRef" in origin:
        return source.field(origin["fieldRef"]["fieldPath"])
    if "resourceFieldRef" in origin:
        return source.amount(origin["resourceFieldRef"], container)
    kind, resource = ("secretKeyRef", "secrets") if "secretKeyRef" in origin else ("configMapKeyRef", "configmaps")
    reference = origin[kind]
    data = _required(source, resource, reference) or {}
    if reference["key"] in data:
        return data[reference["key"]].decode()
    if reference.get("optional"):
        return None
    raise NotYetError("CreateContainerConfigError", f"couldn't find key {reference['key']} in {reference['name']}")


def _required(source: Source, resource: str, reference: Object) -> dict[str, bytes] | None:
    optional = bool(reference.get("optional"))
    return source.data(resource, reference["name"], optional=optional, missing="CreateContainerConfigError")


def rights(container: Object, pod: Object) -> dict[str, Any]:
    """Whom a container runs as and what that one may, as the launcher takes it.

    Raises:
        NotYetError: it would be root, and must not; or it wants what the launcher cannot give.
    """
    of_pod = pod["spec"].get("securityContext") or {}
    of_container = container.get("securityContext") or {}
    context = of_pod | of_container
    user = context.get("runAsUser", IMAGE_USER)
    if context.get("runAsNonRoot") and user == 0:
        where = f'pod: "{pod["metadata"]["name"]}", container: {container["name"]}'
        raise NotYetError("CreateContainerConfigError", f"container's runAsUser breaks non-root policy ({where})")
    asked = context.get("capabilities") or {}
    added, dropped = asked.get("add") or [], asked.get("drop") or []
    if context.get("privileged") or set(added) - set(_DEFAULT_CAPABILITIES):
        raise NotYetError("CreateContainerError", f"the test node gives no more rights than usual: not {added}")
    kept = {name for name in _DEFAULT_CAPABILITIES if "ALL" not in dropped and name not in dropped} | set(added)
    groups = [*of_pod.get("supplementalGroups", []), *([of_pod["fsGroup"]] if "fsGroup" in of_pod else [])]
    return {
        "uid": user,
        "gid": context.get("runAsGroup", IMAGE_USER if "runAsUser" not in context else 0),
        "groups": groups,
        "capabilities": sorted(_DEFAULT_CAPABILITIES[name] for name in kept),
        "no_new_privileges": context.get("allowPrivilegeEscalation") is False,
        "read_only": bool(context.get("readOnlyRootFilesystem")),
    }


def unknown(pod: Object) -> list[str]:
    """What a pod asks for that the test node does not do."""
    spec = pod["spec"]
    found = [name for name in ("hostNetwork", "hostPID", "hostIPC", "shareProcessNamespace") if spec.get(name)]
    found += [f"lifecycle of {c['name']}" for c in spec["containers"] if c.get("lifecycle")]
    sidecars = [c["name"] for c in spec.get("initContainers") or [] if c.get("restartPolicy")]
    return found + [f"sidecar {name}" for name in sidecars]
