"""The `limbeck` command. What is slow to import is imported by the command that needs it.

Exit codes: 0 done, 1 the work failed or was stopped, 2 the input is wrong.
"""

from __future__ import annotations

import shlex
import sys
import traceback
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, NoReturn

import typer

from limbeck.cli_operator import definitions, operator, trigger, validate_schedule
from limbeck.cli_pipeline import pipeline
from limbeck.cli_registry import registry, ui
from limbeck.cli_store import store
from limbeck.cli_table import print_summary
from limbeck.errors import InputError, WorkError
from limbeck.redact import redact_url
from limbeck.version import __version__
from limbeck.workplace import recorded, start_sender, workshop

if TYPE_CHECKING:
    from limbeck.broadcast import Broadcast
    from limbeck.spec import DistillationSpec
    from limbeck.specfile import SpecFile
    from limbeck.stages.task import Workshop
    from limbeck.store import Store
    from limbeck.summary import Summary

app = typer.Typer(
    name="limbeck",
    help="Distil a large unlabelled image dataset into a small synthetic one that pre-trains encoders.",
    no_args_is_help=True,
    add_completion=False,
    pretty_exceptions_enable=False,
    rich_markup_mode=None,
)

app.add_typer(pipeline)
app.add_typer(registry)
app.add_typer(store)
app.command()(ui)
app.command()(operator)
app.command()(trigger)

SpecArgument = Annotated[Path, typer.Argument(metavar="SPEC", help="The spec, a YAML file.")]
SetOption = Annotated[
    list[str],
    typer.Option(
        "--set",
        metavar="FIELD=VALUE",
        help="Override a field of the spec, such as source.limit=1000; repeatable.",
    ),
]
NoOverrides: list[str] = []
WorkersOption = Annotated[
    int | None,
    typer.Option(
        "--workers",
        min=1,
        max=4096,
        help="Ray workers for ingest, experts, and distill with several pairs: at execution.ray.address, or else here.",
    ),
]

OutcomeOption = Annotated[
    Path | None,
    typer.Option("--outcome", hidden=True, help="File for what came of it, as JSON of at most 4,096 bytes."),
]
StatusOption = Annotated[
    str | None,
    typer.Option(
        "--status", metavar="HOST:PORT", help="Say where the run stands, as JSON, at http://HOST:PORT/status."
    ),
]


@app.callback(invoke_without_command=True)
def _root(
    version: Annotated[bool, typer.Option("--version", help="Print the version and exit.")] = False,
) -> None:
    if version:
        typer.echo(f"limbeck {__version__}")
        raise typer.Exit


@app.command()
def run(
    spec: SpecArgument,
    overrides: SetOption = NoOverrides,
    workers: WorkersOption = None,
    json: Annotated[bool, typer.Option("--json", help="Print the summary as JSON on standard output.")] = False,
    status: StatusOption = None,
    outcome: OutcomeOption = None,
) -> None:
    """Run a spec from its source to the evaluated distilled set; what is done is skipped, what was cut goes on."""
    from limbeck.specfile import read_spec

    with _broadcast(status) as broadcast:
        again = _again("run", spec, overrides, workers)
        summary, store = _run(read_spec(spec, overrides), again, workers, outcome, broadcast)
    if json:
        typer.echo(summary.model_dump_json(by_alias=True, indent=2))
    else:
        print_summary(summary, store.url)


@app.command()
def stage(
    name: Annotated[
        str,
        typer.Argument(help="ingest, teacher, targets, trajectories, select, distill, evaluate or register."),
    ],
    spec: SpecArgument,
    overrides: SetOption = NoOverrides,
    workers: WorkersOption = None,
) -> None:
    """Run one stage of a spec; the stages before it must be done."""
    from typing import get_args

    from limbeck.spec import StageName
    from limbeck.specfile import read_spec

    names: tuple[StageName, ...] = get_args(StageName)
    if name not in names:
        raise InputError("stage", f"there is no stage {name!r}", ", ".join(names))
    specfile = read_spec(spec, overrides)
    sender = start_sender(specfile.distillation.spec, _note)
    from limbeck.runner import Run

    with _workshop(specfile, _again(f"stage {name}", spec, overrides, workers), workers) as shop:
        recorder, shop = recorded(sender, shop, f"limbeck stage {name}", stage_alone=True)
        result = Run(specfile.distillation, shop, recorder).stage(name)
    typer.echo(str(result.path))


