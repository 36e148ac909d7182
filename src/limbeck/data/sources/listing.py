"""What every source of images promises, whatever it is kept in."""

from __future__ import annotations

import hashlib
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from typing import Protocol

import numpy as np
from numpy.typing import NDArray

from limbeck.data.decode import BadImage
from limbeck.errors import InputError

Content = bytes | NDArray[np.uint8] | BadImage
"""What a source holds for one image: encoded bytes, pixels `uint8[h, w, 1 | 3 | 4]`, or why nothing."""


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
    names: Sequence[str]
    labels: NDArray[np.int64] | None
    classes: tuple[str, ...]
    ignored: int


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

    def fingerprint(self) -> str:
        """A sha256 in hex that changes when any image's content, name or label does."""

    def read(self, wanted: Sequence[int]) -> Iterator[tuple[int, Content]]:
        """Stream the images whose indices into `names` are `wanted`, each once, in whatever order is fast.

        Raises:
            InputError: the source turns out to be corrupt.
            WorkError: the storage failed while it was read.
        """


Labels = tuple[NDArray[np.int64] | None, tuple[str, ...]]


def labels_of_names(names: Sequence[str | None]) -> Labels:
    """Labels and sorted classes from one class name an image (None where an image has none)."""
    classes = tuple(sorted({name for name in names if name is not None}))
    if not classes:
        return None, ()
    index = {name: label for label, name in enumerate(classes)}
    return np.array([-1 if name is None else index[name] for name in names], np.int64), classes


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


def numbered(count: int) -> list[str]:
    """Names for images that have none: their places, padded so that they sort in that order."""
    return [f"{place:08d}" for place in range(count)]


def digest_of_entries(entries: Iterable[tuple[str, bytes]]) -> str:
    """The sha256 of (name, digest) pairs in the order given, which must not depend on the storage."""
    total = hashlib.sha256()
    for name, digest in entries:
        encoded = name.encode()
        total.update(len(encoded).to_bytes(8, "little") + encoded + len(digest).to_bytes(8, "little") + digest)
    return total.hexdigest()
