"""Specs that the pipeline is compiled from in tests: on CPUs, on one pool of GPUs, and with a Ray cluster.

`python -m tests.pipelines.specs` compiles what the pipelines of `golden` are.
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from limbeck.spec import Distillation

GOLDEN = Path(__file__).parent / "golden"

_COMMON: dict[str, Any] = {
    "source": {"uri": "gs://photos/train", "imageSize": 32},
    "output": {"uri": "gs://distilled/photos"},
    "evaluate": {
        "tasks": [{"name": "pets", "train": {"uri": "gs://pets/train"}, "test": {"uri": "gs://pets/test"}}],
        "baselines": ["random", "full"],
    },
}
_POOL: dict[str, Any] = {
    "gpus": 2,
    "gpuResource": "example.com/gpu",
    "cpu": "7500m",
    "memory": "60Gi",
    "sharedMemory": "8Gi",
    "nodeSelector": {"pool": "training"},
    "tolerations": [{"key": "example.com/gpu", "operator": "Exists", "effect": "NoSchedule"}],
}
SPECS: dict[str, dict[str, Any]] = {
    "cpu": {
        **_COMMON,
        "execution": {"image": "registry.example/limbeck@sha256:" + "0" * 64, "resources": {"ingest": {"cpu": "4"}}},
    },
    "gpu-pool": {
        **_COMMON,
        "execution": {
            "image": "registry.example/limbeck:1",
            "backoffLimit": 5,
            "activeDeadlineSeconds": 7200,
            "imagePullSecrets": ["pull"],
            "secrets": [
                {"name": "mlflow", "environment": {"MLFLOW_TRACKING_TOKEN": "token"}},
                {"name": "bucket", "mountPath": "/var/secrets/bucket"},
            ],
            "volumes": [{"claim": "scratch", "mountPath": "/scratch"}],
            "resources": {"teacher": _POOL, "trajectories": _POOL, "distill": _POOL, "evaluate": _POOL},
        },
    },
    "ray-cluster": {
        **_COMMON,
        "execution": {
            "image": "registry.example/limbeck:1",
            "ray": {
                "workers": 8,
                "cluster": {"workerGroups": [{"name": "gpus", "replicas": 8, "gpus": 1, "cpu": "4"}]},
            },
        },
    },
}


def spec(name: str) -> Distillation:
    """One of them."""
    return distillation(name, SPECS[name])


def distillation(name: str, settings: dict[str, Any]) -> Distillation:
    """A spec of that name and those settings."""
    document = {
        "apiVersion": "limbeck.dev/v1alpha1",
        "kind": "Distillation",
        "metadata": {"name": name},
        "spec": settings,
    }
    return Distillation.model_validate_json(json.dumps(document))


if __name__ == "__main__":
    from limbeck_pipelines.distillation import build, compile_to

    for golden in SPECS:
        compile_to(build(spec(golden)), GOLDEN / f"{golden}.yaml")
