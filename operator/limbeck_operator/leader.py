"""Who of several replicas acts: a Lease of Kubernetes, as its own components use it.

A lease is out when its record has not changed for its duration by the clock of the one who looks: clocks of machines
need not agree. A leader that could not renew for less than that stops first, and what it has begun to write is over by
then, or the process is, so that two never act at once.
"""

from __future__ import annotations

import asyncio
import json
import logging
import math
import random
import time
from collections.abc import Awaitable, Callable, Iterator, Mapping
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from typing import Any, Protocol

log = logging.getLogger("limbeck.operator")

_JITTER = 0.2  # of the time between tries, so that replicas do not ask in step
_THREADS = 4  # of its own, so that a renewal waits for no other work


class Conflict(Exception):  # noqa: N818 - what the API server said
    """Another one was faster."""


class NotLeadingError(Exception):
    """Another replica may lead by now, so nothing was written."""


class Timer(Protocol):
    """What ends this process: see `fuse.Fuse`."""

    def light(self, seconds: float) -> None:
        """Have this process end after so many seconds, unless this thread puts it out before."""

    def put_out(self) -> None:
        """Have it not end on this thread's account."""


class LeaseApi(Protocol):
    """One Lease. Every method may raise any exception where no answer comes within `timeout` seconds."""

    async def read(self, timeout: float) -> dict[str, Any] | None:
        """The lease; None where there is none."""

    async def create(self, spec: Mapping[str, Any], timeout: float) -> dict[str, Any]:
        """Make the lease; raises `Conflict` where there is one."""

    async def replace(self, lease: Mapping[str, Any], timeout: float) -> dict[str, Any]:
        """Write the lease; raises `Conflict` where it is no longer the one of `lease`'s resourceVersion."""


@dataclass(frozen=True)
class Terms:
    """Seconds: how long a lease holds, within which a leader must have renewed it, and between tries.

    What a leader has begun to write has ended within `lease` - `renew` after it stopped: see `LeaderElector.acting`.
    """

    lease: float = 15.0
    renew: float = 10.0
    retry: float = 2.0

    def __post_init__(self) -> None:
        if not self.lease > self.renew > self.retry * (1 + _JITTER) > 0:
            raise ValueError(f"{self}: lease must be longer than renew, and renew than {1 + _JITTER:g} times retry")


def steady() -> float:
    """Seconds that only grow, also while the machine sleeps, where it can tell."""
    return time.clock_gettime(getattr(time, "CLOCK_BOOTTIME", time.CLOCK_MONOTONIC))


def _utc_now() -> datetime:
    return datetime.now(UTC)


