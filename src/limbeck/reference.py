"""What is generated from the spec: its JSON schema, and the reference page `docs/spec.md`.

`python -m limbeck.reference docs` writes both; a test fails when they are stale.
"""

from __future__ import annotations

import json
import sys
from pathlib import Path
from typing import Any

from limbeck.spec import Distillation

SCHEMA_FILE, PAGE_FILE = "distillation.schema.json", "spec.md"

_PAGE_HEAD = """\
# The spec

Generated from `limbeck.spec` by `make generate`; do not edit. `limbeck validate SPEC` checks a file against it, and
`limbeck schema` prints it as JSON schema. `source.uri` alone is a complete spec:

```yaml
apiVersion: limbeck.dev/v1alpha1
kind: Distillation
metadata:
  name: my-first
spec:
  source:
    uri: sklearn:digits#train
```
"""


def json_schema() -> str:
    """The JSON schema (draft 2020-12) of a spec file."""
    schema = Distillation.model_json_schema(by_alias=True)
    schema["$schema"] = "https://json-schema.org/draft/2020-12/schema"
    return json.dumps(schema, indent=2, sort_keys=True, ensure_ascii=False) + "\n"


def reference_page() -> str:
    """The reference page in Markdown: one table a section."""
    schema = Distillation.model_json_schema(by_alias=True)
    parts = [_PAGE_HEAD]
    _section(schema, schema["$defs"]["DistillationSpec"], "spec", parts)
    return "\n".join(parts)


def write(folder: Path) -> None:
    """Write both files."""
    folder.mkdir(parents=True, exist_ok=True)
    (folder / SCHEMA_FILE).write_text(json_schema())
    (folder / PAGE_FILE).write_text(reference_page())


def _section(schema: dict[str, Any], section: dict[str, Any], path: str, parts: list[str]) -> None:
    rows, nested = [], []
    for name, field in section["properties"].items():
        inner = _reference(schema, field)
        if inner is not None and "properties" in inner[0]:
            nested.append((f"{path}.{name}{inner[1]}", inner[0]))
        default = "required" if name in section.get("required", ()) else _default(field)
        cells = [
            f"`{name}`",
            _type(schema, field),
            default,
            field.get("description") or (inner[0].get("description", "") if inner else ""),
        ]
        rows.append("| " + " | ".join(cell.replace("|", "\\|") for cell in cells) + " |")
    parts.append(f"## `{path}`\n\n{section.get('description', '')}\n")
    parts.append("| field | type | default | |\n| --- | --- | --- | --- |\n" + "\n".join(rows) + "\n")
    for inner_path, inner_section in nested:
        _section(schema, inner_section, inner_path, parts)


def _reference(schema: dict[str, Any], field: dict[str, Any]) -> tuple[dict[str, Any], str] | None:
    """The section that a field holds, with "[]" for each item of a list or "{}" for each value of a mapping."""
    optional: dict[str, Any] = next((option for option in field.get("anyOf", ()) if "$ref" in option), {})
    for candidate, suffix in (
        (field, ""),
        (optional, ""),
        (field.get("items", {}), "[]"),
        (field.get("additionalProperties", {}), "{}"),
    ):
        if isinstance(candidate, dict) and "$ref" in candidate:
            return schema["$defs"][candidate["$ref"].rpartition("/")[2]], suffix
    return None


def _type(schema: dict[str, Any], field: dict[str, Any]) -> str:
    if "anyOf" in field:
        return _type(schema, next(option for option in field["anyOf"] if option.get("type") != "null"))
    if "$ref" in field:
        return "section"
    if "enum" in field:
        return " or ".join(f"`{choice}`" for choice in field["enum"])
    if field.get("type") == "array":
        return f"list of {_type(schema, field['items'])}"
    bounds = {"minimum": ">=", "exclusiveMinimum": ">", "maximum": "<=", "exclusiveMaximum": "<"}
    limits = [f"{sign} {field[key]:g}" for key, sign in bounds.items() if key in field]
    return " ".join([str(field.get("type", "any")), ", ".join(limits)]).strip()


def _default(field: dict[str, Any]) -> str:
    if field.get("default") is not None:
        return f"`{json.dumps(field['default'])}`"
    return ""


if __name__ == "__main__":
    write(Path(sys.argv[1]))
