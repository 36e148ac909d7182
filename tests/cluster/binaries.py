"""The programs that tests need beside Python: a Kubernetes control plane, both Helms and kubectl.

Each is what an environment variable names, else one in PATH that is new enough, else one that is built once from its Go
module into a cache. `python -m tests.cluster.binaries` builds what is missing where a Go toolchain is there; tests only
look for them.
"""

from __future__ import annotations

import fcntl
import hashlib
import os
import re
import shutil
import subprocess
import sys
import tempfile
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import cache
from pathlib import Path

SWITCH = "LIMBECK_TEST_CLUSTER"
NEEDED = ("etcd", "kube-apiserver", "kube-controller-manager")

_SOURCES = Path(__file__).parent / "go"
_CONTROL_PLANE = {  # by folder: the packages that are built
    "kubernetes": [
        f"k8s.io/kubernetes/cmd/{name}" for name in ("kube-apiserver", "kube-controller-manager", "kube-scheduler")
    ],
    "etcd": ["."],
}
_GO = (1, 26)  # what go.mod asks for
_ENABLED_BY = "a Go toolchain of 1.26 or later and `python -m tests.cluster.binaries`"


@dataclass(frozen=True)
class Tool:
    """A command that is built from the module of its name, unless there is one already.

    Attributes:
        name: of its module's folder.
        command: what it is called in PATH.
        variable: of the environment, that names another.
        package: that is built.
        ask: arguments that have it say its version.
        least: version of one in PATH that will do; its major version is the one that is wanted.
    """

    name: str
    command: str
    variable: str
    package: str
    ask: Sequence[str]
    least: tuple[int, int]


TOOLS = {
    tool.name: tool
    for tool in (
        Tool("helm3", "helm", "HELM3", "helm.sh/helm/v3/cmd/helm", ("version", "--short"), (3, 17)),
        Tool("helm4", "helm", "HELM4", "helm.sh/helm/v4/cmd/helm", ("version", "--short"), (4, 0)),
        Tool("kubectl", "kubectl", "KUBECTL", ".", ("version", "--client"), (1, 30)),
    )
}


def find() -> tuple[Path | None, str]:
    """The folder of the control plane's binaries, or why there is none and what would help."""
    if os.environ.get(SWITCH) == "0":
        return None, f"{SWITCH}=0"
    given = os.environ.get("KUBEBUILDER_ASSETS")
    folder = Path(given) if given else _cached(_CONTROL_PLANE)
    absent = [name for name in NEEDED if not (folder / name).is_file()]
    if not absent:
        return folder, ""
    where = f"{given} has no {absent[0]}" if given else "no control plane is built"
    return None, f"{where}; it takes {_ENABLED_BY}, or KUBEBUILDER_ASSETS"


@cache
def find_tool(name: str) -> tuple[Path | None, str]:
    """A tool of `TOOLS`, or why there is none and what would help."""
    tool = TOOLS[name]
    given = os.environ.get(tool.variable)
    if given:
        return (Path(given), "") if Path(given).is_file() else (None, f"{tool.variable}: there is no {given}")
    there = shutil.which(tool.command)
    if there is not None and _will_do(tool, there):
        return Path(there), ""
    built = _cached({name: [tool.package]}) / tool.command
    if built.is_file():
        return built, ""
    least = ".".join(map(str, tool.least))
    return None, f"no {name} is built; it takes {_ENABLED_BY}, {tool.variable}, or {tool.command} {least} in PATH"


def build() -> list[str]:
    """Build what is not there, if Go is; a line for each that says what was done.

    Raises:
        RuntimeError: Go could not build one; with the end of what it said.
    """
    return [_build_control_plane(), *(_build_tool(tool) for tool in TOOLS.values())]


def _build_control_plane() -> str:
    folder, why = find()
    if folder is not None:
        return f"cluster tests: the control plane of {folder}"
    if os.environ.get(SWITCH) == "0" or os.environ.get("KUBEBUILDER_ASSETS") or not _has_go():
        return f"cluster tests are skipped: {why}"
    return f"cluster tests: {_build('a Kubernetes control plane', _CONTROL_PLANE, 'some ten minutes')}"


def _build_tool(tool: Tool) -> str:
    path, why = find_tool(tool.name)
    if path is not None:
        return f"chart tests: {path}"
    if os.environ.get(tool.variable) or not _has_go():
        return f"chart tests that need {tool.name} are skipped: {why}"
    find_tool.cache_clear()
    return f"chart tests: {_build(tool.name, {tool.name: [tool.package]}, 'a few minutes')}"


def _build(what: str, modules: Mapping[str, Sequence[str]], long: str) -> str:
    folder = _cached(modules)
    folder.parent.mkdir(parents=True, exist_ok=True)
    with (folder.parent / "lock").open("w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)  # another process may be building
        if folder.is_dir():
            return f"{what} of {folder}"
        _say(f"building {what}, once; this takes {long}")
        started = time.monotonic()
        with tempfile.TemporaryDirectory(dir=folder.parent) as made:
            for module, packages in modules.items():
                _go(module, packages, Path(made))
            Path(made).rename(folder)
            Path(made).mkdir()  # what the block takes away
    return f"{what}, built in {time.monotonic() - started:.0f} s into {folder}"


def _go(module: str, packages: Sequence[str], into: Path) -> None:
    command = ["go", "build", "-trimpath", "-ldflags=-s -w", "-o", f"{into}/", *packages]
    environment = {**os.environ, "CGO_ENABLED": "0", "GOFLAGS": "-mod=readonly -buildvcs=false", "GOWORK": "off"}
    done = subprocess.run(
        command, cwd=_SOURCES / module, env=environment, capture_output=True, text=True, check=False, timeout=3600
    )
    if done.returncode:
        raise RuntimeError(f"go build of {module} failed:\n{done.stderr[-4000:]}")


def _will_do(tool: Tool, path: str) -> bool:
    said = subprocess.run([path, *tool.ask], capture_output=True, text=True, check=False, timeout=60).stdout
    found = re.search(r"v(\d+)\.(\d+)", said)
    if found is None:
        return False
    version = int(found[1]), int(found[2])
    return version[0] == tool.least[0] and version >= tool.least


def _say(line: str) -> None:
    sys.stdout.write(line + "\n")
    sys.stdout.flush()


@cache
def _has_go() -> bool:
    if shutil.which("go") is None:
        return False
    said = subprocess.run(["go", "env", "GOVERSION"], capture_output=True, text=True, check=False, timeout=60).stdout
    found = re.match(r"go(\d+)\.(\d+)", said)
    return found is not None and (int(found[1]), int(found[2])) >= _GO


def _cached(modules: Mapping[str, Sequence[str]]) -> Path:
    """The folder that belongs to the very sources of these modules."""
    digest = hashlib.sha256()
    for module in sorted(modules):
        for file in sorted((_SOURCES / module).rglob("*")):
            if file.is_file():
                digest.update(file.read_bytes())
    base = Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache")
    return base / "limbeck" / "cluster" / digest.hexdigest()[:16]


if __name__ == "__main__":
    try:
        for line in build():
            _say(line)
    except RuntimeError as error:
        sys.exit(str(error))
