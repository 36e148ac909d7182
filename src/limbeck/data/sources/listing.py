"""What every source of images promises, whatever it is kept in."""

from __future__ import annotations

import hashlib
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any, Protocol, overload

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
from numpy.typing import NDArray

from limbeck.data.decode import BadImage
from limbeck.errors import InputError

Content = bytes | NDArray[np.uint8] | BadImage
"""What a source holds for one image: encoded bytes, pixels `uint8[h, w, 1 | 3 | 4]`, or why nothing."""


_AT_ONCE = 4096


class Names(Sequence[str]):
    """Names of images in one Arrow array: a million of them cost their bytes, not a million Python strings.

    Args:
        array: strings, without nulls.

    Attributes:
        array: the same as `large_string[n]`.
    """

    def __init__(self, array: pa.Array | Sequence[str]) -> None:
        self.array: pa.LargeStringArray = (
            array.cast(pa.large_string()) if isinstance(array, pa.Array) else pa.array(array, pa.large_string())
        )

    def __len__(self) -> int:
        return len(self.array)

    @overload
    def __getitem__(self, index: int) -> str: ...
    @overload
    def __getitem__(self, index: slice) -> Names: ...
    def __getitem__(self, index: int | slice) -> str | Names:
        """One name, or those of a slice; a slice of step 1 copies nothing.

        Raises:
            IndexError: it is out of range.
        """
        if isinstance(index, slice):
            start, stop, step = index.indices(len(self))
            if step == 1:
                return Names(self.array.slice(start, max(stop - start, 0)))
            return Names(self.array.take(pa.array(range(start, stop, step), pa.int64())))
        place = range(len(self))[index]
        return str(self.array[place].as_py())

    def __iter__(self) -> Iterator[str]:
        return in_pieces(self.array)

    def __eq__(self, other: object) -> bool:
        if isinstance(other, Names):
            return bool(self.array.equals(other.array))
        if isinstance(other, Sequence) and not isinstance(other, str | bytes):
            return len(self) == len(other) and all(mine == theirs for mine, theirs in zip(self, other, strict=True))
        return NotImplemented

    __hash__ = None  # type: ignore[assignment]  # equal to lists, which have no hash

    def __repr__(self) -> str:
        shown = ", ".join(map(repr, self[:3])) + (", ..." if len(self) > 3 else "")
        return f"Names({len(self)}: {shown})"


@dataclass(frozen=True)
class Listing:
    """What a source holds, known without decoding anything.

    Attributes:
        count: number of images, at least 1.
        names: `count` unique names, sorted.
        labels: `int64[count]` indices into `classes`, -1 where an image has none; None when no image has one.
        classes: class names, sorted.
        ignored: number of files beside the images that are not images.
    """

    count: int
    names: Names
    labels: NDArray[np.int64] | None
    classes: tuple[str, ...]
    ignored: int


Indices = Sequence[int] | NDArray[np.int64]
"""Places of images in a listing."""


class Reader(Protocol):
    """Some images of a source, to be read: picklable, so that another process can do it without listing anything.

    It holds where the images are and how storage is reached, by reference; never a credential.
    """

    def __iter__(self) -> Iterator[tuple[int, Content]]:
        """Each image once, with its index, in whatever order is fast, in bounded memory.

        Raises:
            InputError: the source turns out to be corrupt.
            WorkError: the storage failed while it was read.
        """


