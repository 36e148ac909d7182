"""Images as one numpy array in a .npy file, or with their labels in a .npz; never with pickles in them."""

from __future__ import annotations

import contextlib
import math
import re
import zipfile
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import IO, Any, Literal

import numpy as np
from numpy.typing import NDArray

from limbeck.data.sources.archives import ARCHIVE_ERRORS, open_zip, same_path
from limbeck.data.sources.digests import digests_of_files
from limbeck.data.sources.fetching import read_spans
from limbeck.data.sources.listing import (
    Content,
    Indices,
    Labels,
    Listing,
    digest_of_entries,
    labels_of_integers,
    numbered,
)
from limbeck.data.sources.location import Location
from limbeck.errors import InputError

IMAGE_KEYS = ("images", "x", "x_train", "data", "arr_0")
LABEL_KEYS = ("labels", "y", "y_train")

_LAYOUTS = "images are uint8 [n, h, w], [n, h, w, 1|3|4] or [n, 1|3, h, w]"


@dataclass(frozen=True)
class _Header:
    """The head of a .npy file: what follows it, after `start` bytes, are the elements."""

    shape: tuple[int, ...]
    fortran_order: bool
    dtype: np.dtype[Any]
    start: int

    @property
    def nbytes(self) -> int:
        """Bytes of all images."""
        return math.prod(self.shape) * self.dtype.itemsize

    @property
    def row(self) -> int:
        """Bytes of one image."""
        return math.prod(self.shape[1:]) * self.dtype.itemsize


class NpySource:
    """A .npy file: `uint8[n, h, w]`, `[n, h, w, 1 | 3 | 4]` or `[n, 1 | 3, h, w]`, without labels."""

    format = "npy"

    def __init__(self, location: Location) -> None:
        self.uri = location.uri
        self._location = location
        if location.is_directory:
            raise InputError(self.uri, "is a directory", "format npy reads a file")
        if location.split is not None:
            raise location.no_such_split([])

    def listing(self) -> Listing:
        """See `Source.listing`."""
        count = self._header.shape[0]
        return Listing(count, numbered(count), None, (), 0)

    def fingerprint(self) -> str:
        """See `Source.fingerprint`: of the file's bytes."""
        return self._fingerprint

    @property
    def single_pass(self) -> bool:
        """See `Source.single_pass`: in Fortran order, when it cannot be mapped."""
        return self._header.fortran_order and not self._location.is_local

    def checksums(self) -> None:
        """See `Source.checksums`: images have none of their own."""

    def reader(self, wanted: Indices) -> NpyReader:
        """See `Source.reader`."""
        return NpyReader(self._location, self._header, np.sort(np.asarray(wanted, np.int64)))

    def read(self, wanted: Indices) -> Iterator[tuple[int, Content]]:
        """See `Source.read`."""
        return iter(self.reader(wanted))

    @cached_property
    def _header(self) -> _Header:
        location = self._location
        size = location.patiently("looking at", lambda: location.files.info(location.path))["size"]
        with self._location.open() as file:
            header = _read_header(file, size, self.uri)
        _check_images(header, self.uri)
        return header

    @cached_property
    def _fingerprint(self) -> str:
        [digest] = digests_of_files(self._location, [self._location.name])
        return digest_of_entries([("npy", digest)])


@dataclass(frozen=True)
class NpyReader:
    """Some images of a .npy file; see `Reader`. `wanted` i64[n] are sorted."""

    location: Location
    header: _Header
    wanted: NDArray[np.int64]

    def __iter__(self) -> Iterator[tuple[int, Content]]:
        """See `Reader`: in order, from a memory map when the file is local."""
        header, location = self.header, self.location
        if location.is_local:
            order: Literal["C", "F"] = "F" if header.fortran_order else "C"
            array = np.memmap(location.path, header.dtype, "r", header.start, header.shape, order)
            yield from ((index, _channels_last(array[index])) for index in self.wanted.tolist())
        elif header.fortran_order:
            with location.open() as file:
                file.seek(header.start)
                yield from _rows(file, header, self.wanted, location.uri)
        else:
            starts = header.start + self.wanted * header.row
            for place, content in read_spans(location, same_path(location, len(starts)), starts, starts + header.row):
                image = _image(content, header, location.uri)
                yield int(self.wanted[place]), image


