"""The definitions, as they are generated."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from limbeck_operator.crds import crds
from limbeck_operator.generate import generated

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


def _undescribed(schema: dict[str, Any], path: str) -> Any:
    if not schema.get("description"):
        yield path
    for name, field in schema.get("properties", {}).items():
        yield from _undescribed(field, f"{path}.{name}")
    items = schema.get("items", {})
    for name, field in items.get("properties", {}).items():
        yield from _undescribed(field, f"{path}[].{name}")
