"""The files of a store, wherever they are: whole reads and writes, asked again when they fail for a moment.

Nothing is written through an open file: one that is closed by an error leaves a truncated object that looks whole.
"""

from __future__ import annotations

import os
import threading
from collections.abc import Callable, Mapping
from contextlib import nullcontext, suppress
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import Any, TypeVar

from fsspec.implementations.local import LocalFileSystem
from fsspec.implementations.memory import MemoryFileSystem

from limbeck.errors import InputError, WorkError
from limbeck.patience import Retries, is_denied, patiently, reason_of, status_of
from limbeck.redact import redact_url
from limbeck.storage import REMOTE, checksum_of
from limbeck.store.files import write_atomically

T = TypeVar("T")

_CREATING_IN_MEMORY = threading.Lock()  # fsspec looks whether an object is there, and then makes it


class DeniedError(WorkError):
    """The storage does not allow it to whoever this process is."""


@dataclass(frozen=True)
class Stat:
    """What a store says of an object.

    Attributes:
        size: bytes.
        modified: when it was written, by the store's clock.
        checksum: as of `limbeck.storage.checksum_of`.
        vouched: whether the checksum is certainly of the content; an ETag is not where the bucket encrypts.
    """

    size: int
    modified: datetime
    checksum: str | None
    vouched: bool


