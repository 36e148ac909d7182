"""The definitions on a real API server: it takes them, fills in the defaults, and refuses what the spec refuses."""

from __future__ import annotations

import json
from functools import reduce
from importlib.resources import files
from typing import Any

import pytest
import yaml
from kubernetes import client

from limbeck.presets import PRESETS, preset_fields
from limbeck.spec import DistillationSpec
from limbeck_operator import api
from limbeck_operator.crds import crds
from tests.operator.specs import CASES, SCHEDULES, distillation_of, schedule_of

SOURCE = {"source": {"uri": "gs://bucket/pictures"}}


def distillation(spec: dict[str, Any], name: str = "one") -> dict[str, Any]:
    return {"apiVersion": api.API_VERSION, "kind": api.DISTILLATION, "metadata": {"name": name}, "spec": spec}


@pytest.fixture
def create(admin, defined, namespace):
    objects = client.CustomObjectsApi(admin)

    def made(document: dict[str, Any], **options: str) -> dict[str, Any]:
        plural = crds()[document["kind"]]["spec"]["names"]["plural"]
        return objects.create_namespaced_custom_object(
            api.GROUP, api.VERSION, namespace, plural, document, field_validation="Strict", **options
        )

    return made


def test_they_are_established_and_structural(admin, defined):
    for definition in crds().values():
        found = client.ApiextensionsV1Api(admin).read_custom_resource_definition(definition["metadata"]["name"])
        conditions = {entry.type: entry.status for entry in found.status.conditions}
        assert conditions["Established"] == "True"
        assert conditions.get("NonStructuralSchema", "False") == "False"
        assert len(json.dumps(definition)) < 200_000


def test_the_server_fills_in_the_defaults_of_the_spec(create):
    made = create(distillation(SOURCE))["spec"]
    expected = DistillationSpec.model_validate(SOURCE).model_dump(mode="json", by_alias=True)
    for *sections, name in preset_fields():  # which the preset fills in, when the spec is read
        del reduce(dict.__getitem__, sections, expected)[name]
    assert without(made, ({}, [])) == without(expected, ({}, [], None))


@pytest.mark.parametrize("preset", PRESETS)
def test_what_the_server_has_filled_in_is_the_preset_s_spec(create, preset):
    given = SOURCE | {"preset": preset}
    made = create(distillation(given))["spec"]
    assert DistillationSpec.model_validate(made) == DistillationSpec.model_validate(given)


def without(value: Any, unsaid: tuple[Any, ...]) -> Any:
    if isinstance(value, dict):
        found = {name: without(item, unsaid) for name, item in value.items()}
        return {name: item for name, item in found.items() if item not in unsaid}
    return value


def test_the_examples_are_taken(create):
    for example in (files("limbeck") / "examples").iterdir():
        create(yaml.safe_load(example.read_text()))


@pytest.mark.parametrize(
    ("document", "said"),
    [
        (distillation({}), "spec.source: Required"),
        (distillation(SOURCE | {"seeed": 1}), 'unknown field "spec.seeed"'),
        (distillation(SOURCE | {"seed": -1}), "greater than or equal to 0"),
        (distillation(SOURCE | {"distill": {"innerSteps": "many"}}), "integer"),
        (distillation(SOURCE | {"teacher": {"algorithm": "moco"}}), 'supported values: "barlowTwins", "simclr"'),
        (distillation(SOURCE | {"execution": {"resources": {"teacher": {"cpu": "much"}}}}), "should match"),
        (distillation(SOURCE, "a.b"), "a DNS label of at most 63 characters is allowed"),
    ],
)
def test_what_is_wrong_is_refused_with_what_is_allowed(create, document, said):
    with pytest.raises(client.ApiException) as refusal:
        create(document)
    assert refusal.value.status in (400, 422)
    assert said in json.loads(refusal.value.body)["message"]


@pytest.mark.parametrize(
    ("kind", "spec_of", "cases"),
    [(api.DISTILLATION, distillation_of, CASES), (api.SCHEDULE, schedule_of, SCHEDULES)],
)
def test_the_server_judges_as_the_spec_does(create, kind, spec_of, cases):
    wrong = []
    for case in cases:
        document = {"apiVersion": api.API_VERSION, "kind": kind, "metadata": {"name": "one"}, "spec": spec_of(case)}
        try:
            create(document, dry_run="All")
            said = None
        except client.ApiException as refusal:
            said = json.loads(refusal.body)["message"]
        if (said is None) != (case.refused is None) or (said is not None and case.refused not in said):
            wrong.append((case, said))
    assert wrong == []


def test_once_started_the_settings_stay(admin, create, namespace):
    """Also where numbers are whole: an API server stores 1.0 as 1."""
    create(distillation({**SOURCE, "evaluate": {"labelFractions": [0.5, 1.0], "rateFactors": [1.0, 2.0]}}))
    objects = client.CustomObjectsApi(admin)
    place = (api.GROUP, api.VERSION, namespace, api.DISTILLATIONS, "one")
    objects.patch_namespaced_custom_object(*place, {"spec": {"seed": 1}})
    objects.patch_namespaced_custom_object_status(*place, {"status": {"startTime": "2026-11-24T08:00:00Z"}})
    for change in ({"seed": 2}, {"execution": {"image": "other"}}, {"teacher": {"epochs": 1}}):
        with pytest.raises(client.ApiException) as refusal:
            objects.patch_namespaced_custom_object(*place, {"spec": change})
        assert "make a new Distillation" in refusal.value.body
    changed = objects.patch_namespaced_custom_object(*place, {"spec": {"execution": {"suspend": True}}})
    assert changed["spec"]["execution"]["suspend"] is True


def test_a_schedule_is_taken_with_its_defaults(create):
    made = create(
        {
            "apiVersion": api.API_VERSION,
            "kind": api.SCHEDULE,
            "metadata": {"name": "nightly"},
            "spec": {"schedule": "0 3 * * *", "template": {"spec": SOURCE}},
        }
    )["spec"]
    assert (made["timeZone"], made["concurrencyPolicy"], made["onlyIfSourceChanged"]) == ("Etc/UTC", "Forbid", True)
    template = made["template"]["spec"]
    assert template["distill"]["pairs"] == 1
    assert "innerSteps" not in template["distill"]  # the preset's, when the spec is read
    assert DistillationSpec.model_validate(template) == DistillationSpec.model_validate(SOURCE)
