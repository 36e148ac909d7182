"""The API server, as the operator uses it: objects are plain JSON, calls are awaited, answers have a time limit."""

from __future__ import annotations

import asyncio
import base64
import json
import socket
from collections.abc import AsyncIterator, Callable, Mapping
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import AbstractContextManager
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from kubernetes import client, config
from urllib3.connection import HTTPConnection

from limbeck_operator import api

Document = Mapping[str, Any]

_PLACES = {  # of kinds: where their API is, and their plural
    api.DISTILLATION: (f"apis/{api.API_VERSION}", api.DISTILLATIONS),
    api.SCHEDULE: (f"apis/{api.API_VERSION}", api.SCHEDULES),
    "Job": ("apis/batch/v1", "jobs"),
    "Pod": ("api/v1", "pods"),
    "RayCluster": ("apis/ray.io/v1", "rayclusters"),
    "Event": ("apis/events.k8s.io/v1", "events"),
}
_TIMEOUTS = (5, 30)  # seconds to connect, and until an answer comes
_WRITE_SECONDS = 5.0  # at most, until a write has ended
_CONNECTING = 0.4  # of these, to connect
_OF_PODS = ("phase", "podIP", "conditions", "containerStatuses")
_MERGE = "application/merge-patch+json"
_PAGE = 100
_LONGEST_NOTE = 1024  # bytes
_THREADS = 16
_TOKEN = Path("/var/run/secrets/kubernetes.io/serviceaccount/token")


class Refused(Exception):  # noqa: N818 - what the API server said
    """The API server does not do it; `status` is HTTP's."""

    def __init__(self, status: int, message: str) -> None:
        self.status = status
        super().__init__(f"{status}: {message}")


class Kube:
    """An API server and who asks it.

    Every method raises `Refused`, or another exception when no answer comes.

    Args:
        api_client: of `connect`.
        acting: around each write, in the very thread that sends it: gives the seconds within which it must have ended,
            or raises an exception when nothing may be written.
    """

    def __init__(self, api_client: Any, acting: Callable[[], AbstractContextManager[float]]) -> None:
        self._client, self._acting = api_client, acting
        self._threads = ThreadPoolExecutor(_THREADS, "kube")
        self.requests: dict[tuple[str, str], int] = {}  # by method and kind

    async def pages(
        self, kind: str, namespace: str | None = None, selector: str | None = None
    ) -> AsyncIterator[tuple[list[Document], str]]:
        """All objects of a kind, some at a time, so that never all are held; and the resource version of the first."""
        page, version = "", "0"
        while True:
            query = [("limit", _PAGE), ("continue", page), ("labelSelector", selector)]
            answer = await self._call("GET", kind, namespace, query=query)
            version = answer["metadata"]["resourceVersion"] if not page else version
            page = answer["metadata"].get("continue") or ""
            yield [strip(kind, entry) for entry in answer["items"]], version
            if not page:
                return

    async def listed(self, kind: str, namespace: str, selector: str) -> list[Document]:
        """The objects of a kind that a selector selects, which are few."""
        return [entry async for page, _ in self.pages(kind, namespace, selector) for entry in page]

    async def get(self, kind: str, namespace: str, name: str) -> Document | None:
        """An object; None where there is none of that name."""
        try:
            return strip(kind, await self._call("GET", kind, namespace, name))
        except Refused as refusal:
            if refusal.status == 404:
                return None
            raise

    async def knows(self, kind: str) -> bool:
        """Whether there is such a kind."""
        place, plural = _PLACES[kind]
        try:
            answer = await self._request("GET", f"/{place}", kind)
        except Refused as refusal:
            if refusal.status == 404:
                return False
            raise
        return any(entry["name"] == plural for entry in answer["resources"])

    async def create(self, kind: str, document: Document) -> Document:
        """Create an object."""
        namespace = document["metadata"]["namespace"]
        query = [("fieldManager", api.MANAGER)]
        return strip(kind, await self._call("POST", kind, namespace, body=document, query=query))

    async def apply(self, kind: str, document: Document, *, part: str = "", manager: str = api.MANAGER) -> Document:
        """Have the fields of `document` be so, by server-side apply.

        Args:
            kind: of the object.
            document: with its name and namespace; a resourceVersion or uid in it must still be the object's.
            part: a subresource, such as status.
            manager: of these fields.
        """
        metadata = document["metadata"]
        query = [("fieldManager", manager), ("force", "true")]
        place = metadata["namespace"], metadata["name"], part
        return strip(kind, await self._call("PATCH", kind, *place, query=query, body=document))

    async def merge(self, kind: str, document: Document) -> Document:
        """Have the fields of `document` be so, whoever has set them before; None takes one away.

        Args:
            kind: of the object.
            document: with its name and namespace; a resourceVersion or uid in it must still be the object's.
        """
        place = document["metadata"]["namespace"], document["metadata"]["name"]
        query = [("fieldManager", api.MANAGER)]
        return strip(kind, await self._call("PATCH", kind, *place, query=query, body=document, content=_MERGE))

    async def delete(self, kind: str, namespace: str, name: str, uid: str) -> None:
        """Delete an object with what it controls, unless it is gone, or another of its name is there."""
        body = {"preconditions": {"uid": uid}, "propagationPolicy": "Background"}
        try:
            await self._call("DELETE", kind, namespace, name, body=body)
        except Refused as refusal:
            if refusal.status not in (404, 409):
                raise

    async def record(self, regarding: Document, reason: str, note: str, kind: str, name: str, reporter: str) -> None:
        """Record an event about an object."""
        metadata = regarding["metadata"]
        event = {
            "apiVersion": "events.k8s.io/v1",
            "kind": "Event",
            "metadata": {"name": name, "namespace": metadata["namespace"]},
            "eventTime": datetime.now(UTC).isoformat(timespec="microseconds").replace("+00:00", "Z"),
            "reportingController": f"{api.GROUP}/operator",
            "reportingInstance": reporter,
            "action": reason,
            "reason": reason,
            "note": note.encode()[:_LONGEST_NOTE].decode(errors="ignore"),
            "type": kind,
            "regarding": {
                "apiVersion": regarding["apiVersion"],
                "kind": regarding["kind"],
                "namespace": metadata["namespace"],
                "name": metadata["name"],
                "uid": metadata["uid"],
            },
        }
        await self._call("POST", "Event", metadata["namespace"], body=event)

    def close(self) -> None:
        """Let go of the connections."""
        self._threads.shutdown(wait=False, cancel_futures=True)
        self._client.close()

    async def _call(
        self,
        method: str,
        kind: str,
        namespace: str | None = None,
        name: str = "",
        part: str = "",
        *,
        query: list[tuple[str, Any]] | None = None,
        body: Document | None = None,
        content: str | None = None,
    ) -> Any:
        place, plural = _PLACES[kind]
        parts = [place, *(("namespaces", namespace) if namespace else ()), plural, name, part]
        path = "/" + "/".join(piece for piece in parts if piece)
        return await self._request(method, path, kind, query, body, content)

    async def _request(
        self,
        method: str,
        path: str,
        kind: str,
        query: list[tuple[str, Any]] | None = None,
        body: Document | None = None,
        content: str | None = None,
    ) -> Any:
        self.requests[method, kind] = self.requests.get((method, kind), 0) + 1
        content = content or ("application/apply-patch+yaml" if method == "PATCH" else "application/json")

        def ask(timeouts: tuple[float, float]) -> Any:
            try:
                answer = self._client.call_api(
                    path,
                    method,
                    query_params=[(key, value) for key, value in query or () if value not in (None, "")],
                    header_params={"Accept": "application/json", "Content-Type": content},
                    body=body,
                    auth_settings=["BearerToken"],
                    _preload_content=False,
                    _return_http_data_only=True,
                    _request_timeout=timeouts,
                )
                return json.loads(answer.data)
            except client.ApiException as error:
                raise Refused(error.status, _message(error)) from None

        def write() -> Any:
            with self._acting() as left:
                seconds = min(left, _WRITE_SECONDS)
                return ask((_CONNECTING * seconds, (1 - _CONNECTING) * seconds))

        if method == "GET":
            return await asyncio.get_running_loop().run_in_executor(self._threads, ask, _TIMEOUTS)
        return await _whole(self._threads.submit(write))


