"""Images inside a zip or tar archive, read where they are: nothing is ever extracted to disk."""

from __future__ import annotations

import bz2
import contextlib
import gzip
import hashlib
import lzma
import re
import stat
import struct
import tarfile
import zipfile
import zlib
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from functools import cached_property
from typing import IO, Any, Literal, Self, cast

import numpy as np
import pyarrow as pa
from numpy.typing import NDArray

from limbeck.data.decode import BadImage
from limbeck.data.sources.digests import binary_rows
from limbeck.data.sources.fetching import read_spans
from limbeck.data.sources.folders import (
    Arrangement,
    Entry,
    Files,
    arrange,
    is_image,
    of_split,
    tidy,
    unsafe_name,
    whole,
)
from limbeck.data.sources.listing import Content, Indices, Listing, digest_of_entries, digest_of_images, prefixed
from limbeck.data.sources.location import Location
from limbeck.data.sources.walking import too_large
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

_ZIP_COLUMNS = {
    "start": pa.int64(),
    "stop": pa.int64(),
    "packed": pa.int64(),
    "deflated": pa.bool_(),
    "size": pa.int64(),
    "crc": pa.uint32(),
}
_ZIP_HEADER = struct.Struct("<26xHH")  # before a member: the lengths of its name and of what else follows
_LARGEST_ZIP_HEADER = _ZIP_HEADER.size + 2 * 0xFFFF
_LARGEST_COUNT = 2**62  # what a forged directory may claim is kept in 64 bits
_DIRECTORY_BLOCK = 2**20  # bytes that are asked for beyond what is read of a zip's directory
_HEADER_BLOCK = 2**18  # and of a tar's headers: shorter contents are read through, sooner than they are skipped

_PLAIN_NUMBER = re.compile(rb" *[0-7]+[ \0]*")  # octal digits, as all but huge numbers in a tar's header are

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
    single_pass = False

    def __init__(self, location: Location) -> None:
        self.uri = location.uri
        self._location = location
        if location.is_directory:
            raise InputError(self.uri, "is a directory", "format zip reads a file")

    def listing(self) -> Listing:
        """See `Source.listing`."""
        return self._arrangement.listing

    def fingerprint(self) -> str:
        """See `Source.fingerprint`: the object's checksum, else of every image's name and checksum."""
        stored = self._location.checksum
        if stored is not None:
            return digest_of_entries([(f"zip#{self._location.split}", stored)])
        return digest_of_images(self.listing().names, self.checksums())

    def checksums(self) -> pa.Array:
        """See `Source.checksums`: size and CRC-32 of every image, by the archive's directory."""
        rows = np.empty(self.listing().count, [("size", "<u8"), ("crc", "<u4")])
        rows["size"] = self._arrangement.column("size").to_numpy()
        rows["crc"] = self._arrangement.column("crc").to_numpy()
        return binary_rows(rows)

    def reader(self, wanted: Indices) -> ZipReader:
        """See `Source.reader`."""
        indices = np.asarray(wanted, np.int64)
        return ZipReader(self._location, indices, self._arrangement.images.take(pa.array(indices)).drop_columns("name"))

    def read(self, wanted: Indices) -> Iterator[tuple[int, Content]]:
        """See `Source.read`."""
        return iter(self.reader(wanted))

    @cached_property
    def _arrangement(self) -> Arrangement:
        files = Files(_ZIP_COLUMNS)
        with open_zip(self._location, _DIRECTORY_BLOCK) as archive:
            members = archive.infolist()
            # A member ends at the latest where the next one begins, or where the directory does.
            end = archive.start_dir
            begins = np.unique([*(min(member.header_offset, end) for member in members), end])
            entries = (
                Entry(tidy(member.filename), _zip_fault(member, end), _zip_place(member, begins))
                for member in members
                if not member.is_dir()
            )
            for entry in of_split(entries, self._location):
                files.add(entry)
        return arrange(files, self.uri)


@dataclass(frozen=True)
class ZipReader:
    """Some members of a zip archive; see `Reader`.

    Attributes:
        location: the archive.
        indices: i64[n].
        members: n rows of `_ZIP_COLUMNS` and "fault".
    """

    location: Location
    indices: NDArray[np.int64]
    members: pa.Table

    def __iter__(self) -> Iterator[tuple[int, Content]]:
        """See `Reader`: in the order in which the archive holds them, once the bad ones are named."""
        yield from bad_ones(self.indices, whole(self.members["fault"]))
        good = np.flatnonzero(self.members["fault"].is_null().to_numpy())
        columns = {name: self.members[name].to_numpy()[good] for name in _ZIP_COLUMNS}
        for place, span in read_spans(
            self.location, same_path(self.location, len(good)), columns["start"], columns["stop"]
        ):
            size, crc = int(columns["size"][place]), int(columns["crc"][place])
            packed, deflated = int(columns["packed"][place]), bool(columns["deflated"][place])
            yield int(self.indices[good[place]]), _unzipped(span, packed, deflated, size, crc)


