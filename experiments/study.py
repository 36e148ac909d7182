"""The recipe study: variants of one spec, each run and judged, and one table of them all.

    python experiments/study.py run study --data DATA     # goes on where it was cut; Ctrl-C stops it
    python experiments/study.py table study               # experiments/study.md, from what is done

DATA holds cifar10-train.zip and cifar10-test.zip, class folders of pictures. Every variant that is done leaves a small
file in `experiments/results/`, which is all that the table is made from; with the same settings it is not run again, on
any machine. What the runs themselves leave lies in the working folder and can be deleted.
"""

from __future__ import annotations

import hashlib
import json
import os
import statistics
import subprocess
import sys
import threading
import time
import zipfile
from collections.abc import Iterator, Mapping
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any

import typer
import yaml

from limbeck.evaluation.scores import recovered_gaps
from limbeck.interrupt import Stopped
from limbeck.runner import Run
from limbeck.spec import Distillation, Metadata
from limbeck.specfile import read_spec
from limbeck.stages.task import Workshop
from limbeck.store import json_digest
from limbeck.summary import Accuracy, Summary
from limbeck.workplace import workshop

HERE = Path(__file__).parent
RESULTS = HERE / "results"
RIVALS = ["random", "full"]
_STOPPED, _UNTIL = 3, "LIMBECK_STUDY_UNTIL"  # an exit code; a variable with the time at which work stops
_HELD_OUT = 5  # every fifth training image, by the checksum of its name, is for validation alone

app = typer.Typer(help=__doc__, no_args_is_help=True, add_completion=False)


@dataclass(frozen=True)
class Variant:
    """One row of a study."""

    name: str
    axis: str
    changes: Mapping[str, Any]
    baselines: bool  # whether it is judged beside rivals of its own, or beside those of the base

    def overrides(self) -> list[str]:
        """As `limbeck run --set` takes them."""
        changes = dict(self.changes)
        if self.baselines and "evaluate.baselines" not in changes:
            changes["evaluate.baselines"] = RIVALS
        return [f"{field}={json.dumps(value)}" for field, value in changes.items()]


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
            Variant(entry["name"], entry["axis"], entry["set"], entry.get("baselines", False))
            for entry in document["variants"]
        ]
        return cls(name, HERE / document["base"], variants)

    def distillation(self, variant: Variant) -> Distillation:
        """The spec of a variant, under a name of its own."""
        found = read_spec(self.base, variant.overrides()).distillation
        return found.model_copy(update={"metadata": Metadata(name=run_name(variant.name))})

    def result(self, variant: Variant) -> Path:
        """Where its figures are kept: the name tells the settings."""
        base = yaml.safe_load(self.base.read_text())
        digest = json_digest({"base": base["spec"], "set": variant.overrides()})
        return RESULTS / self.name / f"{run_name(variant.name)}-{digest[:12]}.json"