class Source(Protocol):
    """Unlabelled or labelled images at a URI. Opening one has already checked that it can be read at all."""

    @property
    def uri(self) -> str:
        """Where the images are, as the user wrote it."""

    @property
    def format(self) -> str:
        """How they are kept: a member of `limbeck.data.sources.FORMATS`, never `auto`."""

    def listing(self) -> Listing:
        """The images' names and labels.

        Raises:
            InputError: the source is corrupt, holds no image, or has labels that do not fit.
        """

    @property
    def single_pass(self) -> bool:
        """Whether reading any images means reading all that lie before them, as in a compressed tar.

        Such a source is best read once, from beginning to end.
        """

    def fingerprint(self) -> str:
        """A sha256 in hex that changes when any image's content, name or label does.

        Taken twice of equal content on one kind of storage it is the same. Object stores know checksums of what they
        hold, which take the place of reading it, so that a copy on another kind of storage has another fingerprint.

        Raises:
            InputError: as `listing`.
            WorkError: the storage failed while it was read.
        """

    def checksums(self) -> pa.Array | None:
        """What the fingerprint is made of: a binary value an image, in the order of the names.

        Values are never equal for two different contents under one name. For one content they are equal as long as
        what it is kept in is: an image's own file or zip member, but the whole file for a row of a Parquet file.

        Returns:
            None where nothing is known of single images.

        Raises:
            InputError: as `listing`.
            WorkError: the storage failed while it was read.
        """

    def reader(self, wanted: Indices) -> Reader:
        """What reads the images whose indices into `names` are `wanted`."""

    def read(self, wanted: Indices) -> Iterator[tuple[int, Content]]:
        """Read them here and now: `iter(self.reader(wanted))`."""


Labels = tuple[NDArray[np.int64] | None, tuple[str, ...]]


def labels_of_names(names: pa.Array) -> Labels:
    """Labels and sorted classes from one class name an image (null where an image has none).

    Args:
        names: strings.
    """
    coded = names.dictionary_encode()
    found = coded.dictionary.to_pylist()
    if not found:
        return None, ()
    classes = tuple(sorted(found))
    index = {name: label for label, name in enumerate(classes)}
    rank = np.array([index[name] for name in found], np.int64)
    codes = coded.indices.fill_null(-1).to_numpy()
    return np.where(codes >= 0, rank[codes], -1), classes


def labels_of_integers(values: NDArray[np.int64], titles: Sequence[str], where: str) -> Labels:
    """Labels and sorted classes from one integer an image; a negative one means that the image has none.

    Args:
        values: `int64[n]`.
        titles: the class name of every integer; when empty, integers are their own names. Classes are sorted
            as strings (`"10" < "2"`), so that equal class names give equal labels whatever the format.
        where: the source, for the error.

    Raises:
        InputError: an integer has no title.
    """
    present = np.unique(values[values >= 0])
    if not present.size:
        return None, ()
    if titles and present[-1] >= len(titles):
        raise InputError(where, f"label {present[-1]} but only {len(titles)} class names", "labels index the names")
    if len(set(titles)) == len(titles) > 0:
        titled = dict(enumerate(titles))
    else:
        titled = {int(value): str(value) for value in present}
    classes = tuple(sorted(titled.values()))
    index = {name: label for label, name in enumerate(classes)}
    rank = np.array([index[titled[int(value)]] for value in present], np.int64)
    labels = np.where(values >= 0, rank[np.searchsorted(present, values).clip(max=present.size - 1)], -1)
    return labels.astype(np.int64), classes


def numbered(count: int) -> Names:
    """Names for images that have none: their places, padded so that they sort in that order."""
    return Names(places_in("", count))


def places_in(prefix: str, count: int) -> pa.Array:
    """The same behind a prefix: strings[count]."""
    return prefixed(prefix, pc.utf8_lpad(pa.array(np.arange(count)).cast(pa.large_string()), 8, "0"))


def prefixed(prefix: str, texts: pa.Array) -> pa.Array:
    """Large strings, each behind the same prefix."""
    return pc.binary_join_element_wise(
        pa.scalar(prefix, pa.large_string()), texts.cast(pa.large_string()), pa.scalar("", pa.large_string())
    )


def digest_of_entries(entries: Iterable[tuple[str, bytes]]) -> str:
    """The sha256 of (name, digest) pairs in the order given, which must not depend on the storage."""
    total = hashlib.sha256()
    for name, digest in entries:
        encoded = name.encode()
        total.update(len(encoded).to_bytes(8, "little") + encoded + len(digest).to_bytes(8, "little") + digest)
    return total.hexdigest()


def digest_of_images(names: Names, checksums: pa.Array) -> str:
    """The same of every image's name and checksum."""
    return digest_of_entries(zip(names, in_pieces(checksums), strict=True))


def in_pieces(array: pa.Array) -> Iterator[Any]:
    """Its values as Python's, a few thousand at a time."""
    for start in range(0, len(array), _AT_ONCE):
        yield from array.slice(start, _AT_ONCE).to_pylist()
