"""Carries plans out."""

from __future__ import annotations

import logging
import uuid
from collections.abc import Callable, Sequence
from typing import Any, Protocol

from limbeck_operator import api
from limbeck_operator.cache import Cache
from limbeck_operator.kube import Document, Kube, Refused
from limbeck_operator.leader import NotLeadingError
from limbeck_operator.logs import about
from limbeck_operator.manifests import is_owned
from limbeck_operator.plan import Delete, Event, Limit, Plan, Submit, Suspend

log = logging.getLogger("limbeck.operator")

# other managers of fields, so that an object's other fields stay
_SUSPENDER, _FINALIZER = f"{api.MANAGER}-suspend", f"{api.MANAGER}-finalizer"
_FINAL = (400, 403, 422)  # answers that asking again soon does not change


class Runs(Protocol):
    """Runs on Kubeflow, which are begun and ended in the background."""

    def submit(self, document: Document, what: Submit) -> None:
        """Begin to submit a run."""

    def terminate(self, document: Document, ids: Sequence[str]) -> None:
        """Begin to terminate runs."""


class Executor:
    """Carries plans out, as long as this replica leads.

    Args:
        kube: the API server.
        cache: is told of every answer, so that the next reconcile knows what this one has done.
        leads: asked before each write, so that none is sent to `kube` in vain, which has the last word.
        reporter: who events are said to come from.
        runs: on Kubeflow.
    """

    def __init__(self, kube: Kube, cache: Cache, leads: Callable[[], bool], reporter: str, runs: Runs) -> None:
        self._kube, self._cache, self._leads, self._reporter = kube, cache, leads, reporter
        self._runs = runs

    async def carry_out(self, document: Document, plan: Plan) -> None:
        """Do what a plan says about an object.

        Raises:
            NotLeadingError: the rest is not done.
            Refused: the API server does not do it; the rest is not done.
        """
        namespace = document["metadata"]["namespace"]
        for entry in plan.delete:
            await self._delete(namespace, entry)
        for manifest in plan.create:
            await self._create(document, manifest)
        for limit in plan.limit:
            await self._limit(namespace, limit)
        for change in plan.suspend:
            await self._suspend(namespace, change)
        if plan.finalizer is not None:
            await self._finalizer(document, plan.finalizer)
            return
        if plan.terminate:
            self._check()
            self._runs.terminate(document, plan.terminate)
        if plan.submit is not None:
            self._check()
            self._runs.submit(document, plan.submit)
        if plan.status is not None:
            await self._status(document, plan.status)
        for event in plan.events:
            await self._record(document, event)

    def _check(self) -> None:
        if not self._leads():
            raise NotLeadingError

    async def _delete(self, namespace: str, entry: Delete) -> None:
        self._check()
        await self._kube.delete(entry.kind, namespace, entry.name, entry.uid)
        log.info("deleted %s %s/%s", entry.kind, namespace, entry.name, extra=about(entry.kind, namespace, entry.name))

    async def _create(self, owner: Document, manifest: Document) -> None:
        self._check()
        kind, metadata = manifest["kind"], manifest["metadata"]
        try:
            made = await self._kube.create(kind, manifest)
            key = kind, metadata["namespace"], metadata["name"]
            log.info("created %s %s/%s", *key, extra=about(*key))
        except Refused as refusal:
            if refusal.status != 409:
                if refusal.status in _FINAL:
                    await self._record(owner, Event("FailedCreate", f"{kind} {metadata['name']}: {refusal}", "Warning"))
                raise
            found = await self._kube.get(kind, metadata["namespace"], metadata["name"])
            if found is None or not is_owned(found, owner):
                if found is not None:
                    taken = f"{kind} {metadata['name']}: there is one of this name that is not its own"
                    await self._record(owner, Event("FailedCreate", taken, "Warning"))
                raise
            made = found
        self._cache.put(kind, made)

    async def _suspend(self, namespace: str, change: Suspend) -> None:
        self._check()
        document = {
            "apiVersion": "batch/v1",
            "kind": "Job",
            "metadata": {"name": change.name, "namespace": namespace},
            "spec": {"suspend": change.suspend},
        }
        try:
            self._cache.put("Job", await self._kube.apply("Job", document, manager=_SUSPENDER))
        except Refused as refusal:
            if refusal.status != 404:
                raise

    async def _limit(self, namespace: str, limit: Limit) -> None:
        self._check()
        document = {"metadata": {"name": limit.name, "namespace": namespace, "uid": limit.uid}, "spec": limit.limits}
        try:
            self._cache.put("Job", await self._kube.merge("Job", document))
        except Refused as refusal:
            if refusal.status != 404:
                raise

    async def _finalizer(self, document: Document, wanted: bool) -> None:
        """Have the object kept until its run on Kubeflow has ended, or no longer."""
        self._check()
        metadata: dict[str, Any] = {name: document["metadata"][name] for name in ("name", "namespace", "uid")}
        if wanted:
            metadata["finalizers"] = [api.FINALIZER]
        body = {"apiVersion": document["apiVersion"], "kind": document["kind"], "metadata": metadata}
        try:
            made = await self._kube.apply(document["kind"], body, manager=_FINALIZER)
            left = made["metadata"].get("finalizers") or []
            if not wanted and api.FINALIZER in left:  # somebody else has set it, too: who made it from a copy, say
                metadata["resourceVersion"] = made["metadata"]["resourceVersion"]
                metadata["finalizers"] = [entry for entry in left if entry != api.FINALIZER]
                made = await self._kube.merge(document["kind"], body)
            self._cache.put(document["kind"], made)
        except Refused as refusal:
            if wanted or refusal.status not in (404, 409):  # it is gone, or another of its name is there
                raise

    async def _status(self, document: Document, status: dict[str, Any]) -> None:
        """Write the status, if the object is still the one that it was derived from."""
        self._check()
        metadata = document["metadata"]
        body = {
            "apiVersion": document["apiVersion"],
            "kind": document["kind"],
            "metadata": {name: metadata[name] for name in ("name", "namespace", "uid", "resourceVersion")},
            "status": status,
        }
        written = await self._kube.apply(document["kind"], body, part="status")
        self._cache.put(document["kind"], written)

    async def _record(self, document: Document, event: Event) -> None:
        """Record an event; one that is lost changes nothing."""
        self._check()
        name = f"{document['metadata']['name']}.{uuid.uuid4().hex[:16]}"
        try:
            await self._kube.record(document, event.reason, event.message, event.type, name, self._reporter)
        except Refused as refusal:
            log.warning("event not recorded: %s", refusal)
