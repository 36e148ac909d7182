"""How the driver's process starts Ray here or connects to a running cluster, and the one line where it cannot."""

from __future__ import annotations

import time
from collections.abc import Callable

from limbeck.fanout.kuberay import OBJECT_STORE
from limbeck.fanout.messages import TOKEN_ADVICE

_ATTEMPTS = 3
_PAUSE_SECONDS = 2.0


def start(cpus: int, folder: str) -> None:
    """Start Ray on this machine with `cpus` CPUs; `folder` is for its own files."""
    import ray

    ray.init(
        address="local",
        num_cpus=cpus,
        include_dashboard=False,
        log_to_driver=False,
        object_store_memory=OBJECT_STORE,
        _temp_dir=folder,
    )


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
