"""Fan-out: the same experts without Ray and by Ray workers on this machine; what each expert costs more."""

from __future__ import annotations

import json
import re
import shutil
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Mapping
from dataclasses import dataclass
from datetime import datetime
from pathlib import Path
from typing import Annotated, Any

import typer
import yaml
from rich.console import Console
from rich.table import Table
from side_by_side import machine

WAYS: Mapping[str, tuple[str, ...]] = {
    "no Ray, 1 thread": (),
    "no Ray, 2 threads": ("--set", "trajectories.threads=2"),
    "1 worker": ("--workers", "1"),
    "2 workers": ("--workers", "2"),
}


@dataclass(frozen=True)
class Measured:
    """One run of the stage, in seconds."""

    whole: float  # the command
    training: float  # from the first expert's start to the last one's end, in the process that trains
    starting: float  # until the first worker begins
    overhead: float  # of an expert, beside its own work and its commit


def spec(output: Path, experts: int, epochs: int, width: int, size: int) -> dict[str, Any]:
    """Students on the digits, enlarged; the teacher hardly matters."""
    return {
        "apiVersion": "limbeck.dev/v1alpha1",
        "kind": "Distillation",
        "metadata": {"name": "fanout"},
        "spec": {
            "source": {"uri": "sklearn:digits#train", "imageSize": size},
            "output": {"uri": str(output)},
            "tracking": {"enabled": False},
            "teacher": {"architecture": "convnet", "width": 16, "epochs": 1},
            "student": {"width": width},
            "trajectories": {"experts": experts, "epochs": epochs, "threads": 1},
        },
    }


def run(folder: Path, *arguments: str) -> float:
    """Run limbeck; how long it took."""
    started = time.monotonic()
    command = [sys.executable, "-m", "limbeck.cli", *arguments]
    done = subprocess.run(command, cwd=folder, capture_output=True, text=True, check=False)  # noqa: S603 - ours
    if done.returncode:
        raise SystemExit(done.stderr)
    return time.monotonic() - started


def measure(folder: Path, way: str) -> Measured:
    """Train all experts anew, this way."""
    output = folder / "out"
    for stage in ("expert", "trajectories", "logs", "work"):
        shutil.rmtree(output / stage, ignore_errors=True)
    began = datetime.now()
    whole = run(folder, "stage", "trajectories", "spec.yaml", *WAYS[way])
    manifests = [json.loads(path.read_text()) for path in output.glob("expert/*/manifest.json")]
    work = [manifest["made"]["seconds"] for manifest in manifests]
    if "--workers" not in WAYS[way]:
        (stage,) = [json.loads(path.read_text()) for path in output.glob("trajectories/*/manifest.json")]
        training = stage["made"]["seconds"]
        return Measured(whole, training, whole - training, (training - sum(work)) / len(work))
    first, last, busy = [], [], 0.0
    for log in output.glob("logs/trajectories/worker-*.log"):
        lines = log.read_text().splitlines()
        times = [datetime.strptime(line[:23], "%Y-%m-%d %H:%M:%S,%f") for line in lines if re.match(r"\d{4}-", line)]
        first.append(times[0])
        last.append(times[-1])
        busy += (times[-1] - times[0]).total_seconds()
    training = (max(last) - min(first)).total_seconds()
    return Measured(whole, training, (min(first) - began).total_seconds(), (busy - sum(work)) / len(work))


def main(
    experts: Annotated[int, typer.Option(help="How many.")] = 8,
    epochs: Annotated[int, typer.Option(help="Epochs of each.")] = 8,
    width: Annotated[int, typer.Option(help="Channels of the ConvNet.")] = 32,
    image_size: Annotated[int, typer.Option(help="Side of an image.")] = 16,
    repetitions: Annotated[int, typer.Option(help="Timed repetitions of each way, in turn.")] = 3,
) -> None:
    """Wall time of the stage trajectories, with and without Ray."""
    with tempfile.TemporaryDirectory() as temporary:
        folder = Path(temporary)
        (folder / "spec.yaml").write_text(yaml.safe_dump(spec(folder / "out", experts, epochs, width, image_size)))
        for stage in ("ingest", "teacher", "targets"):
            run(folder, "stage", stage, "spec.yaml")
        found: dict[str, list[Measured]] = {way: [] for way in WAYS}
        for repetition in range(repetitions):
            for way in WAYS:
                found[way].append(measure(folder, way))
                sys.stderr.write(f"{repetition + 1}/{repetitions} {way}: {found[way][-1].whole:.1f} s\n")
    table = Table(
        title=f"{experts} experts, {epochs} epochs of 1,437 images at {image_size}x{image_size}, width {width}"
    )
    for column in ("way", "whole stage, s", "start, s", "training, s", "of no Ray", "overhead an expert, s"):
        table.add_column(column, justify="left" if column == "way" else "right")
    middle = {
        way: [statistics.median(getattr(m, field) for m in runs) for field in Measured.__dataclass_fields__]
        for way, runs in found.items()
    }
    base = middle["no Ray, 1 thread"][1]
    for way, (whole, training, starting, overhead) in middle.items():
        table.add_row(
            way, f"{whole:.1f}", f"{starting:.1f}", f"{training:.1f}", f"{training / base:.2f}", f"{overhead:.3f}"
        )
    console = Console(width=140, highlight=False)
    console.print(table)
    console.print(f"{machine()}; medians of {repetitions} repetitions in turn")


if __name__ == "__main__":
    typer.run(main)
