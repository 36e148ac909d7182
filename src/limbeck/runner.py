"""Runs the stages of a spec in order, here: skips what is done, resumes what was cut, writes the summary and report."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from limbeck.challenge import Challenge
from limbeck.checkpoint import load_tensors
from limbeck.data.dataset import ImageDataset
from limbeck.data.distilled import DistilledSet
from limbeck.errors import InputError, WorkError
from limbeck.evaluation.scores import FILE, Score, differences, read_scores, recovered_gaps, summarize
from limbeck.overlap import check_overlap
from limbeck.preflight import (
    NamedSource,
    SourceSettings,
    check_against_data,
    check_datasets,
    fingerprints_of,
    open_sources,
    outside_digests,
    source_digest,
    source_settings,
)
from limbeck.redact import redact_strings
from limbeck.runs import REPORT, read_history, write_report, write_summary
from limbeck.spec import Architecture, Distillation, DistillationSpec, StageName
from limbeck.stages.graph import INGEST_VERSION, STAGES, Stage
from limbeck.stages.ingest import ingest, remember
from limbeck.stages.task import StageTask, Workshop, device_name
from limbeck.store import Identity, Result
from limbeck.summary import DistilledSummary, Registered, SourceSummary, StageSummary, Summary
from limbeck.tracking.recorder import UNRECORDED, Recorder
from limbeck.version import __version__
from limbeck.warmstart import registered_start


class Run:
    """One run of a spec on this machine, whole or in parts.

    Args:
        distillation: the spec.
        shop: where and on what the work is done.
        recorder: who wants to know.
        fingerprints: of all sources, as `fingerprints` gave them when a run began whose parts are done by several
            processes: all of them then work on the same data, or fail, and only ingest looks at the sources.
    """

    def __init__(
        self,
        distillation: Distillation,
        shop: Workshop,
        recorder: Recorder = UNRECORDED,
        fingerprints: Mapping[str, str] | None = None,
    ) -> None:
        self._distillation, self._recorder = distillation, recorder
        self._name = distillation.metadata.name
        self._spec: DistillationSpec = distillation.spec
        self._shop = shop
        self._start = registered_start(distillation.spec, shop)
        self._given = fingerprints
        self._fingerprints: Mapping[str, str] = fingerprints or {}
        self._sources: dict[str, NamedSource] = {}
        self.results: dict[str, Result] = {}  # by stage; ingest's by source, as `fingerprints` names them
        self._stages: list[StageSummary] = []
        self._overlaps: list[str] | None = None  # None: not looked for yet
        self._begun: datetime | None = None  # where other processes have made the results, too

    def all(self) -> Summary:
        """Run every stage, then write `runs/<name>/summary.json` and `report.html`.

        Raises:
            InputError: the spec does not fit the data; found before any work is done.
            WorkError: a stage failed.
            Stopped: the user asked to stop; the same call goes on from there.
        """
        started = time.monotonic()
        with self._recorded(look=True):
            self._ingest()
            for stage in STAGES:
                self._stage(stage)
            return self._finish(time.monotonic() - started)

    def fingerprints(self) -> dict[str, str]:
        """The fingerprints of all sources by name, which are opened and checked for that.

        Raises:
            InputError: the spec does not fit the data.
            WorkError: they are not what they were when the run began, or MLflow does not give the set to start from.
        """
        self._sources = open_sources(self._spec)
        check_against_data(self._spec, self._sources, self._start)
        found = fingerprints_of(self._sources)
        if self._given is not None and found != self._given:
            changed = next(name for name in found if found[name] != self._given.get(name))
            settings = self._sources[changed].settings
            raise WorkError(f"{settings.field}.uri: {settings.uri} has changed since this run began; start a new run")
        if self._start is not None:  # it fits, so it is kept: the run's other processes do not download it again
            self._start.result()
        self._fingerprints = found
        return found

    def stage(self, name: StageName) -> Result:
        """Run one stage alone, on the results of the stages before it.

        Raises:
            InputError: one of those is not there yet.
        """
        with self._recorded(look=name == "ingest"):
            self._ingest(only_find=name != "ingest")
            if name == "ingest":
                return self.results["dataset"]
            for stage in STAGES:
                self._stage(stage, only_find=stage.name != name)
                if stage.name == name:
                    break
            if name == "register":
                _, refusal = self._publish()
                if refusal is not None:
                    raise refusal
            return self.results[name]

    def evaluate_part(self, architectures: Sequence[Architecture], methods: Sequence[str]) -> list[Score]:
        """Train and probe some of evaluate's encoders, so that it finds them done; nothing is recorded.

        Raises:
            InputError: what they are made from is not there yet: the distilled set, or for its rivals the selection.
        """
        from limbeck.stages.evaluate import evaluate_part

        self._find_to("distill" if "distilled" in methods else "select")
        inputs = dict(self.results)
        if self._start is not None and "start" in methods:
            inputs["warmStart"] = self._start.result()
        return evaluate_part(StageTask(self._spec, self._shop, inputs, Path()), architectures, methods)

    def is_done(self, name: StageName) -> bool:
        """Whether the result of a stage is there; nothing is made or recorded."""
        try:
            Run(self._distillation, self._shop, fingerprints=self._given)._find_to(name)
        except InputError:
            return False
        return True

    def _find_to(self, last: StageName) -> None:
        """Find the results of all stages to one.

        Raises:
            InputError: one is not there yet.
        """
        if self._given is None:
            self.fingerprints()
        self._ingest(only_find=True)
        for stage in STAGES if last != "ingest" else ():
            self._stage(stage, only_find=True)
            if stage.name == last:
                break

    def conclude(self, begun: datetime) -> Summary:
        """Register what other processes have made stage by stage, and write the summary and the report.

        Args:
            begun: when the first of them began; what is older was found done.

        Raises:
            InputError: a stage is not done.
            WorkError: the distilled set could not be registered; everything else is written.
        """
        self._begun = begun
        with self._recorded(look=False):
            self._ingest(only_find=True)
            for stage in STAGES:
                self._stage(stage, only_find=stage.name != "register")
            return self._finish((datetime.now(UTC) - begun).total_seconds())

    @property
    def source_digest(self) -> str:
        """A digest of all sources, as they were when this run looked at them."""
        return source_digest(self._fingerprints)

    @contextmanager
    def _recorded(self, *, look: bool) -> Iterator[None]:
        """The run as the recorder sees it; `look`: at the sources, also where their fingerprints are given."""
        if look or self._given is None:
            self.fingerprints()
        if look and self._spec.preset_note is not None:
            self._shop.progress.say(f"note: {self._spec.preset_note}")
        with self._recorder.run(self._distillation, self._fingerprints):
            yield

    def _ingest(self, *, only_find: bool = False) -> None:
        """Read all sources, and check the rules again: images that were skipped are no longer there."""
        for name, settings in source_settings(self._spec).items():
            section: dict[str, Any] = {
                "imageSize": self._spec.source.image_size,
                "limit": settings.limit,
                "onBadImage": settings.on_bad_image,
            }
            if settings.limit is not None:
                section["seed"] = self._spec.seed
            identity = Identity("ingest", INGEST_VERSION, section, {"source": self._fingerprints[name]})
            work = self._reading(name, settings)
            self._make(name, f"ingest {settings.label}", identity, work, {}, only_find)
            if not self._stages[-1].reused and not only_find:
                size = self._spec.source.image_size
                remember(self._shop.store, self._sources[name].source, size, self.results[name])
        datasets = self._datasets()
        check_datasets(self._spec, datasets, self._start)
        if not only_find:
            self._overlaps = check_overlap(self._spec, datasets)
            for overlap in self._overlaps:
                self._shop.progress.say(f"note: {overlap}")

    def _datasets(self) -> dict[str, ImageDataset]:
        """What ingest made of the sources, by name."""
        return {name: ImageDataset.open(self.results[name].path) for name in source_settings(self._spec)}

    def _reading(self, name: str, settings: SourceSettings) -> Callable[[StageTask], None]:
        return lambda task: ingest(task, self._sources[name].source, settings.limit, settings.on_bad_image)

    def _stage(self, stage: Stage, only_find: bool = False) -> None:
        inputs = {name: self.results[name] for name in stage.inputs if name != "tasks"}
        if "tasks" in stage.inputs:
            inputs |= {name: result for name, result in self.results.items() if ":" in name}
        images = len(ImageDataset.open(self.results["dataset"].path))
        digests = {name: result.digest for name, result in inputs.items()}
        digests |= outside_digests(stage.name, self._spec, self._start)
        if stage.name in ("distill", "evaluate") and self._start is not None and not only_find:
            inputs["warmStart"] = self._start.result()  # in distill's key it stands as what MLflow calls it
        identity = Identity(stage.name, stage.version, stage.settings(self._spec, images), digests)
        self._make(stage.name, stage.name, identity, stage.run, inputs, only_find)

    def _make(
        self,
        name: str,
        label: str,
        identity: Identity,
        work: Callable[[StageTask], None],
        inputs: Mapping[str, Result],
        only_find: bool,
    ) -> None:
        if only_find:
            result = self._shop.find(identity, whole=False)
            if result is None:
                raise InputError(
                    f"stage {identity.stage}",
                    f"{label} is not done in {self._shop.store.url}",
                    "run it first",
                )
            self._recorder.found(name, result)
            reused = self._begun is None or self._shop.store.finished_at(identity.stage, identity.key) < self._begun
        else:
            with self._recorder.stage(label, identity):
                result, reused = self._find_or_make(identity, work, inputs)
                self._recorder.made(name, label, result, reused=reused)
        self.results[name] = result
        made = result.manifest.made
        self._stages.append(
            StageSummary(
                name=label,
                key=identity.key,
                digest=result.digest,
                reused=reused,
                seconds=made.seconds,
                peak_memory_bytes=made.peak_memory_bytes,
                peak_device_memory_bytes=made.peak_device_memory_bytes,
            )
        )
        if not only_find:
            self._shop.progress.say(_line(self._stages[-1]))

    def _find_or_make(
        self, identity: Identity, work: Callable[[StageTask], None], inputs: Mapping[str, Result]
    ) -> tuple[Result, bool]:
        """The result of a stage, and whether it was there already."""

        def fill(folder: Path) -> list[str]:
            task = StageTask(self._spec, self._shop, inputs, folder)
            work(task)
            return task.refers

        fanout, made_there = self._shop.fanout, False
        if fanout is not None and identity.stage == "distill" and self._spec.distill.pairs > 1:
            made_there = self._shop.find(identity) is None
            if made_there:
                fanout.distill(StageTask(self._spec, self._shop, inputs, Path()), identity)
        result, found = self._shop.make(identity, fill)
        return result, found and not made_there

    def _publish(self) -> tuple[Registered | None, WorkError | None]:
        """Log and register the distilled set: the version that it became, or why it did not."""
        published = Challenge(self._spec, self._shop, self.results).publish(self._recorder)
        if published is None:
            return None, None
        name = self._spec.registry.name
        if published.error is not None:
            place = self._shop.store.location("register", self.results["register"].manifest.key)
            what = "logged in MLflow" if name is None else f"registered as {name}"
            again = "limbeck stage register SPEC tries again"
            error = WorkError(f"the distilled set is whole in {place}, but was not {what}: {published.error}; {again}")
            if name is not None:
                return None, error
            self._shop.progress.say(f"note: {error}")
        registered = published.registered
        if registered is not None:
            place = f"{registered.name}, version {registered.version}"
            champion = "the champion" if registered.champion else "not the champion"
            self._shop.progress.say(f"registered as {place}, {champion}: {registered.decision}")
        return registered, None

    def _finish(self, seconds: float) -> Summary:
        """Write what the run leaves behind.

        Raises:
            WorkError: the distilled set could not be registered; everything else is written.
        """
        spec, store = self._spec, self._shop.store
        registered, refusal = self._publish()
        dataset = ImageDataset.open(self.results["dataset"].path)
        distilled = DistilledSet.load(self.results["register"].path)
        losses = read_history(self.results["distill"].path)["matchingLoss"].to_numpy()
        tenth = max(1, len(losses) // 10)
        accuracies = summarize(read_scores(self.results["evaluate"].path / FILE))
        location = store.location("register", self.results["register"].manifest.key)
        summary = Summary(
            name=self._name,
            limbeck_version=__version__,
            succeeded=True,
            seconds=round(seconds, 3),
            device=device_name(self._shop.device),
            source=SourceSummary(
                uri=spec.source.uri,
                fingerprint=self.results["dataset"].manifest.inputs["source"],
                images=len(dataset),
                image_size=spec.source.image_size,
                skipped=dict(dataset.skipped),
            ),
            distilled=DistilledSummary(
                images=len(distilled),
                image_size=spec.source.image_size,
                target_dimension=distilled.targets.shape[1],
                learning_rate=load_tensors(self.results["distill"].path / "synthetic.safetensors")[0]["rate"].item(),
                matching_loss_first=float(losses[:tenth].mean()),
                matching_loss_last=float(losses[-tenth:].mean()),
                path=location,
                bytes=distilled.nbytes,
            ),
            stages=self._stages,
            accuracies=accuracies,
            recovered_gaps=recovered_gaps(accuracies),
            differences=differences(accuracies),
            links={"report": REPORT, "distilledSet": location, **self._recorder.links()},
            spec=redact_strings(spec.wire()),
            registered=registered,
            overlaps=check_overlap(spec, self._datasets()) if self._overlaps is None else self._overlaps,
        )
        write_summary(store, summary)
        self._recorder.finished(summary, write_report(store, summary))
        if refusal is not None:
            raise refusal
        return summary


def _line(stage: StageSummary) -> str:
    if stage.reused:
        return f"{stage.name:<24} already done ({stage.key[:8]})"
    memory = stage.peak_memory_bytes / 2**20
    return f"{stage.name:<24} {stage.seconds:8.1f} s  {memory:6,.0f} MiB  ({stage.key[:8]})"
