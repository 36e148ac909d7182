"""What a reconcile of a Distillation is given: everything that was seen of it."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from datetime import timedelta
from typing import Any

from limbeck.kubeflow import Run
from limbeck.standing import Standing
from limbeck_operator.inherit import Defaults


@dataclass(frozen=True)
class Looked:
    """What Kubeflow has last answered.

    Attributes:
        runs: those that were asked for and are there.
        trouble: why it could not be asked, or did not do what it was asked to.
    """

    runs: Sequence[Run] = ()
    trouble: str | None = None


@dataclass(frozen=True)
class Observed:
    """What a reconcile is given.

    Attributes:
        object: the Distillation, as the API server has it.
        job: the Job of its name.
        pods: of that Job, the oldest first.
        cluster: the RayCluster of its name.
        has_ray: whether the API server knows RayClusters at all; only asked where one is wanted.
        standing: what its running pod has last said of how far it is.
        kubeflow: what Kubeflow has last said of its runs; None before it has said anything.
        every: how often a pod, or Kubeflow, may be asked.
        defaults: of the operator.
    """

    object: Mapping[str, Any]
    job: Mapping[str, Any] | None = None
    pods: Sequence[Mapping[str, Any]] = ()
    cluster: Mapping[str, Any] | None = None
    has_ray: bool = True
    standing: Standing | None = None
    kubeflow: Looked | None = None
    every: timedelta = timedelta(seconds=15)
    defaults: Defaults = field(default_factory=Defaults)
