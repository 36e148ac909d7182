"""The recipe study: variants of one spec, each run and judged, and one table of them all.

    python experiments/study.py run study --data DATA       # resumes where it was stopped; Ctrl-C stops it
    python experiments/study.py table study                 # experiments/study.md, from what is done
    python experiments/study.py teacher middle --data DATA  # the teacher and the targets of middle.yaml alone

The studies at laptop size share one teacher for each source. Its weights are committed, so that a study can go on on
another machine; `study.py teacher laptop-teacher --weights` trains it again.

DATA holds cifar10-train.zip and cifar10-test.zip, class folders of pictures, and cifar100-train.zip and
cifar100-test.zip for the studies that name them. Every distillation that is done leaves a small file in
`experiments/results/`, and tables are made from these files alone. With the same settings and versions of the stages a
distillation is not run again, on any machine. The working folder can be deleted. All work has the lowest priority.
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
import threading
import time
from collections.abc import Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Annotated, Any

import typer
import yaml
from archives import FOLDER, named_by, place
from tables import Done, by_setting_and_method, overview, points
from teachers import export_teacher, link_teachers, teacher_digest, teacher_of

from limbeck.interrupt import Stopped
from limbeck.runner import Run
from limbeck.spec import Distillation, Metadata
from limbeck.specfile import read_spec
from limbeck.stages.graph import ENCODER_VERSION, EXPERT_VERSION, INGEST_VERSION, SCORES_VERSION, STAGES
from limbeck.stages.task import Workshop
from limbeck.store import json_digest
from limbeck.summary import Summary
from limbeck.workplace import workshop

HERE = Path(__file__).parent
RESULTS = HERE / "results"
RIVALS = ["start", "random", "full"]
VERSIONS = {stage.name: stage.version for stage in STAGES} | {
    "ingest": INGEST_VERSION,
    "expert": EXPERT_VERSION,
    "scores": SCORES_VERSION,
    "encoder": ENCODER_VERSION,
}
_STOPPED, _UNTIL = 3, "LIMBECK_STUDY_UNTIL"  # an exit code; a variable with the time at which work stops
_WAIT = 3600.0  # seconds for a result that another variant is making
_LOWEST, _PRIORITY = 19, "LIMBECK_STUDY_NICE"  # priority, and a variable with another

Minutes = Annotated[float, typer.Option(help="Stop after so long; the same command resumes.")]
Data = Annotated[Path, typer.Option(help="Folder with cifar10-train.zip, cifar10-test.zip, and cifar100's.")]
Work = Annotated[Path, typer.Option(help="Working folder.")]

app = typer.Typer(help=__doc__, no_args_is_help=True, add_completion=False)


@dataclass(frozen=True)
class Variant:
    """One row of a study.

    Attributes:
        name: in the table.
        axis: what it varies.
        changes: fields below spec and their values.
        baselines: whether it is judged beside rivals of its own, or beside those of the first variant.
        distillations: how many times it is distilled, each time with another `distill.seed`.
    """

    name: str
    axis: str
    changes: Mapping[str, Any]
    baselines: bool = False
    distillations: int = 1

    def overrides(self) -> list[str]:
        """As `limbeck run --set` takes them."""
        changes = dict(self.changes)
        if self.baselines and "evaluate.baselines" not in changes:
            changes["evaluate.baselines"] = RIVALS
        return _assignments(changes)

    def run_name(self, index: int) -> str:
        """The name of one of its distillations as a DNS label."""
        return run_name(self.name) + (f"-distillation-{index}" if index else "")


@dataclass(frozen=True)
class Study:
    """A base spec and its variants."""

    name: str
    base: Path
    variants: list[Variant]

    @classmethod
    def read(cls, name: str) -> Study:
        """From `experiments/NAME.yaml`."""
        document = yaml.safe_load((HERE / f"{name}.yaml").read_text())
        variants = [
            Variant(
                entry["name"],
                entry["axis"],
                entry["set"],
                entry.get("baselines", False),
                entry.get("distillations", 1),
            )
            for entry in document["variants"]
        ]
        return cls(name, HERE / document["base"], variants)

    def variant(self, name: str) -> Variant:
        """The variant of that name."""
        return next(entry for entry in self.variants if entry.name == name)

    def distillation(self, variant: Variant, index: int = 0) -> Distillation:
        """The spec of one distillation of a variant, under a name of its own.

        Those after the first have another `distill.seed`; of the rivals they have `start` alone, as the others are the
        same for all.
        """
        overrides = variant.overrides()
        found = read_spec(self.base, overrides).distillation
        if index:
            kept = [method for method in found.spec.evaluate.baselines if method == "start"]
            changes = {"distill.seed": found.spec.distillation_seed + index, "evaluate.baselines": kept}
            named = {entry.split("=", 1)[0] for entry in _assignments(changes)}
            overrides = [entry for entry in overrides if entry.split("=", 1)[0] not in named]
            found = read_spec(self.base, [*overrides, *_assignments(changes)]).distillation
        return found.model_copy(update={"metadata": Metadata(name=variant.run_name(index))})

    def result(self, variant: Variant, index: int = 0) -> Path:
        """Where a distillation's figures are kept: the name tells settings and versions."""
        base = yaml.safe_load(self.base.read_text())
        origin = {"base": base["spec"], "set": variant.overrides(), "versions": VERSIONS}
        teacher = teacher_of(self.distillation(variant).spec)
        if teacher is not None:
            origin["teacher"] = teacher_digest(RESULTS / teacher)
        digest = json_digest(origin)
        suffix = f"-{index}" if index else ""
        return RESULTS / self.name / f"{run_name(variant.name)}-{digest[:12]}{suffix}.json"

    def left(self, only: Sequence[str] = ()) -> list[tuple[Variant, int]]:
        """The distillations that are not done, first ones first."""
        return [
            (variant, index)
            for index in range(max(variant.distillations for variant in self.variants))
            for variant in self.variants
            if index < variant.distillations
            and not self.result(variant, index).exists()
            and (not only or variant.name.startswith(tuple(only)))
        ]

    def done(self, variant: Variant) -> Done | None:
        """The figures of a variant; None where the first distillation, which has the rivals, is not done."""
        files = [self.result(variant, index) for index in range(variant.distillations)]
        if not files[0].exists():
            return None
        return Done([json.loads(file.read_text()) for file in files if file.exists()])


