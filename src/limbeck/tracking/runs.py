"""A journal's events as runs in MLflow: one parent a distillation, one nested run a stage."""

from __future__ import annotations

import json
from collections.abc import Iterable
from pathlib import Path
from typing import Any

from mlflow import MlflowClient
from mlflow.entities import Dataset, DatasetInput, Experiment, InputTag, Metric, Param, Run, RunTag
from mlflow.exceptions import MlflowException
from mlflow.protos.databricks_pb2 import RESOURCE_ALREADY_EXISTS, ErrorCode
from mlflow.utils.mlflow_tags import MLFLOW_PARENT_RUN_ID
from PIL import Image

from limbeck.errors import InputError
from limbeck.tracking.journal import (
    Began,
    Data,
    Document,
    Ended,
    Event,
    Picture,
    Point,
    Points,
    Read,
    StageBegan,
    StageEnded,
    Status,
    now,
)
from limbeck.tracking.messages import Publish

KEY = "limbeck.key"
_KIND = "mlflow.experimentKind"  # the interface shows training runs, not traces
_BATCH, _PARAMS, _LONGEST_PARAM, _LONGEST_TAG = 1000, 100, 6000, 5000  # MLflow's limits


class Runs:
    """The runs of one journal. Every method may be called again after it failed half-way."""

    def __init__(self, client: MlflowClient, journal: Path) -> None:
        self._client, self.journal = client, journal
        self._began: Began | None = None
        self._run: Run | None = None
        self._stages: dict[str, str] = {}  # label -> run id
        self._seen: dict[str, dict[str, set[int]]] = {}  # run id -> metric -> steps that it has
        self._monitor: Any = None

    @property
    def open(self) -> bool:
        """Whether MLflow has the run."""
        return self._run is not None

    @property
    def run_id(self) -> str:
        """Of the parent."""
        assert self._run is not None
        return str(self._run.info.run_id)

    @property
    def experiment_id(self) -> str:
        """That it is in."""
        assert self._run is not None
        return str(self._run.info.experiment_id)

    def knows(self, event: Event) -> bool:
        """Whether MLflow has the run, and the stage, that an event is about."""
        stage = None if isinstance(event, StageBegan) else getattr(event, "stage", None)
        return self.open and (stage is None or stage in self._stages)

    def take(self, event: Event) -> None:
        """Bring one event to MLflow."""
        match event:
            case Began():
                self._begin(event)
            case Read():
                self.read(self._id(event.stage), event.data)
            case StageBegan():
                self._begin_stage(event)
            case Points():
                self.points(self._id(event.stage), event.points)
            case Picture():
                self._picture(self._id(event.stage), event)
            case Document():
                self._client.log_text(self.run_id, event.text, event.name)
            case StageEnded():
                self._end(self._id(event.stage), event.status)
            case Ended():
                if self._monitor is not None:
                    self._monitor.finish()
                self._end(self.run_id, event.status)

    def _begin(self, event: Began) -> None:
        self._began = event
        if event.run_id is not None:
            self._run = self._client.get_run(event.run_id)
        else:
            experiment = open_experiment(self._client, event.experiment)
            self._run = self._find_or_create(experiment.experiment_id, event.key, event.name, {})
        self._describe(self.run_id, event.tags, event.params)
        if event.system_metrics and self._monitor is None:
            from mlflow.system_metrics.system_metrics_monitor import SystemMetricsMonitor

            self._monitor = SystemMetricsMonitor(self.run_id, tracking_uri=self._client.tracking_uri)
            self._monitor.start()

    def _begin_stage(self, event: StageBegan) -> None:
        assert self._began is not None
        if self._began.stage_alone and self._began.run_id is not None:
            self._stages[event.stage] = self.run_id
        else:
            parent = {MLFLOW_PARENT_RUN_ID: self.run_id}
            run = self._find_or_create(self.experiment_id, f"{self._began.key}/{event.stage}", event.stage, parent)
            self._stages[event.stage] = run.info.run_id
        self._describe(self._stages[event.stage], event.tags, event.params)

    def _find_or_create(self, experiment: str, key: str, name: str, tags: dict[str, str]) -> Run:
        """The run of that key, running again; else a new one."""
        found = self._client.search_runs([experiment], f"tags.`{KEY}` = '{key}'", max_results=1)
        if not found:
            run = self._client.create_run(experiment, run_name=name, tags={**tags, KEY: key})
            self._seen[run.info.run_id] = {}
            return run
        self._client.update_run(found[0].info.run_id, status="RUNNING")
        return found[0]

    def _describe(self, run_id: str, tags: dict[str, str], params: dict[str, str]) -> None:
        known = self._client.get_run(run_id).data.params  # a param can be set once
        new = [Param(name, value[:_LONGEST_PARAM]) for name, value in params.items() if name not in known]
        for first in range(0, len(new), _PARAMS):
            self._client.log_batch(run_id, params=new[first : first + _PARAMS])
        entries = [RunTag(name, value[:_LONGEST_TAG]) for name, value in tags.items()]
        self._client.log_batch(run_id, tags=entries)

    def read(self, run_id: str, data: Iterable[Data]) -> None:
        """Log datasets as inputs of a run."""
        self._client.log_inputs(
            run_id,
            datasets=[DatasetInput(_dataset(d), [InputTag("mlflow.data.context", d.context)]) for d in data],
        )

    def points(self, run_id: str, points: Iterable[Point], model_id: str | None = None) -> None:
        """Log the points that the run does not have yet."""
        first_of = {(point.name, point.step): point for point in reversed(list(points))}
        new = [point for (name, step), point in first_of.items() if step not in self._steps(run_id, name)]
        for first in range(0, len(new), _BATCH):
            batch = new[first : first + _BATCH]
            self._client.log_batch(run_id, metrics=[_metric(point, run_id, model_id) for point in batch])
            for point in batch:
                self._steps(run_id, point.name).add(point.step)

    def publish(self, request: Publish, model_id: str) -> None:
        """Link what was measured of the distilled set to it, and the data that it was measured on."""
        run = self._client.get_run(self.run_id)
        self.read(self.run_id, [request.synthetic, *request.tasks.values()])
        taken = {name for name in run.data.metrics if name in request.figures}
        points = [
            Point(name=name, step=0, milliseconds=now(), value=value, data=request.tasks.get(task or ""))
            for name, (value, task) in request.figures.items()
            if name not in taken
        ]
        self.points(self.run_id, points, model_id)

    def _steps(self, run_id: str, name: str) -> set[int]:
        if run_id not in self._seen:
            known = self._client.get_run(run_id).data.metrics
            self._seen[run_id] = {
                metric: {entry.step for entry in self._client.get_metric_history(run_id, metric)} for metric in known
            }
        return self._seen[run_id].setdefault(name, set())

    def _picture(self, run_id: str, event: Picture) -> None:
        file = self.journal.with_name(event.file)
        taken = {Path(entry.path).name for entry in self._client.list_artifacts(run_id, "images")}
        if not any(name.startswith(f"{event.name}+step+{event.step}+") and ".webp" in name for name in taken):
            with Image.open(file) as image:
                self._client.log_image(run_id, image, key=event.name, step=event.step, synchronous=True)

    def _end(self, run_id: str, status: Status) -> None:
        assert self._began is not None
        if run_id != self._began.run_id:  # else it is ended by who has opened it
            self._client.set_terminated(run_id, status)

    def _id(self, stage: str | None) -> str:
        return self.run_id if stage is None else self._stages[stage]


