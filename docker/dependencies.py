"""Installs what limbeck needs into the image, without limbeck itself, so that its own layer stays small.

`python dependencies.py install VARIANT INDEX` and `python dependencies.py check`, beside pyproject.toml and
constraints.txt.
"""

from __future__ import annotations

import re
import subprocess
import sys
import tomllib
from importlib.metadata import distributions
from pathlib import Path

EXTRAS = ("azure", "gcs", "kubeflow", "operator", "ray", "s3", "ssl")
_OWN = {"limbeck", "pip", "setuptools", "wheel"}


def install(variant: str, index: str) -> None:
    """Install the dependencies and those of the extras, at the versions of constraints.txt."""
    if variant not in ("cuda", "cpu") or (variant == "cpu") != bool(index):
        found = f"VARIANT={variant}, TORCH_INDEX={index or 'nothing'}"
        sys.exit(f"{found}; allowed: cuda and no index, or cpu and an index with CPU wheels of torch")
    project = tomllib.loads(Path("pyproject.toml").read_text())["project"]
    wanted = list(project["dependencies"])
    for extra in EXTRAS:
        wanted += project["optional-dependencies"][extra]
    command = [sys.executable, "-m", "pip", "install", "--constraint", "constraints.txt", *wanted]
    subprocess.run([*command, *(("--extra-index-url", index) if index else ())], check=True)


def check() -> None:
    """See that everything that is installed is what constraints.txt says."""
    pins = dict(line.split("==") for line in Path("constraints.txt").read_text().split() if "==" in line)
    pinned = {_normal(name): version for name, version in pins.items()}
    wrong = []
    for found in distributions():
        name, version = _normal(found.metadata["Name"]), found.version.partition("+")[0]
        if name not in _OWN and pinned.get(name) != version:
            wrong.append(f"{name} {found.version}: constraints.txt has {pinned.get(name)}")
    if wrong:
        sys.exit("\n".join(sorted(wrong)))


def _normal(name: str) -> str:
    return re.sub(r"[-_.]+", "-", name).lower()


if __name__ == "__main__":
    {"install": install, "check": check}[sys.argv[1]](*sys.argv[2:])
