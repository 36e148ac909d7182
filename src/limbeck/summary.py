"""The summary of a run: what `summary.json` holds, and what the pipeline, the operator and the report read.

On the wire the names are camelCase, as in the spec.
"""

from __future__ import annotations

from typing import Any

from pydantic import BaseModel, ConfigDict
from pydantic.alias_generators import to_camel


class _Record(BaseModel):
    model_config = ConfigDict(
        alias_generator=to_camel,
        populate_by_name=True,
        frozen=True,
        extra="forbid",
        ser_json_inf_nan="constants",  # NaN is the mean where only held-out labels were looked at
    )


class StageSummary(_Record):
    """One stage of the run."""

    name: str
    key: str  # the content address: <output>/<name>/<key>/
    digest: str  # sha256 over the result's files
    reused: bool  # found done, not computed in this run
    seconds: float  # time that computing it took, in the run that finished it
    peak_memory_bytes: int  # peak resident memory of the process while it was computed
    peak_device_memory_bytes: int  # peak accelerator memory, 0 without one


class CurvePoint(_Record):
    """Linear-probe accuracy after some steps of pre-training, at the rate that was chosen for the method."""

    steps: int
    mean: float  # of test accuracies, over the seeds
    deviation: float  # sample standard deviation over the seeds; 0.0 for one seed
    values: list[float]  # one a seed
    held_out: list[float]  # accuracies on held-out labels, one a selection seed


class Accuracy(_Record):
    """Linear-probe accuracy of one method in one setting, over the seeds, at the method's own best rate and steps.

    Rate and steps were chosen on held-out labels with the selection seeds; the test images and the seeds chose nothing.
    """

    task: str
    architecture: str
    method: str  # distilled | start | random | highLoss | kCenter | facilityLocation | none | full | fullSsl
    label_fraction: float
    labels: int  # how many labelled images the probe was fitted on
    mean: float
    deviation: float  # sample standard deviation over the seeds; 0.0 for one seed
    values: list[float]  # one a seed
    seeds: list[int]
    steps: int | None = None  # of pre-training; None where it is not counted in steps (none, fullSsl)
    rate: float | None = None  # learning rate of pre-training; None as above
    images: int | None = None  # that the encoder was pre-trained on
    bytes: int | None = None  # of these images and their targets, as they are stored; None without pre-training
    selection_seeds: list[int] = []
    held_out: list[float] = []  # accuracies on held-out labels at these steps, one a selection seed
    curve: list[CurvePoint] = []  # accuracy over steps, ascending; the last is the longest pre-training


class RecoveredGap(_Record):
    """(distilled - random subset) / (full data - random subset), of the mean accuracies.

    `value` takes every method at its own plateau, `equal_steps_value` all of them after `equal_steps` steps, those at
    which the distilled set is best.
    """

    task: str
    architecture: str
    label_fraction: float
    value: float | None  # None where full data does not beat the random subset
    equal_steps: int | None = None
    equal_steps_value: float | None = None


class Difference(_Record):
    """Accuracy of the distilled set minus that of a rival, paired by seed, with a 95 % t-interval over the seeds."""

    against: str  # the rival's method
    task: str | None  # None: the mean over all settings
    architecture: str | None
    label_fraction: float | None
    mean: float
    low: float | None  # None with fewer than two seeds
    high: float | None
    seeds: int  # how many


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
    bytes: int | None = None  # of images, targets and rate, as they are stored


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
    differences: list[Difference] = []  # to random and start, by setting and over all
    links: dict[str, str]  # "report", "distilledSet", "mlflowRun", ... -> URL or path
    registered: Registered | None = None  # None: the spec names no registry
    overlaps: list[str] = []  # a line for each set of test images that is among others, as the run noted it
    spec: dict[str, Any]
