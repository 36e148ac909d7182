"""How the stages connect: what each is made from, which settings shape it, and which function makes it.

Nothing heavy is imported until a stage runs.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from importlib import import_module
from typing import Any

from limbeck.spec import DistillationSpec, StageName, Teacher
from limbeck.stages.task import StageTask

Settings = Callable[[DistillationSpec, int], dict[str, Any]]


@dataclass(frozen=True)
class Stage:
    """One stage.

    Attributes:
        name: as the command line and the store know it; its function has the same name in a module of that name.
        version: raised when the same inputs and settings would give another result.
        inputs: the results that it is made from; "dataset" is what ingest makes of the source, "tasks" what it makes
            of the evaluation's training and test sets.
        settings: the part of the spec that shapes the result, given the spec and the number of source images.
    """

    name: StageName
    version: int
    inputs: tuple[str, ...]
    settings: Settings

    def run(self, task: StageTask) -> None:
        """Do the work."""
        function = getattr(import_module(f"limbeck.stages.{self.name}"), self.name)
        function(task)


_OF_TRAJECTORIES = (  # settings of distill that krrSt does not look at
    "innerSteps",
    "innerBatch",
    "pairs",
    "precision",
    "expertGap",
    "maxStartEpoch",
    "startGrowth",
    "lossNormalization",
    "rateStep",
)
INGEST_VERSION = 2
EXPERT_VERSION = 2  # of each expert that trajectories makes
SCORES_VERSION = 1  # of the losses that select chooses by
ENCODER_VERSION = 2  # of each encoder that evaluate makes


def _teacher(spec: DistillationSpec, images: int) -> dict[str, Any]:
    return {"teacher": spec.teacher.wire(), "seed": spec.seed, "imageSize": spec.source.image_size}


def _targets(spec: DistillationSpec, images: int) -> dict[str, Any]:
    return {"targets": spec.targets.wire()}


def _trajectories(spec: DistillationSpec, images: int) -> dict[str, Any]:
    settings = {**spec.trajectories.wire(), "epochs": spec.expert_epochs}
    return {
        "trajectories": settings,
        "expertVersion": EXPERT_VERSION,
        "student": spec.student.wire(),
        "seed": spec.seed,
    }


def _select(spec: DistillationSpec, images: int) -> dict[str, Any]:
    return {
        "size": spec.distill.count(images, spec.source.image_size),
        "initialization": spec.distill.initialization,
        "student": spec.student.wire(),
        "seed": spec.distillation_seed,
    }


def _distill(spec: DistillationSpec, images: int) -> dict[str, Any]:
    settings = spec.distill.wire()
    for replaced in ("size", "fraction", "initialization"):  # the selection's digest stands for them
        del settings[replaced]
    del settings["seed"]  # stands below, resolved
    for unused in ("kernel",) if spec.distill.method == "mkdt" else _OF_TRAJECTORIES:
        del settings[unused]
    return {"distill": settings, "student": spec.student.wire(), "seed": spec.distillation_seed}


def objective_wire(teacher: Teacher) -> dict[str, Any]:
    """What shapes an encoder that is trained by the teacher's objective: all but the teacher's own network."""
    wire = teacher.wire()
    return {name: value for name, value in wire.items() if name not in ("architecture", "width", "depth", "norm")}


def _evaluate(spec: DistillationSpec, images: int) -> dict[str, Any]:
    settings = spec.evaluate.wire()
    settings["tasks"] = [task.name for task in spec.evaluate.tasks]  # their datasets' digests stand for the rest
    settings["steps"] = spec.evaluate.fixed_steps
    if settings["steps"] is not None:
        settings["epochs"] = None
    size = spec.source.image_size  # these three give the bytes that rivals get
    settings["count"] = spec.distill.count(images, size)
    settings["downsampling"], settings["pixels"] = spec.distill.downsampling, spec.distill.pixels
    if "fullSsl" in spec.evaluate.baselines:
        settings["ssl"] = objective_wire(spec.ssl_teacher)
    settings["baselineRate"] = spec.evaluate.baseline_rate or spec.trajectories.optimizer.rate
    return {"evaluate": settings, "encoderVersion": ENCODER_VERSION, "student": spec.student.wire(), "seed": spec.seed}


def _register(spec: DistillationSpec, images: int) -> dict[str, Any]:
    return {"spec": spec.content()}


STAGES: tuple[Stage, ...] = (
    Stage("teacher", 1, ("dataset",), _teacher),
    Stage("targets", 2, ("dataset", "teacher"), _targets),
    Stage("trajectories", 2, ("dataset", "targets"), _trajectories),
    Stage("select", 1, ("dataset", "targets", "trajectories"), _select),
    Stage("distill", 3, ("dataset", "teacher", "targets", "trajectories", "select"), _distill),
    Stage("evaluate", 2, ("dataset", "teacher", "targets", "select", "distill", "tasks"), _evaluate),
    Stage(
        "register",
        1,
        ("dataset", "teacher", "targets", "trajectories", "select", "distill", "evaluate", "tasks"),
        _register,
    ),
)
