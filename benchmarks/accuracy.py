"""Accuracy: the demo distilled by the plain engine and by limbeck's, judged by the same evaluation.

All share the teacher, the experts and the start; only the way that the matching gradient is computed differs.
"""

from __future__ import annotations

import shutil
import subprocess
import sys
import tempfile
from collections.abc import Sequence
from pathlib import Path
from typing import Annotated

import typer
from plain import unrolled
from rich.console import Console
from rich.table import Table
from side_by_side import machine
from torch import Tensor

from limbeck.matching.matcher import Drawn, Matched, Matcher
from limbeck.memory import keep_freed_memory
from limbeck.progress import TerminalProgress
from limbeck.runner import Run
from limbeck.runs import read_summary
from limbeck.specfile import read_spec
from limbeck.stages import distill
from limbeck.stages.task import Workshop, make_deterministic, pick_device
from limbeck.store import Store

ENGINES = {
    "limbeck": [],
    "plain": [],
    "compiled": ["execution.engine.compile=always"],
    "bfloat16": ["distill.precision=bfloat16"],
}
DEMO = Path(distill.__file__).parents[1] / "examples" / "digits.yaml"


class PlainMatcher(Matcher):
    """Keeps the whole unrolled graph and walks it once; one pair an iteration, as the demo has."""

    def match(self, drawn: Sequence[Drawn], images: Tensor, targets: Tensor, rate: Tensor) -> Matched:
        """As `Matcher.match`, of one pair."""
        start, goal, batches, _ = self._stack(drawn[:1])

        def loss(theta: Tensor, x: Tensor, y: Tensor) -> Tensor:
            return self._steps._loss(theta[None], x[None], y[None])[0]

        own = [None if batch is None else batch[0] for batch in batches]
        value, gradient = unrolled(loss, start[0], goal[0], images, targets, rate, own, self._inner)
        return Matched(value.item(), gradient)


def run(engine: str, output: Path, overrides: list[str]) -> None:
    """One demo, in this process."""
    make_deterministic()
    keep_freed_memory()
    if engine == "plain":
        distill.Matcher = PlainMatcher  # type: ignore[misc]
    distillation = read_spec(DEMO, [f"output.uri={output}", *ENGINES[engine], *overrides]).distillation
    Run(distillation, Workshop(Store(str(output)), pick_device(), TerminalProgress())).all()


def main(
    engines: Annotated[str, typer.Option(help=f"Of {', '.join(ENGINES)}.")] = ",".join(ENGINES),
    overrides: Annotated[list[str] | None, typer.Option("--set", help="As of limbeck run.")] = None,
    output: Annotated[Path | None, typer.Option(help="Keep the results here; by default they are not kept.")] = None,
    worker: Annotated[str | None, typer.Option(hidden=True)] = None,
) -> None:
    """Recovered gap and accuracy of the demo, engine by engine."""
    unknown = [name for name in engines.split(",") if name not in ENGINES]
    if unknown:
        raise SystemExit(f"--engines: found {', '.join(unknown)}; allowed: {', '.join(ENGINES)}")
    if worker is not None:
        assert output is not None
        run(worker, output, overrides or [])
        return
    with tempfile.TemporaryDirectory() as scratch:
        folder, first = output or Path(scratch), None
        for engine in engines.split(","):
            here = folder / engine
            if first is not None and not here.exists():
                ignored = shutil.ignore_patterns("distill", "evaluate", "register", "runs")
                shutil.copytree(first, here, ignore=ignored)
            first = first or here
            sets = [f"--set={override}" for override in overrides or []]
            command = [sys.executable, __file__, f"--output={here}", "--worker", engine, *sets]
            subprocess.run(command, check=True)  # noqa: S603 - this script itself
        show(folder, engines.split(","))


def show(folder: Path, engines: list[str]) -> None:
    """The table."""
    table = Table(title="the demo: recovered gap (accuracy of the distilled set, %) by share of the labels")
    table.add_column("engine")
    rows = []
    for engine in engines:
        summary = read_summary(Store(str(folder / engine)), None)
        accuracies = {a.label_fraction: a.mean for a in summary.accuracies if a.method == "distilled"}
        cells = {
            gap.label_fraction: f"{'-' if gap.value is None else f'{gap.value:.3f}'} "
            f"({100 * accuracies[gap.label_fraction]:.2f})"
            for gap in summary.recovered_gaps
        }
        seconds = next(stage.seconds for stage in summary.stages if stage.name == "distill")
        loss = summary.distilled.matching_loss_last
        rows.append((engine, *cells.values(), f"{loss:.5f}", f"{seconds:.1f} s"))
    for fraction in cells:
        table.add_column(f"{fraction:.4g}", justify="right")
    for heading in ("matching loss", "distill"):
        table.add_column(heading, justify="right")
    for row in rows:
        table.add_row(*row)
    console = Console(width=140, highlight=False)
    console.print(table)
    console.print(machine())


if __name__ == "__main__":
    typer.run(main)
