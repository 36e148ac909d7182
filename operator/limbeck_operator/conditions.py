"""Conditions, as Kubernetes' own objects have them."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from datetime import UTC, datetime
from typing import Any, Literal

_LONGEST = 1024


@dataclass(frozen=True)
class Said:
    """What a reconcile says of one condition."""

    type: str
    status: bool
    reason: str
    message: str


def timestamp(instant: datetime) -> str:
    """An instant as Kubernetes writes it."""
    return instant.astimezone(UTC).strftime("%Y-%m-%dT%H:%M:%SZ")


def instant(text: str) -> datetime:
    """What `timestamp` wrote, with or without fractions of a second."""
    return datetime.fromisoformat(text)


def holds(status: Mapping[str, Any], kind: str) -> bool:
    """Whether a condition of a status is True."""
    return any(entry["type"] == kind and entry["status"] == "True" for entry in status.get("conditions") or [])


def reason_of(status: Mapping[str, Any], kind: str) -> str | None:
    """The reason of a condition; None where it is not there."""
    return next((entry["reason"] for entry in status.get("conditions") or [] if entry["type"] == kind), None)


def conditions(before: Mapping[str, Any], said: Iterable[Said], generation: int, now: datetime) -> list[dict[str, Any]]:
    """The new conditions; the time of one changes with its status alone."""
    old = {entry["type"]: entry for entry in before.get("conditions") or []}
    found: list[dict[str, Any]] = []
    for entry in said:
        status: Literal["True", "False"] = "True" if entry.status else "False"
        same = entry.type in old and old[entry.type]["status"] == status
        found.append(
            {
                "type": entry.type,
                "status": status,
                "reason": entry.reason,
                "message": " ".join(entry.message.split())[:_LONGEST],
                "lastTransitionTime": old[entry.type]["lastTransitionTime"] if same else timestamp(now),
                "observedGeneration": generation,
            }
        )
    return found