class TarSource:
    """The .jpg, .jpeg and .png files in a tar archive, which may be compressed with gzip, bzip2 or xz."""

    format = "tar"

    def __init__(self, location: Location) -> None:
        self.uri = location.uri
        self._location = location
        if location.is_directory:
            raise InputError(self.uri, "is a directory", "format tar reads a file")

    @property
    def single_pass(self) -> bool:
        """See `Source.single_pass`: when it is compressed."""
        return self._compressed

    def listing(self) -> Listing:
        """See `Source.listing`. A tar has no directory: headers are read through, a compressed archive all through."""
        return self._arrangement.listing

    def fingerprint(self) -> str:
        """See `Source.fingerprint`: the object's checksum, else of every image's name and content."""
        stored = self._location.checksum
        if stored is not None:
            return digest_of_entries([(f"tar#{self._location.split}", stored)])
        return digest_of_images(self.listing().names, self.checksums())

    def checksums(self) -> pa.Array:
        """See `Source.checksums`: the object's and the image's place in it, else the sha256 of every image."""
        return self._checksums

    def reader(self, wanted: Indices) -> TarReader | SpanReader:
        """See `Source.reader`."""
        indices = np.asarray(wanted, np.int64)
        images = self._arrangement.images.take(pa.array(indices))
        starts, sizes, faults = images["start"].to_numpy(), images["size"].to_numpy(), whole(images["fault"])
        if self._compressed:
            return TarReader(self._location, indices, starts, faults)
        paths = same_path(self._location, len(indices))
        return SpanReader(self._location, indices, paths, starts, starts + sizes, faults)

    def read(self, wanted: Indices) -> Iterator[tuple[int, Content]]:
        """See `Source.read`."""
        return iter(self.reader(wanted))

    @cached_property
    def _compressed(self) -> bool:
        with self._location.open(block=_HEADER_BLOCK) as file:
            return _decompressor(file) is not None

    @cached_property
    def _arrangement(self) -> Arrangement:
        files = Files({"start": pa.int64(), "size": pa.int64(), "digest": pa.binary(32)})
        for entry in of_split(self._entries(), self._location):
            files.add(entry)
        return arrange(files, self.uri)

    def _entries(self) -> Iterator[Entry]:
        hashed = self._compressed and self._location.checksum is None  # while it passes: it will not come again
        for member in tar_members(self._location):
            info = member.info
            name, fault = info.name, tar_fault(info)
            good = hashed and not fault and is_image(name)
            digest = hashlib.sha256(member.content()).digest() if good else None
            yield Entry(tidy(name), fault, (info.offset_data, info.size, digest))

    @cached_property
    def _checksums(self) -> pa.Array:
        starts = self._arrangement.column("start")
        stored = self._location.checksum
        if stored is not None:
            return checksums_of_places(stored, starts)
        digests = self._arrangement.column("digest").to_pylist() if self._compressed else [b""] * len(starts)
        if not self._compressed:
            for index, content in self.read(range(len(starts))):
                digests[index] = hashlib.sha256(content).digest() if isinstance(content, bytes) else b""
        return pa.array([digest or b"" for digest in digests], pa.binary())


@dataclass(frozen=True)
class TarReader:
    """Some members of a compressed tar archive; see `Reader`.

    Attributes:
        location: the archive.
        indices: i64[n].
        starts: i64[n], where the content of each begins in the archive when it is not compressed.
        faults: strings[n], null where a member may be read.
        path: of another archive than the location itself.
    """

    location: Location
    indices: NDArray[np.int64]
    starts: NDArray[np.int64]
    faults: pa.Array
    path: str | None = None

    def __iter__(self) -> Iterator[tuple[int, Content]]:
        """See `Reader`: in the order in which the archive holds them, once the bad ones are named."""
        yield from bad_ones(self.indices, self.faults)
        good = np.flatnonzero(self.faults.is_null().to_numpy(zero_copy_only=False))
        index_at = dict(zip(self.starts[good].tolist(), self.indices[good].tolist(), strict=True))
        if not index_at:
            return
        for member in tar_members(self.location, self.path):
            index = index_at.pop(member.info.offset_data, None)
            if index is not None:
                yield index, member.content()
                if not index_at:
                    return


