"""What execution.ray takes, and what it says about the rest."""

from __future__ import annotations

import pytest

from limbeck.errors import InputError
from limbeck.specfile import read_spec
from tests.stages.tiny import write_tiny

GROUPS = "execution.ray.cluster.workerGroups"


@pytest.mark.parametrize(
    ("changes", "problem"),
    [
        ({"execution.ray": {"workers": 0}}, "spec.execution.ray.workers"),
        ({"execution.ray": {"workers": 2, "minWorkers": 3}}, "spec.execution.ray.minWorkers: found 3"),
        ({"execution.ray": {"minWorkers": 1}}, "at most workers, which must be given too"),
        ({"execution.ray": {"address": "auto", "cluster": {}}}, "spec.execution.ray.cluster: found a cluster and an"),
        ({"execution.ray": {"cpusPerWorker": 0}}, "spec.execution.ray.cpusPerWorker"),
        ({"execution.ray": {"resources": {"tpu": -1}}}, "spec.execution.ray.resources.tpu"),
        ({"execution.ray": {"cluster": {"workerGroups": []}}}, f"spec.{GROUPS}"),
        ({GROUPS: [{"replicas": 3, "maxReplicas": 2}]}, "replicas: found 3; allowed: minReplicas 3 to maxReplicas 2"),
        ({GROUPS: [{}, {}]}, "workers more than once"),
        ({GROUPS: [{"gpuType": "H100"}]}, "gpuType: found 'H100'; allowed: only where gpus is at least 1"),
        ({GROUPS: [{"tolerations": [{"operator": "Exists", "value": "x"}]}]}, "no value with operator Exists"),
        ({GROUPS: [{"tolerations": [{"value": "x"}]}]}, "a key, or operator Exists"),
        ({GROUPS: [{"tolerations": [{"key": "k", "tolerationSeconds": 3}]}]}, "only with effect NoExecute"),
        ({"trajectories.threads": 0}, "spec.trajectories.threads"),
        ({"execution.checkpointSeconds": -1}, "spec.execution.checkpointSeconds"),
    ],
)
def test_a_mistake_is_named(tmp_path, changes, problem):
    with pytest.raises(InputError) as raised:
        read_spec(write_tiny(tmp_path / "spec.yaml", tmp_path / "out", changes), [])
    assert problem in str(raised.value)


def test_what_is_right_is_taken(tmp_path):
    changes = {
        "execution.ray": {"workers": 8, "minWorkers": 2, "cpusPerWorker": 4, "gpusPerWorker": 0.5, "maxFailures": 0},
        "trajectories.threads": 4,
    }
    spec = read_spec(write_tiny(tmp_path / "spec.yaml", tmp_path / "out", changes), []).distillation.spec
    assert (spec.execution.ray.min_workers, spec.execution.ray.gpus_per_worker) == (2, 0.5)
