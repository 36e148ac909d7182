"""What `limbeck run`, `demo` and `report` print of a run: its accuracies as tables, and where to look."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from rich.table import Table

    from limbeck.summary import Accuracy, Difference, RecoveredGap, Summary

PLAIN = str.maketrans({"\N{NO-BREAK SPACE}": " ", "\N{MINUS SIGN}": "-"})  # as typed, so that grep finds it


def print_summary(summary: Summary, output: str) -> None:
    """Print the accuracies as tables, the differences to the rivals, and where to look.

    Args:
        summary: Of the run.
        output: Folder or URL of the artifact store.
    """
    from rich.console import Console

    from limbeck.report import wording

    console = Console(highlight=False, soft_wrap=True)
    for table in _tables(summary):
        console.print(table)
    if not summary.accuracies:
        console.print("Nothing was evaluated: the spec has no evaluate.tasks.")
    difference = difference_line(summary)
    if difference:
        console.print(f"difference     {difference}", markup=False)
    size = "" if summary.distilled.bytes is None else f" ({wording.size(summary.distilled.bytes).translate(PLAIN)})"
    console.print(f"distilled set  {summary.distilled.path}{size}", markup=False)
    if summary.registered is not None:
        registered = summary.registered
        champion = ", the champion" if registered.champion else ""
        console.print(f"registered     {registered.name}, version {registered.version}{champion}", markup=False)
    console.print(f"report         {output.rstrip('/')}/runs/{summary.name}/{summary.links['report']}", markup=False)
    if "mlflowRun" in summary.links:
        console.print(f"in MLflow      {summary.links.get('mlflow', 'limbeck ui shows it')}", markup=False)


def difference_line(summary: Summary) -> str:
    """The distilled set's difference to its rivals as the mean over all settings, in plain characters.

    Empty where the summary holds none.
    """
    from limbeck.report.evaluation import RIVALS, overall

    return difference_words([d for d in (overall(summary, rival) for rival in RIVALS) if d is not None])


def difference_words(differences: Sequence[Difference]) -> str:
    """Differences over all settings in plain characters; empty where there is none."""
    from limbeck.report.wording import gain

    each = [f"to {d.against} {gain(d.mean, d.low, d.high)}" for d in differences]
    return f"{', '.join(each)}, over all settings".translate(PLAIN) if each else ""


def percent_of_labels(label_fraction: float) -> str:
    """A label fraction in plain characters: `1 %`."""
    from limbeck.report.wording import fraction

    return fraction(label_fraction).translate(PLAIN)


def steps_of(accuracy: Accuracy) -> str:
    """The chosen steps: `1,000`, `4,000↑` where the longest pre-training was the best, `-` where not counted."""
    from limbeck.report.evaluation import RISING, may_still_rise

    if accuracy.steps is None:
        return "-"
    return f"{accuracy.steps:,}{RISING if may_still_rise(accuracy) else ''}"


def _tables(summary: Summary) -> Iterator[Table]:
    """One table a task and architecture, and what its arrow means."""
    from rich.table import Table

    from limbeck.report.evaluation import RISING, may_still_rise

    for task, architecture in dict.fromkeys((a.task, a.architecture) for a in summary.accuracies):
        cells = [a for a in summary.accuracies if (a.task, a.architecture) == (task, architecture)]
        fractions = list(dict.fromkeys(cell.label_fraction for cell in cells))
        seeds = len(cells[0].seeds)
        table = Table(
            title=f"{task}, {architecture}: linear-probe accuracy in % by share of the labels, "
            f"mean ± deviation over {seeds} seed{'' if seeds == 1 else 's'}"
        )
        counted = any(cell.steps is not None for cell in cells)
        table.add_column("pre-trained on")
        for fraction in fractions:
            table.add_column(percent_of_labels(fraction), justify="right")
        if counted:
            table.add_column("after steps", justify="right")
        for method in dict.fromkeys(cell.method for cell in cells):
            row = {cell.label_fraction: cell for cell in cells if cell.method == method}
            shown = [_accuracy(row.get(fraction)) for fraction in fractions]
            steps = dict.fromkeys(steps_of(row[fraction]) for fraction in fractions if fraction in row)
            table.add_row(method, *shown, *([" / ".join(steps)] if counted else []))
        gaps = {g.label_fraction: g for g in summary.recovered_gaps if (g.task, g.architecture) == (task, architecture)}
        for name, values in _gap_rows(gaps):
            table.add_row(name, *(_gap(values.get(fraction)) for fraction in fractions))
        if any(map(may_still_rise, cells)):
            table.caption = f"{RISING} may still be rising: the longest pre-training was the best"
        yield table


def _gap_rows(gaps: dict[float, RecoveredGap]) -> Iterator[tuple[str, dict[float, float | None]]]:
    if gaps:
        yield "recovered gap", {fraction: gap.value for fraction, gap in gaps.items()}
    if any(gap.equal_steps_value is not None for gap in gaps.values()):
        yield "recovered gap, equal steps", {fraction: gap.equal_steps_value for fraction, gap in gaps.items()}


def _accuracy(accuracy: Accuracy | None) -> str:
    return "-" if accuracy is None else f"{100 * accuracy.mean:.1f} ± {100 * accuracy.deviation:.1f}"


def _gap(value: float | None) -> str:
    return "-" if value is None else f"{value:.2f}"
