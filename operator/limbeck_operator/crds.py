"""The CustomResourceDefinitions, from the spec's models and the status' models. Pure."""

from __future__ import annotations

from collections.abc import Mapping
from copy import deepcopy
from typing import Any

from pydantic import BaseModel

from limbeck.presets import preset_fields
from limbeck.spec import Distillation, ScheduledDistillation
from limbeck_operator import api
from limbeck_operator.manifests import FREE
from limbeck_operator.rules import RULES, Rule
from limbeck_operator.usual import USUAL

_KEPT = ("type", "enum", "pattern", "minLength", "maxLength", "minItems", "maxItems", "maxProperties", "format")
# of lists of these
_KEYS = {"Condition": "type", "StageStatus": "name", "Task": "name", "RayWorkerGroup": "name", "StorageOption": "name"}
_LABEL = "^[a-z0-9]([-a-z0-9]*[a-z0-9])?$"
_STARTED = "has(oldSelf.status) && has(oldSelf.status.startTime)"


def crds() -> dict[str, dict[str, Any]]:
    """Both definitions, by the name of their kind."""
    return {api.DISTILLATION: _distillation(), api.SCHEDULE: _schedule()}


def _distillation() -> dict[str, Any]:
    schema = _Schema(Distillation)
    compared = [
        *(f"spec.{name}" for name in _fields(schema, "DistillationSpec") if name != "execution"),
        *(f"spec.execution.{name}" for name in _fields(schema, "Execution") if name not in FREE),
    ]
    rules = [
        _name_rule(63),
        {
            "rule": f"!({_STARTED}) || ({' && '.join(map(_same, compared))})",
            "message": f"once it has started, only execution's {', '.join(FREE)} may change; make a new Distillation",
        },
    ]
    columns = [
        _column("Source", "string", ".spec.source.uri"),
        _column("Size", "integer", ".spec.distill.size"),
        _column("Stage", "string", ".status.progress.stage"),
        _column("Progress", "integer", ".status.progress.percentage", "Of the stage, in %."),
        _column("Gap", "number", ".status.result.recoveredGap", "Recovered gap."),
        _column("State", "string", '.status.conditions[?(@.type=="Progressing")].reason'),
        _column("Age", "date", ".metadata.creationTimestamp"),
    ]
    return _definition(
        api.DISTILLATION, api.DISTILLATIONS, "dist", Distillation, api.DistillationStatus, columns, rules
    )


def _fields(schema: _Schema, section: str) -> list[str]:
    return sorted(schema.section(section)["properties"])


def _same(field: str) -> str:
    """That a field of the object is what it was, or is still not there."""
    return f"(has(self.{field}) == has(oldSelf.{field}) && (!has(self.{field}) || self.{field} == oldSelf.{field}))"


def _schedule() -> dict[str, Any]:
    columns = [
        _column("Schedule", "string", ".spec.schedule"),
        _column("Time zone", "string", ".spec.timeZone"),
        _column("Suspend", "boolean", ".spec.suspend"),
        _column("Last run", "date", ".status.lastScheduleTime"),
        _column("Next run", "string", ".status.nextScheduleTime"),
        _column("Age", "date", ".metadata.creationTimestamp"),
    ]
    return _definition(
        api.SCHEDULE,
        api.SCHEDULES,
        "sdist",
        ScheduledDistillation,
        api.ScheduledDistillationStatus,
        columns,
        [_name_rule(52)],
    )


def _definition(
    kind: str,
    plural: str,
    short: str,
    model: type[BaseModel],
    status: type[BaseModel],
    columns: list[dict[str, Any]],
    rules: list[dict[str, Any]],
) -> dict[str, Any]:
    schema, said = _Schema(model), _Schema(status)
    spec = schema.inline(schema.document["properties"]["spec"])
    settings = spec["properties"]["template"]["properties"]["spec"] if kind == api.SCHEDULE else spec
    defaults = deepcopy(USUAL)
    _leave_to_presets(settings, defaults)
    _fill(settings, defaults)
    return {
        "apiVersion": "apiextensions.k8s.io/v1",
        "kind": "CustomResourceDefinition",
        "metadata": {"name": f"{plural}.{api.GROUP}"},
        "spec": {
            "group": api.GROUP,
            "scope": "Namespaced",
            "names": {
                "kind": kind,
                "listKind": f"{kind}List",
                "plural": plural,
                "singular": kind.lower(),
                "shortNames": [short],
                "categories": ["limbeck"],
            },
            "versions": [
                {
                    "name": api.VERSION,
                    "served": True,
                    "storage": True,
                    "subresources": {"status": {}},
                    "additionalPrinterColumns": columns,
                    "schema": {
                        "openAPIV3Schema": {
                            "type": "object",
                            "description": model.__doc__,
                            "required": ["spec"],
                            "properties": {
                                "apiVersion": {"type": "string", "description": "Version of this format."},
                                "kind": {"type": "string", "description": "Kind of the object."},
                                "metadata": {"type": "object"},
                                "spec": spec,
                                "status": said.inline(said.document),
                            },
                            "x-kubernetes-validations": rules,
                        }
                    },
                }
            ],
        },
    }


