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

    def __init__(self, client: MlflowClient, journal: Path, *, live: bool) -> None:
        self._client, self.journal, self._live = client, journal, live  # live: its command is at work now
        self._began: Began | None = None
        self._run: Run | None = None
        self._stages: dict[str, str] = {}  # label -> run id
        self._working: set[str] = set()  # labels of stages that have not ended
        self._seen: dict[str, dict[str, set[int]]] = {}  # run id -> metric -> steps that it has
        self._monitor: Any = None

    @property
    def open(self) -> bool:
        """Whether MLflow has the run."""
        return self._run is not None

    @property
    def key(self) -> str | None:
        """Of the run, whether MLflow has it or not."""
        return None if self._began is None else self._began.key

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
                self._read(self._id(event.stage), event.data)
            case StageBegan():
                self._begin_stage(event)
            case Points():
                prefix = self._prefix(event.stage)
                renamed = [point.model_copy(update={"name": prefix + point.name}) for point in event.points]
                self._points(self._id(event.stage), renamed)
            case Picture():
                self._picture(self._id(event.stage), event)
            case Document():
                self._client.log_text(self.run_id, event.text, event.name)
            case StageEnded():
                self._end(self._id(event.stage), event.status)
                self._working.discard(event.stage)
            case Ended():
                if self._monitor is not None:
                    self._monitor.finish()
                for stage in sorted(self._working):  # the command was killed within it
                    self._end(self._id(stage), event.status)
                self._end(self.run_id, event.status)

    def _begin(self, event: Began) -> None:
        self._began = event
        if event.run_id is not None:
            self._run = self._client.get_run(event.run_id)
        else:
            experiment = open_experiment(self._client, event.experiment)
            self._run = self._find_or_create(experiment.experiment_id, event.key, event.name, {})
        self._describe(self.run_id, event.tags, event.params)
        if event.system_metrics and self._live and self._monitor is None:
            from mlflow.system_metrics.system_metrics_monitor import SystemMetricsMonitor

            self._monitor = SystemMetricsMonitor(
                self.run_id, resume_logging=True, tracking_uri=self._client.tracking_uri
            )
            self._monitor.start()

    def _begin_stage(self, event: StageBegan) -> None:
        assert self._began is not None
        if self._is_the_run:
            self._stages[event.stage] = self.run_id
        else:
            key, parent = f"{self._began.key}/{event.stage}/{event.key}", {MLFLOW_PARENT_RUN_ID: self.run_id}
            self._stages[event.stage] = self._find_or_create(self.experiment_id, key, event.stage, parent).info.run_id
        self._working.add(event.stage)
        prefix = self._prefix(event.stage)
        params = {prefix + name: value for name, value in event.params.items()}
        self._describe(self._stages[event.stage], event.tags, params)

    @property
    def _is_the_run(self) -> bool:
        """Whether the run was opened by somebody else for one stage alone, and so is that stage's own."""
        assert self._began is not None
        return self._began.stage_alone and self._began.run_id is not None

    def _prefix(self, label: str) -> str:
        """Before the names of params and metrics, where one run is that of several datasets (`ingest source`)."""
        _, space, dataset = label.partition(" ")
        return f"{dataset}/" if self._is_the_run and space else ""

    def _find_or_create(self, experiment: str, key: str, name: str, tags: dict[str, str]) -> Run:
        """The run of that key, running again; else a new one."""
        found = self._client.search_runs([experiment], f"tags.`{KEY}` = '{key}'", max_results=1)
        if not found:
            run = self._client.create_run(experiment, run_name=name, tags={**tags, KEY: key})
            self._seen[run.info.run_id] = {}
            return run
        run = found[0]
        self._client.update_run(run.info.run_id, status="RUNNING")
        for tag, value in tags.items():
            if run.data.tags.get(tag) != value:  # its parent, which somebody else has opened, is another one now
                self._client.set_tag(run.info.run_id, tag, value)
        return run

    def _describe(self, run_id: str, tags: dict[str, str], params: dict[str, str]) -> None:
        known = self._client.get_run(run_id).data.params  # a param can be set once
        new = [Param(name, value[:_LONGEST_PARAM]) for name, value in params.items() if name not in known]
        for first in range(0, len(new), _PARAMS):
            self._client.log_batch(run_id, params=new[first : first + _PARAMS])
        entries = [RunTag(name, value[:_LONGEST_TAG]) for name, value in tags.items()]
        self._client.log_batch(run_id, tags=entries)

    def _read(self, run_id: str, data: Iterable[Data]) -> None:
        self._client.log_inputs(
            run_id,
            datasets=[DatasetInput(_dataset(d), [InputTag("mlflow.data.context", d.context)]) for d in data],
        )

    def _points(self, run_id: str, points: Iterable[Point]) -> None:
        """Log the points that the run does not have yet."""
        first_of = {(point.name, point.step): point for point in reversed(list(points))}
        new = [point for (name, step), point in first_of.items() if step not in self._steps(run_id, name)]
        for first in range(0, len(new), _BATCH):
            batch = new[first : first + _BATCH]
            self._client.log_batch(run_id, metrics=[_metric(point, run_id, None) for point in batch])
            for point in batch:
                self._steps(run_id, point.name).add(point.step)

    def publish(self, request: Publish, model_id: str) -> None:
        """Link what was measured of the distilled set to it, and the data that it was measured on."""
        self._read(self.run_id, [request.synthetic, *request.tasks.values()])
        linked = self._client.get_logged_model(model_id).metrics or []
        taken = {metric.key for metric in linked if metric.run_id == self.run_id}
        points = [
            Point(name=name, step=0, milliseconds=now(), value=value, data=request.tasks.get(task or ""))
            for name, (value, task) in request.figures.items()
            if name not in taken
        ]
        for first in range(0, len(points), _BATCH):
            batch = points[first : first + _BATCH]
            self._client.log_batch(self.run_id, metrics=[_metric(point, self.run_id, model_id) for point in batch])

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