class NpzSource:
    """A .npz file: an array of images and, when there is one, an array of integer labels.

    Images are under one of `IMAGE_KEYS`, labels under one of `LABEL_KEYS`. Split NAME is `x_NAME` and
    `y_NAME`, or `NAME_images` and `NAME_labels`.
    """

    format = "npz"
    single_pass = True  # `zipfile` reads through what it skips, compressed or not

    def __init__(self, location: Location) -> None:
        self.uri = location.uri
        self._location = location
        if location.is_directory:
            raise InputError(self.uri, "is a directory", "format npz reads a file")

    def listing(self) -> Listing:
        """See `Source.listing`."""
        return self._listed[1]

    def fingerprint(self) -> str:
        """See `Source.fingerprint`: of the file's bytes and the split."""
        return self._fingerprint

    def checksums(self) -> None:
        """See `Source.checksums`: images have none of their own."""

    def reader(self, wanted: Indices) -> NpzReader:
        """See `Source.reader`."""
        return NpzReader(self._location, self._listed[0], np.sort(np.asarray(wanted, np.int64)))

    def read(self, wanted: Indices) -> Iterator[tuple[int, Content]]:
        """See `Source.read`."""
        return iter(self.reader(wanted))

    @cached_property
    def _listed(self) -> tuple[str, Listing]:
        """The key of the images, and the listing."""
        with open_zip(self._location) as archive:
            images_key, labels_key = self._keys(archive)
            with _member(self._location, archive, images_key) as (_, header):
                _check_images(header, f"{self.uri}: {images_key}")
            count = header.shape[0]
            labels, classes = self._labels(archive, labels_key, count) if labels_key else (None, ())
        return images_key, Listing(count, numbered(count), labels, classes, 0)

    @cached_property
    def _fingerprint(self) -> str:
        [digest] = digests_of_files(self._location, [self._location.name])
        return digest_of_entries([(f"npz#{self._location.split}", digest)])

    def _keys(self, archive: zipfile.ZipFile) -> tuple[str, str | None]:
        keys = [name.removesuffix(".npy") for name in archive.namelist()]
        split = self._location.split
        if split is None:
            images = next((key for key in IMAGE_KEYS if key in keys), None)
            labels = next((key for key in LABEL_KEYS if key in keys), None)
        else:
            pairs = ((f"x_{split}", f"y_{split}"), (f"{split}_images", f"{split}_labels"))
            images, labels = next(((x, y if y in keys else None) for x, y in pairs if x in keys), (None, None))
        if images is not None:
            return images, labels
        splits = _splits(keys)
        if split is not None:
            raise self._location.no_such_split(splits)
        allowed = f"images are under {', '.join(IMAGE_KEYS)}"
        if splits:
            allowed += f", or in a split that #name selects: {', '.join(splits)}"
        raise InputError(self.uri, f"has no images, only the keys {', '.join(keys[:20]) or '(none)'}", allowed)

    def _labels(self, archive: zipfile.ZipFile, key: str, count: int) -> Labels:
        where = f"{self.uri}: {key}"
        with _member(self._location, archive, key) as (file, header):
            if header.dtype.kind not in "iu":
                raise InputError(where, f"labels have dtype {header.dtype}", "labels are integers")
            if header.shape not in ((count,), (count, 1)):
                raise InputError(where, f"labels have shape {header.shape}", f"{count} images need shape ({count},)")
            values = np.frombuffer(file.read(header.nbytes), header.dtype)
        return labels_of_integers(values.astype(np.int64), (), where)


