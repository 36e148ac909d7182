"""`limbeck pipeline`: the distillation as a Kubeflow pipeline, whose libraries are imported when they are needed."""

from __future__ import annotations

import inspect
from collections.abc import Callable
from importlib.util import find_spec
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from limbeck.errors import InputError
from limbeck.kubeflow import Access

if TYPE_CHECKING:
    from limbeck_pipelines.client import Kubeflow

pipeline = typer.Typer(
    name="pipeline",
    help="The distillation as a Kubeflow pipeline: every stage a task of its own.",
    no_args_is_help=True,
    rich_markup_mode=None,
)

SpecArgument = Annotated[Path, typer.Argument(metavar="SPEC", help="The spec, a YAML file.")]
SetOption = Annotated[
    list[str], typer.Option("--set", metavar="FIELD=VALUE", help="Override a field of the spec; repeatable.")
]
NoOverrides: list[str] = []
ImageOption = Annotated[
    str | None, typer.Option("--image", help="Of all tasks, best by digest; by default the spec's execution.image.")
]
ExperimentOption = Annotated[str, typer.Option("--experiment", help="Kubeflow's experiment.")]
AccountOption = Annotated[
    str | None,
    typer.Option("--service-account", help="Of the pods; by default the spec's execution.serviceAccount."),
]
NameArgument = Annotated[str, typer.Argument(metavar="NAME", help="The spec's name.")]


def _option(name: str, default: object, help: str) -> inspect.Parameter:  # noqa: A002 - typer's word
    """A field of `Access` as an option of the command line and a variable of the environment."""
    option = typer.Option(f"--{name.replace('_', '-')}", envvar=f"KUBEFLOW_{name.upper()}", help=help)
    kind = str if default is inspect.Parameter.empty else str | None
    return inspect.Parameter(name, inspect.Parameter.KEYWORD_ONLY, default=default, annotation=Annotated[kind, option])


_ACCESS = (
    _option("host", inspect.Parameter.empty, "URL of Kubeflow Pipelines."),
    _option("namespace", None, "Of the user, in an installation for several."),
    _option("token", None, "A bearer token."),
    _option("token_file", None, "File of a service account's token, read anew when it has expired."),
    _option("cookies", None, "Cookies, as a browser sends them."),
    _option("iap_client", None, "OAuth client of an Identity-Aware Proxy."),
    _option("ca_file", None, "Certificates that the host's is checked with."),
)


def _asks_kubeflow(function: Callable[..., None]) -> Callable[..., None]:
    """A command whose argument `access` comes from the options of `_ACCESS`."""

    def command(**given: Any) -> None:
        access = Access(**{option.name: given.pop(option.name) for option in _ACCESS})
        function(access=access, **given)

    own = inspect.signature(function, eval_str=True).parameters.values()
    needed = [p.replace(kind=inspect.Parameter.KEYWORD_ONLY) for p in own if p.name != "access"]
    signature = inspect.Signature([*needed, *_ACCESS])
    command.__signature__ = signature  # type: ignore[attr-defined]
    command.__annotations__ = {name: entry.annotation for name, entry in signature.parameters.items()}
    command.__doc__, command.__name__ = function.__doc__, function.__name__
    return command


@pipeline.command("compile")
def compile_(
    spec: SpecArgument,
    output: Annotated[Path, typer.Option("-o", "--output", help="The YAML file to write.")],
    overrides: SetOption = NoOverrides,
    image: ImageOption = None,
) -> None:
    """Write the pipeline of a spec as YAML, for uploading by hand; the same spec gives the same bytes."""
    _require()
    from limbeck.cluster import check_for_cluster
    from limbeck.specfile import read_spec
    from limbeck_pipelines.distillation import build, compile_to

    if output.suffix not in (".yaml", ".yml"):
        raise InputError(str(output), "not a name of a YAML file", "one that ends in .yaml")
    specfile = read_spec(spec, overrides)
    with specfile.located():
        check_for_cluster(specfile.distillation.spec)
        compile_to(build(specfile.distillation, image), output)
    typer.echo(str(output))


@pipeline.command()
def run(
    spec: SpecArgument,
    local: Annotated[
        bool, typer.Option("--local", help="On this machine, which is the only way to run it here.")
    ] = False,
    overrides: SetOption = NoOverrides,
) -> None:
    """Run the pipeline on this machine, each stage as its own task; what is done is skipped, what was cut goes on."""
    _require()
    if not local:
        raise InputError("limbeck pipeline run", "no --local", "--local; limbeck pipeline submit runs it on Kubeflow")
    from limbeck.interrupt import Stopped
    from limbeck.progress import TerminalProgress
    from limbeck.specfile import read_spec
    from limbeck_pipelines.local import run_local

    specfile = read_spec(spec, overrides)
    try:
        with specfile.located():
            run_local(specfile.distillation, TerminalProgress())
    except Stopped:
        raise Stopped("stopped; what is finished is kept. To go on, give the same command again") from None
    typer.echo(
        f"{specfile.distillation.spec.output.uri.rstrip('/')}/runs/{specfile.distillation.metadata.name}/report.html"
    )


