"""The definitions, as they are generated."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
from pydantic import BaseModel, ValidationError

from limbeck import spec
from limbeck.presets import preset_fields
from limbeck_operator.crds import crds
from limbeck_operator.generate import generated
from limbeck_operator.rules import BY_LIST_TYPE, RULES
from tests.operator.specs import CASES, SCHEDULES, distillation_of, schedule_of

ROOT = Path(__file__).parents[2]


@pytest.mark.parametrize("file", sorted(generated()))
def test_no_generated_file_is_stale(file):
    assert (ROOT / file).read_text() == generated()[file], "make generate"


@pytest.mark.parametrize("kind", sorted(crds()))
def test_every_field_is_described_and_all_of_it_is_small(kind):
    (version,) = crds()[kind]["spec"]["versions"]
    schema = version["schema"]["openAPIV3Schema"]
    assert len(json.dumps(crds()[kind])) < 150_000
    for name in ("spec", "status"):
        assert list(_undescribed(schema["properties"][name], name)) == []


@pytest.mark.parametrize("kind", sorted(crds()))
def test_no_default_stands_where_a_preset_has_a_say(kind):
    """Neither at the field nor in that of a section around it."""
    (version,) = crds()[kind]["spec"]["versions"]
    schema = version["schema"]["openAPIV3Schema"]["properties"]["spec"]
    if "template" in schema["properties"]:
        schema = schema["properties"]["template"]["properties"]["spec"]
    for path in preset_fields():
        section = schema
        for depth, name in enumerate(path):
            default = section.get("default", {})
            for inner in path[depth:]:
                default = default.get(inner, {}) if isinstance(default, dict) else default
            assert default == {}, path
            section = section["properties"][name]
        assert "default" not in section, path


def _undescribed(schema: dict[str, Any], path: str) -> Any:
    if not schema.get("description"):
        yield path
    for name, field in schema.get("properties", {}).items():
        yield from _undescribed(field, f"{path}.{name}")
    items = schema.get("items", {})
    for name, field in items.get("properties", {}).items():
        yield from _undescribed(field, f"{path}[].{name}")


def test_every_validator_has_its_rules():
    found = {
        model.__name__
        for model in vars(spec).values()
        if isinstance(model, type) and issubclass(model, BaseModel) and model.__pydantic_decorators__.model_validators
    }
    assert found == set(RULES) | BY_LIST_TYPE


@pytest.mark.parametrize("case", CASES, ids=str)
def test_the_spec_judges_a_distillation_as_the_table_does(case):
    judge(spec.DistillationSpec, distillation_of(case), case.refused)


@pytest.mark.parametrize("case", SCHEDULES, ids=str)
def test_the_spec_judges_a_schedule_as_the_table_does(case):
    judge(spec.ScheduledDistillationSpec, schedule_of(case), case.refused)


def judge(model: type[BaseModel], document: dict[str, Any], refused: str | None) -> None:
    if refused is None:
        model.model_validate_json(json.dumps(document))
        return
    with pytest.raises(ValidationError) as refusal:
        model.model_validate_json(json.dumps(document))
    assert refused in str(refusal.value)
