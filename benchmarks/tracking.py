"""What tracking costs: the demo with and without it, in turn, as whole commands."""

from __future__ import annotations

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


def measure(folder: Path, overrides: list[str]) -> float:
    """Seconds from the command's start to its end, with nothing there beforehand."""
    shutil.rmtree(folder, ignore_errors=True)
    folder.mkdir()
    options = [part for override in ["output.uri=out", *overrides] for part in ("--set", override)]
    command = [sys.executable, "-m", "limbeck.cli", "run", str(EXAMPLE.resolve()), *options]
    started = time.perf_counter()
    subprocess.run(command, cwd=folder, check=True, capture_output=True)  # noqa: S603 - ours
    return time.perf_counter() - started


def main(repetitions: Annotated[int, typer.Option(help="Of each way, in turn.")] = 3) -> None:
    """Wall time of the demo."""
    found: dict[str, list[float]] = {way: [] for way in WAYS}
    with tempfile.TemporaryDirectory() as temporary:
        for repetition in range(repetitions):
            for way, overrides in WAYS.items():
                found[way].append(measure(Path(temporary) / "run", overrides))
                sys.stderr.write(f"{repetition + 1}/{repetitions} {way}: {found[way][-1]:.1f} s\n")
    table = Table(title="the demo")
    for column in ("way", "median, s", "fastest, s", "of without"):
        table.add_column(column, justify="left" if column == "way" else "right")
    base = statistics.median(found["without"])
    for way, seconds in found.items():
        middle = statistics.median(seconds)
        table.add_row(way, f"{middle:.1f}", f"{min(seconds):.1f}", f"{middle / base:.3f}")
    Console().print(table)


if __name__ == "__main__":
    typer.run(main)