def _assignments(changes: Mapping[str, Any]) -> list[str]:
    return [f"{field}={json.dumps(value)}" for field, value in changes.items()]


def run_name(name: str) -> str:
    """A variant's name as a DNS label."""
    return "".join(c if c.isalnum() else "-" for c in name.lower()).strip("-")


@app.command()
def run(
    name: Annotated[str, typer.Argument(help="The study: a file NAME.yaml beside this one.")],
    data: Data,
    work: Work = HERE / "work",
    only: Annotated[list[str] | None, typer.Option(help="Only variants whose names begin so.")] = None,
    together: Annotated[int, typer.Option(help="Distillations run side by side, each on its share of cores.")] = 1,
    minutes: Minutes = 1e6,
) -> None:
    """Run what is not done yet."""
    until = time.time() + 60.0 * minutes
    study = Study.read(name)
    specs = [study.distillation(variant).spec for variant in study.variants]
    place(named_by(specs), data.resolve(), work / FOLDER)
    link_teachers(specs, RESULTS, work)
    left = study.left(only or ())
    total = sum(variant.distillations for variant in study.variants)
    print(f"{len(left)} of {total} distillations are to be run", flush=True)  # noqa: T201
    share = max(1, (os.cpu_count() or 1) // together)
    try:
        if left:
            call(work, share, until, "prepare", name, *dict.fromkeys(variant.name for variant, _ in left))
        with ThreadPoolExecutor(together) as pool:
            under_way = [pool.submit(finish, study, variant, index, work, share, until) for variant, index in left]
            try:
                for done in under_way:
                    done.result()
            finally:
                pool.shutdown(cancel_futures=True)  # where one was stopped or has failed, no other begins
    except (Stopped, KeyboardInterrupt):
        print("stopped; the same command resumes", flush=True)  # noqa: T201
    if study.done(study.variants[0]) is not None:
        table(name)


@app.command()
def table(name: Annotated[str, typer.Argument(help="The study.")]) -> None:
    """Write NAME.md from the results that are there."""
    study = Study.read(name)
    done = [study.done(variant) for variant in study.variants]
    base = done[0]
    if base is None:
        raise SystemExit(f"{study.variants[0].name} is not done yet, which all others are compared with")
    rows = [(variant.axis, variant.name, found) for variant, found in zip(study.variants, done, strict=True)]
    text = f"""# {name}

Made by `python experiments/study.py table {name}`. Accuracies are in percent, mean and deviation over the evaluation
seeds; [docs/evaluation.md](../docs/evaluation.md) has the protocol. Differences are in points, mean over all settings,
with 95 % intervals over seeds, and over distillations where there are several: the luck of a single one is in none.

{overview(rows, base)}
Each method in each setting, at the rate and the steps that were chosen for it on held-out labels:

{by_setting_and_method([(row, found) for _, row, found in rows if found is not None], base)}"""
    (HERE / f"{name}.md").write_text(text)


@app.command()
def teacher(
    name: Annotated[str, typer.Argument(help="A spec: a file NAME.yaml beside this one.")],
    data: Data,
    work: Work = HERE / "work",
    weights: Annotated[bool, typer.Option(help="Write the teacher's weights, not its targets.")] = False,
    minutes: Minutes = 1e6,
) -> None:
    """Train a spec's teacher, and write its targets and its probe figures to results/NAME."""
    spec = read_spec(HERE / f"{name}.yaml", []).distillation.spec
    place(named_by([spec]), data.resolve(), work / FOLDER)
    try:
        until, options = time.time() + 60.0 * minutes, ["--weights"] if weights else []
        call(work, os.cpu_count() or 1, until, "export", name, *options)
    except (Stopped, KeyboardInterrupt):
        print("stopped; the same command resumes", flush=True)  # noqa: T201


@app.command(hidden=True)
def export(name: str, weights: bool = False) -> None:
    """Do the work of `teacher`, in this folder."""
    distillation = read_spec(HERE / f"{name}.yaml", []).distillation
    with timed_workshop(distillation) as shop:
        run = Run(distillation, shop)
        for stage in ("ingest", "teacher", "targets"):
            run.stage(stage)
        export_teacher(distillation.spec, shop, run.results, RESULTS / name, weights=weights)


@app.command(hidden=True)
def prepare(name: str, variants: list[str]) -> None:
    """Make, in this folder, what variants share, one after another: all up to the start of distill."""
    study = Study.read(name)
    for variant in study.variants:
        if variant.name in variants:
            distillation = study.distillation(variant)
            with timed_workshop(distillation) as shop:
                for stage in ("ingest", "teacher", "targets", "trajectories", "select"):
                    Run(distillation, shop).stage(stage)


@app.command(hidden=True)
def one(name: str, variant: str, index: int) -> None:
    """Run one distillation of a variant in this folder."""
    study = Study.read(name)
    distillation = study.distillation(study.variant(variant), index)
    with timed_workshop(distillation) as shop:
        Run(distillation, shop).all()


def finish(study: Study, variant: Variant, index: int, work: Path, threads: int, until: float) -> None:
    """Run one distillation of a variant to its end and keep its figures.

    It takes what a task of the pool needs.
    """
    call(work, threads, until, "one", study.name, variant.name, str(index))
    folder = work / "results" / "runs" / variant.run_name(index)
    summary = Summary.model_validate_json((folder / "summary.json").read_text())
    figures = {
        "variant": variant.name,
        "axis": variant.axis,
        "set": dict(variant.changes),
        "distillation": index,
        "accuracies": [entry.model_dump(mode="json", by_alias=True) for entry in summary.accuracies],
        "matchingLoss": summary.distilled.matching_loss_last,
        "seconds": {stage.name: stage.seconds for stage in summary.stages},
        "limbeck": summary.limbeck_version,
        "versions": VERSIONS,
    }
    target = study.result(variant, index)
    target.parent.mkdir(parents=True, exist_ok=True)
    partial = target.with_suffix(".partial")
    partial.write_text(json.dumps(figures, indent=1) + "\n")
    partial.replace(target)
    done, base = study.done(variant), study.done(study.variants[0])
    above = done.above("random", base) if done is not None and base is not None else None
    print(f"{variant.name}, distillation {index}: above random {points(above) or 'unknown'}", flush=True)  # noqa: T201


def call(work: Path, threads: int, until: float, *command: str) -> None:
    """A command of this script, in the working folder, in a process of its own; its output goes to a log.

    Raises:
        Stopped: it was stopped, or is out of time.
    """
    environment = {**os.environ, "OMP_NUM_THREADS": str(threads), _UNTIL: str(until)}
    log = work / "logs" / f"{'-'.join(run_name(part) for part in command[:3])}.log"
    log.parent.mkdir(parents=True, exist_ok=True)
    with log.open("a") as output:
        ended = subprocess.run(  # noqa: S603 - this script itself
            [sys.executable, str(Path(__file__).resolve()), *command],
            cwd=work,
            env=environment,
            stdout=output,
            stderr=subprocess.STDOUT,
        )
    if ended.returncode == _STOPPED:
        raise Stopped
    if ended.returncode:
        raise SystemExit(f"{' '.join(command)} failed; see {log}")


@contextmanager
def timed_workshop(distillation: Distillation) -> Iterator[Workshop]:
    """The workshop of a spec, at the lowest priority, which is also requested to stop when its time is up."""
    os.nice(int(os.environ.get(_PRIORITY, _LOWEST)))
    with workshop(distillation.spec) as shop:
        left = max(0.0, float(os.environ[_UNTIL]) - time.time())
        timer = threading.Timer(left, setattr, (shop.stop, "requested", True))
        timer.daemon = True
        timer.start()
        try:
            yield replace(shop, patience=_WAIT)
        except Stopped:
            raise SystemExit(_STOPPED) from None
        finally:
            timer.cancel()


if __name__ == "__main__":
    app()
