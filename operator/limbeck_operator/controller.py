"""The operator: informer, queue, workers and leader election, put together."""

from __future__ import annotations

import asyncio
import logging
import os
import socket
import time
import uuid
from dataclasses import dataclass, field
from datetime import UTC, datetime, timedelta

from limbeck.glibc import share_arenas
from limbeck.kubeflow import Access
from limbeck.standing import Standing
from limbeck.version import __version__
from limbeck_operator import api
from limbeck_operator.answers import Answers
from limbeck_operator.cache import Cache, Key, key_of, owner_of
from limbeck_operator.conditions import holds
from limbeck_operator.distillation import is_finished, reconcile
from limbeck_operator.executor import Executor
from limbeck_operator.fuse import fuse
from limbeck_operator.informer import Informer
from limbeck_operator.inherit import Defaults, inherit
from limbeck_operator.kube import Document, Kube, Refused, connect
from limbeck_operator.leader import KubernetesLease, LeaderElector, NotLeadingError, Terms
from limbeck_operator.logs import about
from limbeck_operator.manifests import cluster_name
from limbeck_operator.metrics import Metrics, condition_of
from limbeck_operator.observed import Observed
from limbeck_operator.pipelines import Pipelines, Runs
from limbeck_operator.pods import Pods, address_of
from limbeck_operator.queue import Closed, WorkQueue
from limbeck_operator.schedule import ObservedSchedule, reconcile_schedule
from limbeck_operator.server import Server

log = logging.getLogger("limbeck.operator")

_STALE_SECONDS = 900.0  # without any word of the API server, or with work that waits so long, something is wrong


@dataclass(frozen=True)
class Settings:
    """How the operator is run.

    Attributes:
        namespace: the only one to look at; None for all.
        lease_namespace: where the lease of the leader is.
        lease_seconds: how long it holds; it is renewed within two thirds of that, and tried for every seventh or so.
        kubeconfig: a file, else the pod's service account.
        workers: objects that are reconciled at once.
        resync: seconds between whole lists.
        port: of health and metrics; 0 takes a free one.
        defaults: of objects that do not say it themselves.
        kubeflow: the Kubeflow Pipelines that objects may run on.
        kubeflow_seconds: between two looks at one run there, at least.
        progress_seconds: between two looks at how far one pod is, at least.
    """

    namespace: str | None = None
    lease_namespace: str = "default"
    lease_seconds: float = 15.0
    kubeconfig: str | None = None
    workers: int = 8
    resync: float = 300.0
    port: int = 8080
    defaults: Defaults = field(default_factory=Defaults)
    kubeflow: Access | None = None
    kubeflow_seconds: float = 15.0
    progress_seconds: float = 10.0


