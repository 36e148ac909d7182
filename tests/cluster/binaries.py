"""The binaries of a Kubernetes control plane: those of KUBEBUILDER_ASSETS, else built once into a cache.

`python -m tests.cluster.binaries` builds them where a Go toolchain is there; tests only look for them.
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
from pathlib import Path

SWITCH = "LIMBECK_TEST_CLUSTER"
NEEDED = ("etcd", "kube-apiserver", "kube-controller-manager")

_SOURCES = Path(__file__).parent / "go"
_MODULES = {  # by folder: the packages that are built
    "kubernetes": [
        f"k8s.io/kubernetes/cmd/{name}" for name in ("kube-apiserver", "kube-controller-manager", "kube-scheduler")
    ],
    "etcd": ["."],
}
_GO = (1, 26)  # what go.mod asks for
_ENABLED_BY = "a Go toolchain of 1.26 or later and `python -m tests.cluster.binaries`, or KUBEBUILDER_ASSETS"


def find() -> tuple[Path | None, str]:
    """The folder of the binaries, or why there is none and what would help."""
    if os.environ.get(SWITCH) == "0":
        return None, f"{SWITCH}=0"
    given = os.environ.get("KUBEBUILDER_ASSETS")
    folder = Path(given) if given else _cache()
    absent = [name for name in NEEDED if not (folder / name).is_file()]
    if not absent:
        return folder, ""
    where = f"{given} has no {absent[0]}" if given else "no control plane is built"
    return None, f"{where}; it takes {_ENABLED_BY}"


def build() -> str:
    """Build them if they are not there and Go is; a line that says what was done.

    Raises:
        RuntimeError: Go could not build them; with the end of what it said.
    """
    folder, why = find()
    if folder is not None:
        return f"cluster tests: the control plane of {folder}"
    if os.environ.get(SWITCH) == "0" or os.environ.get("KUBEBUILDER_ASSETS") or not _has_go():
        return f"cluster tests are skipped: {why}"
    folder = _cache()
    folder.parent.mkdir(parents=True, exist_ok=True)
    with (folder.parent / "lock").open("w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)  # another process may be building
        if folder.is_dir():
            return f"cluster tests: the control plane of {folder}"
        _say("cluster tests: building a Kubernetes control plane, once; this takes some ten minutes")
        started = time.monotonic()
        with tempfile.TemporaryDirectory(dir=folder.parent) as made:
            for module, packages in _MODULES.items():
                _go(module, packages, Path(made))
            Path(made).rename(folder)
            Path(made).mkdir()  # what the block takes away
    return f"cluster tests: built in {time.monotonic() - started:.0f} s into {folder}"


def _go(module: str, packages: list[str], into: Path) -> None:
    command = ["go", "build", "-trimpath", "-ldflags=-s -w", "-o", f"{into}/", *packages]
    environment = {**os.environ, "CGO_ENABLED": "0", "GOFLAGS": "-mod=readonly -buildvcs=false", "GOWORK": "off"}
    done = subprocess.run(
        command, cwd=_SOURCES / module, env=environment, capture_output=True, text=True, check=False, timeout=3600
    )
    if done.returncode:
        raise RuntimeError(f"go build of {module} failed:\n{done.stderr[-4000:]}")


def _say(line: str) -> None:
    sys.stdout.write(line + "\n")
    sys.stdout.flush()


def _has_go() -> bool:
    if shutil.which("go") is None:
        return False
    said = subprocess.run(["go", "env", "GOVERSION"], capture_output=True, text=True, check=False, timeout=60).stdout
    found = re.match(r"go(\d+)\.(\d+)", said)
    return found is not None and (int(found[1]), int(found[2])) >= _GO


def _cache() -> Path:
    """The folder that belongs to these very sources."""
    digest = hashlib.sha256()
    for file in sorted(_SOURCES.rglob("*")):
        if file.is_file():
            digest.update(file.read_bytes())
    base = Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache")
    return base / "limbeck" / "cluster" / digest.hexdigest()[:16]


if __name__ == "__main__":
    try:
        _say(build())
    except RuntimeError as error:
        sys.exit(str(error))