class LeaderElector:
    """Runs something for as long as this replica leads, again and again.

    Args:
        lease: what the replicas contend for.
        identity: of this process; no other ever has the same.
        terms: seconds.
        clock: of this machine; it never goes back.
        calendar: the time of day that the lease shows; nothing depends on it.
        chance: of the jitter of tries.
        fuse: ends this process when a write lasts too long; None for none.
    """

    def __init__(
        self,
        lease: LeaseApi,
        identity: str,
        terms: Terms = Terms(),
        clock: Callable[[], float] = steady,
        calendar: Callable[[], datetime] = _utc_now,
        chance: random.Random | None = None,
        fuse: Timer | None = None,
    ) -> None:
        self._lease, self._identity, self._terms = lease, identity, terms
        self._clock, self._calendar = clock, calendar
        self._chance = chance or random.Random()  # noqa: S311 - no secret
        self._fuse = fuse
        self._until = float("-inf")  # until when this replica may act
        self._alone = float("-inf")  # until when no other may
        self._held: dict[str, Any] | None = None  # the lease, as this replica last wrote it
        self._wrote = False  # whether it ever tried to
        self._seen: tuple[Any, Mapping[str, Any]] | None = None  # resourceVersion and spec of the last lease read
        self._seen_at = 0.0  # when it was new here
        self._trouble = ""

    @property
    def leads(self) -> bool:
        """Whether this replica may act, this very moment."""
        return self._clock() < self._until

    @contextmanager
    def acting(self) -> Iterator[float]:
        """Around one write, in any thread: gives the seconds within which it must have ended.

        Whoever is stopped between a look at the clock and a write would write as soon as it goes on, though another
        replica has led for long by then. So the fuse burns during writes, and is out before another one may lead.

        Raises:
            NotLeadingError: this replica may not act.
        """
        left = self._alone - self._clock()
        if left <= 0:
            raise NotLeadingError
        if self._fuse is not None:
            self._fuse.light(left)
        try:
            if not self.leads:  # asked after the fuse was lit, which may have been late
                raise NotLeadingError
            yield left
        finally:
            if self._fuse is not None:
                self._fuse.put_out()

    async def run(self, lead: Callable[[], Awaitable[None]]) -> None:
        """Contend for the lease, and run `lead` whenever it is held.

        When the lease cannot be renewed in time, `lead` is cancelled, and awaited before the lease is contended for
        again; also when `lead` has ended by itself. It ends when it is cancelled or `lead` raises an exception, and
        gives the lease up once `lead` has ended.
        """
        try:
            while True:
                while not await self._try():
                    await self._pause()
                log.info("leading as %s", self._identity)
                await self._hold(lead)
                await self._pause()
        finally:
            await _to_its_end(asyncio.create_task(self._release()))

    async def _hold(self, lead: Callable[[], Awaitable[None]]) -> None:
        """Run `lead`, and renew beside it, until the lease is lost or `lead` ends."""
        task = asyncio.create_task(_awaited(lead))
        renewal = asyncio.create_task(self._renew())
        by_itself = False
        try:
            await asyncio.wait({task, renewal}, return_when=asyncio.FIRST_COMPLETED)
            by_itself = task.done()
            if not by_itself:
                log.warning("the lease could not be renewed in time; nothing is done until it is held again")
        finally:
            try:
                await _to_its_end(task, cancel=True)  # a lease that is not lost is renewed until then
            finally:
                await _to_its_end(renewal, cancel=True)
            if not by_itself and not task.cancelled() and task.exception() is not None:
                log.error("an error after it was told to stop", exc_info=task.exception())
        if by_itself:
            task.result()
            log.warning("what was led has ended")

    async def _renew(self) -> None:
        """Renew the lease until it is lost."""
        while self.leads:
            await self._pause(self._until - self._clock())
            if self.leads:
                await self._try(self._until - self._clock())
        self._until = float("-inf")

    async def _pause(self, longest: float = float("inf")) -> None:
        await asyncio.sleep(min(longest, self._terms.retry * (1 + _JITTER * self._chance.random())))

    async def _try(self, patience: float = float("inf")) -> bool:
        """Take or renew the lease; whether that was done."""
        timeout = min(patience, self._terms.renew / 2)
        try:
            async with asyncio.timeout(timeout):
                held = await self._take(timeout)
        except Conflict:
            return False
        except Exception as error:  # an outage, of whatever kind
            self._tell(f"the lease was not reached: {str(error) or type(error).__name__}")
            return False
        self._tell("")
        return held

    def _tell(self, trouble: str) -> None:
        """Log a trouble once, however often it is found."""
        if trouble and trouble != self._trouble:
            log.warning("%s", trouble)
        self._trouble = trouble

    async def _take(self, timeout: float) -> bool:
        found, self._held = self._held, None
        if found is None:
            found = await self._lease.read(timeout)
            if not self._is_free(found):
                self._until = float("-inf")
                return False
        asked = self._clock()
        self._wrote = True
        if found is None:
            written = await self._lease.create(self._record({}), timeout)
        else:
            written = await self._lease.replace({**found, "spec": self._record(_spec(found))}, timeout)
        self._held, self._until, self._alone = written, asked + self._terms.renew, asked + self._terms.lease
        return True

    def _is_free(self, found: Mapping[str, Any] | None) -> bool:
        """Whether this replica may write the lease that was just read; a missing one is the last that was read."""
        if found is not None:
            version = found["metadata"]["resourceVersion"]
            if self._seen is None or self._seen[0] != version:
                self._seen, self._seen_at = (version, _spec(found)), self._clock()
        if self._seen is None:
            return True
        record = self._seen[1]
        holder = record.get("holderIdentity") or ""
        lasts = record.get("leaseDurationSeconds") or self._terms.lease
        return holder in ("", self._identity) or self._clock() - self._seen_at >= lasts

    def _record(self, before: Mapping[str, Any]) -> dict[str, Any]:
        """The lease's next record, which differs from the one before: a write that changes nothing is none."""
        now = self._calendar()
        if _micro_time(now) == before.get("renewTime"):
            now += timedelta(microseconds=1)
        transitions = before.get("leaseTransitions") or 0
        mine = before.get("holderIdentity") == self._identity
        return {
            "holderIdentity": self._identity,
            "leaseDurationSeconds": math.ceil(self._terms.lease),  # others wait no less than this one counts on
            "acquireTime": (before.get("acquireTime") if mine else None) or _micro_time(now),
            "renewTime": _micro_time(now),
            "leaseTransitions": transitions if mine or not before else transitions + 1,
        }

    async def _release(self) -> None:
        """Give the lease up, if it is held, so that another one need not wait until it is out."""
        self._until = float("-inf")
        if not self._wrote:
            return
        timeout = self._terms.renew / 2
        try:
            async with asyncio.timeout(timeout):
                found = await self._lease.read(timeout)
                if found is None or _spec(found).get("holderIdentity") != self._identity:
                    return
                now = _micro_time(self._calendar())
                times = {"acquireTime": now, "renewTime": now}
                spec = {**_spec(found), **times, "holderIdentity": "", "leaseDurationSeconds": 1}
                await self._lease.replace({**found, "spec": spec}, timeout)
        except Exception as error:
            log.warning("the lease was not given up: %s", str(error) or type(error).__name__)


