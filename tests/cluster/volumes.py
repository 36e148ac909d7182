"""The volumes of a pod, as folders of this machine."""

from __future__ import annotations

import os
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from limbeck_operator.manifests import quantity
from tests.cluster.podspec import NotYetError, Object, Source, expand
from tests.cluster.wire import Wire

_NO_VOLUME = "ContainerCreating"  # what a kubelet says while it waits for one


@dataclass
class Volumes:
    """A pod's volumes.

    Args:
        folders: by name.
        read_only: names of those that nobody writes to.
        memory: those that are to be mounted as tmpfs: path and options.
    """

    folders: dict[str, Path] = field(default_factory=dict)
    read_only: set[str] = field(default_factory=set)
    memory: list[dict[str, str]] = field(default_factory=list)

    def mounts(self, container: Object, environment: Mapping[str, str], sandbox: int) -> list[list[Any]]:
        """A container's mounts, as the launcher takes them: what, where, whether read-only; the outer first.

        Args:
            container: of a manifest.
            environment: its variables.
            sandbox: process of the pod; it alone sees the volumes in memory.
        """
        found: list[list[Any]] = []
        for mount in container.get("volumeMounts") or []:
            source = self.folders[mount["name"]]
            within = mount.get("subPath") or expand(mount.get("subPathExpr", ""), environment)
            if within:
                _make(Path(f"/proc/{sandbox}/root{source}"), within)
                source = source / within
            read_only = bool(mount.get("readOnly")) or mount["name"] in self.read_only
            found.append([str(source), mount["mountPath"], read_only])
        return sorted(found, key=lambda entry: entry[1].rstrip("/").count("/"))


def prepare(source: Source, folder: Path, wire: Wire) -> Volumes:
    """Make a pod's volumes in a folder.

    Raises:
        NotYetError: one of them cannot be made yet.
    """
    made = Volumes()
    group = (source.pod["spec"].get("securityContext") or {}).get("fsGroup")
    for volume in source.pod["spec"].get("volumes") or []:
        name = volume["name"]
        path = made.folders[name] = folder / name
        if "emptyDir" in volume:
            path.mkdir(parents=True, exist_ok=True)
            _own(path, group, 0o777)
            if volume["emptyDir"].get("medium") == "Memory":
                made.memory.append({"path": str(path), "options": _memory(volume["emptyDir"], group)})
        elif "persistentVolumeClaim" in volume:
            claim = volume["persistentVolumeClaim"]
            made.folders[name] = _claimed(wire, source.pod["metadata"]["namespace"], claim["claimName"])
            if group is not None:
                _share(made.folders[name], group)
            if claim.get("readOnly"):
                made.read_only.add(name)
        elif "hostPath" in volume:
            made.folders[name] = Path(volume["hostPath"]["path"])
        else:
            made.read_only.add(name)
            path.mkdir(parents=True, exist_ok=True)
            for part in _parts(volume):
                _write(path, _files(part, source, wire), group)
    return made


def _parts(volume: Object) -> list[dict[str, Any]]:
    """What a volume's files come from: each kind of source with its modes, as in a projected volume."""
    if "projected" in volume:
        mode = volume["projected"].get("defaultMode", 0o644)
        return [{"mode": mode} | part for part in volume["projected"]["sources"]]
    for kind in ("configMap", "secret", "downwardAPI"):
        if kind in volume:
            part = dict(volume[kind])
            if kind == "secret":
                part["name"] = part["secretName"]
            return [{"mode": part.get("defaultMode", 0o644), kind: part}]
    raise NotYetError(_NO_VOLUME, f"the test node makes no volume of this kind: {sorted(set(volume) - {'name'})}")


