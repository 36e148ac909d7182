"""What happens in the cluster, into the cache: kopf's watches, and now and then a whole list, since news can be lost.

kopf is used for nothing else: its handlers here write nothing to objects, and it adds neither finalizers nor
annotations for them.
"""

from __future__ import annotations

import asyncio
import itertools
import logging
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any

import kopf

from limbeck_operator import api
from limbeck_operator.cache import Cache, Key, key_of
from limbeck_operator.kube import Kube, strip

log = logging.getLogger("limbeck.operator")

KINDS = (api.DISTILLATION, api.SCHEDULE, "Job", "Pod")
_RESOURCES = {
    api.DISTILLATION: (api.GROUP, api.VERSION, api.DISTILLATIONS),
    api.SCHEDULE: (api.GROUP, api.VERSION, api.SCHEDULES),
    "Job": ("batch", "v1", "jobs"),
    "Pod": ("", "v1", "pods"),
}
_CHILDREN = ("Job", "Pod")  # there are others' of these
_OURS = f"{api.BY}={api.MANAGER}"
_WATCH_SECONDS = 1800  # after which a watch is opened anew, and all is told anew; lists find what one has missed
_PATIENCE = (1, 1, 2, 3, 5)  # seconds between the first tries of a request
_FIRST_LIST_SECONDS = 2.0
_CHUNK = 100  # objects of kopf's lists at a time


class _ForEver:
    """Pauses between tries that never end: the operator outlives any outage of the API server."""

    def __iter__(self) -> Iterator[float]:
        return itertools.chain(_PATIENCE, itertools.repeat(5.0))


@dataclass(frozen=True, kw_only=True)
class _Connection(kopf.ConnectionInfo):
    """One that says who asks."""

    agent: str

    def as_http_headers(self) -> dict[str, str]:
        return {**super().as_http_headers(), "User-Agent": self.agent}


class Informer:
    """Keeps a cache true.

    Args:
        kube: the API server.
        cache: to keep.
        namespace: the only one to look at; None for all.
        changed: told of the key of every object that has changed, or is gone.
        resync: seconds between whole lists.
        connection: how the client of `kube` is configured.
        agent: who this says that it is.
    """

    def __init__(
        self,
        kube: Kube,
        cache: Cache,
        namespace: str | None,
        changed: Callable[[Key, Any], None],
        *,
        resync: float = 300.0,
        connection: Any,
        agent: str,
    ) -> None:
        self._kube, self._cache, self._namespace = kube, cache, namespace
        self._changed, self._resync = changed, resync
        self._connection, self._agent = connection, agent
        self.ready = asyncio.Event()  # the cache is filled
        self.fresh = time.monotonic()  # when the API server was last heard of

    async def run(self) -> None:
        """Keep the cache true until cancelled; returns when kopf was told to stop by a signal."""
        lists = asyncio.create_task(self._lists(), name="lists")
        identity: Any = self._agent  # kopf would look up the user by name, and in a container there may be none
        try:
            await self.ready.wait()
            await kopf.operator(
                registry=self._registry(),
                settings=self._settings(),
                standalone=True,
                identity=identity,
                clusterwide=self._namespace is None,
                namespaces=() if self._namespace is None else (self._namespace,),
            )
        finally:
            lists.cancel()
            await asyncio.gather(lists, return_exceptions=True)

    async def _lists(self) -> None:
        while True:
            try:
                for kind in KINDS:
                    selector = _OURS if kind in _CHILDREN else None
                    listed, version = set[Key](), "0"
                    async for documents, as_of in self._kube.pages(kind, self._namespace, selector):
                        version = as_of
                        for document in documents:
                            listed.add(key_of(kind, document))
                            if self._cache.put(kind, document):
                                self._changed(key_of(kind, document), document)
                    for key, gone in self._cache.retain(kind, listed, version):
                        self._changed(key, gone)
                self.fresh = time.monotonic()
                self.ready.set()
            except asyncio.CancelledError:
                raise
            except Exception as error:  # an outage: whatever it is, it is tried again
                log.warning("objects were not listed: %s", error)
            await asyncio.sleep(self._resync if self.ready.is_set() else _FIRST_LIST_SECONDS)

    def _registry(self) -> kopf.OperatorRegistry:
        registry = kopf.OperatorRegistry()

        @kopf.on.login(registry=registry, retries=None)
        def login(**_: Any) -> kopf.ConnectionInfo:
            settings = self._connection
            return _Connection(
                agent=self._agent,
                server=settings.host,
                ca_path=settings.ssl_ca_cert,
                insecure=not settings.verify_ssl,
                certificate_path=settings.cert_file,
                private_key_path=settings.key_file,
                token=(settings.get_api_key_with_prefix("authorization") or "").rpartition(" ")[2]
                or None,  # "bearer ..."
            )

        for kind, (group, version, plural) in _RESOURCES.items():
            labels = {api.BY: api.MANAGER} if kind in _CHILDREN else None
            kopf.on.event(group, version, plural, registry=registry, id=kind, labels=labels)(self._handler(kind))
        return registry

    def _handler(self, kind: str) -> Any:
        async def handle(event: Any, **_: Any) -> None:
            self.fresh = time.monotonic()
            document = strip(kind, dict(event["object"]))
            key = key_of(kind, document)
            if event["type"] == "DELETED":
                self._cache.remove(kind, document)
            else:
                self._cache.put(kind, document)
            self._changed(key, document)  # though it be no news: the operator knows of its own writes before

        return handle

    def _settings(self) -> kopf.OperatorSettings:
        settings = kopf.OperatorSettings()
        settings.scanning.disabled = True
        settings.posting.enabled = False
        settings.networking.error_backoffs = _ForEver()
        settings.networking.connect_timeout = 5
        settings.watching.server_timeout = _WATCH_SECONDS
        settings.watching.client_timeout = _WATCH_SECONDS + 30
        settings.watching.connect_timeout = 5
        settings.watching.reconnect_backoff = 1.0
        settings.watching.chunk_size = _CHUNK  # by default a list is asked for whole, and held whole
        for kind in _CHILDREN:  # else all there are would be sent, to be left out here
            settings.watching.label_selectors[_RESOURCES[kind]] = _OURS
        settings.queueing.idle_timeout = 0.1  # what passes an object's news on is not kept for the next
        settings.queueing.exit_timeout = 1.0
        return settings
