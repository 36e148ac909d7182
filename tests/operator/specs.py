"""Good and bad specs, which `limbeck validate` and the API server must judge alike.

They do not where a field that may not be null is null: to the API server it is then not given at all.
"""

from __future__ import annotations

from typing import Any, NamedTuple

SOURCE = {"uri": "gs://bucket/pictures"}


class Case(NamedTuple):
    """Sections beside a source, and what a refusal names; None where it is allowed."""

    spec: dict[str, Any]
    refused: str | None = None


def _ray(**settings: Any) -> dict[str, Any]:
    return {"execution": {"ray": settings}}


def _group(**settings: Any) -> dict[str, Any]:
    return _ray(cluster={"workerGroups": [settings]})


def _toleration(**settings: Any) -> dict[str, Any]:
    return {"execution": {"resources": {"teacher": {"tolerations": [settings]}}}}


def _task(name: str) -> dict[str, Any]:
    return {"name": name, "train": SOURCE, "test": {**SOURCE, "limit": 10}}


def _options(*options: dict[str, Any]) -> dict[str, Any]:
    return {"execution": {"storageOptions": [{"prefix": "s3://b/", "options": list(options)}]}}


CASES = [
    Case(_options({"name": "endpoint_url", "value": "http://minio:9000"}, {"name": "key", "environment": "KEY"})),
    Case(_options({"name": "token", "file": "/run/secrets/token.json"}, {"name": "anon", "value": "true"})),
    Case(_options({"name": "token", "value": "anon"})),
    Case(_options({"name": "client_kwargs", "value": '{"region_name": "eu-1", "verify": false}'})),
    Case(_options(), "options"),
    Case(_options({"name": "key"}), "value"),
    Case(_options({"name": "endpoint_url", "value": "x", "file": "/y"}), "value"),
    Case(_options({"name": "anon", "value": "true"}, {"name": "anon", "value": "false"}), "options"),
    Case(_options({"name": "key", "value": "AKIA0123"}), "environment or file"),
    Case(_options({"name": "SECRET", "value": "hush"}), "environment or file"),
    Case(_options({"name": "config_kwargs", "value": '{"aws_secret_access_key": "hush"}'}), "environment or file"),
    Case(_options({"name": "config_kwargs", "value": '{"a": {"Key" : "hush"}}'}), "environment or file"),
    Case(_options({"name": "config_kwargs", "value": '{"use_keys": "no", "key": true}'})),
    Case(_options({"name": "endpoint url", "value": "x"}), "name"),
    Case(_options({"name": "connection_string", "value": "AccountName=a;AccountKey=hush"}), "environment or file"),
    Case(_options({"name": "account", "value": "https://a.example/?se=1&sig=hush"}), "environment or file"),
    Case(_options({"name": "endpoint_url", "value": "http://ana:hush@minio:9000"}), "environment or file"),
    Case(_options({"name": "endpoint_url", "value": "http://minio:9000/a?b=1"})),
    Case({}),
    Case({"seed": 2**31 - 1}),
    Case({"seed": 2**31}, "seed"),
    Case({"seed": 1.5}, "seed"),
    Case({"seed": "1"}, "seed"),
    Case({"source": {}}, "uri"),
    Case({"source": SOURCE | {"uri": ""}}, "uri"),
    Case({"source": SOURCE | {"format": "gif"}}, "format"),
    Case({"source": SOURCE | {"imageSize": 3}}, "imageSize"),
    Case({"sorce": {}}, "sorce"),
    Case({"teacher": {"algoritm": "simclr"}}, "algoritm"),
    Case({"teacher": {"algorithm": "simclr"}}),
    Case({"teacher": {"algorithm": "pretrained"}}, "checkpoint"),
    Case({"teacher": {"algorithm": "pretrained", "checkpoint": "gs://b/t.pt"}}),
    Case({"teacher": {"checkpoint": "gs://b/t.pt"}}, "checkpoint"),
    Case({"teacher": {"checkpoint": None}}),
    Case({"teacher": {"optimizer": {"rate": 0.0}}}, "rate"),
    Case({"teacher": {"optimizer": {"rate": 100}}}),
    Case({"distill": {"size": 10}}),
    Case({"distill": {"fraction": 1.0}}),
    Case({"distill": {"fraction": 0.0}}, "fraction"),
    Case({"distill": {"size": 10, "fraction": 0.1}}, "fraction"),
    Case({"distill": {"size": 10, "fraction": None}}),
    Case({"distill": {"momentum": 1.0}}, "momentum"),
    Case({"distill": {"warmStart": "gs://b/set"}}),
    Case({"distill": {"warmStart": "models:/digits/12"}}),
    *(
        Case({"distill": {"warmStart": f"models:/{what}"}}, "warmStart")
        for what in ("digits@champion", "digits/latest", "digits", "m-0123456789abcdef", "digits/0", "digits/1/2", "")
    ),
    Case({"distill": {"warmStart": "models:/digits/9999999999"}}, "warmStart"),
    Case({"distill": {"method": "krrSt", "kernel": {"pool": 3}}}),
    Case({"distill": {"method": "krrSt", "pairs": 2}}, "pairs"),
    Case({"distill": {"kernel": {"pool": 0}}}, "pool"),
    Case({"targets": {"components": 8, "whitening": 0.5}}),
    Case({"targets": {"components": -1}}, "components"),
    Case({"targets": {"whitening": 1.5}}, "whitening"),
    Case({"distill": {"downsampling": 16}}),
    Case({"distill": {"downsampling": 17}}, "downsampling"),
    Case({"evaluate": {"steps": 100}}),
    Case({"targets": {"whitening": 1.0, "standardize": False}}),
    Case({"preset": "paper"}),
    Case({"preset": "papers"}, "preset"),
    Case({"preset": "paper", "targets": {"whitening": 1}}),
    Case({"preset": "paper", "trajectories": {"epochs": 3}}),
    Case({"preset": "paper", "trajectories": {"epochs": 2}}, "epochs"),
    Case({"preset": "paper", "trajectories": {"epochs": 6}, "distill": {"fraction": 0.05}}),
    Case({"preset": "paper", "trajectories": {"epochs": 5}, "distill": {"fraction": 0.05}}, "epochs"),
    Case({"preset": "paper", "trajectories": {"epochs": 3}, "distill": {"fraction": 0.04}}),
    Case({"preset": "paper", "trajectories": {"epochs": 3}, "distill": {"size": 100}}),
    Case({"preset": "paper", "trajectories": {"epochs": 2}, "distill": {"maxStartEpoch": 1}}),
    Case(
        {
            "evaluate": {
                "baselines": ["none", "start", "random", "highLoss", "kCenter", "facilityLocation", "full", "fullSsl"]
            }
        }
    ),
    Case({"trajectories": {"epochs": 4}}),
    Case({"trajectories": {"epochs": 3}}, "epochs"),
    Case({"trajectories": {"epochs": 5}, "distill": {"maxStartEpoch": 5}}),
    Case({"trajectories": {"epochs": 4}, "distill": {"maxStartEpoch": 5}}, "epochs"),
    Case({"source": SOURCE | {"limit": 1}}, "limit"),
    Case({"source": SOURCE | {"limit": 2}}),
    Case({"source": SOURCE | {"limit": 20}, "distill": {"size": 20}}),
    Case({"source": SOURCE | {"limit": 20}, "distill": {"size": 21}}, "size"),
    *(
        Case({"source": SOURCE | {"imageSize": size}}, refused)
        for size, refused in (
            (4, None),
            (5, "depth"),
            (16, None),
            (18, "depth"),
            (36, "depth"),
            (40, None),
            (63, "depth"),
        )
    ),
    *(
        Case({"source": SOURCE | {"imageSize": size}}, refused)
        for size, refused in ((64, None), (72, "depth"), (96, None), (160, None), (200, "depth"), (512, None))
    ),
    Case({"student": {"depth": 5}}),
    Case({"student": {"depth": 6}}, "depth"),
    Case({"student": {"depth": 8}}, "depth"),
    Case({"source": SOURCE | {"imageSize": 8}, "student": {"architecture": "resnet10"}}, "norm"),
    Case({"source": SOURCE | {"imageSize": 8}, "student": {"architecture": "resnet10", "norm": "batch"}}),
    Case({"source": SOURCE | {"imageSize": 9}, "student": {"architecture": "resnet10"}}, "architectures"),
    Case(
        {
            "source": SOURCE | {"imageSize": 9},
            "student": {"architecture": "resnet10"},
            "evaluate": {"architectures": ["resnet10"]},
        }
    ),
    Case({"source": SOURCE | {"imageSize": 40}, "teacher": {"architecture": "convnet", "depth": 4}}, "depth"),
    Case({"source": SOURCE | {"imageSize": 40}, "teacher": {"architecture": "convnet", "depth": 3}}),
    Case(
        {
            "teacher": {"architecture": "convnet", "depth": 6, "algorithm": "pretrained", "checkpoint": "gs://b/t.pt"},
        }
    ),
    Case(
        {
            "teacher": {
                "architecture": "convnet",
                "depth": 6,
                "algorithm": "pretrained",
                "checkpoint": "gs://b/t.safetensors",
            },
        },
        "depth",
    ),
    Case({"student": {"norm": "batch"}}),
    Case({"student": {"norm": "batch"}, "trajectories": {"batch": 1}}, "batch"),
    Case({"student": {"norm": "batch"}, "distill": {"innerBatch": 1}}, "innerBatch"),
    Case({"student": {"norm": "batch"}, "distill": {"size": 1}}, "size"),
    Case({"trajectories": {"batch": 1}, "distill": {"innerBatch": 1, "size": 1}}),
    Case({"evaluate": {"seeds": [0, 1]}}),
    Case({"evaluate": {"seeds": [0, 0]}}, "seeds"),
    Case({"evaluate": {"seeds": [0, 1], "selectionSeeds": [2, 3]}}),
    Case({"evaluate": {"seeds": [0, 1], "selectionSeeds": [1, 2]}}, "selectionSeeds"),
    Case({"evaluate": {"rateFactors": [1.0, 1.0]}}, "rateFactors"),
    Case({"evaluate": {"probe": {"ridges": [0.1, 0.1]}}}, "ridges"),
    Case({"evaluate": {"seeds": []}}, "seeds"),
    Case({"evaluate": {"labelFractions": [0.1, 0.1]}}, "labelFractions"),
    Case({"evaluate": {"labelFractions": [1.5]}}, "labelFractions"),
    Case({"evaluate": {"baselines": ["random", "random"]}}, "baselines"),
    Case({"evaluate": {"baselines": []}}),
    Case({"evaluate": {"tasks": [_task("a"), _task("b")]}}),
    Case({"evaluate": {"tasks": [_task("a"), _task("a")]}}, "tasks"),
    Case({"evaluate": {"tasks": [_task("A")]}}, "name"),
    Case({"evaluate": {"tasks": [_task("a") | {"test": SOURCE}]}}, "test"),
    Case({"evaluate": {"tasks": [_task("a") | {"test": SOURCE, "allowOverlap": True}]}}),
    Case({"evaluate": {"tasks": [_task("a") | {"train": {**SOURCE, "limit": 10}}]}}, "test"),
    Case({"registry": {"name": "a.b"}}),
    Case({"registry": {"name": "a b"}}, "name"),
    Case({"execution": {"backend": "cron"}}, "backend"),
    Case({"execution": {"resources": {"teacher": {"cpu": "500m", "memory": "4Gi", "gpus": 1}}}}),
    Case({"execution": {"resources": {"teacher": {"memory": "4GB"}}}}, "memory"),
    Case({"execution": {"resources": {"techer": {}}}}, "resources"),
    Case({"execution": {"secrets": [{"name": "s", "mountPath": "/s"}]}}),
    Case({"execution": {"secrets": [{"name": "s", "environment": {"A": "a"}}]}}),
    Case({"execution": {"secrets": [{"name": "s"}]}}, "mountPath"),
    Case({"execution": {"secrets": [{"name": "s", "environment": {}}]}}, "mountPath"),
    Case({"execution": {"volumes": [{"claim": "c", "mountPath": "data"}]}}, "mountPath"),
    Case(_toleration(operator="Exists")),
    Case(_toleration(operator="Exists", value="a"), "value"),
    Case(_toleration(key="a", value="b")),
    Case(_toleration(value="b"), "key"),
    Case(_toleration(key="a", effect="NoExecute", tolerationSeconds=3)),
    Case(_toleration(key="a", tolerationSeconds=3), "tolerationSeconds"),
    Case(_toleration(key="a", effect="NoSchedule", tolerationSeconds=3), "tolerationSeconds"),
    Case(_ray(address="auto")),
    Case(_ray(address="auto", cluster={}), "cluster"),
    Case(_ray(workers=2, minWorkers=2)),
    Case(_ray(workers=2, minWorkers=3), "minWorkers"),
    Case(_ray(minWorkers=1), "minWorkers"),
    Case(_group(replicas=2, minReplicas=1, maxReplicas=3)),
    Case(_group(replicas=2, minReplicas=3), "replicas"),
    Case(_group(replicas=4, maxReplicas=3), "replicas"),
    Case(_group(replicas=0)),
    Case(_group(gpus=1, gpuType="H100")),
    Case(_group(gpuType="H100"), "gpuType"),
    Case(_ray(cluster={"workerGroups": []}), "workerGroups"),
    Case(_ray(cluster={"workerGroups": [{"name": "a"}, {"name": "b"}]})),
    Case(_ray(cluster={"workerGroups": [{"name": "a"}, {"name": "a"}]}), "workerGroups"),
]