def _files(part: Object, source: Source, wire: Wire) -> list[tuple[str, bytes, int]]:
    """Path, content and mode of each file of one source."""
    mode = part["mode"]
    if "serviceAccountToken" in part:
        return [(part["serviceAccountToken"]["path"], _token(part["serviceAccountToken"], source, wire), mode)]
    if "downwardAPI" in part:
        found = []
        for item in part["downwardAPI"].get("items") or []:
            if "fieldRef" in item:
                text = source.field(item["fieldRef"]["fieldPath"])
            else:
                text = source.amount(item["resourceFieldRef"], None)
            found.append((item["path"], text.encode(), item.get("mode", mode)))
        return found
    kind, resource = ("configMap", "configmaps") if "configMap" in part else ("secret", "secrets")
    if kind not in part:
        raise NotYetError(_NO_VOLUME, f"the test node makes no files of this kind: {sorted(set(part) - {'mode'})}")
    wanted, optional = part[kind], bool(part[kind].get("optional"))
    data = source.data(resource, wanted["name"], optional=optional, missing=_NO_VOLUME) or {}
    if not wanted.get("items"):
        return [(key, content, mode) for key, content in data.items()]
    for item in wanted["items"]:
        if item["key"] not in data and not optional:
            raise NotYetError(_NO_VOLUME, f"{wanted['name']} references non-existent key: {item['key']}")
    items = [item for item in wanted["items"] if item["key"] in data]
    return [(item["path"], data[item["key"]], item.get("mode", mode)) for item in items]


def _token(wanted: Object, source: Source, wire: Wire) -> bytes:
    metadata = source.pod["metadata"]
    account = source.pod["spec"].get("serviceAccountName", "default")
    request: dict[str, Any] = {
        "expirationSeconds": wanted.get("expirationSeconds", 3600),
        "boundObjectRef": {"apiVersion": "v1", "kind": "Pod", "name": metadata["name"], "uid": metadata["uid"]},
    }
    if "audience" in wanted:
        request["audiences"] = [wanted["audience"]]
    path = f"/api/v1/namespaces/{metadata['namespace']}/serviceaccounts/{account}/token"
    made = wire.post(path, {"apiVersion": "authentication.k8s.io/v1", "kind": "TokenRequest", "spec": request})
    if made is None:
        raise NotYetError(_NO_VOLUME, f'service account "{account}" not found')
    return str(made["status"]["token"]).encode()


def _claimed(wire: Wire, namespace: str, name: str) -> Path:
    """The folder of the volume that a claim is bound to."""
    claim = wire.get(f"/api/v1/namespaces/{namespace}/persistentvolumeclaims/{name}")
    if claim is None or (claim.get("status") or {}).get("phase") != "Bound":
        raise NotYetError(_NO_VOLUME, f'claim "{name}" is not bound')
    volume = wire.get(f"/api/v1/persistentvolumes/{claim['spec']['volumeName']}")
    spec = volume["spec"] if volume else {}
    place = spec.get("hostPath") or spec.get("local")
    if place is None:
        raise NotYetError(_NO_VOLUME, f'the test node takes volumes of hostPath and local only, not that of "{name}"')
    return Path(place["path"])


def _write(folder: Path, files: list[tuple[str, bytes, int]], group: int | None) -> None:
    for name, content, mode in files:
        file = folder / name
        file.parent.mkdir(parents=True, exist_ok=True)
        file.write_bytes(content)
        file.chmod(mode)
        if group is not None:
            os.chown(file, -1, group)
            file.chmod(mode | 0o440)


def _make(volume: Path, within: str) -> None:
    """Make the folder of a subPath, where it is not there, with the rights of the volume's."""
    like = volume.stat()
    for folder in [*reversed((volume / within).relative_to(volume).parents), Path(within)]:
        if not (volume / folder).exists():
            (volume / folder).mkdir()
            _own(volume / folder, like.st_gid, like.st_mode & 0o777)


def _memory(volume: Object, group: int | None) -> str:
    options = ["mode=777" if group is None else f"mode=2777,gid={group}"]
    if "sizeLimit" in volume:
        options.append(f"size={int(quantity(volume['sizeLimit']))}")
    return ",".join(options)


def _share(folder: Path, group: int) -> None:
    """Give a volume's files to a group, as fsGroup has it."""
    for path in [folder, *folder.rglob("*")]:
        if not path.is_symlink():
            mode = path.stat().st_mode & 0o7777
            _own(path, group, mode | (0o2770 if path.is_dir() else 0o660))


def _own(path: Path, group: int | None, mode: int) -> None:
    if group is not None:
        os.chown(path, -1, group)
        mode |= 0o2000 if path.is_dir() else 0
    path.chmod(mode)
