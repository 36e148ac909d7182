"""Keeps credentials out of the report, which is made to be passed on."""

from __future__ import annotations

import logging
import re
from typing import Any
from urllib.parse import unquote

REDACTED = "***"

# In abfs://container@account/path and its kin the part before the @ names a container.
_CONTAINER_SCHEMES = re.compile(r"(?:abfs|wasb)s?\Z", re.IGNORECASE)

# What stands between the scheme and the path; it ends where a chained URL (a::https://b) begins.
_AUTHORITY = re.compile(
    r"(?<![A-Za-z0-9+.\-])(?P<scheme>[A-Za-z0-9+.\-]+)://"
    r"(?P<authority>(?:(?!::[A-Za-z0-9+.\-]+://)[^\s/?#])*)"
)

# A password with an unescaped slash: what follows the colon is neither a port nor a chained URL, and an @
# comes later, but not within the authority.
_SLASHED_PASSWORD = re.compile(r"://[^\s/?#@:]*:(?!:|\d*(?:[/?#\s]|$)|[^\s/?#@]*@)\S*@")

# A value ends before the quote or bracket that closes it in a text, but not at one within.
_PARAMETER = re.compile(r"(?P<before>[?&;#])(?P<name>[^\s=&;#?]+)=(?P<value>(?:[^\s&;#]*[^\s&;#\"'<>])?)")

# What names have in them whose values are secrets, of URL parameters and of options of a filesystem, or end with.
_PARTS = (
    "token|secret|signature|passw|passphrase|pwd|credential|session"
    "|connection[-_.]?string|api[-_.]?key|access[-_.]?(?:key|id)|account[-_.]?key"
)
_LAST = "sig|key|auth|authorization|jwt|code"
SECRET_NAME = f"(?i)(?:{_PARTS}|(?:^|[-_.])(?:{_LAST})$)"
SECRET_INSIDE = (
    rf'(?i)"(?:[^"]*(?:{_PARTS})[^"]*|(?:[^"]*[-_.])?(?:{_LAST}))"\s*:\s*"[^"]'  # of a JSON object
    r'|://[^\s/@"]*:[^\s/@"]+@|[?&;][^\s=&;?]*(?:sig|key|token|signature|password)='  # of a URL
)
_SECRET_NAME = re.compile(SECRET_NAME)


_SHORTEST = 6  # characters; a shorter text would be found in words that have nothing to do with it
_concealed: set[str] = set()


def redact_url(text: str) -> str:
    """The text with the credentials in every URL in it replaced by `***`.

    Replaced are user information (`https://user:password@host`) and the values of query and fragment
    parameters whose names speak of a secret (`?token=`, `&X-Amz-Signature=`, `&sig=`). Everything else stays
    as it is, so that the source can still be told from the text. Applying it twice changes nothing more.
    What was given to `conceal` is replaced, too.

    Args:
        text: A URL, or any text with URLs in it (also chained ones: `zip://a::https://user:password@host/b.zip`).

    Example:
        >>> redact_url("https://ana:pw@example.org/set.zip?part=2&token=abc")
        'https://***@example.org/set.zip?part=2&token=***'
    """
    for secret in _concealed:
        text = text.replace(secret, REDACTED)
    text = _SLASHED_PASSWORD.sub(f"://{REDACTED}@", text)
    text = _AUTHORITY.sub(_without_user, text)
    return _PARAMETER.sub(_without_secret, text)


def conceal(secret: str) -> None:
    """Have `redact_url` replace this text, which this process has read as a credential, wherever it occurs."""
    if len(secret) >= _SHORTEST:
        _concealed.add(secret)


class RedactedFormatter(logging.Formatter):
    """Lines of a log, tracebacks included, without credentials."""

    def format(self, record: logging.LogRecord) -> str:
        """See `logging.Formatter.format`."""
        return redact_url(super().format(record))


def redact_strings(value: Any) -> Any:
    """The JSON-like value with `redact_url` applied to every string in it, keys included."""
    if isinstance(value, str):
        return redact_url(value)
    if isinstance(value, dict):
        return {redact_strings(key): redact_strings(item) for key, item in value.items()}
    if isinstance(value, (list, tuple)):
        return [redact_strings(item) for item in value]
    return value


def _without_user(match: re.Match[str]) -> str:
    scheme, authority = match["scheme"], match["authority"]
    user, at, host = authority.rpartition("@")
    names_a_container = _CONTAINER_SCHEMES.match(scheme) and ":" not in user
    if not at or names_a_container:
        return match[0]
    return f"{scheme}://{REDACTED}@{host}"


def _without_secret(match: re.Match[str]) -> str:
    if not _SECRET_NAME.search(unquote(match["name"])):
        return match[0]
    return f"{match['before']}{match['name']}={REDACTED}"
