"""The API server's objects as it sends them: dicts in the spelling of manifests."""

from __future__ import annotations

import json
from typing import Any

from kubernetes import client

_SECONDS = 10
_MERGE = "application/strategic-merge-patch+json"


class Wire:
    """Requests of the API server.

    Args:
        api: a client.
    """

    def __init__(self, api: Any) -> None:
        self._api = api

    def get(self, path: str, **query: str) -> dict[str, Any] | None:
        """What is there; None where nothing is."""
        return self._send("GET", path, query=query)

    def items(self, path: str, **query: str) -> list[dict[str, Any]]:
        """The objects of a list."""
        found = self._send("GET", path, query=query)
        return found["items"] if found else []

    def post(self, path: str, body: dict[str, Any]) -> dict[str, Any] | None:
        """Create something; what is already there is not touched."""
        return self._send("POST", path, body)

    def patch(self, path: str, body: dict[str, Any]) -> dict[str, Any] | None:
        """Merge into what is there; None where nothing is, or another of that name than the patch's uid says."""
        return self._send("PATCH", path, body)

    def delete(self, path: str, body: dict[str, Any] | None = None) -> dict[str, Any] | None:
        """Delete what is there, if it is."""
        return self._send("DELETE", path, body)

    def _send(
        self, method: str, path: str, body: dict[str, Any] | None = None, query: dict[str, str] | None = None
    ) -> dict[str, Any] | None:
        try:
            answer = self._api.call_api(
                path,
                method,
                query_params=list((query or {}).items()),
                header_params={
                    "Accept": "application/json",
                    "Content-Type": _MERGE if method == "PATCH" else "application/json",
                },
                body=body,
                auth_settings=["BearerToken"],
                _preload_content=False,
                _request_timeout=_SECONDS,
            )[0]
        except client.ApiException as error:
            if error.status in (404, 409):
                return None
            raise
        return json.loads(answer.data)
