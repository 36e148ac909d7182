"""The compiled pipeline: it is what Kubeflow publishes, the same every time, and settings reach their tasks."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import yaml
from google.protobuf import json_format
from kfp.kubernetes import kubernetes_executor_config_pb2
from kfp.pipeline_spec import pipeline_spec_pb2

from limbeck.cluster import check_for_cluster
from limbeck.errors import InputError
from limbeck_pipelines.distillation import build, compile_to
from limbeck_pipelines.generate import generated
from tests.pipelines.specs import GOLDEN, SPECS, distillation, spec

ROOT = Path(__file__).parent.parent.parent
STAGES = ["ingest", "teacher", "targets", "trajectories", "select", "distill", "evaluate", "register"]


def compiled(tmp_path: Path, name: str) -> tuple[dict[str, Any], dict[str, Any]]:
    """The pipeline and its platform's settings."""
    compile_to(build(spec(name)), tmp_path / "pipeline.yaml")
    pipeline, *platform = yaml.safe_load_all((tmp_path / "pipeline.yaml").read_text())
    return pipeline, platform[0] if platform else {}


def executor(pipeline: dict[str, Any], component: str) -> dict[str, Any]:
    label = pipeline["components"][f"comp-{component}"]["executorLabel"]
    return pipeline["deploymentSpec"]["executors"][label]["container"]


def pod(pipeline: dict[str, Any], platform: dict[str, Any], component: str) -> dict[str, Any]:
    label = pipeline["components"][f"comp-{component}"]["executorLabel"]
    return platform["platforms"]["kubernetes"]["deploymentSpec"]["executors"][label]


def tasks(pipeline: dict[str, Any]) -> dict[str, Any]:
    inner = pipeline["components"]["comp-exit-handler-1"]["dag"]["tasks"]
    return {**pipeline["root"]["dag"]["tasks"], **inner}


@pytest.mark.parametrize("name", SPECS)
def test_it_is_the_golden_one_every_time(tmp_path, name):
    compile_to(build(spec(name)), tmp_path / "pipeline.yaml")
    compile_to(build(spec(name)), tmp_path / "again.yaml")
    text = (tmp_path / "pipeline.yaml").read_text()
    assert text == (tmp_path / "again.yaml").read_text()
    assert text == (GOLDEN / f"{name}.yaml").read_text(), "make generate, and look at what it changes"


@pytest.mark.parametrize("name", SPECS)
def test_it_is_what_kubeflow_publishes(tmp_path, name):
    pipeline, platform = compiled(tmp_path, name)
    json_format.ParseDict(pipeline, pipeline_spec_pb2.PipelineSpec())  # refuses unknown fields
    json_format.ParseDict(platform, pipeline_spec_pb2.PlatformSpec())
    for settings in platform["platforms"]["kubernetes"]["deploymentSpec"]["executors"].values():
        json_format.ParseDict(settings, kubernetes_executor_config_pb2.KubernetesExecutorConfig())


def test_every_stage_is_a_task_that_is_never_cached_and_knows_the_sources(tmp_path):
    pipeline, _ = compiled(tmp_path, "cpu")
    found = tasks(pipeline)
    parts = ["encoders", "encoders-2", "encoders-3"]
    assert found.keys() == {"fingerprint", *STAGES, *parts, "outcome", "exit-handler-1"}
    for name in (*STAGES, *parts):
        assert "enableCache" not in found[name].get("cachingOptions", {})
        given = found[name]["inputs"]["parameters"]
        assert given["sources"] == {
            "taskOutputParameter": {"outputParameterKey": "Output", "producerTask": "fingerprint"}
        }
    assert set(found["evaluate"]["dependentTasks"]) == {"fingerprint", "distill", *parts}
    methods = [found[part]["inputs"]["parameters"]["method"]["runtimeValue"]["constant"] for part in parts]
    assert methods == ["distilled", "random", "full"]
    for part, method in zip(parts, methods, strict=True):  # the rivals beside distill
        assert ("distill" in found[part]["dependentTasks"]) == (method == "distilled")
        assert not set(found[part]["dependentTasks"]) & set(parts)
    assert found["outcome"]["triggerPolicy"]["strategy"] == "ALL_UPSTREAM_TASKS_COMPLETED"