@dataclass(frozen=True)
class NpzReader:
    """Some images of a .npz file, under `key`; see `Reader`. `wanted` i64[n] are sorted."""

    location: Location
    key: str
    wanted: NDArray[np.int64]

    def __iter__(self) -> Iterator[tuple[int, Content]]:
        """See `Reader`: in order, in one pass over the array, which may be compressed."""
        with open_zip(self.location) as archive, _member(self.location, archive, self.key) as (file, header):
            yield from _rows(file, header, self.wanted, self.location.uri)


@contextlib.contextmanager
def _member(location: Location, archive: zipfile.ZipFile, key: str) -> Iterator[tuple[IO[bytes], _Header]]:
    where = f"{location.uri}: {key}"
    try:
        member = archive.getinfo(f"{key}.npy")
        with archive.open(member) as file:
            yield file, _read_header(file, member.file_size, where)
    except (*ARCHIVE_ERRORS, KeyError) as error:
        raise InputError(where, f"is damaged: {error}") from error


def _splits(keys: Sequence[str]) -> list[str]:
    found = [re.fullmatch(r"x_(.+)|(.+)_images", key) for key in keys]
    return sorted({match[1] or match[2] for match in found if match})


def _read_header(file: IO[bytes], size: int, where: str) -> _Header:
    """Read the head of a .npy file that has `size` bytes in all, and check that the two agree."""
    try:
        version = np.lib.format.read_magic(file)
        read = np.lib.format.read_array_header_1_0 if version == (1, 0) else np.lib.format.read_array_header_2_0
        shape, fortran_order, dtype = read(file)
    except Exception as error:
        # numpy reads the header with Python's own parser and raises whatever that does.
        raise InputError(where, f"is not a readable npy array: {str(error).partition(chr(10))[0]}") from error
    header = _Header(shape, fortran_order, dtype, file.tell())
    if dtype.hasobject:
        raise InputError(where, "holds Python objects, which are pickles", _LAYOUTS)
    if header.start + header.nbytes != size:
        raise InputError(where, f"has {size:,} bytes where its header says {header.start + header.nbytes:,}: damaged")
    return header


def _check_images(header: _Header, where: str) -> None:
    shape = header.shape
    if header.dtype != np.uint8:
        raise InputError(where, f"images have dtype {header.dtype}", _LAYOUTS)
    if not (len(shape) == 3 or (len(shape) == 4 and (shape[3] in (1, 3, 4) or shape[1] in (1, 3)))):
        raise InputError(where, f"images have shape {shape}", _LAYOUTS)
    if min(shape) < 1:
        raise InputError(where, f"holds no image: its shape is {shape}", _LAYOUTS)


def _channels_last(image: NDArray[np.uint8]) -> NDArray[np.uint8]:
    if image.ndim == 3 and image.shape[2] not in (1, 3, 4):
        image = image.transpose(1, 2, 0)
    return np.array(image)


def _rows(
    file: IO[bytes], header: _Header, wanted: NDArray[np.int64], where: str
) -> Iterator[tuple[int, NDArray[np.uint8]]]:
    """Read the images at sorted places from a file that stands behind its header; Fortran order is read whole."""
    if header.fortran_order:
        array = np.frombuffer(file.read(header.nbytes), np.uint8).reshape(header.shape, order="F")
        yield from ((index, _channels_last(array[index])) for index in wanted.tolist())
        return
    here = 0
    for index in wanted.tolist():
        file.seek((index - here) * header.row, 1)
        content = file.read(header.row)
        here = index + 1
        yield index, _image(content, header, where)


def _image(content: bytes, header: _Header, where: str) -> NDArray[np.uint8]:
    if len(content) != header.row:
        raise InputError(where, "is cut short")
    return _channels_last(np.frombuffer(content, np.uint8).reshape(header.shape[1:]))
