"""What is generated of the chart is what lies there, and nothing is said twice in two ways."""

from __future__ import annotations

import json

import pytest
import yaml

from charts.generate import generated, rules, values
from limbeck.version import __version__
from limbeck_operator.crds import crds
from tests.charts.rendering import CHART, ROOT

FILES = generated(ROOT)
VALUES = values((CHART / "values.yaml").read_text())


@pytest.mark.parametrize("file", sorted(FILES))
def test_no_generated_file_is_stale(file):
    assert (ROOT / file).read_text() == FILES[file], "make generate"


def test_the_chart_has_the_version_of_the_library():
    chart = yaml.safe_load((CHART / "Chart.yaml").read_text())
    assert (chart["version"], chart["appVersion"]) == (__version__, __version__)


def test_the_definitions_are_those_of_the_operator():
    files = {yaml.safe_load(path.read_text())["spec"]["names"]["kind"]: path for path in CHART.glob("files/crds/*")}
    assert {kind: yaml.safe_load(path.read_text()) for kind, path in files.items()} == crds()


def test_every_value_has_its_sentence_its_type_and_a_row_in_the_readme():
    page = (CHART / "README.md").read_text()
    for value in VALUES:
        if not value.is_section:
            assert len(value.description) >= 8, value.path
            assert f"| `{value.path}` |" in page, value.path


def test_no_section_takes_what_it_does_not_have():
    def closed(schema, path):
        if "properties" in schema:
            assert schema["additionalProperties"] is False, path
        for name, inner in schema.get("properties", {}).items():
            closed(inner, f"{path}.{name}")

    closed(json.loads((CHART / "values.schema.json").read_text()), "values")


def test_a_value_without_a_comment_is_not_generated():
    with pytest.raises(ValueError, match=r"values.yaml:2: replicas has no comment"):
        values("\nreplicas: 2\n")
    with pytest.raises(ValueError, match="a schema after @"):
        generated_schema("# What for.\nreplicas: null\n")


def generated_schema(text):
    from charts.generate import schema

    return schema(values(text))


def test_the_rules_are_all_of_the_operator_s_and_each_is_explained():
    role = (ROOT / "operator" / "rbac" / "role.yaml").read_text()
    split = rules(role)
    assert [*split["objects"], *split["lease"]] == yaml.safe_load(role)["rules"]
    assert [rule["resources"] for rule in split["lease"]] == [["leases"]]
    page = (CHART / "README.md").read_text()
    for rule in yaml.safe_load(role)["rules"]:
        assert f"| {', '.join(rule['resources'])} | {', '.join(rule['verbs'])} |" in page


def test_the_operator_s_own_cluster_role_says_the_same():
    file = ROOT / "operator" / "rbac" / "clusterrole.yaml"
    if not file.exists():
        pytest.skip("operator/rbac/clusterrole.yaml is not there yet")
    found = {document["kind"]: document["rules"] for document in yaml.safe_load_all(file.read_text())}
    split = rules((ROOT / "operator" / "rbac" / "role.yaml").read_text())
    assert found == {"ClusterRole": split["objects"], "Role": split["lease"]}