@pipeline.command()
@_asks_kubeflow
def submit(
    access: Access,
    spec: SpecArgument,
    overrides: SetOption = NoOverrides,
    experiment: ExperimentOption = "limbeck",
    run_name: Annotated[str | None, typer.Option("--run-name", help="By default the spec's name.")] = None,
    service_account: AccountOption = None,
    image: ImageOption = None,
    wait: Annotated[
        bool, typer.Option("--wait", help="Wait for its end; the exit code then says how it ended.")
    ] = False,
    timeout: Annotated[
        float | None, typer.Option("--timeout", min=0.0, help="With --wait, seconds after which to give up waiting.")
    ] = None,
) -> None:
    """Run a spec on Kubeflow; prints the link to the run."""
    from limbeck.specfile import read_spec

    specfile = read_spec(spec, overrides)
    with specfile.located():
        kubeflow = _open(access)
        name = run_name or specfile.distillation.metadata.name
        started = kubeflow.submit(
            specfile.distillation, experiment=experiment, run_name=name, service_account=service_account, image=image
        )
        typer.echo(kubeflow.link(started))
        if wait:
            from limbeck.interrupt import Stopped, stop_on_signals
            from limbeck.progress import TerminalProgress

            try:
                with stop_on_signals() as stop:
                    kubeflow.wait(started, TerminalProgress(), stop, timeout=timeout)
            except Stopped:
                raise Stopped(f"no longer waiting; the run goes on: {kubeflow.link(started)}") from None


@pipeline.command()
@_asks_kubeflow
def schedule(
    access: Access,
    spec: SpecArgument,
    cron: Annotated[str, typer.Option("--cron", help="Minute hour day month weekday, in Kubeflow's time zone.")],
    overrides: SetOption = NoOverrides,
    time_zone: Annotated[
        str,
        typer.Option(
            "--time-zone", help="Of Kubeflow's scheduler (its CRON_SCHEDULE_TIMEZONE), to show the next runs."
        ),
    ] = "Etc/UTC",
    experiment: ExperimentOption = "limbeck",
    service_account: AccountOption = None,
    image: ImageOption = None,
) -> None:
    """Run a spec again and again; a schedule of the same name is replaced. Only one run at a time, none made up for."""
    from limbeck.specfile import read_spec

    specfile = read_spec(spec, overrides)
    with specfile.located():
        kubeflow = _open(access)
        from limbeck_pipelines.client import next_runs

        coming = next_runs(cron, time_zone, 3)
        made, replaced = kubeflow.schedule(
            specfile.distillation, cron, experiment=experiment, service_account=service_account, image=image
        )
    typer.echo(f"{made.name} {'replaced' if replaced else 'scheduled'}: {made.link}")
    typer.echo(f"{'next runs' if made.enabled else 'paused; would run'}: {', '.join(coming)}")


@pipeline.command()
@_asks_kubeflow
def schedules(
    access: Access,
) -> None:
    """All schedules."""
    for entry in _open(access).schedules():
        typer.echo(f"{entry.name}  {entry.cron}  {'enabled' if entry.enabled else 'paused'}  {entry.link}")


@pipeline.command()
@_asks_kubeflow
def pause(
    access: Access,
    name: NameArgument,
) -> None:
    """Have a schedule start nothing until it is resumed."""
    _open(access).pause(name)
    typer.echo(f"{name}: paused")


@pipeline.command()
@_asks_kubeflow
def resume(
    access: Access,
    name: NameArgument,
) -> None:
    """Have a paused schedule go on."""
    _open(access).resume(name)
    typer.echo(f"{name}: enabled")


@pipeline.command()
@_asks_kubeflow
def unschedule(
    access: Access,
    name: NameArgument,
) -> None:
    """Delete a schedule; its runs stay."""
    _open(access).unschedule(name)
    typer.echo(f"{name}: deleted")


def _require() -> None:
    absent = [package for package in ("kfp", "cronsim") if find_spec(package) is None]
    if absent:
        raise InputError("limbeck pipeline", f"{absent[0]} is not installed", "pip install 'limbeck[kubeflow]'")


def _open(access: Access) -> Kubeflow:
    _require()
    from limbeck_pipelines.client import Kubeflow

    return Kubeflow(access)
