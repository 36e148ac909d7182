"""What objects are given that do not say it themselves."""

from __future__ import annotations

import pytest

from limbeck.errors import InputError
from limbeck.spec import DistillationSpec, ScheduledDistillation, Source
from limbeck.specfile import read_shared
from limbeck.store import json_digest
from limbeck_operator.distillation import reconcile
from limbeck_operator.inherit import Defaults, inherit
from limbeck_operator.observed import Observed
from limbeck_operator.schedule import ObservedSchedule, reconcile_schedule
from tests.operator.test_distillation import NOW, distillation
from tests.operator.test_schedule import HOUR, MADE, RESULT, schedule

SHARED = {
    "output": {"uri": "gs://results/{namespace}"},
    "tracking": {"uri": "http://mlflow:5000"},
    "execution": {
        "image": "registry/limbeck@sha256:00",
        "backoffLimit": 7,
        "secrets": [{"name": "bucket", "mountPath": "/secrets"}],
        "resources": {"teacher": {"memory": "8Gi", "gpus": 1}},
    },
}


def inherited(spec: dict, shared: dict = SHARED) -> dict:
    return inherit(spec, Defaults(shared=shared), "team", "one")


def test_what_is_not_said_is_taken_from_the_defaults():
    found = inherited({"source": {"uri": "gs://b/in"}})
    assert found["output"] == {"uri": "gs://results/team"}
    assert found["tracking"] == {"uri": "http://mlflow:5000"}
    assert found["execution"] == SHARED["execution"]


def test_what_the_api_server_has_filled_in_counts_as_not_said():
    filled = DistillationSpec(source=Source(uri="gs://b/in")).wire()
    found = inherited(filled)
    assert found["output"]["uri"] == "gs://results/team"
    assert found["execution"]["backoffLimit"] == 7
    assert found["execution"]["resources"] == {"teacher": {"memory": "8Gi", "gpus": 1}}
    assert found["execution"]["checkpointSeconds"] == filled["execution"]["checkpointSeconds"]


def test_what_is_said_stays():
    own = {
        "source": {"uri": "gs://b/in"},
        "output": {"uri": "gs://mine"},
        "execution": {"backoffLimit": 0, "resources": {"teacher": {"memory": "2Gi"}, "distill": {"cpu": "4"}}},
    }
    found = inherited(own)
    assert found["output"]["uri"] == "gs://mine"
    assert found["execution"]["backoffLimit"] == 0
    assert found["execution"]["resources"] == {"teacher": {"memory": "2Gi", "gpus": 1}, "distill": {"cpu": "4"}}


def test_names_are_put_into_the_output():
    shared = {"output": {"uri": "/results/{namespace}/{name}"}}
    assert inherited({}, shared)["output"]["uri"] == "/results/team/one"


def test_a_distillation_runs_with_what_it_inherits():
    document = distillation()
    del document["spec"]["output"]
    shared = {**SHARED, "execution": {**SHARED["execution"], "serviceAccount": "runner"}}
    plan = reconcile(Observed(document, defaults=Defaults(shared=shared)), NOW)
    (job,) = plan.create
    pod = job["spec"]["template"]["spec"]
    assert pod["containers"][0]["image"] == "registry/limbeck@sha256:00"
    assert pod["serviceAccountName"] == "runner"
    assert job["spec"]["backoffLimit"] == 7
    assert '"uri": "gs://results/ns"' in job["spec"]["template"]["metadata"]["annotations"]["limbeck.dev/spec"]


def test_a_file_of_defaults_is_checked_line_by_line(tmp_path):
    file = tmp_path / "defaults.yaml"
    file.write_text("execution:\n  backoffLimit: 5\n")
    assert read_shared(file) == {"execution": {"backoffLimit": 5}}
    file.write_text("{}\n")
    assert read_shared(file) == {}
    for text, said in (
        ("execution:\n  backofLimit: 5\n", "2: execution.backofLimit: no such field; did you mean backoffLimit?"),
        ("execution:\n  backoffLimit: many\n", '2: execution.backoffLimit: found "many"; allowed: a whole number'),
        ("source:\n  uri: x\n", "1: source: no such field; allowed: execution, output, tracking"),
        ("", "1: empty; an empty one is {}"),
    ):
        file.write_text(text)
        with pytest.raises(InputError) as refusal:
            read_shared(file)
        assert f"{file}:{said}" in str(refusal.value)


def test_a_schedule_looks_with_what_its_distillations_inherit():
    document = schedule({"lastDone": {"name": "n-1", "result": RESULT}}, template={"source": {"uri": "gs://b/in"}})
    del document["spec"]["template"]["spec"]["output"]
    content = ScheduledDistillation.model_validate(document).spec.template.spec.content()
    document["status"]["lastDone"]["content"] = json_digest(content)
    seen = ObservedSchedule(document, defaults=Defaults(shared=SHARED))
    plan = reconcile_schedule(seen, MADE + HOUR)
    (check,) = plan.create
    assert check["spec"]["template"]["spec"]["containers"][0]["image"] == "registry/limbeck@sha256:00"
    assert "gs://results/ns" in check["spec"]["template"]["metadata"]["annotations"]["limbeck.dev/spec"]
    without = reconcile_schedule(ObservedSchedule(document), MADE + HOUR)
    assert without.status["conditions"][0]["reason"] == "InvalidSpec"


def test_a_schedule_that_contradicts_the_defaults_says_so():
    document = schedule(template={"execution": {"ray": {"cluster": {}}}})
    shared = {"execution": {"ray": {"address": "ray://head:10001"}}}
    plan = reconcile_schedule(ObservedSchedule(document, defaults=Defaults(shared=shared)), MADE + HOUR)
    assert plan.create == []
    (condition,) = plan.status["conditions"]
    assert condition["reason"] == "InvalidSpec"
    assert "a cluster and an address" in condition["message"]