@dataclass(frozen=True)
class SpanReader:
    """Some images that lie in files as they are; see `Reader`.

    Attributes:
        location: on whose filesystem the files are.
        indices: i64[n].
        paths: the file of each, strings[n] of any encoding.
        starts: i64[n], bytes.
        stops: i64[n], bytes.
        faults: strings[n], null where an image may be read.
    """

    location: Location
    indices: NDArray[np.int64]
    paths: pa.Array
    starts: NDArray[np.int64]
    stops: NDArray[np.int64]
    faults: pa.Array

    def __iter__(self) -> Iterator[tuple[int, Content]]:
        """See `Reader`: in the order in which the files hold them, once the bad ones are named."""
        yield from bad_ones(self.indices, self.faults)
        good = np.flatnonzero(self.faults.is_null().to_numpy(zero_copy_only=False))
        starts, stops = self.starts[good], self.stops[good]
        for place, content in read_spans(self.location, self.paths.take(pa.array(good)), starts, stops):
            if len(content) != stops[place] - starts[place]:
                raise unreadable_tar(self.location.uri, EOFError("it is cut short"))
            yield int(self.indices[good[place]]), content


def bad_ones(indices: NDArray[np.int64], faults: pa.Array) -> Iterator[tuple[int, Content]]:
    """Those of the images that must not be read.

    Args:
        indices: i64[n].
        faults: strings[n], null where an image may be read.
    """
    for place in np.flatnonzero(faults.is_valid().to_numpy(zero_copy_only=False)).tolist():
        yield int(indices[place]), BadImage(faults[place].as_py())


def same_path(location: Location, count: int) -> pa.Array:
    """The location's path, for every one of `count` images in it."""
    return pa.DictionaryArray.from_arrays(np.zeros(count, np.int32), [location.path])


def checksums_of_places(stored: bytes, starts: pa.Array) -> pa.Array:
    """A checksum for every image in a file that has one: the file's, and where the image begins.

    Args:
        stored: the file's.
        starts: i64[n].
    """
    return prefixed(f"{stored.hex()}@", starts).cast(pa.large_binary())


@contextlib.contextmanager
def open_zip(location: Location, block: int | None = None) -> Iterator[zipfile.ZipFile]:
    """Open a zip archive.

    Args:
        location: the archive.
        block: as in `Location.open`.

    Raises:
        InputError: it is not one, or its directory is damaged.
    """
    with location.open(block=block) as file:
        try:
            archive = zipfile.ZipFile(file)
            if any(member.header_offset < 0 for member in archive.infolist()):
                raise EOFError("its beginning is missing")
        except (*ARCHIVE_ERRORS, OSError) as error:
            raise InputError(location.uri, f"is not a readable zip archive: {error}") from error
        with archive:
            yield archive


class TarMember:
    """A member of a tar archive that a pass over it has reached.

    Attributes:
        info: its header.
        compressed: whether the archive is.
    """

    def __init__(self, archive: tarfile.TarFile, info: tarfile.TarInfo, uri: str, compressed: bool) -> None:
        self.info, self.compressed = info, compressed
        self._archive, self._uri = archive, uri

    def content(self) -> bytes:
        """The bytes of a regular file, to be asked for before the pass goes on.

        Raises:
            InputError: the archive is damaged or cut short.
        """
        try:
            content = cast("IO[bytes]", self._archive.extractfile(self.info)).read()
        except (*ARCHIVE_ERRORS, OSError) as error:
            raise unreadable_tar(self._uri, error) from error
        if len(content) != self.info.size:
            raise unreadable_tar(self._uri, EOFError("it is cut short"))
        return content


def tar_members(location: Location, path: str | None = None) -> Iterator[TarMember]:
    """Every member of a tar archive but directories, in one pass over it.

    The content of a member is skipped, not read, unless it is asked for or the archive is compressed.

    Args:
        location: the archive, or on whose filesystem it is.
        path: of another archive on that filesystem.

    Raises:
        InputError: it is not a tar archive, or it is damaged or cut short.
    """
    with location.open(path, _HEADER_BLOCK) as file:
        try:
            decompressor = _decompressor(file)
            if decompressor is None:
                yield from _members(file, "r:", location.uri)
                return
            with decompressor(file) as stream:
                yield from _members(stream, "r|", location.uri)
                while stream.read(2**18):  # to the end, where the checksum of a compressed file is
                    pass
        except (*ARCHIVE_ERRORS, OSError) as error:
            raise unreadable_tar(location.uri, error) from error


def _members(stream: IO[bytes], mode: Literal["r:", "r|"], uri: str) -> Iterator[TarMember]:
    # "r|" is one pass forward, which is all that a compressed archive can do quickly; "r:" skips by seeking.
    with tarfile.open(fileobj=stream, mode=mode, tarinfo=_BoundedTarInfo, bufsize=2**18) as archive:
        while (info := archive.next()) is not None:
            archive.members = []  # type: ignore[attr-defined]  # else they pile up
            if not info.isdir():
                yield TarMember(archive, info, uri, mode == "r|")


def unreadable_tar(uri: str, error: Exception) -> InputError:
    """The error for a tar archive that is damaged."""
    return InputError(uri, f"is not a readable tar archive: {error}")


