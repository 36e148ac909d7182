"""The summary of a run: what `summary.json` holds, and what the pipeline, the operator and the report read.

On the wire the names are camelCase, as in the spec.
"""

from __future__ import annotations

from typing import Any

from pydantic import BaseModel, ConfigDict
from pydantic.alias_generators import to_camel


class _Record(BaseModel):
    model_config = ConfigDict(alias_generator=to_camel, populate_by_name=True, frozen=True, extra="forbid")


class StageSummary(_Record):
    """One stage of the run."""

    name: str
    key: str  # the content address: <output>/<name>/<key>/
    digest: str  # sha256 over the result's files
    reused: bool  # found done, not computed in this run
    seconds: float  # time that computing it took, in the run that finished it
    peak_memory_bytes: int  # peak resident memory of the process while it was computed
    peak_device_memory_bytes: int  # peak accelerator memory, 0 without one


class Accuracy(_Record):
    """Linear-probe accuracy of one method in one setting, over the seeds."""

    task: str
    architecture: str
    method: str  # distilled | random | highLoss | none | full
    label_fraction: float
    labels: int  # how many labelled images the probe was fitted on
    mean: float
    deviation: float  # sample standard deviation over the seeds; 0.0 for one seed
    values: list[float]  # one a seed
    seeds: list[int]


class RecoveredGap(_Record):
    """(distilled - random subset) / (full data - random subset), of the mean accuracies."""

    task: str
    architecture: str
    label_fraction: float
    value: float | None  # None where full data does not beat the random subset


class SourceSummary(_Record):
    """The data that was distilled."""

    uri: str
    fingerprint: str
    images: int
    image_size: int
    skipped: dict[str, str]  # bad images left out: name -> why


class DistilledSummary(_Record):
    """The synthetic set."""

    images: int
    image_size: int
    target_dimension: int
    learning_rate: float
    matching_loss_first: float  # mean over the first tenth of the iterations
    matching_loss_last: float  # mean over the last tenth
    path: str


class Registered(_Record):
    """The version of the model registry that the distilled set became."""

    name: str
    version: int
    champion: bool  # whether the alias champion was given to it
    decision: str  # why, or why not


class Summary(_Record):
    """All of a run that another program wants to know."""

    name: str
    limbeck_version: str
    succeeded: bool
    seconds: float
    device: str
    source: SourceSummary
    distilled: DistilledSummary
    stages: list[StageSummary]
    accuracies: list[Accuracy]
    recovered_gaps: list[RecoveredGap]
    links: dict[str, str]  # "report", "distilledSet", "mlflowRun", ... -> URL or path
    registered: Registered | None = None  # None: the spec names no registry
    overlaps: list[str] = []  # a line for each set of test images that is among others, as the run noted it
    spec: dict[str, Any]
