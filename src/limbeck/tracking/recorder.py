"""What a run tells about itself: the runner calls a `Recorder`, whose `Recording` writes it to the journal."""

from __future__ import annotations

import getpass
import json
import os
import platform
import subprocess
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import AbstractContextManager, contextmanager
from dataclasses import replace
from typing import Protocol

import numpy as np
import yaml
from numpy.typing import NDArray

from limbeck.data.dataset import ImageDataset
from limbeck.data.distilled import DistilledSet
from limbeck.evaluation.comparison import ACCURACY, Champion, named_figures
from limbeck.interrupt import Stopped
from limbeck.progress import Bar
from limbeck.redact import redact_strings, redact_url
from limbeck.spec import Distillation, DistillationSpec
from limbeck.stages.graph import INGEST_VERSION, STAGES
from limbeck.stages.task import Workshop
from limbeck.store import Identity, Result, json_digest
from limbeck.summary import Accuracy, RecoveredGap, Summary
from limbeck.tracking.figures import figures_of, flat, images_a_unit, pictures_of
from limbeck.tracking.journal import (
    Began,
    Data,
    Document,
    Ended,
    Point,
    Points,
    Read,
    StageBegan,
    StageEnded,
    Status,
    now,
)
from limbeck.tracking.messages import Publish, Published
from limbeck.tracking.outbox import Outbox
from limbeck.tracking.place import identity_of
from limbeck.tracking.process import SenderProcess
from limbeck.version import __version__

_RUN_VARIABLE = "MLFLOW_RUN_ID"
_FLUSH_SECONDS, _RATE_SECONDS = 1.0, 5.0


class Recorder(Protocol):
    """Whoever wants to know what happens in a run."""

    def run(self, distillation: Distillation, sources: Mapping[str, str]) -> AbstractContextManager[None]:
        """The whole run, or the command that does one stage of it; the fingerprints of all sources by name."""

    def stage(self, label: str, identity: Identity) -> AbstractContextManager[None]:
        """One stage."""

    def made(self, name: str, label: str, result: Result, *, reused: bool) -> None:
        """A stage's result is there; `name` is what other stages know it by."""

    def found(self, name: str, result: Result) -> None:
        """A result of an earlier stage is used, and nothing is recorded of how it was made."""

    def publish(self, result: Result, champion: Champion | None = None) -> Published | None:
        """Log and register the distilled set; None where that is not done.

        `champion`: evaluated again beside it, where an earlier call has answered that this comes first.
        """

    def finished(self, summary: Summary, report: str) -> None:
        """The run's summary and report are written."""

    def links(self, *, wait: bool = True) -> dict[str, str]:
        """Where the run can be looked at; `wait`, a while, for what is not known yet."""


class _Unrecorded:
    @contextmanager
    def run(self, distillation: Distillation, sources: Mapping[str, str]) -> Iterator[None]:
        yield

    @contextmanager
    def stage(self, label: str, identity: Identity) -> Iterator[None]:
        yield

    def made(self, name: str, label: str, result: Result, *, reused: bool) -> None:
        pass

    def found(self, name: str, result: Result) -> None:
        pass

    def publish(self, result: Result, champion: Champion | None = None) -> Published | None:
        return None

    def finished(self, summary: Summary, report: str) -> None:
        pass

    def links(self, *, wait: bool = True) -> dict[str, str]:
        return {}


UNRECORDED: Recorder = _Unrecorded()


