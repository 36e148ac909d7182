"""What is generated from the spec is what lies in docs."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import yaml

from limbeck.reference import PAGE_FILE, SCHEMA_FILE, json_schema, reference_page, write
from limbeck.spec import Distillation

ROOT = Path(__file__).parents[1]
EXAMPLES = sorted((ROOT / "examples").glob("*.yaml"))


@pytest.mark.parametrize(("file", "generate"), [(SCHEMA_FILE, json_schema), (PAGE_FILE, reference_page)])
def test_a_generated_file_is_not_stale(file, generate):
    assert (ROOT / "docs" / file).read_text() == generate(), "python -m limbeck.reference docs"


def test_both_are_written(tmp_path):
    write(tmp_path / "docs")
    assert (tmp_path / "docs" / SCHEMA_FILE).read_text() == json_schema()
    assert (tmp_path / "docs" / PAGE_FILE).read_text() == reference_page()


def test_the_page_has_every_field_with_its_sentence():
    page = reference_page()
    rows = [line for line in page.splitlines() if line.startswith("| `")]
    names = [line.split("`")[1] for line in rows]
    schema = json.loads(json_schema())
    for section in schema["$defs"].values():
        if section.get("title") != "Metadata":
            assert set(section["properties"]) <= set(names), section["title"]
    assert all(len(row.rstrip(" |").rpartition(" | ")[2]) > 8 for row in rows)


def test_the_schema_speaks_the_file_s_spelling_and_refuses_unknown_fields():
    schema = json.loads(json_schema())
    assert set(schema["required"]) == {"apiVersion", "kind", "metadata", "spec"}
    for name, section in schema["$defs"].items():
        assert all("_" not in field for field in section["properties"]), name
        if name != "Metadata":
            assert section["additionalProperties"] is False, name


@pytest.mark.parametrize("example", EXAMPLES, ids=lambda path: path.name)
def test_the_schema_accepts_the_examples(example):
    jsonschema = pytest.importorskip("jsonschema")
    jsonschema.validate(yaml.safe_load(example.read_text()), json.loads(json_schema()))


@pytest.mark.parametrize("example", EXAMPLES, ids=lambda path: path.name)
def test_an_example_written_out_whole_is_the_same_example(example):
    read = Distillation.model_validate(yaml.safe_load(example.read_text()))
    assert Distillation.model_validate(read.model_dump(mode="json", by_alias=True)) == read
