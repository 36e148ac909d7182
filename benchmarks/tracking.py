"""What tracking costs: the demo with and without it, in turn, as whole commands."""

from __future__ import annotations

import json
import resource
import shutil
import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Annotated

import typer
from rich.console import Console
from rich.table import Table

EXAMPLE = Path(__file__).parent.parent / "examples" / "digits.yaml"
WAYS = {"without": ["tracking.enabled=false", "registry.name=null"], "tracked, registered": []}


def measure(folder: Path, overrides: list[str]) -> dict[str, float]:
    """Seconds from the command's start to its end, with nothing there before, of its stages, and of the processor."""
    shutil.rmtree(folder, ignore_errors=True)
    folder.mkdir()
    options = [part for override in ["output.uri=out", *overrides] for part in ("--set", override)]
    command = [sys.executable, "-m", "limbeck.cli", "run", str(EXAMPLE.resolve()), *options]
    started, before = time.perf_counter(), resource.getrusage(resource.RUSAGE_CHILDREN)
    subprocess.run(command, cwd=folder, check=True, capture_output=True)  # noqa: S603 - ours
    elapsed, after = time.perf_counter() - started, resource.getrusage(resource.RUSAGE_CHILDREN)
    processor = after.ru_utime + after.ru_stime - before.ru_utime - before.ru_stime
    (summary,) = folder.glob("out/runs/*/summary.json")
    stages = {stage["name"]: stage["seconds"] for stage in json.loads(summary.read_text())["stages"]}
    long = {name: seconds for name, seconds in stages.items() if seconds >= 1}
    return {"all": elapsed, "processor": processor, **long, "between stages": elapsed - sum(stages.values())}


def main(repetitions: Annotated[int, typer.Option(help="Of each way, in turn.")] = 3) -> None:
    """Wall time of the demo."""
    found: dict[str, list[dict[str, float]]] = {way: [] for way in WAYS}
    with tempfile.TemporaryDirectory() as temporary:
        for repetition in range(repetitions):
            for way, overrides in WAYS.items():
                found[way].append(measure(Path(temporary) / "run", overrides))
                shown = ", ".join(f"{name} {seconds:.1f}" for name, seconds in found[way][-1].items())
                sys.stderr.write(f"{repetition + 1}/{repetitions} {way}: {shown}\n")
    table = Table(title="the demo, medians in seconds")
    for column in ("", *WAYS, "ratio"):
        table.add_column(column, justify="right" if column else "left")
    for name in found["without"][0]:
        without, tracked = (statistics.median(run[name] for run in found[way]) for way in WAYS)
        table.add_row(name, f"{without:.1f}", f"{tracked:.1f}", f"{tracked / without:.3f}")
    Console().print(table)


if __name__ == "__main__":
    typer.run(main)