class KubernetesLease:
    """A Lease of an API server, as plain JSON."""

    def __init__(self, api_client: Any, namespace: str, name: str) -> None:
        from kubernetes import client

        self._api, self._failure = client.CoordinationV1Api(api_client), client.ApiException
        self._namespace, self._name = namespace, name
        self._threads = ThreadPoolExecutor(_THREADS, "lease")

    async def read(self, timeout: float) -> dict[str, Any] | None:
        """See `LeaseApi.read`."""
        try:
            return await self._ask(timeout, self._api.read_namespaced_lease, self._name, self._namespace)
        except self._failure as error:
            if error.status == 404:
                return None
            raise

    async def create(self, spec: Mapping[str, Any], timeout: float) -> dict[str, Any]:
        """See `LeaseApi.create`."""
        metadata = {"name": self._name, "namespace": self._namespace}
        body = {"apiVersion": "coordination.k8s.io/v1", "kind": "Lease", "metadata": metadata, "spec": dict(spec)}
        return await self._write(timeout, self._api.create_namespaced_lease, self._namespace, body)

    async def replace(self, lease: Mapping[str, Any], timeout: float) -> dict[str, Any]:
        """See `LeaseApi.replace`."""
        return await self._write(timeout, self._api.replace_namespaced_lease, self._name, self._namespace, dict(lease))

    async def _write(self, timeout: float, call: Callable[..., Any], *arguments: Any) -> dict[str, Any]:
        try:
            return await self._ask(timeout, call, *arguments)
        except self._failure as error:
            if error.status == 409:
                raise Conflict from None
            raise

    async def _ask(self, timeout: float, call: Callable[..., Any], *arguments: Any) -> dict[str, Any]:
        def asked() -> dict[str, Any]:
            # seconds to connect, and until an answer comes; the client would pass over a single float
            answer = call(*arguments, _preload_content=False, _request_timeout=(timeout / 2, timeout / 2))
            found: dict[str, Any] = json.loads(answer.data)
            return found

        return await asyncio.get_running_loop().run_in_executor(self._threads, asked)


async def _awaited(lead: Callable[[], Awaitable[None]]) -> None:
    await lead()


async def _to_its_end(task: asyncio.Task[None], *, cancel: bool = False) -> None:
    """Wait until a task has ended, also when this is cancelled meanwhile, which is told to the task if it is too.

    What the task raised is not raised.
    """
    interruption: asyncio.CancelledError | None = None
    while not task.done():
        if cancel:
            task.cancel()
        try:
            await asyncio.wait({task})
        except asyncio.CancelledError as error:
            interruption = error
    if interruption is not None:
        raise interruption


def _spec(lease: Mapping[str, Any]) -> Mapping[str, Any]:
    spec: Mapping[str, Any] = lease.get("spec") or {}
    return spec


def _micro_time(instant: datetime) -> str:
    return instant.astimezone(UTC).strftime("%Y-%m-%dT%H:%M:%S.%fZ")