SCHEDULES = [
    Case({}),
    Case({"schedule": "*/5 1-3,7 * jan-dec mon#2"}),
    Case({"schedule": "@daily"}),
    Case({"schedule": "@reboot"}, "schedule"),
    Case({"schedule": "* * * *"}, "schedule"),
    Case({"schedule": "TZ=UTC * * * * *"}, "schedule"),
    Case({"timeZone": "Europe/Berlin"}),
    Case({"timeZone": "Europe Berlin"}, "timeZone"),
    Case({"concurrencyPolicy": "Queue"}, "concurrencyPolicy"),
    Case({"startingDeadlineSeconds": 9}, "startingDeadlineSeconds"),
    Case({"failedRunsHistoryLimit": -1}, "failedRunsHistoryLimit"),
    Case({"template": {"spec": {}}}, "source"),
    Case({"template": {"spec": {"source": SOURCE, "seed": -1}}}, "seed"),
    Case({"warmStart": "champion"}, "warmStart"),
    Case({"template": {"spec": {"source": SOURCE, "distill": {"warmStart": "models:/digits/3"}}}}),
    Case({"template": {"spec": {"source": SOURCE, "distill": {"warmStart": "models:/digits@champion"}}}}, "warmStart"),
    Case({"warmStart": "champion", "template": {"spec": {"source": SOURCE, "registry": {"name": "a"}}}}, "warmStart"),
    Case(
        {
            "warmStart": "champion",
            "template": {"spec": {"source": SOURCE, "registry": {"name": "a"}, "distill": {"size": 5}}},
        }
    ),
    Case(
        {
            "warmStart": "champion",
            "template": {
                "spec": {"source": SOURCE, "registry": {"name": "a"}, "distill": {"size": 5, "warmStart": "gs://b/s"}}
            },
        },
        "warmStart",
    ),
]


def distillation_of(case: Case) -> dict[str, Any]:
    """The spec of a Distillation."""
    return {"source": SOURCE} | case.spec


def schedule_of(case: Case) -> dict[str, Any]:
    """The spec of a ScheduledDistillation."""
    return {"schedule": "0 3 * * *", "template": {"spec": {"source": SOURCE}}} | case.spec