class Recording:
    """A run in MLflow. Also what stages show themselves to (`Live`) and report their progress through (`Progress`)."""

    def __init__(self, sender: SenderProcess, shop: Workshop, command: str, *, stage_alone: bool) -> None:
        self._sender, self._command, self._alone = sender, command, stage_alone
        self._progress, self._store, self._stop = shop.progress, shop.store, shop.stop
        self.workshop = replace(shop, live=self, progress=self)  # whose stages this recording sees
        self._session: tuple[DistillationSpec, Outbox] | None = None
        self._label: str | None = None
        self._waiting: list[Point] = []
        self._flushed = time.monotonic()
        self._datasets: dict[str, Data] = {}
        self._dataset: Result | None = None
        self._tags: dict[str, str] = {}

    @property
    def _spec(self) -> DistillationSpec:
        assert self._session is not None
        return self._session[0]

    @property
    def _outbox(self) -> Outbox:
        assert self._session is not None
        return self._session[1]

    # Recorder

    @contextmanager
    def run(self, distillation: Distillation, sources: Mapping[str, str]) -> Iterator[None]:
        """See `Recorder.run`."""
        spec, store, name = distillation.spec, self._store, distillation.metadata.name
        folder = store.local_folder("work/tracking") / json_digest(identity_of(self._sender.uri))[:16]
        self._session = spec, Outbox(self._sender, folder, self._progress, self._stop)
        content = redact_strings(spec.content())
        settings = {
            "name": name,
            "spec": content,
            "sources": dict(sources),
            "stages": {"ingest": INGEST_VERSION, **{stage.name: stage.version for stage in STAGES}},
            "store": redact_url(store.shared_url),
        }
        self._tags = {
            "limbeck.source": redact_url(spec.source.uri),
            "limbeck.source_fingerprint": sources["dataset"],
            "limbeck.spec_digest": json_digest(content),
            "limbeck.version": __version__,
        }
        tags = self._tags | {
            "limbeck.output": redact_url(store.url),
            "limbeck.host": platform.node(),
            "mlflow.user": _user(),
            "mlflow.source.name": self._command,
            "mlflow.source.type": "JOB" if os.environ.get("KUBERNETES_SERVICE_HOST") else "LOCAL",
        }
        commit = _commit()
        if commit is not None:
            tags["mlflow.source.git.commit"] = commit
        self._outbox.write(
            Began(
                key=json_digest(settings)[:32],
                name=name,
                experiment=spec.tracking.experiment,
                run_id=os.environ.get(_RUN_VARIABLE) or None,
                stage_alone=self._alone,
                tags=tags,
                params=flat(content),
                system_metrics=spec.tracking.system_metrics,
            )
        )
        self._outbox.write(Document(name="spec.yaml", text=yaml.safe_dump(content, sort_keys=False)))
        try:
            with _status(self._write_end):
                yield
        finally:
            self._outbox.close()

    def _write_end(self, status: Status) -> None:
        self._outbox.write(Ended(status=status))

    @contextmanager
    def stage(self, label: str, identity: Identity) -> Iterator[None]:
        """See `Recorder.stage`."""
        section = redact_strings(dict(identity.section))
        params = {**flat(section), **{f"input.{name}": digest for name, digest in identity.inputs.items()}}
        tags = {"limbeck.stage": identity.stage, "limbeck.result": f"{identity.stage}/{identity.key}"}
        self._outbox.write(StageBegan(stage=label, key=identity.key, tags=tags, params=params))
        self._label = label

        def end(status: Status) -> None:
            self._flush()
            self._outbox.write(StageEnded(stage=label, status=status))
            self._label = None

        with _status(end):
            yield

    def made(self, name: str, label: str, result: Result, *, reused: bool) -> None:
        """See `Recorder.made`."""
        if result.manifest.stage == "ingest":
            self._ingested(name, label, result)
        elif self._dataset is not None:
            read = [data for key, data in self._datasets.items() if key == "dataset" or name == "evaluate"]
            self._outbox.write(Read(stage=label, data=read))
        when = now()
        for figure, step, value, task in figures_of(result.manifest.stage, result, self._store):
            self._add(Point(name=figure, step=step, milliseconds=when, value=value, data=self._task(task)))
        self._flush()
        if name == "distill" and self._dataset is not None:
            for step, pixels in pictures_of(result, self._dataset, self._spec.distill.iterations):
                self.picture(step, "synthetic", pixels)
        tags = {"limbeck.digest": result.digest, "limbeck.reused": str(reused).lower()}
        self._outbox.write(StageBegan(stage=label, key=result.manifest.key, tags=tags, params={}))

    def found(self, name: str, result: Result) -> None:
        """See `Recorder.found`."""
        if result.manifest.stage == "ingest":
            self._remember(name, result)

    def _ingested(self, name: str, label: str, result: Result) -> None:
        data = self._remember(name, result)
        self._outbox.write(Read(stage=label, data=[data]))
        if not self._alone:
            self._outbox.write(Read(stage=None, data=[data]))

    def _remember(self, name: str, result: Result) -> Data:
        """The dataset, for whatever is measured on it later."""
        dataset, spec = ImageDataset.open(result.path), self._spec
        uris = {"dataset": spec.source.uri}
        for task in spec.evaluate.tasks:
            uris |= {f"train:{task.name}": task.train.uri, f"test:{task.name}": task.test.uri}
        data = Data(
            name=name.replace(":", " ") if name != "dataset" else "source",
            digest=result.manifest.inputs["source"].rpartition(":")[2][:32],
            uri=redact_url(uris[name]),
            images=len(dataset),
            context="real" if name == "dataset" else "evaluation",
        )
        self._datasets[name] = data
        self._dataset = result if name == "dataset" else self._dataset
        return data

    def _task(self, task: str | None) -> Data | None:
        return self._datasets.get(f"test:{task}") if task is not None else None

    def publish(self, result: Result, champion: Champion | None = None) -> Published | None:
        """See `Recorder.publish`."""
        distilled, registry = DistilledSet.load(result.path), self._spec.registry
        figures = named_figures(
            [Accuracy.model_validate(entry) for entry in distilled.evaluation["accuracies"]],
            [RecoveredGap.model_validate(entry) for entry in distilled.evaluation["recoveredGaps"]],
        )
        location = redact_url(self._store.location("register", result.manifest.key))
        return self._outbox.publish(
            Publish(
                until=0,
                folder=str(result.path),
                images=len(distilled),
                image_size=distilled.images.shape[-1],
                target_dimension=distilled.targets.shape[1],
                recipe=distilled.recipe.wire(),
                spec=distilled.spec,
                lineage=distilled.lineage,
                evaluation=distilled.evaluation,
                location=location,
                digest=result.digest,
                title=registry.name or "distilled set",
                name=registry.name,
                promote=registry.promote,
                metric=registry.metric or ACCURACY,
                confidence=registry.confidence,
                champion=champion,
                tags=self._tags,
                synthetic=Data(
                    name="distilled set",
                    digest=result.digest[:32],
                    uri=location,
                    images=len(distilled),
                    context="synthetic",
                ),
                tasks={task.name: data for task in self._spec.evaluate.tasks if (data := self._task(task.name))},
                figures=figures,
            )
        )

    def finished(self, summary: Summary, report: str) -> None:
        """See `Recorder.finished`."""
        self._outbox.write(Document(name="report.html", text=report))
        record = redact_strings(summary.model_dump(mode="json", by_alias=True))
        self._outbox.write(Document(name="summary.json", text=json.dumps(record, indent=2) + "\n"))

    def links(self, *, wait: bool = True) -> dict[str, str]:
        """See `Recorder.links`."""
        opened = self._outbox.opened(wait=wait)
        if opened is None:
            return {}
        links = {"mlflowRun": f"runs:/{opened.run_id}"}
        return links if opened.url is None else {**links, "mlflow": opened.url}

    # Live

    def figures(self, step: int, values: Mapping[str, float]) -> None:
        """See `Live.figures`."""
        when = now()
        for name, value in values.items():
            self._add(Point(name=name, step=step, milliseconds=when, value=value))

    def picture(self, step: int, name: str, pixels: NDArray[np.uint8]) -> None:
        """See `Live.picture`."""
        if self._label is not None:
            self._outbox.picture(self._label, name, step, pixels)

    def _add(self, point: Point) -> None:
        self._waiting.append(point)
        if time.monotonic() - self._flushed >= _FLUSH_SECONDS:
            self._flush()

    def _flush(self) -> None:
        if self._waiting and self._label is not None:
            self._outbox.write(Points(stage=self._label, points=self._waiting))
        self._waiting, self._flushed = [], time.monotonic()

    # Progress

    def say(self, line: str) -> None:
        """See `Progress.say`."""
        self._progress.say(line)

    @contextmanager
    def bar(self, title: str, total: int, unit: str, done: int = 0) -> Iterator[Bar]:
        """See `Progress.bar`; images a second are recorded from time to time."""
        owner, images = self, images_a_unit(self._spec, title, unit)
        with self._progress.bar(title, total, unit, done) as bar:
            since, counted, reached = time.monotonic(), 0, done

            class _Counting:
                def advance(self, steps: int = 1, note: str = "") -> None:
                    nonlocal since, counted, reached
                    counted, reached = counted + steps, reached + steps
                    bar.advance(steps, note)
                    elapsed = time.monotonic() - since
                    if images and (elapsed >= _RATE_SECONDS or (reached >= total and elapsed > 0)):
                        owner.figures(reached, {"images_per_second": images * counted / elapsed})
                        since, counted = time.monotonic(), 0

            yield _Counting()


@contextmanager
def _status(end: Callable[[Status], None]) -> Iterator[None]:
    """Says how the block has ended, as MLflow calls it."""
    try:
        yield
    except (Stopped, KeyboardInterrupt):
        end("KILLED")
        raise
    except BaseException:
        end("FAILED")
        raise
    end("FINISHED")


def _user() -> str:
    try:
        return getpass.getuser()
    except (KeyError, OSError):
        return str(os.getuid())


def _commit() -> str | None:
    """The git commit of the folder that the command is run in."""
    try:
        command = ["git", "rev-parse", "HEAD"]
        found = subprocess.run(command, capture_output=True, text=True, timeout=5, check=True)  # noqa: S603
    except (OSError, subprocess.SubprocessError):
        return None
    return found.stdout.strip() or None
