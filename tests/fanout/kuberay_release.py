"""The release of KubeRay whose schema the manifest is held against."""

from __future__ import annotations

import json
import shutil
import subprocess
from pathlib import Path
from typing import Any

import yaml

MODULE = "github.com/ray-project/kuberay/ray-operator"
VERSION = "v1.6.1"
SUM = "h1:IMtV0QW8AxGp4/CbPLd/olXBBxpUNQQr1n4Mu59khl4="


def definition() -> tuple[dict[str, Any] | None, str]:
    """KubeRay's definition of RayClusters, or why it is not to be had."""
    if shutil.which("go") is None:
        return None, "KubeRay's schema comes from its Go module, and there is no go here"
    asked = ["go", "mod", "download", "-json", f"{MODULE}@{VERSION}"]
    answer = subprocess.run(asked, capture_output=True, text=True, check=False)
    module = json.loads(answer.stdout or "{}")
    if "Dir" not in module:
        return None, f"KubeRay's Go module cannot be had: {module.get('Error') or answer.stderr}"
    assert module["Sum"] == SUM
    return yaml.safe_load((Path(module["Dir"]) / "config/crd/bases/ray.io_rayclusters.yaml").read_text()), ""
