"""scikit-learn's 1,797 handwritten digits of 8 x 8 pixels: a source that needs no download."""

from __future__ import annotations

import hashlib
from collections.abc import Iterator
from dataclasses import dataclass
from functools import cached_property

import numpy as np
from numpy.typing import NDArray

from limbeck.data.sources.listing import Content, Indices, Listing, Names, digest_of_entries, labels_of_integers
from limbeck.errors import InputError

URI = "sklearn:digits"

_TEST_EVERY = 5
_WHITEST = 16


class DigitsSource:
    """`sklearn:digits`; `#test` is every fifth image, `#train` are the others."""

    format = "digits"
    single_pass = False

    def __init__(self, uri: str) -> None:
        self.uri = uri
        address, _, split = uri.partition("#")
        if address != URI:
            raise InputError(uri, "no such data set in scikit-learn", f"use {URI}, {URI}#train or {URI}#test")
        if "#" in uri and split not in ("train", "test"):
            raise InputError(uri, f"there is no split {split!r}", "its splits are test, train")
        self._split = split

    def listing(self) -> Listing:
        """See `Source.listing`. An image's name is its place among all the digits."""
        _, labels, names = self._digits
        indices, classes = labels_of_integers(labels, (), self.uri)
        return Listing(len(names), names, indices, classes, 0)

    def fingerprint(self) -> str:
        """See `Source.fingerprint`."""
        images, labels, names = self._digits
        return digest_of_entries(
            (f"{name} {label}", hashlib.sha256(image.tobytes()).digest())
            for image, label, name in zip(images, labels, names, strict=True)
        )

    def checksums(self) -> None:
        """See `Source.checksums`: they are always the same."""

    def reader(self, wanted: Indices) -> DigitsReader:
        """See `Source.reader`."""
        indices = np.asarray(wanted, np.int64)
        return DigitsReader(indices, self._digits[0][indices])

    def read(self, wanted: Indices) -> Iterator[tuple[int, Content]]:
        """See `Source.read`."""
        return iter(self.reader(wanted))

    @cached_property
    def _digits(self) -> tuple[NDArray[np.uint8], NDArray[np.int64], Names]:
        from sklearn.datasets import load_digits

        digits = load_digits()
        places = np.arange(len(digits.target))
        if self._split:
            is_test = places % _TEST_EVERY == 0
            places = places[is_test if self._split == "test" else ~is_test]
        pixels = np.rint(digits.images[places] * (255 / _WHITEST)).astype(np.uint8)
        return pixels[..., None], digits.target[places].astype(np.int64), Names([f"{place:04d}" for place in places])


@dataclass(frozen=True)
class DigitsReader:
    """Some digits: the pixels themselves, uint8[n, 8, 8, 1], and their indices, i64[n]; see `Reader`."""

    indices: NDArray[np.int64]
    images: NDArray[np.uint8]

    def __iter__(self) -> Iterator[tuple[int, Content]]:
        """See `Reader`."""
        yield from zip(self.indices.tolist(), self.images, strict=True)