def _is_plain(header: bytes | bytearray) -> bool:
    """Whether it is an undamaged header of a regular file with a short name."""
    return (
        len(header) == tarfile.BLOCKSIZE
        and header[156:157] == tarfile.REGTYPE
        and header[257:262] == b"ustar"
        and header[345] == 0
        and _PLAIN_NUMBER.fullmatch(header, 124, 136) is not None
        and _PLAIN_NUMBER.fullmatch(header, 148, 156) is not None
        # The checksum counts its own field as eight spaces.
        and _octal(header[148:156]) == sum(header) - sum(header[148:156]) + 8 * ord(" ")
    )


def _octal(digits: bytes | bytearray) -> int:
    return int(digits.strip(b" \0"), 8)


class _BoundedTarInfo(tarfile.TarInfo):
    """Refuses a forged archive's huge extended headers, which `tarfile` would read whole."""

    @classmethod
    def frombuf(cls, buf: bytes | bytearray, encoding: str, errors: str) -> Self:
        """A header: of a plain file's, which nearly all are, only what is used here is parsed, for speed."""
        if _is_plain(buf):
            member = cls(buf[:100].partition(b"\0")[0].decode(encoding, errors))
            member.size = _octal(buf[124:136])
            return member
        return super().frombuf(buf, encoding, errors)

    def _proc_member(self, archive: tarfile.TarFile) -> tarfile.TarInfo:
        if self.type in _EXTENDED_HEADERS and self.size > _MAX_HEADER_BYTES:
            raise tarfile.ReadError(f"a header of {self.size:,} bytes")
        return cast(tarfile.TarInfo, super()._proc_member(archive))  # type: ignore[misc]


def _decompressor(file: IO[bytes]) -> Callable[[IO[bytes]], Any] | None:
    """What reads a compressed file, by how it begins; None where it is not compressed."""
    magic = file.read(6)
    file.seek(0)
    if magic.startswith(b"\x1f\x8b"):
        return lambda file: gzip.GzipFile(fileobj=file)
    if magic.startswith(b"BZh"):
        return bz2.BZ2File
    return lzma.LZMAFile if magic == b"\xfd7zXZ\x00" else None


def _zip_fault(member: zipfile.ZipInfo, directory: int) -> str:
    kind = stat.S_IFMT(member.external_attr >> 16)
    if fault := unsafe_name(member.filename):
        return fault
    if kind == stat.S_IFLNK:
        return "is a link"
    if member.flag_bits & _ENCRYPTED:
        return "is encrypted"
    if member.header_offset >= directory:
        return "is damaged: it does not lie where the directory says"
    if member.compress_type not in _COMPRESSIONS:
        return f"is compressed with method {member.compress_type}, not with deflate"
    return too_large(max(member.file_size, member.compress_size))  # both are held: what is read, and what comes of it


def tar_fault(member: tarfile.TarInfo) -> str:
    """Why a member must not be read; empty when it may."""
    if fault := unsafe_name(member.name):
        return fault
    if member.issym() or member.islnk():
        return "is a link"
    if not member.isreg() or member.issparse():
        return "is not a regular file"
    return too_large(member.size)


def _zip_place(member: zipfile.ZipInfo, begins: NDArray[np.int64]) -> tuple[int, ...]:
    """The member's row of `_ZIP_COLUMNS`; `begins` are where members and the directory begin, sorted."""
    start, end = min(member.header_offset, int(begins[-1])), int(begins[-1])
    following = int(begins[np.searchsorted(begins, start, "right").clip(max=begins.size - 1)])
    # A forged directory may announce any sizes: no more is read than the header and what it says of the content.
    stop = min(following, start + _LARGEST_ZIP_HEADER + member.compress_size)
    packed, size = min(member.compress_size, end), min(member.file_size, _LARGEST_COUNT)
    return start, stop, packed, member.compress_type == zipfile.ZIP_DEFLATED, size, member.CRC


def _unzipped(span: bytes, packed: int, deflated: bool, size: int, crc: int) -> Content:
    """The content of a member whose header begins the span: not a byte more than the directory says."""
    if span[:4] != b"PK\3\4" or len(span) < _ZIP_HEADER.size:
        return BadImage("is damaged: it does not lie where the directory says")
    name, extra = _ZIP_HEADER.unpack_from(span)
    start = _ZIP_HEADER.size + name + extra
    content = span[start : start + packed]
    if len(content) != packed:
        return BadImage("is damaged: it is cut short")
    if deflated:
        try:
            content = zlib.decompressobj(-zlib.MAX_WBITS).decompress(content, max(size, 1))
        except zlib.error as error:
            return BadImage(f"is damaged: {error}")
    if len(content) != size or zlib.crc32(content) != crc:
        return BadImage("is damaged: Bad CRC-32")
    return content
