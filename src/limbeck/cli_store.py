"""`limbeck store`: what lies in an output, whether it is whole, and what of it may go."""

from __future__ import annotations

import json
import re
import sys
from collections.abc import Iterable, Sequence
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from limbeck.errors import InputError, WorkError

if TYPE_CHECKING:
    from limbeck.store import Store
    from limbeck.store.survey import Shelf

store = typer.Typer(
    name="store",
    help="The results of an output: list, verify, and delete what nothing needs.",
    no_args_is_help=True,
    rich_markup_mode=None,
)

OutputArgument = Annotated[
    str,
    typer.Argument(metavar="OUTPUT", help="The folder or URL; or a spec, whose output and storage options it is."),
]
JsonOption = Annotated[bool, typer.Option("--json", help="Print JSON.")]
_FILE_WIDTH = 160  # columns of a table that goes to no terminal
_UNITS = {"h": timedelta(hours=1), "d": timedelta(days=1), "w": timedelta(weeks=1)}


@store.command()
def ls(output: OutputArgument, as_json: JsonOption = False) -> None:
    """List the results by stage: size, age, last use, and the runs that refer to them."""
    from limbeck.store.survey import survey

    shelves = list(survey(_opened(output)[0].objects).shelves.values())
    if as_json:
        typer.echo(json.dumps([_record(shelf) for shelf in shelves]))
        return
    now = datetime.now(UTC)
    rows = [
        (
            *shelf.place.split("/"),
            _size(shelf.size),
            _age(now, shelf.made),
            _age(now, shelf.used),
            ", ".join(shelf.runs) or "-",
            shelf.fault or ("" if shelf.manifest is not None else "not finished"),
        )
        for shelf in shelves
    ]
    _table(("stage", "key", "size", "made", "used", "runs", ""), rows)
    typer.echo(f"{_count(len(shelves), 'result')}, {_size(sum(shelf.size for shelf in shelves))}")


@store.command()
def verify(output: OutputArgument) -> None:
    """Read every result, where it lies, and check it against its manifest.

    A run does not read again what looks untouched since it was last verified; this does.
    """
    from limbeck.store.survey import survey
    from limbeck.store.survey import verify as verify_one

    found = _opened(output)[0]
    shelves = survey(found.objects).shelves.values()
    verdicts = [verdict for shelf in shelves if (verdict := verify_one(found.objects, shelf)) is not None]
    faults = [fault for verdict in verdicts for fault in verdict.faults]
    for fault in faults:
        typer.echo(fault)
    vouched, read = (sum(getattr(verdict, name) for verdict in verdicts) for name in ("vouched", "read"))
    how = f"{_count(read, 'file')} read" + (f", {vouched} by the store's own checksums" if vouched else "")
    typer.echo(f"{_count(len(verdicts), 'result')}: {how}")
    unfinished = len(shelves) - len(verdicts)
    if unfinished:
        typer.echo(f"not looked at: {_count(unfinished, 'result')} without a manifest")
    if faults:
        damaged = sum(bool(verdict.faults) for verdict in verdicts)
        raise WorkError(f"{_count(damaged, 'result')} damaged; the next run of a spec makes them again")