def _fill(schema: dict[str, Any], defaults: Mapping[str, Any]) -> None:
    """Give lists their defaults, which pydantic's schema does not tell, and sections with rules all of theirs."""
    for name, field in schema["properties"].items():
        value = defaults.get(name)
        if isinstance(value, dict) and "properties" in field:
            _fill(field, value)
            if "x-kubernetes-validations" in field:  # which are asked of the default as it stands here
                field["default"] = {key: entry for key, entry in value.items() if entry not in (None, {}, [])}
        elif isinstance(value, list) and value:
            field["default"] = value


def _leave_to_presets(schema: dict[str, Any], defaults: dict[str, Any]) -> None:
    """Take fields that presets set out of the defaults, or the API server would fill in those of another preset."""
    for *sections, name in preset_fields():
        section, values = schema, defaults
        for part in sections:
            section, values = section["properties"][part], values[part]
        section["properties"][name].pop("default", None)
        values.pop(name, None)


def _column(name: str, kind: str, path: str, description: str = "") -> dict[str, Any]:
    column = {"name": name, "type": kind, "jsonPath": path}
    return {**column, "description": description} if description else column


def _name_rule(longest: int) -> dict[str, Any]:
    return {
        "rule": f"self.metadata.name.size() <= {longest} && self.metadata.name.matches('{_LABEL}')",
        "message": f"metadata.name: a DNS label of at most {longest} characters is allowed",
    }


class _Schema:
    """A model's JSON schema, brought into the form that Kubernetes takes: structural, with nothing referred to."""

    def __init__(self, model: type[BaseModel]) -> None:
        self.document = model.model_json_schema(by_alias=True)

    def section(self, name: str) -> dict[str, Any]:
        """The schema of a section by its class."""
        found: dict[str, Any] = self.document["$defs"][name]
        return found

    def inline(self, given: Mapping[str, Any]) -> dict[str, Any]:
        """A field's schema."""
        if "anyOf" in given:  # or null: the field may be left out
            (only,) = [option for option in given["anyOf"] if option.get("type") != "null"]
            given = {**{name: value for name, value in given.items() if name not in ("anyOf", "default")}, **only}
        if "$ref" in given:
            return self._section_of(given)
        kept: dict[str, Any] = {name: given[name] for name in _KEPT if name in given}
        if "const" in given:
            kept |= {"type": "string", "enum": [given["const"]]}
        if "description" in given:
            kept["description"] = given["description"]
        for bound, exclusive in (("minimum", "exclusiveMinimum"), ("maximum", "exclusiveMaximum")):
            if exclusive in given:
                kept |= {bound: given[exclusive], exclusive: True}
            elif bound in given:
                kept[bound] = given[bound]
        if kept.get("type") == "integer":
            kept["format"] = "int64"
        if given.get("default") is not None and given["default"] not in ([], {}):
            kept["default"] = given["default"]
        if "properties" in given:
            kept |= self._properties(given)
        elif "items" in given:
            kept |= self._list(given["items"])
        elif "additionalProperties" in given:
            kept["additionalProperties"] = self.inline(given["additionalProperties"])
            names = given.get("propertyNames", {}).get("enum")
            if names:
                kept["maxProperties"] = len(names)
                rule = Rule(f"self.all(name, name in {names})", f"allowed are {', '.join(names)}")
                kept["x-kubernetes-validations"] = [rule._asdict()]
        return kept

    def _section_of(self, given: Mapping[str, Any]) -> dict[str, Any]:
        name = given["$ref"].rpartition("/")[2]
        section = self.section(name)
        found = self.inline(section)
        if name in RULES:
            found["x-kubernetes-validations"] = [rule._asdict() for rule in RULES[name]]
        found["description"] = given.get("description", section.get("description", ""))
        if "default" in given or not section.get("required"):
            found["default"] = {}
        return found

    def _properties(self, given: Mapping[str, Any]) -> dict[str, Any]:
        properties = {}
        for name, field in given["properties"].items():
            optional = "anyOf" in field
            properties[name] = self.inline(field)
            if optional:
                properties[name].pop("default", None)
                properties[name]["nullable"] = True
        required = sorted(given.get("required", ()))
        return {"properties": properties, **({"required": required} if required else {})}

    def _list(self, items: Mapping[str, Any]) -> dict[str, Any]:
        name = items.get("$ref", "").rpartition("/")[2]
        inner = self.inline(items)
        inner.pop("default", None)
        if name not in _KEYS:
            # A set that holds 1.0 does not equal itself once it is stored, as 1: `RULES` refuses repeated numbers.
            kind = "atomic" if name or inner.get("type") == "number" else "set"
            return {"items": inner, "x-kubernetes-list-type": kind}
        key = _KEYS[name]
        return {"items": inner, "x-kubernetes-list-type": "map", "x-kubernetes-list-map-keys": [key]}
