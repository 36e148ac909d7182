"""What is said of a run is shown within the bounds of the definitions, since the API server refuses all of a status."""

from __future__ import annotations

from typing import Any

import pytest

from limbeck.standing import Standing
from limbeck_operator import api
from limbeck_operator.distillation import reconcile
from limbeck_operator.observed import Observed
from limbeck_operator.plan import Plan
from tests.operator.test_distillation import AGO, NOW, OUTCOME, distillation, ended, job, over, pod, said

LONG = "ingest " + "a" * 63  # as a task of the longest name gives


def standing(**more: Any) -> Standing:
    given = {"run": "one", "stage": "distill", "lastUpdatedTime": AGO, "stages": [], "links": {}} | more
    return Standing.model_validate(given)


def running(**more: Any) -> dict[str, Any]:
    seen = Observed(distillation(startTime=AGO), job(), [pod("Running", {"running": {}})], standing=standing(**more))
    return checked(reconcile(seen, NOW))


def complete(outcome: str) -> Plan:
    seen = Observed(distillation(startTime=AGO), job(**ended("Complete")), [pod("Succeeded", over(0, outcome))])
    return reconcile(seen, NOW)


def checked(plan: Plan) -> dict[str, Any]:
    """The status, which is one by the model that the definition is made from."""
    assert plan.status is not None
    api.DistillationStatus.model_validate(plan.status)
    return plan.status


def test_long_names_of_stages_are_shortened_and_stay_apart():
    names = [f"{LONG}/train", f"{LONG}/test"]
    found = running(stage=names[0], stages=[{"name": name, "state": "Running"} for name in names])
    first, second = (entry["name"] for entry in found["stages"])
    assert first != second
    assert first.startswith("ingest aaa")
    assert found["progress"]["stage"] == first


def test_of_very_many_stages_the_last_are_shown():
    found = running(stages=[{"name": f"s{number}", "state": "Pending"} for number in range(208)])
    assert [found["stages"][0]["name"], found["stages"][-1]["name"]] == ["s8", "s207"]


def test_figures_that_cannot_be_are_left_out():
    found = running(
        percentage=300,
        estimatedRemainingSeconds=-4,
        metrics={f"m{number}": float(number) for number in range(40)} | {"m0": float("nan")},
        links={"mlflow": "http://m", "other": "http://o", "report": "r" * 3000, "distilledSet": "gs://b/out"},
        stages=[{"name": "teacher", "state": "Complete", "seconds": -1.0}],
    )
    progress = found["progress"]
    assert (progress["percentage"], progress["estimatedRemainingSeconds"], len(progress["metrics"])) == (100, 0, 32)
    assert "m0" not in progress["metrics"]
    assert found["links"] == {"mlflow": "http://m", "distilledSet": "gs://b/out"}
    assert "stages" not in found
    assert "progress" not in running(lastUpdatedTime="yesterday")


def test_a_run_whose_stages_have_long_names_completes():
    stage = f'{{"name": "{LONG}/train", "seconds": 1, "reused": false}}'
    plan = complete(f'{{"sourceFingerprint": "f", "digest": "d", "images": 5, "stages": [{stage}]}}')
    assert said(plan)["Complete"] == ("True", "Complete")
    assert checked(plan)["result"]["digest"] == "d"


@pytest.mark.parametrize(
    "outcome",
    [
        '{"sourceFingerprint": "f"}',
        '{"sourceFingerprint": "f", "digest": "d", "images": 0}',
        '{"sourceFingerprint": "f", "digest": "d", "recoveredGap": Infinity}',
    ],
)
def test_a_run_whose_outcome_is_none_completes(outcome):
    plan = complete(outcome)
    assert said(plan)["Complete"] == ("True", "Complete")
    assert "result" not in checked(plan)


def test_an_outcome_s_links_are_those_that_are_known():
    assert checked(complete(str(OUTCOME | {"links": {"a": "b", "mlflow": "m"}}).replace("'", '"')))["links"] == {
        "mlflow": "m"
    }
