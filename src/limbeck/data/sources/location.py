"""Where a source is: a URI becomes a filesystem, a path and a split. First contact with storage is here."""

from __future__ import annotations

import hashlib
import os
from dataclasses import dataclass
from typing import IO, Any, cast

from fsspec.implementations.local import LocalFileSystem

from limbeck.errors import InputError
from limbeck.storage import Access, scheme_of


@dataclass(frozen=True)
class Location:
    """A file or directory that exists.

    Attributes:
        uri: what the user wrote, split included; errors name it.
        files: the fsspec filesystem it is on.
        path: its path on that filesystem, without a slash at the end.
        split: what followed `#`, or None.
        is_directory: whether it is a directory (a prefix, on object storage).
        access: how it was reached, and another process can reach it.
    """

    uri: str
    files: Any
    path: str
    split: str | None
    is_directory: bool
    access: Access

    @property
    def is_local(self) -> bool:
        """Whether `path` can be given to the operating system."""
        return isinstance(self.files, LocalFileSystem)

    @property
    def name(self) -> str:
        """The last component of `path`."""
        return self.path.rsplit("/", 1)[-1]

    def open(self, path: str | None = None) -> IO[bytes]:
        """Open the file, or another one on the same filesystem, for reading and seeking.

        Raises:
            InputError: it is gone, or may not be read.
        """
        try:
            return cast("IO[bytes]", self.files.open(path or self.path, "rb"))
        except (FileNotFoundError, PermissionError) as error:
            raise InputError(self.uri, f"cannot be opened: {error.strerror or error}") from error

    def sha256(self, path: str | None = None) -> bytes:
        """The digest of the file's bytes."""
        digest = hashlib.sha256()
        with self.open(path) as file:
            while chunk := file.read(2**20):
                digest.update(chunk)
        return digest.digest()

    def children(self) -> dict[str, bool]:
        """Name of everything directly in the directory, sorted, and whether it is itself a directory.

        Raises:
            InputError: the directory may not be read.
        """
        try:
            entries = self.files.ls(self.path, detail=True)
        except OSError as error:
            raise InputError(self.uri, f"cannot be listed: {error.strerror or error}") from error
        named = {entry["name"].rstrip("/").rsplit("/", 1)[-1]: entry["type"] == "directory" for entry in entries}
        return dict(sorted(named.items()))

    def no_such_split(self, splits: list[str]) -> InputError:
        """The error for a split that is not among those that exist."""
        allowed = f"its splits are {', '.join(splits[:20])}" if splits else "it has no splits: leave out the #"
        return InputError(self.uri, f"there is no split {self.split!r}", allowed)


def locate(uri: str, access: Access) -> Location:
    """Find what `uri` names.

    Raises:
        InputError: nothing is there, it may not be read, or its scheme is unknown or needs an extra.
    """
    local = _local_path(uri)
    if local is not None and os.path.lexists(local):
        address, split = uri, None
    else:
        address, split = _cut_split(uri)
    local = _local_path(address)
    try:
        if local is not None:
            files, path = LocalFileSystem(), local
        else:
            files, path = access.open(address)
            files.invalidate_cache()
        path = path.rstrip("/") or "/"
        kind = files.info(path)["type"]
    except FileNotFoundError as error:
        raise InputError(uri, "no such file or directory") from error
    except PermissionError as error:
        raise InputError(uri, "permission denied") from error
    except InputError:
        raise
    except Exception as error:
        # A filesystem plug-in raises what its client library does: no credentials, no route, ...
        raise InputError(uri, f"cannot be reached: {error}") from error
    if kind == "other":
        raise InputError(uri, "neither a file nor a directory")
    return Location(uri, files, path, split, kind == "directory", access)


def _local_path(uri: str) -> str | None:
    """The absolute path that `uri` names on this machine, or None when it names something elsewhere."""
    uri = uri.removeprefix("file://")
    if scheme_of(uri):
        return None
    return os.path.abspath(uri)  # noqa: PTH100 -- Path.resolve would follow links


def _cut_split(uri: str) -> tuple[str, str | None]:
    """`address#split`, where the split is a name, not a path: a `#` further up belongs to the address."""
    address, mark, split = uri.rpartition("#")
    if not mark or "/" in split:
        return uri, None
    if split in ("", ".", ".."):
        raise InputError(uri, f"{split!r} is not the name of a split", "write the split's name after the #")
    return address, split