@app.command()
def fingerprint(
    spec: SpecArgument,
    overrides: SetOption = NoOverrides,
    outcome: OutcomeOption = None,
    champion: Annotated[
        bool,
        typer.Option("--champion", hidden=True, help="Say, too, which champion distill can start from."),
    ] = False,
) -> None:
    """Print a digest of what the sources of a spec are now: as long as it stays, so do they."""
    from limbeck.outcome import Outcome
    from limbeck.preflight import fingerprints_of, open_sources, source_digest
    from limbeck.specfile import read_spec

    specfile = read_spec(spec, overrides)
    settings = specfile.distillation.spec
    with specfile.located():
        said = Outcome(source_fingerprint=source_digest(fingerprints_of(open_sources(settings))))
        if champion:
            from limbeck.warmstart import fitting_champion

            version = fitting_champion(settings, _note)
            if version is not None:
                found = {"model": settings.registry.name, "version": version, "champion": True}
                said = said.model_copy(update=found)
    if outcome is not None:
        said.write(outcome)
    typer.echo(said.source_fingerprint)


@app.command()
def validate(
    spec: SpecArgument,
    overrides: SetOption = NoOverrides,
    offline: Annotated[bool, typer.Option("--offline", help="Do not look at the data that the spec names.")] = False,
) -> None:
    """Check a spec or a schedule, and that it fits its data; every problem is named with its line."""
    from limbeck.specfile import ScheduleFile, read_any

    specfile = read_any(spec, overrides)
    if isinstance(specfile, ScheduleFile):
        validate_schedule(specfile, offline=offline)
    elif not offline:
        from limbeck.preflight import check_against_data, open_sources

        settings = specfile.distillation.spec
        with specfile.located():
            check_against_data(settings, open_sources(settings))
    checked = specfile.scheduled.spec.template if isinstance(specfile, ScheduleFile) else specfile.distillation
    if checked.spec.preset_note is not None:
        typer.echo(f"note: {checked.spec.preset_note}", err=True)
    typer.echo(f"{spec}: valid")


@app.command()
def demo(
    output: Annotated[str, typer.Option("--output", help="Where the results go.")] = "demo-output",
) -> None:
    """Distil scikit-learn's digits, in about two minutes, and write a report."""
    from importlib.resources import as_file, files

    from limbeck.specfile import read_spec

    with as_file(files("limbeck") / "examples" / "digits.yaml") as path:
        specfile = read_spec(path, [f"output.uri={output}"])
    summary, store = _run(specfile, f"limbeck demo --output {output}")
    print_summary(summary, store.url)


@app.command()
def report(
    output: Annotated[str, typer.Argument(metavar="OUTPUT", help="The output folder or URL of a run.")],
    name: Annotated[str | None, typer.Option("--name", help="The run; needed where there are several.")] = None,
) -> None:
    """Write a finished run's report anew and print its accuracies."""
    from limbeck.runs import read_summary, write_report
    from limbeck.store import Store

    store = Store(output)
    summary = read_summary(store, name)
    write_report(store, summary)
    print_summary(summary, output)


@app.command()
def schema(
    crd: Annotated[
        bool, typer.Option("--crd", help="The CustomResourceDefinitions of a Kubernetes cluster instead.")
    ] = False,
) -> None:
    """Print the JSON schema of a spec file."""
    from limbeck.reference import json_schema

    typer.echo(definitions() if crd else json_schema(), nl=False)


