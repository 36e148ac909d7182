"""What the components do, inside their pods: one call of the stage, and what Kubeflow shows of it."""

from __future__ import annotations

import json
import os
import sys
import tempfile
import traceback
from collections.abc import Iterator, Mapping
from contextlib import ExitStack, contextmanager, suppress
from datetime import UTC, datetime
from pathlib import Path
from typing import TYPE_CHECKING, Any, NoReturn

from limbeck.errors import InputError, WorkError
from limbeck.interrupt import Stopped
from limbeck.kubeflow import FAILED, OUTCOME
from limbeck.outcome import outcome_of
from limbeck.redact import redact_strings, redact_url
from limbeck.spec import Distillation, StageName
from limbeck.specfile import SpecError, read_spec
from limbeck.tracking.card import markdown_table, percent
from limbeck.tracking.place import VARIABLE
from limbeck.workplace import recorded, start_sender, with_workers, workshop
from limbeck_components.raycluster import remove_clusters, with_cluster

if TYPE_CHECKING:
    from kfp import dsl

    from limbeck.runner import Run
    from limbeck.stages.task import Workshop
    from limbeck.store import Result
    from limbeck.summary import Summary

_TERMINATION_LOG = Path("/dev/termination-log")  # what Kubernetes says of an ended container, and Kubeflow of a task
_LONGEST_MESSAGE = 2000
_FAILURE = "failure.txt"  # of the task that failed last, in the run's folder


def fingerprints(spec: str) -> str:
    """The fingerprints of all sources of a spec, as JSON, once it has been checked against them, and when that was."""
    with _errors("fingerprint", spec):
        from limbeck.runner import Run

        begun = datetime.now(UTC).isoformat()
        distillation = _read(spec)
        with workshop(distillation.spec) as shop:
            found = Run(distillation, shop).fingerprints()
            shop.store.remove(_place_of(distillation, _FAILURE))  # an earlier run's
        return json.dumps({"fingerprints": found, "begun": begun}, sort_keys=True)
    raise AssertionError


def run_stage(
    name: StageName,
    spec: str,
    sources: str,
    inputs: Mapping[str, dsl.Artifact],
    output: dsl.Artifact,
    metrics: dsl.Metrics | None = None,
    images: dsl.HTML | None = None,
    table: dsl.Markdown | None = None,
) -> None:
    """Do one stage, on what the tasks before have made.

    Args:
        name: of the stage.
        spec: the whole spec, as JSON.
        sources: what `fingerprints` gave.
        inputs: what the tasks before have made, by stage; ingest's is "dataset".
        output: names the result in the store, which is where the files are.
        metrics: the stage's figures, the last of each.
        images: for a distilled set, a page with its images.
        table: for an evaluation, its accuracies.
    """
    with _errors(name, spec), _opened(name, spec, sources) as (run, shop):
        result = run.stage(name)
        _check_inputs(run, inputs)
        _describe(output, result, shop)
        if metrics is not None:
            _log(metrics, name, result, shop)
        if images is not None:
            Path(images.path).write_text(_image_page(result, run.results["dataset"]))
        if table is not None:
            Path(table.path).write_text(_accuracies(result))


def train_encoders(spec: str, sources: str, method: str, inputs: Mapping[str, dsl.Artifact]) -> None:
    """Train and probe the encoders of one method, so that the evaluation finds them done."""
    with _errors(f"encoders of {method}", spec), _opened(None, spec, sources) as (run, shop):
        evaluate = _read(spec).spec.evaluate
        if method not in ("distilled", *evaluate.baselines):
            shop.progress.say(f"{method} is none of spec.evaluate.baselines: nothing to do")
            return
        run.evaluate_part(evaluate.architectures, [method])
        _check_inputs(run, inputs)


def conclude(
    spec: str,
    sources: str,
    inputs: Mapping[str, dsl.Artifact],
    output: dsl.Artifact,
    metrics: dsl.Metrics,
    report: dsl.HTML,
    card: dsl.Markdown,
) -> None:
    """Register the set, and write the run's summary and report."""
    with _errors("register", spec), _opened("register", spec, sources) as (run, shop):
        summary = run.conclude(datetime.fromisoformat(json.loads(sources)["begun"]))
        sys.stderr.write(f"{OUTCOME}{outcome_of(summary, run.source_digest).text()}\n")
        _check_inputs(run, inputs)
        _describe(output, run.results["register"], shop)
        output.metadata.update(_outcome_of(summary))
        for gap in summary.recovered_gaps:
            if gap.value is not None:
                metrics.log_metric(f"recovered_gap/{gap.task}/{gap.architecture}/{gap.label_fraction:g}", gap.value)
        page = shop.store.read_text(f"runs/{summary.name}/{summary.links['report']}")
        Path(report.path).write_text(page or "")
        Path(card.path).write_text(_card(summary))


