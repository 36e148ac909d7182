"""The README of every component, made from its code and its metadata.yaml."""

from __future__ import annotations

from importlib import import_module
from pathlib import Path
from typing import Any

import docstring_parser
import yaml

from limbeck.tracking.card import markdown_table

COMPONENTS = (
    "fingerprint",
    "ingest",
    "teacher",
    "targets",
    "trajectories",
    "select",
    "distill",
    "encoders",
    "evaluate",
    "register",
    "outcome",
)


def readmes() -> dict[str, str]:
    """The text of each component's README, by the component's name."""
    return {name: _readme(name) for name in COMPONENTS}


def _readme(name: str) -> str:
    component = getattr(import_module(f"limbeck_components.{name}.component"), name)
    metadata: dict[str, Any] = yaml.safe_load((Path(__file__).parent / name / "metadata.yaml").read_text())
    said = docstring_parser.parse(component.python_func.__doc__)
    about = {entry.arg_name: " ".join((entry.description or "").split()) for entry in said.params}
    spec = component.component_spec
    parts = [
        f"# {name}\n\n{said.short_description}",
        "Generated from `component.py` and `metadata.yaml` by `make generate`; do not edit.",
        _table("Inputs", [(n, _type(entry), about.get(n, "")) for n, entry in (spec.inputs or {}).items()]),
        _table("Outputs", [(n, _type(entry), about.get(n, "")) for n, entry in (spec.outputs or {}).items()]),
        "## Metadata\n\n" + "".join(f"- {key}: {_shown(value)}\n" for key, value in metadata.items()),
    ]
    return "\n\n".join(part.rstrip("\n") for part in parts if part) + "\n"


def _table(title: str, rows: list[tuple[str, str, str]]) -> str:
    if not rows:
        return ""
    return f"## {title}\n\n{markdown_table(('name', 'type', ''), rows)}"


def _type(entry: Any) -> str:
    return str(entry.type).removeprefix("system.").partition("@")[0]


def _shown(value: Any) -> str:
    if isinstance(value, list):
        return ", ".join(_shown(item) for item in value)
    return ", ".join(f"{k} {_shown(v)}" for k, v in value.items()) if isinstance(value, dict) else str(value)
