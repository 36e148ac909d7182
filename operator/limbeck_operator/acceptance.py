"""`python -m limbeck_operator.acceptance SPEC`: run a Distillation on this cluster, and say what becomes of it.

It is what `helm test` runs. One line for each change; exit code 0 when it is complete, and then it is deleted, 1 when
it has failed or takes too long, 2 when the input is wrong.
"""

from __future__ import annotations

import argparse
import json
import sys
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any

from kubernetes import client, config
from urllib3.exceptions import HTTPError

from limbeck.errors import InputError, WorkError
from limbeck.redact import redact_url
from limbeck.specfile import read_spec
from limbeck_operator import api
from limbeck_operator.conditions import holds
from limbeck_operator.drafting import COMPLETE, FAILED, PROGRESSING
from limbeck_operator.kube import connect

_MARK = f"{api.GROUP}/acceptance"  # label of those that this has made, and may delete
_STAGE = "stage "
_WRONG = ("InvalidSpec", "InvalidInput")  # reasons that no waiting helps against
_LOOK_SECONDS = 2.0
_TIMEOUTS = (5, 30)  # seconds to connect, and until an answer comes

Say = Callable[[str], None]


class Cluster:
    """Distillations of a namespace.

    Its methods raise `InputError` where the API server refuses what is asked, and `WorkError` where it does not answer.
    """

    def __init__(self, api_client: Any, namespace: str) -> None:
        self.namespace = namespace
        self._objects = client.CustomObjectsApi(api_client)

    def create(self, document: Mapping[str, Any]) -> dict[str, Any]:
        """Create one."""
        made: dict[str, Any] = self._ask(self._objects.create_namespaced_custom_object, document, what="create")
        return made

    def get(self, name: str) -> dict[str, Any] | None:
        """One of a name; None where there is none."""
        found: dict[str, Any] | None = self._ask(self._objects.get_namespaced_custom_object, name, what="get")
        return found

    def delete(self, name: str) -> None:
        """Have one go; it may be gone already."""
        self._ask(self._objects.delete_namespaced_custom_object, name, what="delete")

    def _ask(self, call: Callable[..., Any], argument: Any, *, what: str) -> Any:
        """The answer; None where there is no object of that name."""
        where = f"distillations in {self.namespace}"
        try:
            return call(api.GROUP, api.VERSION, self.namespace, api.DISTILLATIONS, argument, _request_timeout=_TIMEOUTS)
        except client.ApiException as error:
            message = _message(error)
            if error.status == 404 and what != "create" and message.endswith("not found"):
                return None
            if error.status == 404 and message == "Not Found":
                raise InputError(
                    where, "the cluster knows none", "kubectl apply --server-side -f operator/crds/"
                ) from None
            if error.status in (400, 401, 403, 404, 409, 422):
                raise InputError(where, f"{what}: {message}") from None
            raise WorkError(f"{where}: {what}: {message}") from None
        except HTTPError as error:
            raise WorkError(f"the API server does not answer: {error.__class__.__name__}") from None


