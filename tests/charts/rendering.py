"""The chart, rendered by a real Helm; and sets of values that it is to work with."""

from __future__ import annotations

import json
import subprocess
from collections.abc import Sequence
from functools import cache
from pathlib import Path
from typing import Any

import pytest
import yaml

from tests.cluster import binaries

ROOT = Path(__file__).parents[2]
CHART = ROOT / "charts" / "limbeck"
HELMS = ("helm3", "helm4")
DIGEST = "sha256:" + "ab" * 32

NAMESPACE_MODE: dict[str, Any] = {"rbac": {"scope": "namespace"}, "crds": {"enabled": False}}
TRYING_OUT: dict[str, Any] = {"storage": {"enabled": True}, "mlflow": {"enabled": True}}
IN_EARNEST: dict[str, Any] = {
    "image": {"repository": "registry.example.com/limbeck", "digest": DIGEST},
    "imagePullSecrets": [{"name": "registry"}],
    "defaults": {
        "output": {"uri": "gs://bucket/{namespace}/{name}"},
        "tracking": {"experiment": "nightly"},
        "execution": {
            "activeDeadlineSeconds": 31536000,
            "ttlSecondsAfterFinished": 604800,
            "resources": {"distill": {"cpu": "4", "memory": "16Gi", "gpus": 1}},
            "secrets": [{"name": "bucket-key", "mountPath": "/etc/bucket"}],
        },
    },
    "runs": {"serviceAccount": {"create": True, "annotations": {"iam.gke.io/gcp-service-account": "a@b.iam"}}},
    "mlflow": {
        "enabled": True,
        "image": {"repository": "registry.example.com/mlflow", "tag": "3.17.2"},
        "database": {"existingSecret": "mlflow-database", "upgrade": True},
        "artifacts": {"destination": "gs://bucket/mlflow"},
        "replicas": 2,
        "allowedHosts": ["mlflow.example.com", "*.lab.example.com"],
        "corsAllowedOrigins": ["https://notebooks.example.com"],
    },
    "metrics": {
        "serviceMonitor": {"enabled": True, "labels": {"release": "prometheus"}},
        "prometheusRule": {"enabled": True, "extraRules": [{"alert": "Mine", "expr": "limbeck_leader > 3"}]},
        "dashboard": {"enabled": True, "annotations": {"folder": "limbeck"}},
    },
    "networkPolicy": {
        "apiServerPorts": [443],
        "apiServerCIDRs": ["10.0.0.1/32"],
        "metricsFrom": [{"namespaceSelector": {"matchLabels": {"kubernetes.io/metadata.name": "monitoring"}}}],
        "mlflowFrom": [{"podSelector": {}}],
        "extraEgress": [{"ports": [{"port": 3128}]}],
    },
    "kubeflow": {"host": "https://kubeflow.example.com/pipeline", "caConfigMap": {"name": "kubeflow-ca"}},
    "commonLabels": {"team": "vision"},
}
FURNISHED: dict[str, Any] = {
    "operator": {
        "replicas": 3,
        "extraArgs": ["--workers=16"],
        "extraEnv": [{"name": "HTTPS_PROXY", "value": "http://proxy:3128"}],
        "extraEnvFrom": [{"secretRef": {"name": "more", "optional": True}}],
        "extraVolumes": [{"name": "more", "emptyDir": {"sizeLimit": "1Mi"}}],
        "extraVolumeMounts": [{"name": "more", "mountPath": "/more"}],
        "podLabels": {"mesh": "no"},
        "podAnnotations": {"example.com/note": "x"},
        "nodeSelector": {"kubernetes.io/os": "linux"},
        "tolerations": [{"key": "infra", "operator": "Exists"}],
        "affinity": {"podAntiAffinity": {"preferredDuringSchedulingIgnoredDuringExecution": []}},
        "topologySpreadConstraints": [
            {"maxSkew": 1, "topologyKey": "topology.kubernetes.io/zone", "whenUnsatisfiable": "DoNotSchedule"}
        ],
        "priorityClassName": "system-cluster-critical",
        "podDisruptionBudget": {"maxUnavailable": "50%"},
        "serviceAccount": {"annotations": {"a": "b"}},
    },
    "extraObjects": [
        {"apiVersion": "v1", "kind": "ConfigMap", "metadata": {"name": "{{ .Release.Name }}-more"}, "data": {"a": "b"}},
        "apiVersion: v1\nkind: ConfigMap\nmetadata:\n  name: text\ndata:\n  release: {{ .Release.Name | quote }}\n",
    ],
    "metrics": {"serviceAnnotations": {"prometheus.io/scrape": "true"}},
    "crds": {"annotations": {"argocd.argoproj.io/sync-options": "Replace=true"}},
}
COMBINATIONS: dict[str, dict[str, Any]] = {
    "the defaults": {},
    "one namespace": NAMESPACE_MODE,
    "trying out": TRYING_OUT,
    "trying out in one namespace": {**NAMESPACE_MODE, **TRYING_OUT, "runs": {"serviceAccount": {"create": True}}},
    "in earnest": IN_EARNEST,
    "furnished": FURNISHED,
    "MLflow on nothing that lasts": {"mlflow": {"enabled": True, "persistence": {"enabled": False}}},
    "MLflow with a database alone": {"mlflow": {"enabled": True, "database": {"existingSecret": "mlflow-database"}}},
    "claims that are there": {
        "storage": {"enabled": True, "existingClaim": "results"},
        "mlflow": {"enabled": True, "persistence": {"existingClaim": "runs"}},
    },
    "as little as can be": {
        "rbac": {"create": False},
        "crds": {"enabled": False},
        "networkPolicy": {"enabled": False},
        "tests": {"enabled": False},
        "operator": {
            "replicas": 1,
            "resources": {},
            "topologySpreadConstraints": [],
            "serviceAccount": {"create": False, "name": "mine"},
            "podDisruptionBudget": {"enabled": False},
        },
        "fullnameOverride": "lb",
    },
    "Kubeflow without a token": {
        "kubeflow": {"host": "http://ml-pipeline.kubeflow:8888", "tokenAudience": "", "namespace": "kubeflow"}
    },
    "definitions that go with the release": {"crds": {"keep": False}},
}

