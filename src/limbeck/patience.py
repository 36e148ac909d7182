"""Requests to storage and servers on a network: what is worth asking again, and how long to wait before.

What fails for a moment (a busy server, a lost connection) is asked again after a random wait that doubles: at once from
many machines, requests would come again together. What will not change (nothing is there, it may not be read) is raised
as it is.
"""

from __future__ import annotations

import errno
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import TypeVar

from limbeck.errors import InputError, WorkError
from limbeck.redact import redact_url

T = TypeVar("T")

_FINAL = (FileNotFoundError, FileExistsError, PermissionError, IsADirectoryError, NotADirectoryError, InputError)
_STATUSES = {408, 409, 425, 429}  # and every 5xx; 409 is S3's word for two conditional writes at once
_ERRNOS = {
    errno.EAGAIN, errno.EBUSY, errno.ECONNABORTED, errno.ECONNREFUSED, errno.ECONNRESET, errno.EHOSTUNREACH, errno.EIO,
    errno.ENETUNREACH, errno.EPIPE, errno.ETIMEDOUT, getattr(errno, "EREMOTEIO", errno.EIO),
}  # fmt: skip
# By name, so that no library need be installed, or imported, to be asked.
_CLASSES = {
    "aiohttp.ClientConnectionError", "aiohttp.ClientPayloadError", "aiohttp.ServerDisconnectedError",
    "azure.IncompleteReadError", "azure.ServiceRequestError", "azure.ServiceResponseError",
    "botocore.ConnectionError", "botocore.HTTPClientError", "botocore.IncompleteReadError",
    "botocore.ResponseParserError",
    "gcsfs.ChecksumError", "google.TransportError",
    "http.IncompleteRead", "http.RemoteDisconnected",
    "requests.ChunkedEncodingError", "requests.ConnectionError", "requests.ContentDecodingError", "requests.Timeout",
    "socket.gaierror", "urllib3.HTTPError",
}  # fmt: skip
_DENIED = {
    "azure.ClientAuthenticationError", "botocore.NoCredentialsError", "botocore.PartialCredentialsError",
    "google.DefaultCredentialsError", "google.RefreshError",
}  # fmt: skip


class IncompleteTransferError(Exception):
    """What arrived is less than, or not, what was sent: worth another try."""


@dataclass(frozen=True)
class Retries:
    """How often something is tried, and the waits between: random, at most `first`, then twice that, up to `longest`.

    Attributes:
        attempts: how often it is tried, at least once.
        first: seconds.
        longest: seconds.
    """

    attempts: int = 8
    first: float = 0.5
    longest: float = 30.0


RETRIES = Retries()
"""About half a minute in all, on top of what the libraries try themselves."""


def is_transient(error: BaseException) -> bool:
    """Whether the same request may succeed in a moment."""
    if isinstance(error, _FINAL):
        return False
    if isinstance(error, TimeoutError | ConnectionError | IncompleteTransferError):
        return True
    status = status_of(error)
    if status is not None:
        return status in _STATUSES or status >= 500
    if isinstance(error, OSError) and error.errno in _ERRNOS:
        return True
    return any(name in _CLASSES for name in _names(type(error)))


def is_denied(error: BaseException) -> bool:
    """Whether it failed because of who asks: credentials are missing, wrong, or do not allow it."""
    if isinstance(error, PermissionError) or status_of(error) in (401, 403):
        return True
    if isinstance(error, OSError) and str(error).startswith("Forbidden"):  # gcsfs
        return True
    return any(name in _DENIED for name in _names(type(error)))


def patiently(what: str, work: Callable[[], T], retries: Retries = RETRIES) -> T:
    """What `work` returns; it is called again as long as it fails for a moment only.

    Args:
        what: what is being done and to which URL, for the error's line.
        work: a request that may be repeated.
        retries: how often, and after which waits.

    Raises:
        WorkError: it failed every time; one line, without credentials.
    """
    try:
        return work()
    except Exception as error:
        if not is_transient(error):
            raise
        return _again(what, work, retries, error)


def _again(what: str, work: Callable[[], T], retries: Retries, failure: Exception) -> T:
    """The same, after a first failure; apart, for tenacity makes cycles of what it calls, which live long."""
    from tenacity import Retrying, retry_if_exception, stop_after_attempt, wait_random_exponential

    failed = [failure]

    def attempt() -> T:
        if failed:
            raise failed.pop()
        return work()

    retrying = Retrying(
        retry=retry_if_exception(is_transient),
        stop=stop_after_attempt(retries.attempts),
        wait=wait_random_exponential(multiplier=retries.first, max=retries.longest),
        reraise=True,
    )
    try:
        return retrying(attempt)
    except Exception as error:
        if not is_transient(error):
            raise
        tries = "once" if retries.attempts == 1 else f"{retries.attempts} times"
        raise WorkError(redact_url(f"{what} (tried {tries}): {reason_of(error)}")) from error


def status_of(error: BaseException) -> int | None:
    """The HTTP status that an error of one of the libraries speaks of, or None."""
    for link in _chain(error):
        response = getattr(link, "response", None)
        if isinstance(response, dict):  # botocore
            candidates = [response.get("ResponseMetadata", {}).get("HTTPStatusCode")]
        else:
            candidates = [getattr(link, name, None) for name in ("status", "status_code", "code")]
            candidates.append(getattr(response, "status_code", None))
        for found in candidates:
            if isinstance(found, int | str) and str(found).isdecimal() and 400 <= int(found) <= 599:
                return int(found)
    return None


def reason_of(error: BaseException) -> str:
    """An error in one line, without credentials."""
    text = " ".join(str(error).split()) or "no answer"
    return redact_url(f"{type(error).__name__}: {text}"[:300])


def _chain(error: BaseException) -> Iterator[BaseException]:
    """The error and what caused it."""
    link: BaseException | None = error
    for _ in range(5):
        if link is None:
            return
        yield link
        link = link.__cause__


def _names(kind: type) -> Iterator[str]:
    """PACKAGE.CLASS of a class and of all that it derives from."""
    for base in kind.__mro__:
        yield f"{base.__module__.partition('.')[0]}.{base.__name__}"
