"""Asks the pods of Jobs how far they are: `limbeck run --status` answers."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import aiohttp
from pydantic import ValidationError

from limbeck.standing import PATH, Standing
from limbeck_operator.manifests import STATUS_PORT

_SECONDS = 3.0
_LARGEST = 64 * 1024  # bytes of an answer


class Pods:
    """Asks over HTTP; a pod says little and nothing secret, and is believed nothing but that."""

    def __init__(self) -> None:
        self._session: aiohttp.ClientSession | None = None

    async def ask(self, address: str) -> Standing | None:
        """How far the run at an IP address is; None where it does not say.

        Raises:
            aiohttp.ClientError: nobody answers.
            TimeoutError: not in time.
        """
        if self._session is None:
            self._session = aiohttp.ClientSession(timeout=aiohttp.ClientTimeout(total=_SECONDS), trust_env=False)
        host = f"[{address}]" if ":" in address else address
        async with self._session.get(f"http://{host}:{STATUS_PORT}{PATH}", allow_redirects=False) as answer:
            if answer.status != 200:
                return None
            body = b""
            async for chunk in answer.content.iter_chunked(_LARGEST):
                body += chunk
                if len(body) > _LARGEST:
                    return None
        try:
            return Standing.model_validate_json(body)
        except ValidationError:
            return None

    async def close(self) -> None:
        """Let go of the connections."""
        if self._session is not None:
            await self._session.close()


def address_of(pods: list[Mapping[str, Any]]) -> str | None:
    """Where the newest pod can be asked; None while it does not run."""
    if not pods:
        return None
    status = pods[-1].get("status") or {}
    address: str | None = status.get("podIP") if status.get("phase") == "Running" else None
    return address
