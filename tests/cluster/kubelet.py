"""What a kubelet says of pods, said by the test: there are no nodes."""

from __future__ import annotations

import json
import time
from collections.abc import Callable, Mapping
from datetime import UTC, datetime
from typing import Any, Literal

from kubernetes import client

CONTAINER = "limbeck"


def pods_of(api: Any, namespace: str, job: str) -> list[Any]:
    """The pods of a Job, the oldest first."""
    found = client.CoreV1Api(api).list_namespaced_pod(
        namespace, label_selector=f"batch.kubernetes.io/job-name={job}", _request_timeout=10
    )
    return sorted(found.items, key=lambda pod: (pod.metadata.creation_timestamp, pod.metadata.name))


def play(
    api: Any,
    namespace: str,
    pod: str,
    phase: Literal["Pending", "Running", "Succeeded", "Failed"],
    *,
    exit_code: int = 0,
    message: str = "",
    waiting: str | None = None,
    address: str = "127.0.0.1",
) -> None:
    """Have a pod's status be so.

    Args:
        api: a client.
        namespace: of the pod.
        pod: its name.
        phase: of it.
        exit_code: of its container, once it has ended.
        message: that the container has left in its termination log.
        waiting: why its container does not start.
        address: of the pod.
    """
    now = datetime.now(UTC).strftime("%Y-%m-%dT%H:%M:%SZ")
    state: dict[str, Any]
    if phase in ("Succeeded", "Failed"):
        reason = "Completed" if exit_code == 0 else "Error"
        ended = {"exitCode": exit_code, "message": message, "reason": reason, "startedAt": now, "finishedAt": now}
        state = {"terminated": ended}
    elif phase == "Running":
        state = {"running": {"startedAt": now}}
    else:
        state = {"waiting": {"reason": waiting or "ContainerCreating"}}
    ready = phase == "Running"
    container = {
        "name": CONTAINER,
        "ready": ready,
        "restartCount": 0,
        "image": "limbeck",
        "imageID": "limbeck",
        "state": state,
    }
    status = {
        "phase": phase,
        "podIP": address,
        "podIPs": [{"ip": address}],
        "conditions": [{"type": "Ready", "status": str(ready), "lastTransitionTime": now}],
        "containerStatuses": [container],
    }
    client.CoreV1Api(api).patch_namespaced_pod_status(pod, namespace, {"status": status}, _request_timeout=10)


def succeed(api: Any, namespace: str, pod: str, outcome: Mapping[str, Any]) -> None:
    """Have a pod run and end well, with that outcome in its termination log."""
    play(api, namespace, pod, "Running")
    play(api, namespace, pod, "Succeeded", message=json.dumps(outcome))


def until(holds: Callable[[], Any], what: str, seconds: float = 60.0) -> Any:
    """The first true answer of `holds`, which is asked until then.

    Raises:
        AssertionError: there was none in time.
    """
    deadline, last = time.monotonic() + seconds, None
    while time.monotonic() < deadline:
        try:
            last = holds()
        except (client.ApiException, OSError) as error:
            last = None
            failure = error
        else:
            failure = None
            if last:
                return last
        time.sleep(0.1)
    raise AssertionError(f"{what}: not after {seconds:g} s; last {last!r}, {failure!r}")