def record_outcome(spec: str, state: str, error: str, run: str) -> None:
    """Write how the pipeline has ended to `runs/<name>/outcome.json`, and leave no Ray cluster behind.

    Args:
        spec: the whole spec, as JSON.
        state: by Kubeflow.
        error: what Kubeflow says of it; where that is nothing, it is what the task that failed has left in the store.
        run: Kubeflow's name of the run.
    """
    with _errors("outcome", spec):
        from limbeck.store import Store

        distillation = _read(spec)
        store = Store.of(distillation.spec)
        state = "SUCCEEDED" if state == "COMPLETE" else state  # as servers that keep ML Metadata say it
        if state != "SUCCEEDED":
            error = redact_url(error) or store.read_text(_place_of(distillation, _FAILURE)) or ""
        record = {"state": state, "error": error.strip(), "kubeflowRun": run}
        store.write_text(_place_of(distillation, "outcome.json"), json.dumps(record, indent=2) + "\n")
        sys.stderr.write(f"{distillation.metadata.name}: {state}{': ' if error else ''}{error}\n")
        try:
            remove_clusters(distillation)
        except WorkError as error:  # nothing that the run's result depends on
            sys.stderr.write(f"Ray clusters were not looked for: {error}\n")


def _place_of(distillation: Distillation, file: str) -> str:
    return f"runs/{distillation.metadata.name}/{file}"


def _read(spec: str) -> Distillation:
    """The spec, JSON or YAML, with its problems named as `limbeck validate` does."""
    with tempfile.TemporaryDirectory() as folder:
        file = Path(folder) / "spec"
        file.write_text(spec)
        try:
            return read_spec(file).distillation
        except SpecError as error:
            problems = [problem.replace(str(file), "the parameter spec") for problem in error.problems]
            raise SpecError(problems) from None


@contextmanager
def _errors(what: str, spec: str) -> Iterator[None]:
    """What goes wrong inside is one line where Kubernetes, Kubeflow and the exit task look for it; the process ends."""
    try:
        yield
    except (InputError, WorkError) as error:
        _fail(f"{what}: {error}", spec, 2 if isinstance(error, InputError) else 1)
    except Stopped:
        _fail(f"{what}: stopped", spec, 1)
    except Exception as error:
        sys.stderr.write(redact_url(traceback.format_exc()))
        _fail(f"{what}: {type(error).__name__}: {' '.join(str(error).split())}", spec, 1)


def _fail(line: str, spec: str, code: int) -> NoReturn:
    line = redact_url(line)[:_LONGEST_MESSAGE]
    sys.stderr.write(f"{FAILED}{line}\n")
    if os.access(_TERMINATION_LOG, os.W_OK):
        _TERMINATION_LOG.write_text(line)
    with suppress(Exception):  # the spec or its store may be what is wrong
        from limbeck.store import Store

        distillation = _read(spec)
        Store.of(distillation.spec).write_text(_place_of(distillation, _FAILURE), line + "\n")
    sys.exit(code)


@contextmanager
def _opened(name: StageName | None, spec: str, sources: str) -> Iterator[tuple[Run, Workshop]]:
    """The run that a task is a part of; a stage that works on a Ray cluster of its own has it inside the block."""
    distillation = _read(spec)
    settings = distillation.spec
    sender = None
    if name is not None and (settings.tracking.uri or os.environ.get(VARIABLE)):
        sender = start_sender(settings, lambda line: print(line, file=sys.stderr))  # noqa: T201
    elif name == "register" and settings.tracking.enabled and settings.registry.name is not None:
        allowed = "spec.tracking.uri, or MLFLOW_TRACKING_URI from spec.execution.secrets"
        raise InputError("spec.registry.name", "no MLflow is known here", allowed)
    from limbeck.runner import Run

    known = json.loads(sources)["fingerprints"]
    with ExitStack() as stack:
        shop = stack.enter_context(workshop(settings))
        fans_out = name == "trajectories" or (name == "distill" and settings.distill.pairs > 1)
        wants_cluster = fans_out and settings.execution.ray.cluster is not None
        if wants_cluster and name and not Run(distillation, shop, fingerprints=known).is_done(name):
            distillation = stack.enter_context(with_cluster(distillation, name, shop.stop))
            shop = with_workers(shop, distillation.spec)
        recorder, shop = recorded(sender, shop, f"limbeck stage {name}", stage_alone=True)
        yield Run(distillation, shop, recorder, known), shop


