"""Images as files in a directory tree, here or on object storage."""

from __future__ import annotations

import hashlib
import os
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Any

import pyarrow as pa

from limbeck.data.decode import MAX_ENCODED_BYTES, BadImage
from limbeck.data.sources.folders import Arrangement, Entry, arrange, tidy
from limbeck.data.sources.listing import Content, Indices, Listing, digest_of_entries
from limbeck.data.sources.location import Location
from limbeck.data.sources.reopening import Reopened
from limbeck.errors import InputError, WorkError

_BATCH_FILES, _BATCH_BYTES = 128, 16 * 2**20  # read at once: concurrently, where the filesystem can


class TreeSource:
    """The .jpg, .jpeg and .png files below a directory."""

    format = "images"

    def __init__(self, location: Location) -> None:
        self.uri = location.uri
        self._location = location
        if not location.is_directory:
            raise InputError(self.uri, "is a file", "format images reads a directory")

    def listing(self) -> Listing:
        """See `Source.listing`."""
        return self._arrangement.listing

    def fingerprint(self) -> str:
        """See `Source.fingerprint`: of every image's name and content."""
        return self._fingerprint

    @property
    def single_pass(self) -> bool:
        """See `Source.single_pass`."""
        return True

    def checksums(self) -> pa.Array | None:
        """See `Source.checksums`."""
        return None

    def reader(self, wanted: Indices) -> Reopened:
        """See `Source.reader`."""
        return Reopened(self.uri, self.format, self._location.access, wanted)

    def read(self, wanted: Indices) -> Iterator[tuple[int, Content]]:
        """See `Source.read`."""
        entries = self._arrangement.entries
        readable = []
        for index in wanted:
            fault = entries[index].fault
            if fault:
                yield index, BadImage(fault)
            else:
                readable.append(index)
        for batch in self._batches(readable):
            yield from zip(batch, self._fetch([entries[index].place.path for index in batch]), strict=True)

    def _batches(self, indices: Sequence[int]) -> Iterator[list[int]]:
        batch: list[int] = []
        size = 0
        for index in indices:
            batch.append(index)
            size += self._arrangement.entries[index].place.size
            if len(batch) == _BATCH_FILES or size >= _BATCH_BYTES:
                yield batch
                batch, size = [], 0
        if batch:
            yield batch

    def _fetch(self, paths: list[str]) -> Iterator[Content]:
        # Not `cat`, which would take a file name such as `photo[1].jpg` for a pattern.
        for found in self._location.files.cat_ranges(paths, None, None, on_error="return"):
            if isinstance(found, FileNotFoundError | PermissionError | IsADirectoryError):
                yield BadImage(f"cannot be read: {found.strerror or type(found).__name__}")
            elif isinstance(found, Exception):
                raise WorkError(f"{self.uri}: cannot be read: {found}") from found
            else:
                yield found

    @cached_property
    def _arrangement(self) -> Arrangement[_File]:
        try:
            return arrange(self._walk(), self.uri)
        except OSError as error:
            raise InputError(self.uri, f"cannot be listed: {error}") from error

    def _walk(self) -> Iterator[Entry[_File]]:
        location = self._location
        root = location.path if location.split is None else f"{location.path}/{location.split}"
        if not location.files.isdir(root):
            raise location.no_such_split([name for name, is_folder in location.children().items() if is_folder])
        return _walk_local(root) if location.is_local else _walk_remote(location.files, root)

    @cached_property
    def _fingerprint(self) -> str:
        entries = self._arrangement.entries
        digests = {
            index: hashlib.sha256(content if isinstance(content, bytes) else b"").digest()
            for index, content in self.read(range(len(entries)))
        }
        return digest_of_entries((entry.name, digests[index]) for index, entry in enumerate(entries))


@dataclass(frozen=True)
class _File:
    path: str
    size: int


def _walk_remote(files: Any, root: str) -> Iterator[Entry[_File]]:
    prefix = root.rstrip("/") + "/"
    for path, found in files.find(root, detail=True).items():
        file = _File(path, found.get("size") or 0)
        yield Entry(tidy(path.removeprefix(prefix)), file, _too_large(file.size))


def _walk_local(root: str) -> Iterator[Entry[_File]]:
    """Every file below `root`; linked folders are entered, unless they lead back to a folder above."""
    waiting: list[tuple[str, tuple[str, ...]]] = [("", (os.path.realpath(root),))]
    while waiting:
        folder, above = waiting.pop()
        with os.scandir(f"{root}/{folder}") as found:
            for item in found:
                path = f"{folder}{item.name}"
                if item.is_dir():
                    here = os.path.realpath(item.path) if item.is_symlink() else f"{above[-1]}/{item.name}"
                    if here not in above:
                        waiting.append((f"{path}/", (*above, here)))
                elif item.is_file():
                    size = item.stat().st_size
                    yield Entry(tidy(path), _File(item.path, size), _too_large(size))
                else:
                    fault = "is a broken link" if item.is_symlink() else "is not a regular file"
                    yield Entry(tidy(path), _File(item.path, 0), fault)


def _too_large(size: int) -> str:
    return f"has {size:,} bytes, more than {MAX_ENCODED_BYTES >> 20} MiB" if size > MAX_ENCODED_BYTES else ""