Manifest = dict[str, Any]


class Refused(Exception):  # noqa: N818 - what Helm said
    """Helm does not render it."""


def tool(name: str) -> str:
    """The path of a tool; the test is skipped where it is not there."""
    path, why = binaries.find_tool(name)
    if path is None:
        pytest.skip(why)
    return str(path)


def render(
    values: Manifest | None = None, helm: str = "helm4", *options: str, release: str = "limbeck", namespace: str = "lab"
) -> list[Manifest]:
    """The objects of the chart, to be looked at and not to be changed.

    Raises:
        Refused: it is not rendered.
    """
    return documents(text(values, helm, *options, release=release, namespace=namespace))


def text(
    values: Manifest | None = None,
    helm: str = "helm4",
    *options: str,
    release: str = "limbeck",
    namespace: str = "lab",
    chart: Path = CHART,
) -> str:
    """The chart as Helm renders it; as `render`."""
    command = [tool(helm), "template", release, str(chart), "-n", namespace, "--kube-version", "1.36", "-f", "-"]
    return _output((*command, *options), json.dumps(values or {}))


@cache
def _output(command: Sequence[str], given: str) -> str:
    done = subprocess.run(command, input=given, capture_output=True, text=True, check=False, timeout=60)
    if done.returncode:
        raise Refused(done.stderr)
    return done.stdout


@cache
def documents(rendered: str) -> list[Manifest]:
    """The objects of a text; the same ones again and again, to be looked at."""
    return [document for document in yaml.load_all(rendered, yaml.CSafeLoader) if document]


def find(manifests: list[Manifest], kind: str, name: str | None = None) -> Manifest:
    """The one object of a kind, and of a name."""
    found = [m for m in manifests if m["kind"] == kind and name in (None, m["metadata"]["name"])]
    (only,) = found
    return only


def pods(manifests: list[Manifest]) -> dict[str, Manifest]:
    """The pods that there are, and those that Deployments make, by the name of the object."""
    found = {}
    for manifest in manifests:
        if manifest["kind"] == "Deployment":
            found[manifest["metadata"]["name"]] = manifest["spec"]["template"]
        elif manifest["kind"] == "Pod":
            found[manifest["metadata"]["name"]] = manifest
    return found


def defaults(manifests: list[Manifest], release: str = "limbeck") -> Manifest:
    """What the operator's file of defaults says."""
    document: Manifest = yaml.safe_load(find(manifests, "ConfigMap", f"{release}-defaults")["data"]["defaults.yaml"])
    return document
