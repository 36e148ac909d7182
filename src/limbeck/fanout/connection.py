"""How the driver's process connects to a running Ray cluster, and the one line it gives where it cannot."""

from __future__ import annotations

import time
from collections.abc import Callable

from limbeck.fanout.messages import TOKEN_ADVICE

_ATTEMPTS = 3
_PAUSE_SECONDS = 2.0


def connect(address: str, retrying: Callable[[str], None]) -> None:
    """Connect this process to the cluster at `address`: HOST:PORT, ray://HOST:PORT or auto.

    A head starts a server process for each client of ray://. Where that process dies or is slow, as on a busy head,
    connect again, three times in all; call `retrying` with the reason before each further attempt.

    Raises:
        ConnectionError: The cluster cannot be used; the message is one line without the address.
    """
    import ray

    for attempt in range(1, _ATTEMPTS + 1):
        try:
            ray.init(address=address, log_to_driver=False)
            return
        except ConnectionAbortedError as error:  # the head answers, but has no server for this client
            if attempt == _ATTEMPTS:
                raise ConnectionError(reason(error)) from None
            retrying(reason(error))
        except Exception as error:
            raise ConnectionError(reason(error)) from None
        time.sleep(_PAUSE_SECONDS * attempt)


def reason(error: Exception) -> str:
    """Return what the server answered, in one line: of a traceback, the last line."""
    text = str(error.__cause__ or error)
    if "token" in text:
        return TOKEN_ADVICE
    lines = [line.strip() for line in text.splitlines() if line.strip()]
    return lines[-1] if "Traceback (most recent call last)" in text else " ".join(lines)
