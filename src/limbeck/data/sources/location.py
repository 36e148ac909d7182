"""Where a source is: a URI becomes a filesystem, a path and a split. First contact with storage is here."""

from __future__ import annotations

import hashlib
import os
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from functools import cached_property
from typing import IO, Any, Self, TypeVar, cast

from fsspec.implementations.local import LocalFileSystem

from limbeck.errors import InputError, WorkError
from limbeck.patience import patiently
from limbeck.storage import REMOTE, Access, checksum_of, scheme_of

T = TypeVar("T")


@dataclass(frozen=True)
class Location:
    """A file or directory that exists. Pickled, it is what it is made of, and another process opens it anew.

    Attributes:
        uri: what the user wrote, split included; errors name it.
        address: the same without the split.
        path: its path on its filesystem, without a slash at the end.
        split: what followed `#`, or None.
        is_directory: whether it is a directory (a prefix, on object storage).
        access: how storage is reached.
    """

    uri: str
    address: str
    path: str
    split: str | None
    is_directory: bool
    access: Access

    def __reduce__(self) -> tuple[Any, ...]:
        # Not the filesystem, which may hold credentials.
        return Location, (self.uri, self.address, self.path, self.split, self.is_directory, self.access)

    @cached_property
    def files(self) -> Any:
        """The fsspec filesystem it is on."""
        return _open(self.address, self.access)[0]

    @property
    def is_local(self) -> bool:
        """Whether `path` can be given to the operating system."""
        return isinstance(self.files, LocalFileSystem)

    @property
    def is_object_store(self) -> bool:
        """Whether it is on an object store, where every request takes its time."""
        return scheme_of(self.address) in REMOTE

    @property
    def name(self) -> str:
        """The last component of `path`."""
        return self.path.rsplit("/", 1)[-1]

    def open(self, path: str | None = None, block: int | None = None) -> IO[bytes]:
        """Open the file, or another one on the same filesystem, for reading and seeking.

        Args:
            path: that of the other file.
            block: bytes that an object store is asked for beyond what is read; None leaves it to the filesystem.

        Raises:
            InputError: it is gone, or may not be read.
            WorkError: the storage does not answer; reading from the file raises it, too.
        """
        options: dict[str, Any] = {}
        if self.is_object_store and block is not None:
            options = {"cache_type": "readahead", "block_size": block}
        try:
            found = self.patiently("opening", lambda: self.files.open(path or self.path, "rb", **options))
            return cast("IO[bytes]", found if self.is_local else _PatientFile(self, found))
        except (FileNotFoundError, PermissionError) as error:
            raise InputError(self.uri, f"cannot be opened: {error.strerror or error}") from error

    @cached_property
    def checksum(self) -> bytes | None:
        """What the storage knows of the file's content without anybody reading it; see `stored_checksum`."""
        if self.is_local:
            return None
        return stored_checksum(self.patiently("looking at", lambda: self.files.info(self.path)))

    def patiently(self, doing: str, work: Callable[[], T]) -> T:
        """What `work` on the storage returns; elsewhere than on this machine it may fail for a moment.

        Raises:
            WorkError: it failed again and again.
        """
        return work() if self.is_local else patiently(f"{self.uri}: {doing} it", work)

    def is_folder(self, path: str) -> bool:
        """Whether another path on the same filesystem is a directory; that the storage is away does not mean no."""
        try:
            return bool(self.patiently("looking at", lambda: self.files.info(path))["type"] == "directory")
        except (FileNotFoundError, NotADirectoryError):
            return False

    def sha256(self, path: str | None = None) -> bytes:
        """The digest of the bytes of the file, or of another one on the same filesystem."""
        with self.open(path) as file:
            return sha256_of(file)

    def children(self) -> dict[str, bool]:
        """Name of everything directly in the directory, sorted, and whether it is itself a directory.

        Raises:
            InputError: the directory may not be read.
        """
        return {name: entry["type"] == "directory" for name, entry in self.entries().items()}

    def entries(self) -> dict[str, Mapping[str, Any]]:
        """The same with all that the filesystem knows of each.

        Raises:
            InputError: the directory may not be read.
        """
        try:
            entries = self.patiently("listing", lambda: self.files.ls(self.path, detail=True))
        except OSError as error:
            raise InputError(self.uri, f"cannot be listed: {error.strerror or error}") from error
        # An object whose name is the directory's and a slash only marks it.
        inside = [entry for entry in entries if entry["name"].strip("/") != self.path.strip("/")]
        named = {entry["name"].rstrip("/").rsplit("/", 1)[-1]: entry for entry in inside}
        return {name: named[name] for name in sorted(named)}

    def no_such_split(self, splits: list[str]) -> InputError:
        """The error for a split that is not among those that exist."""
        allowed = f"its splits are {', '.join(splits[:20])}" if splits else "it has no splits: leave out the #"
        return InputError(self.uri, f"there is no split {self.split!r}", allowed)