@contextmanager
def _workshop(specfile: SpecFile, again: str, workers: int | None) -> Iterator[Workshop]:
    """The workshop; a stop inside the block is said with the way to go on."""
    from limbeck.interrupt import Stopped

    try:
        with specfile.located(), workshop(specfile.distillation.spec, workers) as shop:
            yield shop
    except (Stopped, KeyboardInterrupt):
        raise Stopped(f"stopped; what is finished is kept. To go on: {again}") from None


@contextmanager
def _broadcast(address: str | None) -> Iterator[Broadcast | None]:
    """What says where the run stands, as long as the block lasts; that nobody can ask stops no work."""
    if address is None:
        yield None
        return
    from limbeck.broadcast import Broadcast

    try:
        broadcast = Broadcast(address)
    except OSError as error:
        _note(f"note: nobody can ask where the run stands: {address}: {error.strerror}")
        yield None
        return
    try:
        yield broadcast
    finally:
        broadcast.close()


def _run(
    specfile: SpecFile,
    again: str,
    workers: int | None = None,
    outcome: Path | None = None,
    broadcast: Broadcast | None = None,
) -> tuple[Summary, Store]:
    sender = start_sender(specfile.distillation.spec, _note)
    from limbeck.runner import Run

    for setting in _without_effect(specfile.distillation.spec):
        _note(f"note: {setting} has no effect on a run on this machine")
    with _workshop(specfile, again, workers) as shop:
        recorder, shop = recorded(sender, shop, "limbeck run", stage_alone=False)
        if broadcast is not None:
            recorder, shop = broadcast.around(recorder, shop)
        work = Run(specfile.distillation, shop, recorder)
        summary = work.all()
        if outcome is not None:
            from limbeck.outcome import outcome_of

            outcome_of(summary, work.source_digest).write(outcome)
        return summary, shop.store


def _without_effect(spec: DistillationSpec) -> list[str]:
    """Settings that a user may have thought would do something here."""
    settings = {
        "spec.registry.name": spec.registry.name is not None and not spec.tracking.enabled,
        "spec.execution.ray.cluster": spec.execution.ray.cluster is not None,
        "spec.execution.backend": spec.execution.backend != "local",
        "spec.execution.suspend": spec.execution.suspend,
    }
    return [name for name, given in settings.items() if given]


def _again(command: str, spec: Path, overrides: list[str], workers: int | None) -> str:
    options = [part for override in overrides for part in ("--set", override)]
    if workers is not None:
        options += ["--workers", str(workers)]
    return shlex.join(["limbeck", *command.split(), str(spec), *options])


def _note(line: str) -> None:
    typer.echo(redact_url(line), err=True)


def _fail(message: str, code: int) -> NoReturn:
    typer.echo(redact_url(message), err=True)
    sys.exit(code)


def main() -> None:
    """Entry point: turns errors into one line and an exit code."""
    from limbeck.interrupt import Stopped

    try:
        sys.exit(app(standalone_mode=False))
    except InputError as error:
        _fail(str(error), 2)
    except typer.TyperException as error:
        _fail(f"limbeck: {error.format_message()} See limbeck --help.", 2)
    except (WorkError, Stopped) as error:
        _fail(str(error), 1)
    except Exception as error:
        _fail(_in_words(error), 1)


def _in_words(error: Exception) -> str:
    """A line for what the system or a storage refuses; a traceback for what nobody has thought of."""
    from limbeck.failures import full_disk, is_full
    from limbeck.patience import is_denied, is_transient, reason_of

    if is_full(error):
        return full_disk(error)
    if isinstance(error, OSError) and error.errno is not None:
        where = f"{error.filename}: " if error.filename else ""
        return f"{where}{error.strerror}"
    if is_denied(error) or is_transient(error):
        return reason_of(error)
    return "".join(traceback.format_exception(error)).rstrip()


if __name__ == "__main__":
    main()
