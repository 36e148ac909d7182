"""The trigger of a schedule by hand."""

from __future__ import annotations

from datetime import UTC, datetime

from kubernetes import client, config
from urllib3.exceptions import HTTPError

from limbeck.errors import InputError, WorkError
from limbeck_operator import api


def trigger(name: str, namespace: str | None, kubeconfig: str | None) -> str:
    """Set the annotation that has a schedule run once; a line that says what was done.

    Raises:
        InputError: there is no such schedule, no cluster, or the user may not.
        WorkError: the API server does not do it.
    """
    try:
        settings = client.Configuration()
        config.load_kube_config(kubeconfig, client_configuration=settings)
        _, context = config.list_kube_config_contexts(kubeconfig)
    except config.ConfigException as error:
        raise InputError("kubeconfig", str(error), "a file that names a cluster: --kubeconfig, or KUBECONFIG") from None
    place = namespace or context["context"].get("namespace") or "default"
    value = datetime.now(UTC).isoformat(timespec="microseconds")
    settings.retries = False
    objects = client.CustomObjectsApi(client.ApiClient(settings))
    body = {"metadata": {"annotations": {api.TRIGGER: value}}}
    try:
        objects.patch_namespaced_custom_object(
            api.GROUP, api.VERSION, place, api.SCHEDULES, name, body, _request_timeout=(10, 60)
        )
    except client.ApiException as error:
        if error.status == 404:
            raise InputError(name, f"no such ScheduledDistillation in {place}", "kubectl get sdist -A") from None
        if error.status in (401, 403):
            raise InputError(name, f"you may not patch scheduleddistillations in {place}", "ask who may") from None
        raise WorkError(f"{name}: {error.reason}") from None
    except HTTPError as error:
        raise WorkError(f"{settings.host} does not answer: {error.__class__.__name__}") from None
    return f"{place}/{name} triggered; kubectl get dist -n {place} -l {api.OF_SCHEDULE}={name} shows what it does"