def connect(kubeconfig: str | None = None, agent: str | None = None, unheard: float | None = None) -> Any:
    """A client of an API server.

    Args:
        kubeconfig: a file; else the service account of this pod, else the user's own kubeconfig says where it is.
        agent: who it says that it is, which the API server's audit log tells.
        unheard: seconds after which the kernel gives up to send what no one has acknowledged, where it can be told so.
            By itself it goes on for minutes, also when the connection was given up long before.
    """
    if kubeconfig is None:
        try:
            config.load_incluster_config()
        except config.ConfigException:
            config.load_kube_config()
        settings = client.Configuration.get_default_copy()
    else:
        settings = client.Configuration()
        config.load_kube_config(kubeconfig, client_configuration=settings)
    settings.connection_pool_maxsize = _THREADS
    settings.retries = False
    found = client.ApiClient(settings)
    if agent is not None:
        found.user_agent = agent
    if unheard is not None and hasattr(socket, "TCP_USER_TIMEOUT"):
        option = (socket.IPPROTO_TCP, socket.TCP_USER_TIMEOUT, round(1000 * unheard))
        pool = found.rest_client.pool_manager.connection_pool_kw
        pool["socket_options"] = [*HTTPConnection.default_socket_options, option]
    return found


def own_account(token: Path = _TOKEN) -> str | None:
    """The service account of this pod, as NAMESPACE/NAME, by its token; None outside a pod."""
    try:
        payload = token.read_text().split(".")[1]
        subject = json.loads(base64.urlsafe_b64decode(payload + "=" * (-len(payload) % 4)))["sub"]
        kind, whose, namespace, name = str(subject).split(":")
    except (OSError, ValueError, LookupError, TypeError):
        return None
    return f"{namespace}/{name}" if (kind, whose) == ("system", "serviceaccount") else None


def strip(kind: str, document: Document) -> Document:
    """The object without what nobody here asks for: who owns which field, and all of a pod but what became of it."""
    metadata = {name: value for name, value in document["metadata"].items() if name != "managedFields"}
    if kind == "Pod":
        metadata.pop("annotations", None)
        status = {name: value for name, value in (document.get("status") or {}).items() if name in _OF_PODS}
        return {"metadata": metadata, "status": status}
    return {**document, "metadata": metadata}


async def _whole(begun: Future[Any]) -> Any:
    """What a thread's work gives. When this is cancelled, work that has not begun never does; other work ends first.

    So nothing is still being written when whoever cancels this goes on, and gives the lease up.
    """
    work, interruption = asyncio.wrap_future(begun), None
    while not work.done():
        try:
            await asyncio.wait({work})
        except asyncio.CancelledError as error:
            begun.cancel()
            interruption = error
    if interruption is not None:
        if not work.cancelled():
            work.exception()  # nobody else asks
        raise interruption
    return work.result()


def _message(error: Any) -> str:
    try:
        return str(json.loads(error.body)["message"])
    except (ValueError, KeyError, TypeError):
        return str(error.reason)