def _check_inputs(run: Run, inputs: Mapping[str, dsl.Artifact]) -> None:
    """See that the store has what the tasks before have made, and not another run's.

    Raises:
        WorkError: it has not.
    """
    for name, artifact in inputs.items():
        made, here = json.loads(Path(artifact.path).read_text())["digest"], run.results[name].digest
        if made != here:
            raise WorkError(
                f"{name} was made as {made[:12]}, and this pod finds {here[:12]}: spec.output.uri is not shared"
            )


def _describe(output: dsl.Artifact, result: Result, shop: Workshop) -> None:
    """The artifact: a file that names the result, and what Kubeflow lists of it. Numbers become floats there."""
    manifest = result.manifest
    location = redact_url(shop.store.location(manifest.stage, manifest.key))
    record = {"stage": manifest.stage, "key": manifest.key, "digest": result.digest, "location": location}
    Path(output.path).parent.mkdir(parents=True, exist_ok=True)
    Path(output.path).write_text(json.dumps(record, indent=2) + "\n")
    output.metadata.update(
        {
            **record,
            "settings": json.dumps(redact_strings(manifest.section), sort_keys=True),
            "files": len(manifest.files),
            "bytes": sum(entry.size for entry in manifest.files),
            "seconds": manifest.made.seconds,
            "peakMemoryMiB": round(manifest.made.peak_memory_bytes / 2**20),
            "device": manifest.made.device,
        }
    )


def _log(metrics: dsl.Metrics, name: str, result: Result, shop: Workshop) -> None:
    from limbeck.tracking.figures import figures_of

    last = {figure: value for figure, _, value, _ in figures_of(name, result, shop.store)}
    for figure, value in last.items():
        metrics.log_metric(figure, value)


def _image_page(result: Result, dataset: Result) -> str:
    """The synthetic images at the start and in the end, on a page that needs nothing else."""
    import base64
    import io

    from PIL import Image

    from limbeck.tracking.figures import pictures_of

    parts = []
    for title, (_, pixels) in zip(("before", "after"), pictures_of(result, dataset, 1), strict=True):
        data = io.BytesIO()
        Image.fromarray(pixels).save(data, "png")
        picture = base64.b64encode(data.getvalue()).decode()
        parts.append(f'<h2>{title}</h2><img style="image-rendering: pixelated" src="data:image/png;base64,{picture}">')
    return f"<!doctype html><title>synthetic images</title>{''.join(parts)}\n"


def _accuracies(result: Result) -> str:
    from limbeck.scores import FILE, read_scores, summarize

    rows = [
        (a.task, a.architecture, a.method, percent(a.label_fraction), f"{100 * a.mean:.1f} ± {100 * a.deviation:.1f}")
        for a in summarize(read_scores(result.path / FILE))
    ]
    return markdown_table(("task", "architecture", "pre-trained on", "labels", "accuracy, %"), rows) + "\n"


def _card(summary: Summary) -> str:
    rows = [(name, str(value)) for name, value in _outcome_of(summary).items()]
    return f"# {summary.name}\n\n{markdown_table(('', ''), rows)}\n"


def _outcome_of(summary: Summary) -> dict[str, Any]:
    """What a person wants to know first, as Kubeflow lists it."""
    found: dict[str, Any] = {
        "images": summary.distilled.images,
        "sourceImages": summary.source.images,
        "distilledSet": redact_url(summary.distilled.path),
    }
    for gap in summary.recovered_gaps:
        if gap.value is not None:
            found[f"recoveredGap {gap.task} {gap.architecture} {gap.label_fraction:g}"] = round(gap.value, 4)
    if summary.registered is not None:
        registered = summary.registered
        found |= {"registered": f"models:/{registered.name}/{registered.version}", "decision": registered.decision}
    return found | {name: link for name, link in summary.links.items() if name.startswith("mlflow")}
