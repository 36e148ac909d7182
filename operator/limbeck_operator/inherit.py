"""What objects are given that do not say it themselves: the operator's own settings for all of them. Pure."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

from limbeck.cluster import IMAGE
from limbeck.errors import InputError
from limbeck.spec import Execution
from limbeck_operator.usual import USUAL


@dataclass(frozen=True)
class Defaults:
    """What objects are given that do not say it themselves.

    Attributes:
        image: of pods.
        service_account: of pods.
        shared: sections of a spec, as `limbeck.spec.SharedSettings` has them, on the wire; these come first.
        own_account: the operator's own service account, as NAMESPACE/NAME, which no pod may run as.
    """

    image: str = IMAGE
    service_account: str | None = None
    shared: Mapping[str, Any] = field(default_factory=dict)
    own_account: str | None = None


def inherit(spec: Mapping[str, Any], defaults: Defaults, namespace: str, name: str) -> dict[str, Any]:
    """A spec, on the wire, with what it does not say itself taken from `defaults`.

    What a spec says as limbeck's own default counts as not said: the API server fills that in.

    Args:
        spec: of a Distillation.
        defaults: of the operator.
        namespace: of the Distillation; an output's URI may name it, as {namespace}.
        name: of the Distillation, likewise as {name}.
    """
    shared = dict(defaults.shared)
    if shared.get("output", {}).get("uri") is not None:
        uri = shared["output"]["uri"].replace("{namespace}", namespace).replace("{name}", name)
        shared["output"] = {**shared["output"], "uri": uri}
    return _merged(spec, shared, USUAL)


def check_account(execution: Execution, defaults: Defaults, namespace: str) -> None:
    """See that what a spec runs does not act with the operator's own rights.

    Raises:
        InputError: it would, by the service account that it names.
    """
    if defaults.own_account == f"{namespace}/{execution.service_account}":
        raise InputError(
            "spec.execution.serviceAccount",
            f"{execution.service_account} is the operator's own",
            "one with the rights that the run needs",
        )


def _merged(own: Mapping[str, Any], shared: Mapping[str, Any], usual: Mapping[str, Any]) -> dict[str, Any]:
    merged = dict(own)
    for name, value in shared.items():
        found, default = own.get(name), usual.get(name)
        if isinstance(value, Mapping) and (found is None or isinstance(found, Mapping)):
            merged[name] = _merged(found or {}, value, default if isinstance(default, Mapping) else {})
        elif found is None or found == default:
            merged[name] = value
    return merged