@app.command()
def run(
    name: Annotated[str, typer.Argument(help="The study: a file NAME.yaml beside this one.")],
    data: Annotated[Path, typer.Option(help="Folder with cifar10-train.zip and cifar10-test.zip.")],
    work: Annotated[Path, typer.Option(help="Working folder.")] = HERE / "work",
    only: Annotated[list[str] | None, typer.Option(help="Only variants whose names begin so.")] = None,
    together: Annotated[int, typer.Option(help="Variants that are run side by side, each on its share of cores.")] = 1,
    minutes: Annotated[float, typer.Option(help="Stop after so long; the same command goes on from there.")] = 1e6,
) -> None:
    """Run what is not done yet."""
    until = time.time() + 60.0 * minutes
    study = Study.read(name)
    place_data(data.resolve(), work / "data")
    left = [
        variant
        for variant in study.variants
        if not study.result(variant).exists() and (not only or variant.name.startswith(tuple(only)))
    ]
    print(f"{len(left)} of {len(study.variants)} variants are to be run", flush=True)  # noqa: T201
    share = max(1, (os.cpu_count() or 1) // together)
    try:
        if left:
            call(work, share, until, "prepare", name, *(variant.name for variant in left))
        with ThreadPoolExecutor(together) as pool:
            under_way = [pool.submit(finish, study, variant, work, share, until) for variant in left]
            try:
                for done in under_way:
                    done.result()
            finally:
                pool.shutdown(cancel_futures=True)  # where one was stopped or has failed, no other begins
    except (Stopped, KeyboardInterrupt):
        print("stopped; the same command goes on from there", flush=True)  # noqa: T201
    if study.result(study.variants[0]).exists():
        table(name)


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


def finish(study: Study, variant: Variant, work: Path, threads: int, until: float) -> None:
    """Run one variant to its end and keep its figures."""
    call(work, threads, until, "one", study.name, variant.name)
    summary = Summary.model_validate_json(
        (work / "results" / "runs" / run_name(variant.name) / "summary.json").read_text()
    )
    figures = {
        "variant": variant.name,
        "axis": variant.axis,
        "set": dict(variant.changes),
        "accuracies": [entry.model_dump(mode="json", by_alias=True) for entry in summary.accuracies],
        "matchingLoss": summary.distilled.matching_loss_last,
        "seconds": {stage.name: stage.seconds for stage in summary.stages},
        "limbeck": summary.limbeck_version,
    }
    target = study.result(variant)
    target.parent.mkdir(parents=True, exist_ok=True)
    partial = target.with_suffix(".partial")
    partial.write_text(json.dumps(figures, indent=1) + "\n")
    partial.replace(target)
    print(f"{variant.name}: {', '.join(cells(figures, figures))}", flush=True)  # noqa: T201


def run_name(name: str) -> str:
    """A variant's name as a DNS label."""
    return "".join(c if c.isalnum() else "-" for c in name.lower()).strip("-")


def call(work: Path, threads: int, until: float, *command: str) -> None:
    """A command of this script, in the working folder, in a process of its own; what it says goes to a log.

    Raises:
        Stopped: it was stopped, or is out of time.
    """
    environment = {**os.environ, "OMP_NUM_THREADS": str(threads), _UNTIL: str(until)}
    log = work / "logs" / f"{command[0]}-{run_name(command[-1])}.log"
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
    """The workshop of a spec, which is also asked to stop when its time is up."""
    with workshop(distillation.spec) as shop:
        left = max(0.0, float(os.environ[_UNTIL]) - time.time())
        timer = threading.Timer(left, setattr, (shop.stop, "requested", True))
        timer.daemon = True
        timer.start()
        try:
            yield shop
        except Stopped:
            raise SystemExit(_STOPPED) from None
        finally:
            timer.cancel()


@app.command(hidden=True)
def one(name: str, variant: str) -> None:
    """Run one variant in this folder."""
    study = Study.read(name)
    distillation = study.distillation(next(entry for entry in study.variants if entry.name == variant))
    with timed_workshop(distillation) as shop:
        Run(distillation, shop).all()


def place_data(data: Path, folder: Path) -> None:
    """The archives, and the training images in two parts: one to develop on, one to validate on."""
    folder.mkdir(parents=True, exist_ok=True)
    for archive in ("cifar10-train.zip", "cifar10-test.zip"):
        if not (data / archive).is_file():
            raise SystemExit(f"--data: {data} has no {archive}")
        if not (folder / archive).exists():
            (folder / archive).symlink_to(data / archive)
    parts = {False: folder / "development.zip", True: folder / "validation.zip"}
    if all(part.exists() for part in parts.values()):
        return
    partial = {held: part.with_suffix(".partial") for held, part in parts.items()}
    with (
        zipfile.ZipFile(folder / "cifar10-train.zip") as whole,
        zipfile.ZipFile(partial[False], "w") as development,
        zipfile.ZipFile(partial[True], "w") as validation,
    ):
        for entry in whole.infolist():
            if not entry.is_dir():
                held = hashlib.sha256(entry.filename.encode()).digest()[0] % _HELD_OUT == 0
                (validation if held else development).writestr(entry.filename, whole.read(entry))
    for held, part in parts.items():
        partial[held].replace(part)


@app.command()
def table(name: Annotated[str, typer.Argument(help="The study.")]) -> None:
    """Write NAME.md from the results that are there."""
    study = Study.read(name)
    done = {v.name: json.loads(study.result(v).read_text()) for v in study.variants if study.result(v).exists()}
    base = done.get(study.variants[0].name)
    if base is None:
        raise SystemExit(f"{study.variants[0].name} is not done yet, which all others are compared with")
    head = ["axis", "variant", *columns(base), "above the first", "matching loss", "distill, s"]
    lines = [f"| {' | '.join(head)} |", f"| {' | '.join(['---'] * 2 + ['---:'] * (len(head) - 2))} |"]
    for variant in study.variants:
        figures = done.get(variant.name)
        row = [variant.axis, variant.name]
        if figures is None:
            row += ["not run"] + [""] * (len(head) - 3)
        else:
            row += [*cells(figures, base), "" if figures is base else above(figures, base)]
            row += [f"{figures['matchingLoss']:.3f}", f"{figures['seconds'].get('distill', 0):.0f}"]
        lines.append(f"| {' | '.join(row)} |")
        if figures is not None and (variant.baselines or figures is base):
            lines += [f"| | {text} |" for text in rivals(figures, len(head))]
    (HERE / f"{name}.md").write_text("\n".join(lines) + "\n")


def columns(figures: Mapping[str, Any]) -> list[str]:
    """Accuracy and gap of every setting; the task is named where there are several."""
    entries = [entry for entry in figures["accuracies"] if entry["method"] == "distilled"]
    several = len({entry["task"] for entry in entries}) > 1
    return [
        part
        for entry in entries
        for part in (
            f"{entry['task'] + ', ' if several else ''}{entry['architecture']} {100 * entry['labelFraction']:g} %",
            "gap",
        )
    ]


def cells(figures: Mapping[str, Any], base: Mapping[str, Any]) -> list[str]:
    """Accuracy in percent and recovered gap, setting by setting; the gap beside its own rivals, or the base's."""
    entries = [Accuracy.model_validate(entry) for entry in (*base["accuracies"], *figures["accuracies"])]
    gaps = {(gap.task, gap.architecture, gap.label_fraction): gap.value for gap in recovered_gaps(entries)}
    found = []
    for entry in figures["accuracies"]:
        if entry["method"] == "distilled":
            gap = gaps.get((entry["task"], entry["architecture"], entry["labelFraction"]))
            found += [percent(entry), "" if gap is None else f"{gap:.2f}"]
    return found


def above(figures: Mapping[str, Any], base: Mapping[str, Any]) -> str:
    """Points that a distilled set is above the base's, with the standard error.

    Over the evaluation seeds, each with the same labels and initial weights in both, of the mean over all settings.
    """
    paired: dict[int, list[float]] = {}
    theirs = {setting_of(entry): entry for entry in base["accuracies"] if entry["method"] == "distilled"}
    for entry in figures["accuracies"]:
        other = theirs.get(setting_of(entry)) if entry["method"] == "distilled" else None
        values = dict(zip(other["seeds"], other["values"], strict=True)) if other else {}
        for seed, value in zip(entry["seeds"], entry["values"], strict=True):
            if seed in values:
                paired.setdefault(seed, []).append(100 * (value - values[seed]))
    means = [statistics.fmean(values) for values in paired.values()]
    if len(means) < 2:
        return ""
    return f"{statistics.fmean(means):+.2f} ± {statistics.stdev(means) / len(means) ** 0.5:.2f}"


def setting_of(entry: Mapping[str, Any]) -> tuple[Any, ...]:
    """What an accuracy is one of, but for its method."""
    return entry["task"], entry["architecture"], entry["labelFraction"]


def rivals(figures: Mapping[str, Any], width: int) -> list[str]:
    """Rows of what stands beside a distilled set."""
    rows: dict[str, list[str]] = {}
    for entry in figures["accuracies"]:
        if entry["method"] != "distilled":
            rows.setdefault(entry["method"], []).extend([percent(entry), ""])
    return [" | ".join([f"*{method}*", *row] + [""] * (width - 2 - len(row))) for method, row in rows.items()]


def percent(entry: Mapping[str, Any]) -> str:
    """Mean and deviation over the seeds."""
    return f"{100 * entry['mean']:.2f} ± {100 * entry['deviation']:.2f}"


if __name__ == "__main__":
    app()
