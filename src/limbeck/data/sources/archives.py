"""Images inside a zip or tar archive, read where they are: nothing is ever extracted to disk."""

from __future__ import annotations

import bz2
import contextlib
import gzip
import hashlib
import lzma
import stat
import struct
import tarfile
import zipfile
import zlib
from collections.abc import Iterator
from functools import cached_property
from typing import IO, Any, cast

import pyarrow as pa

from limbeck.data.decode import MAX_ENCODED_BYTES, BadImage
from limbeck.data.sources.folders import Arrangement, Entry, arrange, is_image, of_split, tidy, unsafe_name
from limbeck.data.sources.listing import Content, Indices, Listing, digest_of_entries
from limbeck.data.sources.location import Location
from limbeck.data.sources.reopening import Reopened
from limbeck.errors import InputError

TAR_SUFFIXES = (".tar", ".tar.gz", ".tgz", ".tar.bz2", ".tar.xz")

_MAX_HEADER_BYTES = 2**20
_EXTENDED_HEADERS = (
    tarfile.XHDTYPE,
    tarfile.XGLTYPE,
    tarfile.SOLARIS_XHDTYPE,
    tarfile.GNUTYPE_LONGNAME,
    tarfile.GNUTYPE_LONGLINK,
)
_ENCRYPTED = 0x1  # the bit in a zip entry's flags
# Inflating can be stopped at a given size; bzip2 and LZMA cannot, and do nothing for images.
_COMPRESSIONS = (zipfile.ZIP_STORED, zipfile.ZIP_DEFLATED)

# What the standard library raises on archives that are cut short, damaged or forged.
ARCHIVE_ERRORS = (
    zipfile.BadZipFile,
    tarfile.TarError,
    zlib.error,
    lzma.LZMAError,
    gzip.BadGzipFile,
    struct.error,
    EOFError,
    ValueError,
    OverflowError,
    RuntimeError,  # and NotImplementedError with it
)


class ZipSource:
    """The .jpg, .jpeg and .png files in a zip archive."""

    format = "zip"

    def __init__(self, location: Location) -> None:
        self.uri = location.uri
        self._location = location
        if location.is_directory:
            raise InputError(self.uri, "is a directory", "format zip reads a file")

    def listing(self) -> Listing:
        """See `Source.listing`."""
        return self._arrangement.listing

    def fingerprint(self) -> str:
        """See `Source.fingerprint`: of every image's name, size and CRC-32, by the archive's directory."""
        return digest_of_entries(
            (entry.name, struct.pack("<QI", entry.place.file_size, entry.place.CRC))
            for entry in self._arrangement.entries
        )

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
        """See `Source.read`: in the order in which the archive holds them."""
        entries = self._arrangement.entries
        with open_zip(self._location) as archive:
            for index in sorted(wanted, key=lambda index: entries[index].place.header_offset):
                yield index, self._content(archive, entries[index])

    def _content(self, archive: zipfile.ZipFile, entry: Entry[zipfile.ZipInfo]) -> Content:
        if entry.fault:
            return BadImage(entry.fault)
        try:
            with archive.open(entry.place) as member:
                return member.read(MAX_ENCODED_BYTES)
        except ARCHIVE_ERRORS as error:
            return BadImage(f"is damaged: {_without_name(error, entry.place.filename)}")

    @cached_property
    def _arrangement(self) -> Arrangement[zipfile.ZipInfo]:
        with open_zip(self._location) as archive:
            entries = [
                Entry(tidy(member.filename), member, _zip_fault(member))
                for member in archive.infolist()
                if not member.is_dir()
            ]
        return arrange(of_split(entries, self._location), self.uri)


class TarSource:
    """The .jpg, .jpeg and .png files in a tar archive, which may be compressed with gzip, bzip2 or xz."""

    format = "tar"

    def __init__(self, location: Location) -> None:
        self.uri = location.uri
        self._location = location
        if location.is_directory:
            raise InputError(self.uri, "is a directory", "format tar reads a file")

    def listing(self) -> Listing:
        """See `Source.listing`. A tar has no directory, so the archive is read through, once."""
        return self._arrangement.listing

    def fingerprint(self) -> str:
        """See `Source.fingerprint`: of every image's name and content, whatever the compression."""
        return digest_of_entries((entry.name, entry.place[1]) for entry in self._arrangement.entries)

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
        """See `Source.read`: in the order in which the archive holds them."""
        entries = self._arrangement.entries
        at_place = {}
        for index in wanted:
            if entries[index].fault:
                yield index, BadImage(entries[index].fault)
            else:
                at_place[entries[index].place[0]] = index
        for place, member in enumerate(tar_members(self._location)):
            if place in at_place:
                yield at_place.pop(place), member.content()
            if not at_place:
                return

    @cached_property
    def _arrangement(self) -> Arrangement[tuple[int, bytes]]:
        return arrange(of_split(self._entries(), self._location), self.uri)

    def _entries(self) -> Iterator[Entry[tuple[int, bytes]]]:
        for place, member in enumerate(tar_members(self._location)):
            name, fault = member.info.name, _tar_fault(member.info)
            digest = b"" if fault or not is_image(name) else hashlib.sha256(member.content()).digest()
            yield Entry(tidy(name), (place, digest), fault)