@store.command()
def gc(
    output: OutputArgument,
    keep: Annotated[
        str,
        typer.Option("--keep", metavar="DURATION", help="What was made or used within it stays: 12w, 30d, 48h."),
    ] = "30d",
    really: Annotated[bool, typer.Option("--delete", help="Delete; else it is only said what would go.")] = False,
    tracking_uri: Annotated[
        str | None,
        typer.Option("--tracking-uri", help="MLflow; by default the spec's, MLFLOW_TRACKING_URI or mlflow.db here."),
    ] = None,
    registry: Annotated[
        bool, typer.Option("--registry/--no-registry", help="Whether anything is registered in MLflow.")
    ] = True,
) -> None:
    """Delete old results that no registered version, recent run or running job needs, and what killed runs left."""
    from limbeck.store.collection import delete, garbage_of
    from limbeck.store.survey import survey

    duration = _duration(keep)
    found, uri = _opened(output)
    seen = survey(found.objects)
    if not seen.shelves and not seen.runs and not seen.work:
        raise InputError(output, "no results are there", "the output of limbeck run")
    registered = _registered(tracking_uri or uri) if registry else set[str]()
    garbage = garbage_of(seen, duration, registered)
    freed, spared = 0, 0
    for item in garbage:
        gone = not really or delete(found.objects, item, duration)
        freed += item.size if gone else 0
        spared += not gone
        verb = ("deleted" if gone else "in use, stays") if really else "would delete"
        typer.echo(f"{verb}: {item.place} ({item.kind}, {_size(item.size)})")
    if really:
        stays = f"; {spared} came into use meanwhile" if spared else ""
        typer.echo(f"{_count(len(garbage) - spared, 'item')} deleted, {_size(freed)} freed{stays}")
    else:
        typer.echo(f"{_count(len(garbage), 'item')}, {_size(freed)} would be freed; --delete deletes")


def _opened(output: str) -> tuple[Store, str | None]:
    """The store, and the MLflow that its spec names."""
    from limbeck.store import Store

    if not output.endswith((".yaml", ".yml", ".json")) or not Path(output).is_file():
        return Store(output), None
    from limbeck.specfile import read_spec

    specfile = read_spec(output)
    spec = specfile.distillation.spec
    with specfile.located():
        return Store.of(spec), spec.tracking.uri


def _registered(uri: str | None) -> set[str]:
    """Digests of the results that registered versions are."""
    from limbeck.tracking.registered import opened

    try:
        with opened(uri, "--tracking-uri") as found:
            from limbeck.tracking.registry import DIGEST

            versions = [version for name in found.names() for version in found.versions(name)]
            return {version.tags[DIGEST] for version in versions if DIGEST in version.tags}
    except (InputError, WorkError) as error:
        raise WorkError(f"nothing is deleted: {error}; --no-registry where nothing is registered") from None


def _duration(text: str) -> timedelta:
    from limbeck.store.usage import SHORTEST_KEEP

    match = re.fullmatch(r"([0-9]{1,5})([hdw])", text)
    found = int(match[1]) * _UNITS[match[2]] if match is not None else None
    if found is None or found < SHORTEST_KEEP:
        raise InputError("--keep", text, "at least 1d, such as 48h, 30d or 12w")
    return found


def _record(shelf: Shelf) -> dict[str, object]:
    stage, _, key = shelf.place.partition("/")
    return {
        "stage": stage,
        "key": key,
        "digest": None if shelf.manifest is None else shelf.manifest.digest,
        "size": shelf.size,
        "made": shelf.made.isoformat(),
        "used": None if shelf.used is None else shelf.used.isoformat(),
        "runs": list(shelf.runs),
        "finished": shelf.manifest is not None,
        "fault": shelf.fault,
    }


def _size(count: float) -> str:
    for unit in ("B", "KiB", "MiB", "GiB"):
        if count < 1024:
            return f"{count:.0f} {unit}" if unit == "B" else f"{count:.1f} {unit}"
        count /= 1024
    return f"{count:.1f} TiB"


def _age(now: datetime, then: datetime | None) -> str:
    if then is None:
        return "-"
    hours = max((now - then).total_seconds() / 3600, 0)
    return f"{hours:.0f}h ago" if hours < 48 else f"{hours / 24:.0f}d ago"


def _count(number: int, what: str) -> str:
    return f"{number} {what}" if number == 1 else f"{number} {what}s"


def _table(heads: Sequence[str], rows: Iterable[Sequence[str]]) -> None:
    from rich.console import Console
    from rich.table import Table

    table = Table(box=None, pad_edge=False)
    for head in heads:
        table.add_column(head, no_wrap=head not in ("runs", ""))
    for row in rows:
        table.add_row(*row)
    Console(highlight=False, width=None if sys.stdout.isatty() else _FILE_WIDTH).print(table)