def open_experiment(client: MlflowClient, name: str) -> Experiment:
    """The experiment of that name, which is made where it is not there."""
    experiment = client.get_experiment_by_name(name)
    if experiment is None:
        try:
            return client.get_experiment(client.create_experiment(name, tags={_KIND: "custom_model_development"}))
        except MlflowException as error:
            if error.error_code != ErrorCode.Name(RESOURCE_ALREADY_EXISTS):
                raise
            experiment = client.get_experiment_by_name(name)  # somebody else was faster
    if experiment is None or experiment.lifecycle_stage != "active":
        raise InputError("spec.tracking.experiment", f"{name} was deleted in MLflow", "restore it, or another name")
    return experiment


def _dataset(data: Data) -> Dataset:
    scheme, found, _ = data.uri.partition(":")
    return Dataset(
        name=data.name,
        digest=data.digest,
        source_type=scheme if found else "local",
        source=json.dumps({"uri": data.uri}),
        profile=json.dumps({"num_rows": data.images}),
    )


def _metric(point: Point, run_id: str, model_id: str | None) -> Metric:
    name, digest = (point.data.name, point.data.digest) if point.data is not None else (None, None)
    return Metric(
        point.name,
        point.value,
        point.milliseconds,
        point.step,
        model_id=model_id,
        dataset_name=name,
        dataset_digest=digest,
        run_id=run_id,
    )