class Operator:
    """Reconciles the objects of a cluster, or of one namespace, while it leads."""

    def __init__(self, settings: Settings) -> None:
        self._settings = settings
        self._cache = Cache(condition_of)
        self._queue: WorkQueue[Key] = WorkQueue()
        identity = os.environ.get("LIMBECK_POD_NAME") or socket.gethostname()
        self.identity = f"{identity}_{uuid.uuid4().hex[:8]}"
        agent = f"{api.MANAGER}/{__version__} ({self.identity})"
        terms = Terms(settings.lease_seconds, settings.lease_seconds * 2 / 3, settings.lease_seconds * 2 / 15)
        client = connect(settings.kubeconfig, agent, terms.lease - terms.renew)
        self._elector = LeaderElector(
            KubernetesLease(client, settings.lease_namespace, api.MANAGER),
            self.identity,
            terms,
            fuse=fuse(),
        )
        self._kube = Kube(client, self._elector.acting)
        self._pods = Pods()
        self._standings: Answers[Key, Standing | None] = Answers(
            self._news, lambda _: None, least=settings.progress_seconds
        )
        pipelines = None
        if settings.kubeflow is not None:
            pipelines = Pipelines(settings.kubeflow, lambda: self._elector.leads, settings.defaults.image)
        self._runs = Runs(pipelines, self._news, settings.kubeflow_seconds)
        self._executor = Executor(self._kube, self._cache, lambda: self._elector.leads, self.identity, self._runs)
        self._informer = Informer(
            self._kube,
            self._cache,
            settings.namespace,
            self._changed,
            resync=settings.resync,
            connection=client.configuration,
            agent=agent,
        )
        self.metrics = Metrics(lambda: self._queue, self._cache, self._kube, lambda: self._elector.leads)
        self._worked = time.monotonic()

    async def run(self) -> None:
        """Work until a signal comes, or this is cancelled."""
        server = Server(self._settings.port, self.metrics, ready=self._informer.ready.is_set, alive=self._alive)
        await server.start()
        election = asyncio.create_task(self._elect(), name="election")
        informer = asyncio.create_task(self._informer.run(), name="informer")
        try:
            ended, _ = await asyncio.wait({election, informer}, return_when=asyncio.FIRST_COMPLETED)
            for task in ended:
                task.result()
        finally:
            for task in (election, informer):  # the lease first, so that another replica can go on
                task.cancel()
                await asyncio.gather(task, return_exceptions=True)
            await server.stop()
            await self._pods.close()
            self._runs.close()
            self._kube.close()

    async def _elect(self) -> None:
        await self._informer.ready.wait()
        await self._elector.run(self._lead)

    async def _lead(self) -> None:
        """Reconcile everything once, and then what changes."""
        self._queue = WorkQueue()  # nothing of an earlier time as the leader
        for kind in (api.DISTILLATION, api.SCHEDULE):
            for key in self._cache.keys(kind):
                self._queue.add(key)
        try:
            async with asyncio.TaskGroup() as group:
                for _ in range(self._settings.workers):
                    group.create_task(self._work())
        finally:
            await self._standings.close()
            await self._runs.rest()

    def _news(self, key: Key) -> None:
        """A pod, or Kubeflow, has said something new of an object."""
        self._queue.add(key)

    def _changed(self, key: Key, document: Document | None) -> None:
        """An object has changed: it is reconciled if it is ours, and so is what controls it."""
        if not self._elector.leads:
            return
        if key.kind in (api.DISTILLATION, api.SCHEDULE):
            if self._cache.get(key) is None:
                self._queue.discard(key)
                self._standings.forget(key)
                self._runs.forget(key)
            else:
                self._queue.add(key)
        owner = owner_of(document) if document is not None else None
        if owner is not None and owner["kind"] in (api.DISTILLATION, api.SCHEDULE):
            self._queue.add(Key(owner["kind"], key.namespace, owner["name"]))
        if key.kind == "Pod" and document is not None:  # a Job controls it, and has given it its labels
            labels = document["metadata"].get("labels") or {}
            for kind, label in ((api.DISTILLATION, api.OF), (api.SCHEDULE, api.OF_SCHEDULE)):
                if label in labels:
                    self._queue.add(Key(kind, key.namespace, labels[label]))

    async def _work(self) -> None:
        while True:
            try:
                key, waited = await self._queue.get()
            except Closed:
                return
            started = time.monotonic()
            try:
                again = await self._reconcile(key)
            except NotLeadingError:  # this is cancelled then, unless the lease was renewed at the last moment
                self._queue.add_rate_limited(key)
                continue
            except Exception as error:
                again = None
                outcome = "conflict" if isinstance(error, Refused) and error.status == 409 else "error"
                if outcome == "error":
                    known = isinstance(error, Refused | OSError)
                    log.warning("%s %s/%s: %s", *key, error, exc_info=not known, extra=about(*key))
                self._queue.add_rate_limited(key)
            else:
                outcome = "done"
                self._queue.forget(key)
                if again is not None:
                    self._queue.add_after(key, max(0.0, (again - datetime.now(UTC)).total_seconds()))
            finally:
                self._queue.done(key)
            self._worked = time.monotonic()
            self.metrics.reconciled(key.kind, outcome, waited, self._worked - started)

    async def _reconcile(self, key: Key) -> datetime | None:
        """Look, decide, and act; when to look again."""
        document = self._cache.get(key)
        if document is None:
            return None
        now = datetime.now(UTC)
        if key.kind == api.DISTILLATION:
            plan = reconcile(await self._observe(document), now)
        else:
            plan = reconcile_schedule(await self._observe_schedule(document), now)
        await self._executor.carry_out(document, plan)
        self.metrics.carried_out(document, plan, now)
        return plan.again

    async def _observe(self, document: Document) -> Observed:
        key, defaults = key_of(api.DISTILLATION, document), self._settings.defaults
        spec = inherit(document.get("spec") or {}, defaults, key.namespace, key.name).get("execution") or {}
        status = document.get("status") or {}
        looked = None
        is_kubeflow_s = spec.get("backend") == "kubeflow"
        if is_kubeflow_s or api.FINALIZER in (document["metadata"].get("finalizers") or []):
            looked = self._runs.look(document)
        if is_kubeflow_s:
            return Observed(document, kubeflow=looked, every=timedelta(seconds=self._runs.seconds), defaults=defaults)
        job = self._cache.get(Key("Job", key.namespace, key.name))
        pods: list[Document] = []
        if job is not None and not is_finished(status):
            pods = await self._pods_of(job)
        cluster, has_ray = None, True
        if (spec.get("ray") or {}).get("cluster") is not None:
            has_ray = await self._kube.knows("RayCluster")
            if has_ray:
                cluster = await self._kube.get("RayCluster", key.namespace, cluster_name(key.name))
        return Observed(
            document,
            job,
            pods,
            cluster,
            has_ray,
            standing=self._standing(key, pods),
            kubeflow=looked,
            every=timedelta(seconds=self._standings.seconds),
            defaults=defaults,
        )

    def _standing(self, key: Key, pods: list[Document]) -> Standing | None:
        """How far the newest pod has last said it is, if it runs."""
        address = address_of(pods)
        if address is None:
            self._standings.forget(key)
            return None
        return self._standings.look(key, address, lambda: self._pods.ask(address))

    async def _observe_schedule(self, document: Document) -> ObservedSchedule:
        checks = self._cache.children("Job", document)
        pods = {job["metadata"]["name"]: await self._pods_of(job) for job in checks}
        mine = self._cache.children(api.DISTILLATION, document)
        return ObservedSchedule(document, mine, checks, pods, self._settings.defaults)

    async def _pods_of(self, job: Document) -> list[Document]:
        """The pods of a Job, the oldest first; once it has ended, as they are and not as they were last heard of."""
        ended = any(holds(job.get("status") or {}, kind) for kind in ("Complete", "Failed"))
        if ended:
            metadata = job["metadata"]
            selector = f"batch.kubernetes.io/controller-uid={metadata['uid']}"
            pods = await self._kube.listed("Pod", metadata["namespace"], selector)
        else:
            pods = list(self._cache.children("Pod", job))
        return sorted(pods, key=lambda pod: (pod["metadata"]["creationTimestamp"], pod["metadata"]["name"]))

    def _alive(self) -> str | None:
        """What is wrong, if something is that a new start would mend."""
        now = time.monotonic()
        if now - self._informer.fresh > _STALE_SECONDS:
            return f"no word of the API server for {now - self._informer.fresh:.0f} s"
        waiting = self._queue.oldest_waiting()
        if self._elector.leads and waiting is not None and waiting > _STALE_SECONDS:
            return f"work has waited for {waiting:.0f} s, and none was done for {now - self._worked:.0f} s"
        return None


def run(settings: Settings) -> None:
    """Run an operator until a signal comes."""
    share_arenas()
    asyncio.run(Operator(settings).run())