def test_every_setting_of_execution_reaches_the_tasks_that_it_is_for(tmp_path):
    pipeline, platform = compiled(tmp_path, "gpu-pool")
    for name in ("fingerprint", *STAGES, "encoders", "outcome"):
        assert executor(pipeline, name)["image"] == "registry.example/limbeck:1"
        settings = pod(pipeline, platform, name)
        assert settings["imagePullSecret"][0]["secretName"] == "pull"
        assert [entry["secretName"] for entry in settings["secretAsEnv"]] == ["mlflow"]
        assert settings["secretAsEnv"][0]["keyToEnv"][0]["envVar"] == "MLFLOW_TRACKING_TOKEN"
        assert settings["secretAsEnv"][0]["keyToEnv"][0]["secretKey"] == "token"
        assert settings["secretAsVolume"][0]["mountPath"] == "/var/secrets/bucket"
        assert settings["pvcMount"][0]["mountPath"] == "/scratch"
        assert settings.get("activeDeadlineSeconds") == (None if name == "outcome" else "7200")
    for name in ("teacher", "trajectories", "distill", "evaluate", "encoders"):
        wanted = executor(pipeline, name)["resources"]
        accelerator = wanted["accelerator"]
        assert (accelerator["resourceType"], accelerator["resourceCount"]) == ("example.com/gpu", "2")
        assert wanted["resourceCpuLimit"] == wanted["resourceCpuRequest"] == "7500m"
        assert wanted["resourceMemoryLimit"] == wanted["resourceMemoryRequest"] == "60Gi"
        settings = pod(pipeline, platform, name)
        assert settings["nodeSelector"]["labels"] == {"pool": "training"}
        (toleration,) = settings["tolerations"]
        assert (toleration["key"], toleration["operator"]) == ("example.com/gpu", "Exists")
        assert settings["emptyDirMounts"] == [
            {"medium": "Memory", "mountPath": "/dev/shm", "sizeLimit": "8Gi", "volumeName": "shm"}
        ]
    for name in ("ingest", "targets", "select", "register"):
        assert "resources" not in executor(pipeline, name)
        assert "nodeSelector" not in pod(pipeline, platform, name)
    for name, task in tasks(pipeline).items():
        retries = task.get("retryPolicy", {}).get("maxRetryCount")
        assert retries == (None if name in ("outcome", "exit-handler-1") else 5), name


def test_an_image_of_the_command_line_is_that_of_all_tasks(tmp_path):
    compile_to(build(spec("cpu"), "other:2"), tmp_path / "pipeline.yaml")
    pipeline = next(yaml.safe_load_all((tmp_path / "pipeline.yaml").read_text()))
    images = {entry["container"]["image"] for entry in pipeline["deploymentSpec"]["executors"].values()}
    assert images == {"other:2"}


def test_nothing_is_installed_when_a_task_starts(tmp_path):
    compile_to(build(spec("cpu")), tmp_path / "pipeline.yaml")
    assert "pip install" not in (tmp_path / "pipeline.yaml").read_text()


@pytest.mark.parametrize(
    ("field", "value", "where"),
    [
        ("output", {"uri": "out"}, "spec.output.uri"),
        ("output", {"uri": "/data/out"}, "spec.output.uri"),
        ("output", {"uri": "file:///data/out"}, "spec.output.uri"),
        ("source", {"uri": "pictures", "imageSize": 32}, "spec.source.uri"),
        ("teacher", {"algorithm": "pretrained", "checkpoint": "teacher.pt"}, "spec.teacher.checkpoint"),
        ("tracking", {"uri": "sqlite:///mlflow.db"}, "spec.tracking.uri"),
        ("distill", {"size": 10, "warmStart": "earlier"}, "spec.distill.warmStart"),
        ("distill", {"size": 10, "warmStart": "/models:/digits/1"}, "spec.distill.warmStart"),
    ],
)
def test_a_place_that_no_pod_sees_is_refused(field, value, where):
    settings = {**SPECS["cpu"], field: value}
    with pytest.raises(InputError, match=r"is on this machine; a URL such as gs://") as refusal:
        check_for_cluster(distillation("x", settings).spec)
    assert refusal.value.where == where


def test_an_untracked_run_that_starts_from_a_registered_set_needs_its_mlflow():
    settings = {**SPECS["cpu"], "tracking": {"enabled": False, "uri": "sqlite:///mlflow.db"}}
    check_for_cluster(distillation("x", settings).spec)
    with pytest.raises(InputError, match=r"spec.tracking.uri: mlflow.db is on this machine"):
        check_for_cluster(distillation("x", settings | {"distill": {"warmStart": "models:/digits/3"}}).spec)


def test_credentials_in_a_spec_are_refused_where_kubeflow_would_show_them():
    settings = {**SPECS["cpu"], "tracking": {"uri": "https://ana:hidden@mlflow.example"}}
    with pytest.raises(InputError, match="has credentials, which a cluster shows") as refusal:
        check_for_cluster(distillation("x", settings).spec)
    assert "hidden" not in str(refusal.value)


def test_folders_of_a_volume_digits_and_registered_sets_are_places_that_pods_see():
    settings = {
        **SPECS["cpu"],
        "source": {"uri": "sklearn:digits#train", "imageSize": 8},
        "distill": {"size": 10, "warmStart": "models:/digits/3"},
        "output": {"uri": "/data/out"},
        "execution": {"volumes": [{"claim": "data", "mountPath": "/data"}]},
    }
    check_for_cluster(distillation("x", settings).spec)


def test_a_quantity_that_kubeflow_does_not_know_is_refused():
    settings = {**SPECS["cpu"], "execution": {"resources": {"teacher": {"memory": "5k"}}}}
    with pytest.raises(InputError, match=r"spec.execution.resources.teacher.memory: 5k"):
        build(distillation("x", settings))


@pytest.mark.parametrize("file", generated())
def test_what_is_generated_is_current(file):
    assert (ROOT / file).read_text() == generated()[file], "make generate"
