"""What Prometheus is told of the operator; no label holds a name or uid of an object."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from datetime import datetime
from typing import Any

from prometheus_client import CollectorRegistry, Counter, Histogram, generate_latest
from prometheus_client.core import CounterMetricFamily, GaugeMetricFamily
from prometheus_client.registry import Collector

from limbeck_operator import api
from limbeck_operator.cache import Cache, Key
from limbeck_operator.conditions import instant
from limbeck_operator.kube import Document, Kube
from limbeck_operator.plan import Plan
from limbeck_operator.queue import WorkQueue

_SHORT = (0.001, 0.003, 0.01, 0.03, 0.1, 0.2, 0.5, 1, 2, 5, 10, 30, 100)
_LONG = (60, 300, 900, 3600, 4 * 3600, 12 * 3600, 86_400, 7 * 86_400)


class Metrics(Collector):
    """Counts what happens, and looks at the rest when it is asked for."""

    def __init__(
        self, queue: Callable[[], WorkQueue[Key]], cache: Cache, kube: Kube, leads: Callable[[], bool]
    ) -> None:
        self._queue, self._cache, self._kube, self._leads = queue, cache, kube, leads
        self.registry = CollectorRegistry()
        self._reconciles = Counter(
            "limbeck_reconciles", "Reconciles, by how they ended.", ["kind", "outcome"], registry=self.registry
        )
        self._seconds = Histogram(
            "limbeck_reconcile_seconds", "Time of a reconcile.", ["kind"], buckets=_SHORT, registry=self.registry
        )
        self._waited = Histogram(
            "limbeck_queue_wait_seconds", "Time from ready to worked on.", buckets=_SHORT, registry=self.registry
        )
        self._created = Counter("limbeck_children_created", "Children made.", ["kind"], registry=self.registry)
        self._lag = Histogram(
            "limbeck_schedule_lag_seconds",
            "Time from when a distillation was due until it was made.",
            buckets=_SHORT,
            registry=self.registry,
        )
        self._duration = Histogram(
            "limbeck_distillation_seconds",
            "Time from start to end of a Distillation.",
            ["condition"],
            buckets=_LONG,
            registry=self.registry,
        )
        self.registry.register(self)

    def reconciled(self, kind: str, outcome: str, waited: float, seconds: float) -> None:
        """A reconcile has ended."""
        self._reconciles.labels(kind, outcome).inc()
        self._seconds.labels(kind).observe(seconds)
        self._waited.observe(waited)

    def carried_out(self, document: Document, plan: Plan, now: datetime) -> None:
        """A plan has been carried out."""
        for manifest in plan.create:
            self._created.labels(manifest["kind"]).inc()
            due = (manifest["metadata"].get("annotations") or {}).get(api.SCHEDULED_AT)
            if due is not None and manifest["kind"] == api.DISTILLATION:
                self._lag.observe(max(0.0, (now - instant(due)).total_seconds()))
        status: dict[str, Any] = plan.status or {}
        before = document.get("status") or {}
        if "startTime" in status and "completionTime" in status and "completionTime" not in before:
            condition = next(entry["type"] for entry in status["conditions"] if entry["type"] in ("Complete", "Failed"))
            took = instant(status["completionTime"]) - instant(status["startTime"])
            self._duration.labels(condition).observe(took.total_seconds())

    def text(self) -> bytes:
        """All of it, in Prometheus' text format."""
        return generate_latest(self.registry)

    def collect(self) -> Iterator[Any]:
        """What is true now."""
        yield GaugeMetricFamily("limbeck_leader", "Whether this replica leads.", value=float(self._leads()))
        yield GaugeMetricFamily("limbeck_queue_depth", "Objects that wait to be reconciled.", value=self._queue().depth)
        objects = GaugeMetricFamily("limbeck_objects", "Objects, by condition.", labels=["kind", "condition"])
        for (kind, condition), count in self._cache.tags().items():
            if kind in (api.DISTILLATION, api.SCHEDULE):
                objects.add_metric([kind, condition], count)
        yield objects
        requests = CounterMetricFamily("limbeck_api_requests", "Requests to the API server.", labels=["method", "kind"])
        for (method, kind), number in self._kube.requests.items():
            requests.add_metric([method, kind], number)
        yield requests


def condition_of(document: Document) -> str:
    """The condition that says most of an object."""
    conditions = (document.get("status") or {}).get("conditions") or []
    held = {entry["type"] for entry in conditions if entry["status"] == "True"}
    return next(
        (name for name in ("Complete", "Failed", "Suspended", "Progressing", "Scheduled") if name in held), "None"
    )
