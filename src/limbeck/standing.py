"""Where a run stands while it works: what `limbeck.broadcast` says over HTTP, and the operator shows."""

from __future__ import annotations

from typing import Literal

from pydantic import BaseModel, ConfigDict
from pydantic.alias_generators import to_camel

PATH = "/status"


class _Record(BaseModel):
    model_config = ConfigDict(alias_generator=to_camel, populate_by_name=True, frozen=True, extra="ignore")


class StageStanding(_Record):
    """One stage."""

    name: str  # ingest's by source, as in the summary
    state: Literal["Pending", "Running", "Complete", "Failed"]
    seconds: float | None = None  # that computing it took
    reused: bool | None = None  # found done


class Standing(_Record):
    """Where a run stands."""

    run: str
    stage: str | None = None  # under way
    percentage: int | None = None  # of this stage's work
    estimated_remaining_seconds: int | None = None  # until this stage is done
    metrics: dict[str, float] = {}  # its figures of now, such as its loss
    last_updated_time: str  # when that was so
    stages: list[StageStanding] = []
    links: dict[str, str] = {}
