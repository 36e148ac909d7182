"""The operator at size, on a real API server: thousands of objects, its memory, its latency and what it asks for.

Objects are made first and the operator is started then, as after an outage. Once everything is reconciled, a steady
state is looked at: objects come and go, and schedules fire, each in a minute of the hour of its own.
"""

from __future__ import annotations

import itertools
import math
import re
import signal
import statistics
import sys
import tempfile
import threading
import time
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from pathlib import Path
from typing import Annotated, Any

import typer
import yaml
from kubernetes import client, watch
from rich.console import Console
from rich.table import Table
from urllib3.exceptions import HTTPError

ROOT = Path(__file__).parent.parent
sys.path.insert(0, str(ROOT))

from tests.cluster import binaries  # noqa: E402
from tests.cluster.control_plane import ControlPlane  # noqa: E402
from tests.cluster.kubelet import play, until  # noqa: E402
from tests.cluster.operating import Objects, Replica  # noqa: E402

from limbeck_operator import api  # noqa: E402
from limbeck_operator.crds import crds  # noqa: E402

NAMESPACE = "scale"
_SAMPLE = re.compile(r"^(limbeck_\w+)(?:\{(.*)\})? (\S+)$", re.MULTILINE)


def prepare(plane: ControlPlane) -> tuple[Objects, Path]:
    """Definitions, a namespace, and the operator's account with its rights of `operator/rbac/role.yaml`."""
    admin = plane.client()
    for definition in crds().values():
        client.ApiextensionsV1Api(admin).create_custom_resource_definition(definition)
    client.CoreV1Api(admin).create_namespace({"metadata": {"name": NAMESPACE}})
    objects = Objects(admin, NAMESPACE)
    until(lambda: objects.all() == [] and objects.all(api.SCHEDULES) == [], "the definitions")
    rights = client.RbacAuthorizationV1Api(admin)
    role = yaml.safe_load((ROOT / "operator" / "rbac" / "role.yaml").read_text())
    rights.create_namespaced_role(NAMESPACE, role)
    binding = {
        "metadata": {"name": "limbeck-operator"},
        "roleRef": {"apiGroup": "rbac.authorization.k8s.io", "kind": "Role", "name": role["metadata"]["name"]},
        "subjects": [{"kind": "ServiceAccount", "name": "operator", "namespace": NAMESPACE}],
    }
    rights.create_namespaced_role_binding(NAMESPACE, binding)
    return objects, plane.account(NAMESPACE, "operator")


def samples(text: str) -> dict[tuple[str, str], float]:
    """Prometheus' text by name and labels."""
    return {(name, labels or ""): float(value) for name, labels, value in _SAMPLE.findall(text)}


def quantile(before: dict[Any, float], after: dict[Any, float], name: str, share: float) -> tuple[float, int]:
    """(upper bound in seconds, number of observations) of a histogram between two looks, over all of its labels."""
    counts: dict[float, float] = {}
    for (metric, labels), value in after.items():
        if metric == f"{name}_bucket":
            bound = float(re.search(r'le="([^"]+)"', labels)[1])  # type: ignore[index]
            counts[bound] = counts.get(bound, 0.0) + value - before.get((metric, labels), 0.0)
    total = counts.get(math.inf, 0.0)
    bound = next((bound for bound in sorted(counts) if total and counts[bound] >= share * total), math.nan)
    return bound, int(total)


def memory(pid: int, field: str = "VmHWM") -> float:
    """MiB of a process; by default the most that were resident."""
    text = Path(f"/proc/{pid}/status").read_text()
    return int(re.search(rf"{field}:\s+(\d+)", text)[1]) / 1024  # type: ignore[index]


class Births(threading.Thread):
    """Notes when each Job is heard of."""

    def __init__(self, admin: Any) -> None:
        super().__init__(daemon=True)
        self._batch = client.BatchV1Api(admin)
        self._watch = watch.Watch()
        self.heard: dict[str, float] = {}

    def run(self) -> None:
        """Watch, until stopped, or the API server is."""
        version = self._batch.list_namespaced_job(NAMESPACE, limit=1).metadata.resource_version
        with suppress(HTTPError):
            for event in self._watch.stream(
                self._batch.list_namespaced_job, NAMESPACE, resource_version=version, timeout_seconds=3600
            ):
                self.heard.setdefault(event["object"].metadata.name, time.monotonic())

    def stop(self) -> None:
        """Watch no more."""
        self._watch.stop()


