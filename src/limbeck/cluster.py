"""What a spec needs, to be run by the pods of a cluster, Kubeflow's or the operator's."""

from __future__ import annotations

import re
from pathlib import PurePosixPath

from limbeck.errors import InputError
from limbeck.redact import redact_url
from limbeck.spec import DistillationSpec
from limbeck.tracking.place import database
from limbeck.version import __version__

IMAGE = f"limbeck:{__version__}"  # where nothing names another

_KUBEFLOW_QUANTITIES = {  # as its compiler takes them
    "cpu": re.compile(r"([0-9]*\.)?[0-9]+m?"),
    "memory": re.compile(r"[0-9]+([EPTGMK]i?)?"),
}
_URL = re.compile(r"[A-Za-z][A-Za-z0-9+.-]*:")


def check_for_cluster(spec: DistillationSpec) -> None:
    """See that every place that the spec names is one that pods can see.

    Raises:
        InputError: one is a folder of this machine.
    """
    volumes = [PurePosixPath(volume.mount_path) for volume in spec.execution.volumes]
    places = {"spec.output.uri": spec.output.uri, "spec.source.uri": spec.source.uri}
    for index, task in enumerate(spec.evaluate.tasks):
        places |= {
            f"spec.evaluate.tasks[{index}].{part}.uri": data.uri
            for part, data in (("train", task.train), ("test", task.test))
        }
    if spec.teacher.checkpoint is not None:
        places["spec.teacher.checkpoint"] = spec.teacher.checkpoint
    if spec.distill.warm_start is not None:
        places["spec.distill.warmStart"] = spec.distill.warm_start
    if spec.tracking.uri is not None and (spec.tracking.enabled or spec.distill.registered_start is not None):
        file = database(spec.tracking.uri)
        places["spec.tracking.uri"] = spec.tracking.uri if file is None else str(file)
    for field, uri in places.items():
        if redact_url(uri) != uri:
            raise InputError(
                field, f"{redact_url(uri)} has credentials, which a cluster shows", "spec.execution.secrets"
            )
        local = not _URL.match(uri) or uri.startswith("file:")
        path = PurePosixPath(uri.removeprefix("file://"))
        if local and not any(path.is_relative_to(volume) for volume in volumes):
            allowed = "a URL such as gs://BUCKET/FOLDER, or a folder of one of spec.execution.volumes"
            raise InputError(field, f"{redact_url(uri)} is on this machine", allowed)


def check_for_kubeflow(spec: DistillationSpec) -> None:
    """See that Kubeflow's compiler takes the quantities that stages ask for.

    Raises:
        InputError: it does not take one.
    """
    for stage, wanted in spec.execution.resources.items():
        for name, allowed in _KUBEFLOW_QUANTITIES.items():
            amount = getattr(wanted, name)
            if amount is not None and not allowed.fullmatch(amount):
                where = f"spec.execution.resources.{stage}.{name}"
                raise InputError(where, amount, "for Kubeflow: 2 or 500m CPU cores, 8Gi of memory")
