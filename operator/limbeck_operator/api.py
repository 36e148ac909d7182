"""The operator's API: what the objects are called, and what their status says."""

from __future__ import annotations

from typing import Annotated, Literal

from pydantic import BaseModel, ConfigDict, Field
from pydantic.alias_generators import to_camel

GROUP, VERSION = "limbeck.dev", "v1alpha1"
API_VERSION = f"{GROUP}/{VERSION}"
DISTILLATION, SCHEDULE = "Distillation", "ScheduledDistillation"
DISTILLATIONS, SCHEDULES = "distillations", "scheduleddistillations"

MANAGER = "limbeck-operator"  # field manager of server-side apply, and reporter of events

# labels
BY = "app.kubernetes.io/managed-by"
OF = f"{GROUP}/distillation"  # on children: the name of the Distillation
OF_SCHEDULE = f"{GROUP}/schedule"  # on Distillations and checks: the name of the ScheduledDistillation
ROLE = f"{GROUP}/role"  # on Jobs: run, or check

FINALIZER = f"{GROUP}/kubeflow-run"  # on a Distillation that may have a run on Kubeflow under way

# annotations
TRIGGER = f"{GROUP}/trigger"  # on a schedule: any new value runs it once, at once
TRIGGERED_BY = f"{GROUP}/triggered-by"  # on a Distillation or check: the value that it was made for
CHECKED = f"{GROUP}/checked"  # on a check: digest of what it is, which tells whether it still is what would be made
SCHEDULED_AT = f"{GROUP}/scheduled-at"  # on a Distillation or check: the time that it was due
CONTENT = f"{GROUP}/content"  # on a Distillation or its Job: digest of the settings that shape the set, or the Job

Time = Annotated[str, Field(json_schema_extra={"format": "date-time"})]


class _Status(BaseModel):
    model_config = ConfigDict(alias_generator=to_camel, populate_by_name=True, frozen=True, extra="ignore")


class Condition(_Status):
    """One condition, as Kubernetes' own objects have them."""

    type: str = Field(max_length=63, description="Which condition.")
    status: Literal["True", "False", "Unknown"] = Field(description="Whether it holds.")
    reason: str = Field(max_length=128, pattern=r"^[A-Za-z]([A-Za-z0-9]*)$", description="Why, in one word.")
    message: str = Field(max_length=1024, description="Why, for people.")
    last_transition_time: Time = Field(description="When status last changed.")
    observed_generation: int = Field(ge=0, description="Generation of the object that it is about.")


class Progress(_Status):
    """How far the stage under way is."""

    stage: str = Field(max_length=63, description="The stage under way.")
    percentage: int | None = Field(None, ge=0, le=100, description="Of this stage's work.")
    estimated_remaining_seconds: int | None = Field(None, ge=0, description="Until this stage is done.")
    metrics: dict[str, float] = Field(
        default_factory=dict, max_length=32, description="Its figures of now, such as its loss."
    )
    last_updated_time: Time = Field(description="When that was so.")


class StageStatus(_Status):
    """One stage."""

    name: str = Field(max_length=63, description="Which stage.")
    state: Literal["Pending", "Running", "Complete", "Failed"] = Field(description="Where it stands.")
    seconds: float | None = Field(None, ge=0, description="Time that it took.")
    reused: bool | None = Field(None, description="Whether it was found done.")


class Links(_Status):
    """Where to look."""

    mlflow: str | None = Field(None, max_length=2048, description="The run in MLflow.")
    kubeflow: str | None = Field(None, max_length=2048, description="The run in Kubeflow.")
    distilled_set: str | None = Field(None, max_length=2048, description="Folder of the distilled set.")
    report: str | None = Field(None, max_length=2048, description="The report.")


class Result(_Status):
    """What came of it."""

    digest: str = Field(max_length=128, description="sha256 of the distilled set.")
    images: int | None = Field(None, ge=1, description="Number of synthetic images.")
    model: str | None = Field(None, max_length=250, description="Registered model of MLflow.")
    version: int | None = Field(None, ge=1, description="Version of it that the set became.")
    champion: bool | None = Field(None, description="Whether it became the champion.")
    recovered_gap: float | None = Field(
        None, description="(distilled - random subset) / (full data - random subset), mean over tasks and fractions."
    )
    source_fingerprint: str | None = Field(None, max_length=128, description="Digest of what the sources were.")


class KubeflowRun(_Status):
    """The run on Kubeflow Pipelines."""

    name: str = Field(max_length=128, description="The name that it was submitted by.")
    id: str | None = Field(None, max_length=128, description="Kubeflow's id of the run, once it is known.")
    state: str = Field(max_length=63, description="Kubeflow's word for where it stands.")


class DistillationStatus(_Status):
    """What became of a Distillation."""

    observed_generation: int | None = Field(None, ge=0, description="Generation that this status is about.")
    conditions: list[Condition] = Field(
        default_factory=list[Condition], max_length=16, description="Suspended, Progressing, Complete and Failed."
    )
    start_time: Time | None = Field(None, description="When work on it began; anew after it was suspended.")
    completion_time: Time | None = Field(None, description="When it was complete or had failed.")
    retries: int | None = Field(None, ge=0, description="How often it was begun again after a failure.")
    progress: Progress | None = Field(None, description="How far the stage under way is.")
    stages: list[StageStatus] = Field(default_factory=list[StageStatus], max_length=200, description="Every stage.")
    links: Links | None = Field(None, description="Where to look.")
    result: Result | None = Field(None, description="What came of it.")
    kubeflow: KubeflowRun | None = Field(None, description="The run on Kubeflow Pipelines.")


class Reference(_Status):
    """A Distillation that a schedule has made."""

    name: str = Field(max_length=63, description="Its name.")
    uid: str | None = Field(None, max_length=64, description="Its uid.")


class Skip(_Status):
    """A time that nothing was run for."""

    time: Time = Field(description="When it was due.")
    reason: str = Field(max_length=128, description="Why, in one word.")
    message: str = Field(max_length=1024, description="Why, for people.")


class Done(_Status):
    """The last Distillation of a schedule that completed: what a next one is compared with."""

    name: str = Field(max_length=63, description="Its name.")
    completion_time: Time = Field(description="When it was complete.")
    content: str | None = Field(None, max_length=128, description="Digest of its settings.")
    result: Result = Field(description="What came of it.")


class ScheduledDistillationStatus(_Status):
    """Where a schedule stands."""

    observed_generation: int | None = Field(None, ge=0, description="Generation that this status is about.")
    conditions: list[Condition] = Field(
        default_factory=list[Condition], max_length=16, description="Scheduled: whether times of it are waited for."
    )
    active: list[Reference] = Field(default_factory=list[Reference], max_length=100, description="What runs now.")
    last_schedule_time: Time | None = Field(None, description="Up to when every time has been dealt with.")
    followed: str | None = Field(None, max_length=300, description="The schedule and time zone that this is about.")
    last_successful_time: Time | None = Field(None, description="When one of them was last complete.")
    next_schedule_time: Time | None = Field(None, description="The next time.")
    last_trigger: str | None = Field(None, max_length=253, description="The last value of the trigger that was run.")
    missed: int | None = Field(None, ge=0, description="How many times have been missed since it was made.")
    last_skip: Skip | None = Field(None, description="The last time that nothing was run for.")
    last_done: Done | None = Field(None, description="The last that completed.")
