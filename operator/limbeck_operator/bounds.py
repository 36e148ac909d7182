"""What pods and Kubeflow say, within the bounds of a status: one field beyond them and none of it is written. Pure."""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping
from datetime import datetime
from typing import Any

from pydantic import BaseModel, ValidationError

from limbeck.store import json_digest
from limbeck_operator import api

_NAME, _STAGES, _LINK, _FIGURES = 63, 200, 2048, 32


def short(text: str, longest: int = _NAME) -> str:
    """A text, or where it is too long its beginning and a digest that tells it from others that begin so."""
    return text if len(text) <= longest else f"{text[: longest - 9]}-{json_digest(text)[:8]}"


def stages(said: Iterable[Mapping[str, Any]]) -> list[dict[str, Any]] | None:
    """The stages of a status, each name once; of too many the last, where the work is."""
    found = {short(entry["name"]): {**entry, "name": short(entry["name"])} for entry in said}
    return [entry for entry in found.values() if _fits(entry, api.StageStatus)][-_STAGES:] or None


def progress(said: Mapping[str, Any]) -> dict[str, Any] | None:
    """The progress of a status; None where it cannot be one."""
    found = {**said, "stage": short(said["stage"])}
    for name, most in (("percentage", 100), ("estimatedRemainingSeconds", 2**31 - 1)):
        if name in found:
            found[name] = max(0, min(most, found[name]))
    if "metrics" in found:
        figures = [(name, value) for name, value in found["metrics"].items() if _is_finite(value)]
        found["metrics"] = dict(figures[:_FIGURES])
    return found if _is_time(found.get("lastUpdatedTime")) and _fits(found, api.Progress) else None


def links(said: Mapping[str, str]) -> dict[str, str]:
    """The links that a status has a place for."""
    known = {field.alias for field in api.Links.model_fields.values()}
    return {name: link for name, link in said.items() if name in known and link and len(link) <= _LINK}


def result(said: Mapping[str, Any]) -> dict[str, Any] | None:
    """The result of a status; None where it cannot be one."""
    return dict(said) if _fits(said, api.Result) else None


def _fits(said: Mapping[str, Any], model: type[BaseModel]) -> bool:
    try:
        model.model_validate(said)
    except ValidationError:
        return False
    return all(_is_finite(value) for value in said.values() if isinstance(value, float))


def _is_finite(value: float) -> bool:
    return math.isfinite(value)


def _is_time(text: Any) -> bool:
    try:
        return datetime.fromisoformat(text).tzinfo is not None and "T" in text
    except (TypeError, ValueError):
        return False