def accept(
    cluster: Cluster,
    document: Mapping[str, Any],
    *,
    timeout: float,
    say: Say,
    clock: Callable[[], float] = time.monotonic,
    pause: Callable[[float], None] = time.sleep,
) -> None:
    """Run a Distillation to its end, and delete it if that was good.

    One of its name that is there already, of an earlier try, goes first.

    Args:
        cluster: where.
        document: the Distillation.
        timeout: seconds, for all of it.
        say: is given a line for every change.
        clock: seconds.
        pause: waits for so many seconds.

    Raises:
        InputError: the cluster does not take it, or what it says is not allowed.
        WorkError: it has failed, or takes too long; it is left to be looked at.
    """
    metadata = document["metadata"]
    name = metadata["name"]
    document = {**document, "metadata": {**metadata, "labels": {**metadata.get("labels", {}), _MARK: "true"}}}
    place = f"{cluster.namespace}/{name}"
    until = clock() + timeout

    def wait(what: str) -> None:
        if clock() >= until:
            raise WorkError(f"{place}: {what} after {timeout:g} s")
        pause(_LOOK_SECONDS)

    earlier = cluster.get(name)
    if earlier is not None:
        if _MARK not in (earlier["metadata"].get("labels") or {}):
            raise InputError(place, "there is a Distillation of this name that was made otherwise", "another name")
        cluster.delete(name)
        say(f"{place}: there is one of an earlier try, which goes first")
        while cluster.get(name) is not None:
            wait("the one of an earlier try is still there")
    cluster.create(document)
    say(f"{place}: created")
    said: set[str] = set()
    while True:
        try:
            found = cluster.get(name)
        except WorkError as error:  # it may answer again
            wait(str(error))
            continue
        if found is None:
            raise WorkError(f"{place}: somebody has deleted it")
        status = found.get("status") or {}
        lines = list(_lines(status))
        for line in lines:
            if line not in said:
                say(f"{place}: {line}")
        said = set(lines) | {line for line in said if line.startswith(_STAGE)}
        if holds(status, COMPLETE):
            break
        _see_that_it_goes_on(place, status)
        wait(f"not complete ({lines[-1]})" if lines else "no operator has looked at it")
    gap = (status.get("result") or {}).get("recoveredGap")
    say(f"{place}: recovered gap {'not known' if gap is None else format(gap, '.2f')}")
    cluster.delete(name)
    say(f"{place}: deleted")


def _lines(status: Mapping[str, Any]) -> Iterator[str]:
    """What a status says, a line for each thing that may change."""
    for stage in status.get("stages") or []:
        if stage["state"] in ("Running", "Complete"):
            yield f"{_STAGE}{stage['name']}: {stage['state'].lower()}"
    conditions = status.get("conditions") or []
    ended = holds(status, COMPLETE) or holds(status, FAILED)
    for entry in conditions:
        if entry["status"] == "True" or (entry["type"] == PROGRESSING and not ended):
            yield f"{entry['reason']}: {redact_url(entry['message'])}"


def _see_that_it_goes_on(place: str, status: Mapping[str, Any]) -> None:
    for entry in status.get("conditions") or []:
        if entry["reason"] in _WRONG:
            raise InputError(place, redact_url(entry["message"]))
        if entry["type"] == FAILED and entry["status"] == "True":
            raise WorkError(f"{place}: {entry['reason']}: {redact_url(entry['message'])}")


def _message(error: Any) -> str:
    try:
        return str(json.loads(error.body)["message"])
    except (ValueError, KeyError, TypeError):
        return str(error.reason)


def main(arguments: Sequence[str] | None = None) -> int:
    """The command; its exit code."""
    parser = argparse.ArgumentParser("python -m limbeck_operator.acceptance", description=accept.__doc__)
    parser.add_argument("spec", help="file of a Distillation")
    parser.add_argument("--namespace", required=True, help="where it is to run")
    parser.add_argument("--timeout", type=float, default=600.0, help="seconds, for all of it")
    parser.add_argument("--kubeconfig", help="file that says where the cluster is; by default the pod's, else your own")
    options = parser.parse_args(arguments)
    try:
        distillation = read_spec(options.spec).distillation
        document = distillation.model_dump(mode="json", by_alias=True, exclude_unset=True)
        try:
            cluster = Cluster(connect(options.kubeconfig), options.namespace)
        except (config.ConfigException, OSError) as error:
            raise InputError("kubeconfig", str(error), "a file that names a cluster: --kubeconfig") from None
        accept(cluster, document, timeout=options.timeout, say=_print)
    except (InputError, WorkError) as error:
        sys.stderr.write(f"{error}\n")
        return 2 if isinstance(error, InputError) else 1
    return 0


def _print(line: str) -> None:
    sys.stdout.write(line + "\n")
    sys.stdout.flush()


if __name__ == "__main__":
    sys.exit(main())
