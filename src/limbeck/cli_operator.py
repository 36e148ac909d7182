"""`limbeck operator` and `limbeck trigger`; the libraries are imported when they are needed."""

from __future__ import annotations

from importlib.util import find_spec
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from limbeck.errors import InputError

if TYPE_CHECKING:
    from limbeck.specfile import ScheduleFile

KubeconfigOption = Annotated[
    str | None,
    typer.Option("--kubeconfig", help="File that says where the cluster is; by default the pod's, else your own."),
]


def operator(
    namespace: Annotated[
        str | None,
        typer.Option("--namespace", help="The only namespace to look at, which needs no rights beyond it; else all."),
    ] = None,
    lease_namespace: Annotated[
        str | None, typer.Option("--lease-namespace", help="Where replicas agree on who leads; by default --namespace.")
    ] = None,
    lease_seconds: Annotated[
        float,
        typer.Option("--lease-seconds", min=1.0, max=600.0, help="How long after a leader is lost another one acts."),
    ] = 15.0,
    workers: Annotated[int, typer.Option("--workers", min=1, max=256, help="Objects reconciled at once.")] = 8,
    port: Annotated[int, typer.Option("--port", min=0, max=65535, help="Of /healthz, /readyz and /metrics.")] = 8080,
    image: Annotated[str | None, typer.Option("--image", help="Of objects that name none.")] = None,
    service_account: Annotated[
        str | None, typer.Option("--service-account", help="Of the pods of objects that name none.")
    ] = None,
    defaults: Annotated[
        Path | None,
        typer.Option(
            "--defaults",
            help="YAML file with sections output, tracking and execution, for objects that do not say it themselves; "
            "output.uri may name {namespace} and {name}.",
        ),
    ] = None,
    kubeflow_host: Annotated[
        str | None,
        typer.Option("--kubeflow-host", metavar="URL", help="Kubeflow Pipelines, for execution.backend: kubeflow."),
    ] = None,
    kubeflow_token_file: Annotated[
        str | None, typer.Option("--kubeflow-token-file", help="File of the service account token to show there.")
    ] = None,
    kubeflow_ca_file: Annotated[
        str | None, typer.Option("--kubeflow-ca-file", help="Certificates that its own is checked with.")
    ] = None,
    kubeflow_namespace: Annotated[
        str | None,
        typer.Option("--kubeflow-namespace", help="Of the runs there; by default the object's, where it has several."),
    ] = None,
    kubeflow_seconds: Annotated[
        float, typer.Option("--kubeflow-seconds", min=1.0, max=3600.0, help="How often it is asked about one run.")
    ] = 15.0,
    progress_seconds: Annotated[
        float,
        typer.Option(
            "--progress-seconds",
            min=1.0,
            max=3600.0,
            help="How often the pod of a Job is asked how far it is; less often where very many run.",
        ),
    ] = 10.0,
    log_format: Annotated[str, typer.Option("--log-format", help="json or text.")] = "json",
    kubeconfig: KubeconfigOption = None,
) -> None:
    """Run Distillations and ScheduledDistillations of a Kubernetes cluster, until stopped."""
    _require()
    if log_format not in ("json", "text"):
        raise InputError("--log-format", log_format, "json or text")
    from limbeck.kubeflow import Access
    from limbeck.specfile import read_shared
    from limbeck_operator.controller import Settings, run
    from limbeck_operator.inherit import Defaults
    from limbeck_operator.kube import own_account
    from limbeck_operator.logs import configure

    given = {} if image is None else {"image": image}
    shared = {} if defaults is None else read_shared(defaults)
    kubeflow = None
    if kubeflow_host is not None:
        kubeflow = Access(
            kubeflow_host, namespace=kubeflow_namespace, token_file=kubeflow_token_file, ca_file=kubeflow_ca_file
        )
    configure(log_format)
    run(
        Settings(
            namespace=namespace,
            lease_namespace=lease_namespace or namespace or "default",
            lease_seconds=lease_seconds,
            kubeconfig=kubeconfig,
            workers=workers,
            port=port,
            defaults=Defaults(**given, service_account=service_account, shared=shared, own_account=own_account()),
            kubeflow=kubeflow,
            kubeflow_seconds=kubeflow_seconds,
            progress_seconds=progress_seconds,
        )
    )


def trigger(
    name: Annotated[str, typer.Argument(metavar="NAME", help="Of a ScheduledDistillation.")],
    namespace: Annotated[
        str | None, typer.Option("-n", "--namespace", help="Where it is; by default the kubeconfig's.")
    ] = None,
    kubeconfig: KubeconfigOption = None,
) -> None:
    """Have a ScheduledDistillation run once, now, whatever its schedule and its sources say."""
    _require()
    from limbeck_operator.trigger import trigger as set_trigger

    typer.echo(set_trigger(name, namespace, kubeconfig))


def validate_schedule(file: ScheduleFile, *, offline: bool) -> None:
    """Check what the models of the spec do not: that the schedule comes, in a time zone that there is, and the data.

    Raises:
        InputError: one of them is wrong.
    """
    from limbeck.preflight import check_against_data, open_sources

    spec = file.scheduled.spec
    if find_spec("cronsim") is not None:
        from limbeck_operator.times import parse

        with file.located():
            parse(spec.schedule, spec.time_zone)
    if not offline:
        try:
            check_against_data(spec.template.spec, open_sources(spec.template.spec))
        except InputError as error:
            if not error.where.startswith("spec."):
                raise
            with file.located():
                raise InputError(f"spec.template.{error.where}", error.found, error.allowed) from None


def definitions() -> str:
    """The CustomResourceDefinitions as YAML."""
    from limbeck_operator.generate import generated

    return "---\n".join(generated().values())


def _require() -> None:
    for package in ("kopf", "kubernetes", "cronsim"):
        if find_spec(package) is None:
            raise InputError("limbeck operator", f"{package} is not installed", "pip install 'limbeck[operator]'")