class _PatientFile:
    """An open file elsewhere than on this machine, of which a read that fails for a moment is made again.

    Else what parses the file would take an outage for damage.
    """

    def __init__(self, location: Location, file: Any) -> None:
        self._location, self._file = location, file

    def __getattr__(self, name: str) -> Any:
        return getattr(self._file, name)

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *raised: object) -> None:
        self._file.close()

    def read(self, size: int = -1) -> bytes:
        """So many bytes from where the file stands, all that are left by default.

        Raises:
            WorkError: the storage failed again and again.
        """
        place = self._file.tell()

        def again() -> bytes:
            self._file.seek(place)
            return bytes(self._file.read(size))

        return self._location.patiently("reading", again)


def stored_checksum(info: Mapping[str, Any]) -> bytes | None:
    """The checksum that a store keeps of an object, with its size; None where it keeps none.

    One content may have two of them: parts uploaded apart have another ETag, composed objects no MD5. One checksum
    never stands for two contents.
    """
    checksum = checksum_of(info)
    if checksum is None:
        return None
    kind, _, value = checksum.partition(":")
    content = value.encode() if kind == "etag" else bytes.fromhex(value)  # half as long: there may be millions
    return b"%s:%s/%d" % (kind.encode(), content, int(info.get("size") or 0))


def sha256_of(file: IO[bytes]) -> bytes:
    """The digest of what is left of an open file."""
    digest = hashlib.sha256()
    while chunk := file.read(2**20):
        digest.update(chunk)
    return digest.digest()


def locate(uri: str, access: Access) -> Location:
    """Find what `uri` names.

    Raises:
        InputError: nothing is there, it may not be read, or its scheme is unknown or needs an extra.
        WorkError: an object store does not answer.
    """
    local = _local_path(uri)
    if local is not None and os.path.lexists(local):
        address, split = uri, None
    else:
        address, split = _cut_split(uri)
    try:
        files, path = _open(address, access)
        files.invalidate_cache()
        path = path.rstrip("/") or "/"
        if scheme_of(address) in REMOTE:
            kind = patiently(f"{uri}: looking at it", lambda: files.info(path))["type"]
        else:
            kind = files.info(path)["type"]
    except FileNotFoundError as error:
        missing = "bucket or object" if scheme_of(address) in REMOTE else "file or directory"
        raise InputError(uri, f"no such {missing}") from error
    except PermissionError as error:
        raise InputError(uri, "permission denied") from error
    except (InputError, WorkError):
        raise
    except Exception as error:
        # A filesystem plug-in raises what its client library does: no credentials, no route, ...
        raise InputError(uri, f"cannot be reached: {error}") from error
    if kind == "other":
        raise InputError(uri, "neither a file nor a directory")
    return Location(uri, address, path, split, kind == "directory", access)


def _open(address: str, access: Access) -> tuple[Any, str]:
    local = _local_path(address)
    return access.open(address) if local is None else (LocalFileSystem(), local)


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
