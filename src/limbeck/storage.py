"""How storage is reached: a URL becomes an fsspec filesystem, with the options that the spec gives for it.

Everything outside this machine that limbeck reads or writes is opened here. Without options the libraries' own
credentials apply: application-default ones, workload identity, instance roles, their environment variables.
"""

from __future__ import annotations

import base64
import json
import os
import re
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import fsspec

from limbeck.errors import InputError
from limbeck.redact import conceal

if TYPE_CHECKING:  # the processes that read images start without it
    from limbeck.spec import DistillationSpec, StorageOption, StorageOptions

REMOTE = {"gs", "gcs", "s3", "s3a", "az", "abfs", "abfss"}  # object stores whose listings are never to be cached
_EXTRAS = {
    "gs": "gcs", "gcs": "gcs", "s3": "s3", "s3a": "s3", "az": "azure", "abfs": "azure", "abfss": "azure",
}  # fmt: skip
_SCHEME = re.compile(r"^([A-Za-z][A-Za-z0-9+.-]*)(?=::|://)")


@dataclass(frozen=True)
class Access:
    """The options that a spec gives for places, by the prefix of their URLs; values are looked up when one is opened.

    It holds references only (names of variables and files), so it may be written down and sent to other processes.
    """

    entries: tuple[StorageOptions, ...] = ()

    @classmethod
    def of(cls, spec: DistillationSpec) -> Access:
        """What a spec says: its execution.storageOptions."""
        return cls(tuple(spec.execution.storage_options))

    def options(self, url: str) -> dict[str, Any]:
        """What the filesystem of a URL is opened with: the options of the longest prefix that it begins with.

        Raises:
            InputError: a variable is not set, or a file is not there.
        """
        fitting = [(len(e.prefix), position) for position, e in enumerate(self.entries) if url.startswith(e.prefix)]
        if not fitting:
            return {}
        position = max(fitting)[1]
        where = f"spec.execution.storageOptions[{position}].options"
        options = self.entries[position].options
        return {option.name: _value(f"{where}[{index}]", option) for index, option in enumerate(options)}

    def open(self, url: str) -> tuple[Any, str]:
        """The filesystem of a URL or path, and the path on it.

        Raises:
            InputError: an option cannot be looked up, or a package is missing; `where` is the option, else the URL.
            ValueError: the URL's scheme is unknown.
        """
        scheme = scheme_of(url)
        options = self.options(url)
        if scheme in REMOTE:
            options.setdefault("use_listings_cache", False)
        if scheme in ("gs", "gcs") and "STORAGE_EMULATOR_HOST" in os.environ:
            # gcsfs asks no emulator for what emulators lack; it looks at this when it is imported
            os.environ.setdefault("GCSFS_EXPERIMENTAL_ZB_HNS_SUPPORT", "false")
        try:
            filesystem, path = fsspec.core.url_to_fs(url, **options)
        except ImportError as error:
            extra = _EXTRAS.get(scheme)
            remedy = f"pip install 'limbeck[{extra}]'" if extra else str(error)
            raise InputError(url, f"{scheme or url}:// needs a package that is not installed", remedy) from error
        return filesystem, str(path)


PLAIN = Access()
"""No options at all."""


def scheme_of(url: str) -> str:
    """`gs` of `gs://bucket/path`; empty for a path."""
    match = _SCHEME.match(url)
    return match[1].lower() if match else ""


def checksum_of(info: Mapping[str, Any]) -> str | None:
    """The checksum of an object's content that the store keeps: "md5:HEX", "crc32c:HEX" or "etag:TEXT".

    Args:
        info: an object's entry as its fsspec filesystem lists it.

    Returns:
        None where the store keeps none, as on a disk.
    """
    if text := info.get("md5Hash"):  # Google
        return f"md5:{base64.b64decode(text).hex()}"
    if text := info.get("crc32c"):
        return f"crc32c:{base64.b64decode(text).hex()}"
    settings = info.get("content_settings")  # Azure
    if settings is not None and getattr(settings, "content_md5", None):
        return f"md5:{bytes(settings.content_md5).hex()}"
    tag = info.get("ETag") or info.get("etag")
    if not tag:
        return None
    tag = str(tag).strip('"')
    return f"md5:{tag}" if re.fullmatch(r"[0-9a-f]{32}", tag) else f"etag:{tag}"


def _value(where: str, option: StorageOption) -> Any:
    if option.value is not None:
        return option.literal
    if option.environment is not None:
        text = os.environ.get(option.environment)
        if text is None:
            raise InputError(where, f"the variable {option.environment} is not set", "a variable of the environment")
    else:
        assert option.file is not None
        try:
            text = Path(option.file).read_text(encoding="utf-8").strip()
        except (OSError, UnicodeDecodeError) as error:
            reason = getattr(error, "strerror", None) or "is not text"
            raise InputError(where, f"{option.file}: {reason}", "a file that this process may read") from None
    conceal(text)
    return _parsed(text)


def _parsed(text: str) -> Any:
    """A JSON object (a service account's key, say) as what it holds, anything else as it is."""
    if not text.startswith("{"):
        return text
    try:
        found = json.loads(text)
    except ValueError:
        return text
    for value in found.values():
        if isinstance(value, str) and len(value) > _LONG:  # private keys and tokens, not the names beside them
            conceal(value)
    return found


_LONG = 60  # characters