def steadily(objects: Objects, births: Births, seconds: float, pause: float) -> list[float]:
    """Make an object every so often, have another's pod run, and end; seconds from asked for to Job heard of."""
    made: dict[str, float] = {}
    end = time.monotonic() + seconds
    pods = iter(client.CoreV1Api(objects.admin).list_namespaced_pod(NAMESPACE, limit=500).items)
    for number in itertools.count():
        if time.monotonic() > end:
            break
        name = f"probe-{number}"
        made[name] = time.monotonic()
        objects.create(name)
        pod = next(pods, None)
        if pod is not None:
            play(objects.admin, NAMESPACE, pod.metadata.name, "Running")
            play(objects.admin, NAMESPACE, pod.metadata.name, "Failed", exit_code=2, message="no such bucket")
        time.sleep(pause)
    until(lambda: made.keys() <= births.heard.keys(), "the Jobs of all probes")
    return [births.heard[name] - asked for name, asked in made.items()]


def main(
    distillations: Annotated[int, typer.Option(help="Made at first.")] = 5000,
    schedules: Annotated[int, typer.Option(help="Made at first.")] = 1000,
    seconds: Annotated[float, typer.Option(help="Of the steady state.")] = 300.0,
    pause: Annotated[float, typer.Option(help="Seconds between two objects then.")] = 0.5,
) -> None:
    """Memory, latency and requests of the operator."""
    folder, why = binaries.find()
    if folder is None:
        raise SystemExit(why)
    with tempfile.TemporaryDirectory() as temporary:
        plane = ControlPlane(folder, Path(temporary) / "plane")
        try:
            plane.start()
            _measure(plane, Path(temporary), distillations, schedules, seconds, pause)
        finally:
            plane.stop()


def _measure(
    plane: ControlPlane, folder: Path, distillations: int, schedules: int, seconds: float, pause: float
) -> None:
    objects, account = prepare(plane)
    started = time.monotonic()
    with ThreadPoolExecutor(4) as pool:
        list(pool.map(lambda number: objects.create(f"d-{number}"), range(distillations)))
        list(pool.map(lambda number: objects.schedule(f"s-{number}", f"{number % 60} * * * *"), range(schedules)))
    _say(f"{distillations} + {schedules} objects made in {time.monotonic() - started:.0f} s")
    replica = Replica(account, folder / "operator.log", "--namespace", NAMESPACE, "--log-format", "json")
    pid = replica.process.pid
    try:
        started = time.monotonic()

        def reconciled() -> bool:
            found = samples(replica.get("metrics")[1])
            progressing = found.get(("limbeck_objects", 'condition="Progressing",kind="Distillation"'), 0)
            scheduled = found.get(("limbeck_objects", 'condition="Scheduled",kind="ScheduledDistillation"'), 0)
            waiting = found.get(("limbeck_queue_depth", ""), math.inf)
            _say(
                f"  {progressing:.0f} and {scheduled:.0f} after {time.monotonic() - started:.0f} s; {waiting:.0f} wait"
            )
            time.sleep(2)
            return progressing >= distillations and scheduled >= schedules and waiting == 0

        until(reconciled, "everything reconciled", 1800)
        all_after = time.monotonic() - started
        first = memory(pid)
        _say(f"all reconciled after {all_after:.0f} s; {first:.0f} MiB at most")
        births = Births(objects.admin)
        births.start()
        before, clock = samples(replica.get("metrics")[1]), time.monotonic()
        probes = sorted(steadily(objects, births, seconds, pause))
        after, elapsed = samples(replica.get("metrics")[1]), time.monotonic() - clock
        requests = sum(v - before.get(k, 0.0) for k, v in after.items() if k[0] == "limbeck_api_requests_total")
        births.stop()
        table = Table(title=f"{distillations} Distillations, {schedules} schedules; steady for {elapsed:.0f} s")
        table.add_column("")
        table.add_column("measured", justify="right")
        table.add_row("all reconciled after a start, s", f"{all_after:.0f}")
        table.add_row("memory at most, MiB", f"{memory(pid):.0f}")
        table.add_row("memory now, MiB", f"{memory(pid, 'VmRSS'):.0f}")
        table.add_row(
            f"from asked for to its Job, {len(probes)} objects: median, s", f"{statistics.median(probes):.3f}"
        )
        table.add_row("the same, p99, s", f"{probes[math.ceil(0.99 * len(probes)) - 1]:.3f}")
        for name, what in (
            ("limbeck_reconcile_seconds", "reconciles"),
            ("limbeck_queue_wait_seconds", "waits in the queue"),
            ("limbeck_schedule_lag_seconds", "times of schedules"),
        ):
            bound, count = quantile(before, after, name, 0.99)
            table.add_row(f"{count} {what}: p99 at most, s", f"{bound:g}")
        table.add_row("requests to the API server, 1/s", f"{requests / elapsed:.1f}")
        Console().print(table)
    finally:
        if replica.process.poll() is None:
            replica.stop(signal.SIGTERM)


def _say(line: str) -> None:
    sys.stderr.write(line + "\n")
    sys.stderr.flush()


if __name__ == "__main__":
    typer.run(main)