@contextlib.contextmanager
def open_zip(location: Location) -> Iterator[zipfile.ZipFile]:
    """Open a zip archive.

    Raises:
        InputError: it is not one, or its directory is damaged.
    """
    with location.open() as file:
        try:
            archive = zipfile.ZipFile(file)
            if any(member.header_offset < 0 for member in archive.infolist()):
                raise EOFError("its beginning is missing")
        except (*ARCHIVE_ERRORS, OSError) as error:
            raise InputError(location.uri, f"is not a readable zip archive: {error}") from error
        with archive:
            yield archive


class TarMember:
    """A member of a tar archive that a pass over it has reached."""

    def __init__(self, archive: tarfile.TarFile, info: tarfile.TarInfo, uri: str) -> None:
        self.info = info
        self._archive, self._uri = archive, uri

    def content(self) -> bytes:
        """The bytes of a regular file, to be asked for before the pass goes on.

        Raises:
            InputError: the archive is damaged or cut short.
        """
        try:
            content = cast("IO[bytes]", self._archive.extractfile(self.info)).read()
        except (*ARCHIVE_ERRORS, OSError) as error:
            raise _unreadable_tar(self._uri, error) from error
        if len(content) != self.info.size:
            raise _unreadable_tar(self._uri, EOFError("it is cut short"))
        return content


def tar_members(location: Location) -> Iterator[TarMember]:
    """Every member of a tar archive but directories, in one pass over it.

    Raises:
        InputError: it is not a tar archive, or it is damaged or cut short.
    """
    with location.open() as file:
        try:
            with _decompressed(file) as stream:
                # The stream mode: one pass forward, which is all that a compressed archive can do quickly.
                with tarfile.open(fileobj=stream, mode="r|", tarinfo=_BoundedTarInfo, bufsize=2**18) as archive:
                    for info in archive:
                        archive.members = []  # type: ignore[attr-defined]  # else they pile up
                        if not info.isdir():
                            yield TarMember(archive, info, location.uri)
                while stream.read(2**18):  # to the end, where the checksum of a compressed file is
                    pass
        except (*ARCHIVE_ERRORS, OSError) as error:
            raise _unreadable_tar(location.uri, error) from error


def _unreadable_tar(uri: str, error: Exception) -> InputError:
    return InputError(uri, f"is not a readable tar archive: {error}")


class _BoundedTarInfo(tarfile.TarInfo):
    """Refuses a forged archive's huge extended headers, which `tarfile` would read whole."""

    def _proc_member(self, archive: tarfile.TarFile) -> tarfile.TarInfo:
        if self.type in _EXTENDED_HEADERS and self.size > _MAX_HEADER_BYTES:
            raise tarfile.ReadError(f"a header of {self.size:,} bytes")
        return cast(tarfile.TarInfo, super()._proc_member(archive))  # type: ignore[misc]


def _decompressed(file: IO[bytes]) -> Any:
    magic = file.read(6)
    file.seek(0)
    if magic.startswith(b"\x1f\x8b"):
        return gzip.GzipFile(fileobj=file)
    if magic.startswith(b"BZh"):
        return bz2.BZ2File(file)
    if magic == b"\xfd7zXZ\x00":
        return lzma.LZMAFile(file)
    return contextlib.nullcontext(file)


def _zip_fault(member: zipfile.ZipInfo) -> str:
    kind = stat.S_IFMT(member.external_attr >> 16)
    if fault := unsafe_name(member.filename):
        return fault
    if kind == stat.S_IFLNK:
        return "is a link"
    if member.flag_bits & _ENCRYPTED:
        return "is encrypted"
    if member.compress_type not in _COMPRESSIONS:
        return f"is compressed with method {member.compress_type}, not with deflate"
    return _size_fault(member.file_size)


def _tar_fault(member: tarfile.TarInfo) -> str:
    if fault := unsafe_name(member.name):
        return fault
    if member.issym() or member.islnk():
        return "is a link"
    if not member.isreg():
        return "is not a regular file"
    return _size_fault(member.size)


def _size_fault(size: int) -> str:
    if size > MAX_ENCODED_BYTES:
        return f"has {size:,} bytes, more than {MAX_ENCODED_BYTES >> 20} MiB"
    return ""


def _without_name(error: Exception, name: str) -> str:
    return str(error).replace(f" for file {name!r}", "") or type(error).__name__
