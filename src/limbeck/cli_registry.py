"""`limbeck registry` and `limbeck ui`: the distilled sets in MLflow's registry, and MLflow's pages."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from limbeck.errors import InputError, WorkError

if TYPE_CHECKING:
    from limbeck.tracking.registry import Registry, Version

registry = typer.Typer(
    name="registry",
    help="Distilled sets in MLflow's model registry.",
    no_args_is_help=True,
    rich_markup_mode=None,
)

UriOption = Annotated[
    str | None,
    typer.Option("--tracking-uri", help="MLflow; by default MLFLOW_TRACKING_URI, else mlflow.db in this folder."),
]
NameArgument = Annotated[str, typer.Argument(metavar="NAME", help="The registered name.")]
JsonOption = Annotated[bool, typer.Option("--json", help="Print JSON.")]


@registry.command("list")
def list_(uri: UriOption = None, as_json: JsonOption = False) -> None:
    """All distilled sets, with their champions."""
    with _registry(uri) as found:
        sets = [(name, found.versions(name)) for name in found.names()]
    if as_json:
        typer.echo(json.dumps([{"name": name, "versions": [_record(v) for v in versions]} for name, versions in sets]))
        return
    rows = []
    for name, versions in sets:
        champion = next((str(v.number) for v in versions if "champion" in v.aliases), "-")
        rows.append((name, str(len(versions)), champion, _when(versions[0].created) if versions else "-"))
    _table(("name", "versions", "champion", "newest"), rows)


@registry.command()
def show(name: NameArgument, uri: UriOption = None, as_json: JsonOption = False) -> None:
    """All versions of a distilled set, and why each is the champion or is not."""
    with _registry(uri) as found:
        versions = found.versions(name)
    if as_json:
        typer.echo(json.dumps([_record(version) for version in versions]))
        return
    rows = [
        (
            str(version.number),
            ", ".join(version.aliases),
            _when(version.created),
            version.tags.get("limbeck.digest", "")[:12],
            version.tags.get("limbeck.decision", "not decided"),
        )
        for version in versions
    ]
    _table(("version", "aliases", "made", "digest", "decision"), rows)


@registry.command()
def pull(
    which: Annotated[
        str, typer.Argument(metavar="NAME[@ALIAS|/VERSION]", help="The champion, where only NAME is given.")
    ],
    folder: Annotated[Path, typer.Argument(help="A folder that is new or empty.")],
    uri: UriOption = None,
) -> None:
    """Copy a version's files into a folder, every checksum verified."""
    name = which.removeprefix("models:/")
    if "@" not in name and "/" not in name:
        name += "@champion"
    with _registry(uri) as found:
        version = found.resolve(f"models:/{name}")
        found.pull(version, folder)
    typer.echo(f"{folder}: {version.name}, version {version.number}, digest {version.tags.get('limbeck.digest', '-')}")


@registry.command()
def promote(
    name: NameArgument,
    version: Annotated[int, typer.Argument(metavar="VERSION", help="Its number.", min=1)],
    uri: UriOption = None,
) -> None:
    """Make a version the champion, whatever its figures; the champion becomes the previous one."""
    with _registry(uri) as found:
        found.promote(name, version)
    typer.echo(f"{name}: version {version} is the champion")


@registry.command()
def rollback(name: NameArgument, uri: UriOption = None) -> None:
    """Make the previous champion the champion again."""
    with _registry(uri) as found:
        champion, previous = found.rollback(name)
    typer.echo(f"{name}: version {champion} is the champion again, version {previous} the previous one")


def ui(
    uri: UriOption = None,
    port: Annotated[int, typer.Option("--port", min=1, max=65535, help="To listen on, on this machine only.")] = 5000,
    open_browser: Annotated[bool, typer.Option("--open", help="Open the page in a browser.")] = False,
) -> None:
    """Show runs and distilled sets: MLflow's own pages, served here where the store is no server."""
    from limbeck.redact import redact_url
    from limbeck.tracking.place import database, page, require, tracking_uri

    where = tracking_uri(uri)
    server = where if where.startswith(("http://", "https://")) else f"http://127.0.0.1:{port}"
    file = database(where)
    if file is not None and not file.exists():
        raise InputError(
            str(file), "nothing was tracked here yet", "the folder that limbeck run was run in, or --tracking-uri"
        )
    link = page(redact_url(server), "experiments") or ""
    typer.echo(link)
    if open_browser:
        import webbrowser

        webbrowser.open(link)
    if server == where:
        return
    require()
    command = [
        sys.executable,
        "-m",
        "mlflow",
        "server",
        "--port",
        str(port),
        "--workers",
        "1",
    ]
    try:
        variables = {
            "MLFLOW_BACKEND_STORE_URI": where,  # perhaps with a password, which a list of processes would show
            "MLFLOW_SERVER_ENABLE_JOB_EXECUTION": "false",  # queues that pages of runs do not need
        }
        code = subprocess.run(command, check=False, env=os.environ | variables).returncode  # noqa: S603 - made above
    except KeyboardInterrupt:
        return
    if code > 0:
        raise WorkError(f"mlflow server ended with code {code}; is port {port} taken? --port chooses another")


@contextmanager
def _registry(uri: str | None) -> Iterator[Registry]:
    """The registry; what MLflow says inside the block is said in a line."""
    from limbeck.tracking.registered import opened

    with opened(uri) as found:
        yield found


def _record(version: Version) -> dict[str, Any]:
    return {
        "version": version.number,
        "aliases": list(version.aliases),
        "created": version.created,
        "modelId": version.model_id,
        "runId": version.run_id,
        "tags": version.tags,
    }


def _when(milliseconds: int) -> str:
    from datetime import UTC, datetime

    return datetime.fromtimestamp(milliseconds / 1000, UTC).strftime("%Y-%m-%d %H:%M")


def _table(heads: tuple[str, ...], rows: Sequence[tuple[str, ...]]) -> None:
    from rich.console import Console
    from rich.table import Table

    table = Table(box=None, pad_edge=False)
    for index, head in enumerate(heads):
        table.add_column(head, no_wrap=index == 0)
    for row in rows:
        table.add_row(*row)
    Console(highlight=False).print(table)