class Objects:
    """The files under one root of a filesystem, which is at a URL; names are relative to it.

    Every method asks again where asking may help.

    Raises:
        WorkError: the storage does not answer, or is too busy, for too long.
        DeniedError: it does not allow it; on this machine, PermissionError.
    """

    def __init__(self, filesystem: Any, root: str, url: str, retries: Retries) -> None:
        self.filesystem, self.root, self._url = filesystem, root.rstrip("/"), url.rstrip("/")
        self.is_local = isinstance(filesystem, LocalFileSystem)
        self._retries = retries
        protocols = filesystem.protocol if isinstance(filesystem.protocol, tuple | list) else [filesystem.protocol]
        self._has_folders = not self.is_local and not REMOTE.intersection(protocols)

    def url(self, name: str) -> str:
        """The URL, as the user spells the store's, or on this machine the path, of a file."""
        return self.path(name) if self.is_local else f"{self._url}/{name}".rstrip("/")

    def path(self, name: str) -> str:
        """The path of a file on the filesystem."""
        return f"{self.root}/{name}" if name else self.root

    def read(self, name: str) -> bytes | None:
        """The content of a file; None where there is none."""
        try:
            return bytes(self._ask("reading", name, self.filesystem.cat_file))
        except (FileNotFoundError, NotADirectoryError):
            return None

    def read_range(self, name: str, start: int, end: int) -> bytes:
        """The bytes from `start` to before `end`; fewer where the file ends. One try only.

        Raises:
            FileNotFoundError: there is no such file.
        """
        try:
            return bytes(self.filesystem.cat_file(self.path(name), start=start, end=end))
        except Exception as error:
            if status_of(error) == 416:  # it begins where the file has ended
                return b""
            raise

    def stat(self, name: str) -> Stat | None:
        """What the store says of a file; None where there is none."""
        try:
            info = self._ask("looking at", name, self.filesystem.info)
        except (FileNotFoundError, NotADirectoryError):
            return None
        return _stat(info) if info["type"] == "file" else None

    def write(self, name: str, data: bytes) -> None:
        """Write a file, whole or not at all.

        Raises:
            InputError: there is no such bucket.
        """
        if self.is_local:
            write_atomically(Path(self.path(name)), data)
            return
        self._make_folder(name)
        try:
            self._ask("writing", name, lambda path: self.filesystem.pipe_file(path, data))
        except FileNotFoundError:
            raise InputError("spec.output.uri", f"{self._url}: no such bucket", "one that is there") from None

    def mark(self, name: str) -> bool:
        """Make an empty file, or have it modified now; False where its folder is one of this machine and not there."""
        if not self.is_local:
            self.write(name, b"")
            return True
        try:
            os.close(os.open(self.path(name), os.O_CREAT | os.O_WRONLY, 0o644))
            os.utime(self.path(name))
        except (FileNotFoundError, NotADirectoryError):
            return False
        return True

    def create(self, name: str, data: bytes) -> bool:
        """Write a file that is not there yet, by one request; False where another one is there."""
        self._make_folder(name)
        in_memory = isinstance(self.filesystem, MemoryFileSystem)
        try:
            with _CREATING_IN_MEMORY if in_memory else nullcontext():
                self._ask("writing", name, lambda path: self.filesystem.pipe_file(path, data, mode="create"))
        except Exception as error:
            if not isinstance(error, FileExistsError) and status_of(error) != 412:
                raise
            return self.read(name) == data  # ours: the answer to the request was lost, and it was repeated
        return True

    def put(self, file: Path, name: str) -> None:
        """Copy a file of this machine there. One try only."""
        self._make_folder(name)
        self.filesystem.put_file(str(file), self.path(name))

    def get(self, name: str, file: Path) -> None:
        """Copy a file from there.

        Raises:
            FileNotFoundError: there is none.
        """
        self._ask("reading", name, lambda path: self.filesystem.get_file(path, str(file)))

    def delete(self, name: str) -> None:
        """Delete a file, if it is there."""
        with suppress(FileNotFoundError):
            self._ask("deleting", name, self.filesystem.rm_file)

    def delete_folder(self, name: str) -> None:
        """Delete all that a listing shows under a name."""
        for found in self.listing(name):
            self.delete(found)
        if self._has_folders:
            with suppress(FileNotFoundError):
                self._ask("deleting", name, lambda path: self.filesystem.rm(path, recursive=True))

    def listing(self, folder: str) -> dict[str, Stat]:
        """All files under a folder, by name. Object stores may leave out what is new: only hints come of it."""
        try:
            found = self._ask("listing", folder, lambda path: self.filesystem.find(path, detail=True))
        except (FileNotFoundError, NotADirectoryError):
            return {}
        root = str(self.filesystem._strip_protocol(self.root)).rstrip("/") + "/"
        return {
            str(path).removeprefix(root): _stat(info)
            for path, info in found.items()
            if info["type"] == "file" and str(path).startswith(root)
        }

    def names(self, folder: str) -> list[str]:
        """What lies directly in a folder, sorted."""
        try:
            found = self._ask("listing", folder, lambda path: self.filesystem.ls(path, detail=False))
        except (FileNotFoundError, NotADirectoryError):
            return []
        return sorted({str(path).rstrip("/").rpartition("/")[2] for path in found})

    def patiently(self, doing: str, name: str, work: Callable[[], T]) -> T:
        """What `work` on a file returns, with this store's patience."""
        what = f"{doing} {self.url(name)}"
        try:
            return patiently(what, work, self._retries)
        except Exception as error:
            if self.is_local or not is_denied(error):
                raise
            raise DeniedError(redact_url(f"{what}: not allowed; {reason_of(error)}")) from error

    def _ask(self, doing: str, name: str, work: Callable[[str], T]) -> T:
        return self.patiently(doing, name, lambda: work(self.path(name)))

    def _make_folder(self, name: str) -> None:
        """On servers whose folders do not come with their files."""
        if self._has_folders:
            self._ask("writing", name.rpartition("/")[0], lambda path: self.filesystem.makedirs(path, exist_ok=True))


def _stat(info: Mapping[str, Any]) -> Stat:
    vouched = bool(info.get("md5Hash") or info.get("crc32c") or info.get("content_settings"))
    return Stat(int(info["size"] or 0), _modified(info), checksum_of(info), vouched)


def _modified(info: Mapping[str, Any]) -> datetime:
    """When an object was written; what a filesystem does not tell counts as now, so that nothing is taken for old."""
    for name in ("LastModified", "last_modified", "updated", "mtime", "modified", "created"):
        found = info.get(name)
        if isinstance(found, int | float):
            return datetime.fromtimestamp(found, UTC)
        if isinstance(found, str):
            found = datetime.fromisoformat(found)
        if isinstance(found, datetime):
            return found if found.tzinfo is not None else found.replace(tzinfo=UTC)
    return datetime.now(UTC)
