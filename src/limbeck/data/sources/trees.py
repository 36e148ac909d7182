"""Images as files in a directory tree, here or on object storage."""

from __future__ import annotations

import hashlib
from collections.abc import Iterator
from dataclasses import dataclass
from functools import cached_property

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
from numpy.typing import NDArray

from limbeck.data.decode import BadImage
from limbeck.data.sources.digests import UNREADABLE, binary_rows, digests_of
from limbeck.data.sources.fetching import read_files
from limbeck.data.sources.folders import Arrangement, arrange, whole
from limbeck.data.sources.listing import Content, Indices, Listing, digest_of_images
from limbeck.data.sources.location import Location
from limbeck.data.sources.walking import paths_of, text_of, walk
from limbeck.errors import InputError


class TreeSource:
    """The .jpg, .jpeg and .png files below a directory."""

    format = "images"
    single_pass = False

    def __init__(self, location: Location) -> None:
        self.uri = location.uri
        self._location = location
        if not location.is_directory:
            raise InputError(self.uri, "is a file", "format images reads a directory")

    def listing(self) -> Listing:
        """See `Source.listing`."""
        return self._arrangement.listing

    def fingerprint(self) -> str:
        """See `Source.fingerprint`: of every image's name and checksum."""
        return digest_of_images(self.listing().names, self.checksums())

    def checksums(self) -> pa.Array:
        """See `Source.checksums`: what an object store keeps, else the sha256 of every file."""
        return self._checksums

    def reader(self, wanted: Indices) -> TreeReader:
        """See `Source.reader`."""
        indices = np.asarray(wanted, np.int64)
        images = self._arrangement.images.take(pa.array(indices))
        return TreeReader(
            self._location, self._root, indices, paths_of(images), images["size"].to_numpy(), whole(images["fault"])
        )

    def read(self, wanted: Indices) -> Iterator[tuple[int, Content]]:
        """See `Source.read`."""
        return iter(self.reader(wanted))

    @cached_property
    def _root(self) -> str:
        location = self._location
        return location.path if location.split is None else f"{location.path}/{location.split}"

    @cached_property
    def _arrangement(self) -> Arrangement:
        location = self._location
        if location.split is not None and not location.is_folder(self._root):
            raise location.no_such_split([name for name, is_folder in location.children().items() if is_folder])
        try:
            files = walk(location, self._root)
        except OSError as error:
            raise InputError(self.uri, f"cannot be listed: {error}") from error
        return arrange(files, self.uri)

    @cached_property
    def _checksums(self) -> pa.Array:
        images = self._arrangement.images
        if self._location.is_local:
            readable = self._arrangement.column("fault").is_null().to_numpy(zero_copy_only=False)
            return digests_of(self._root, paths_of(images), images, readable)
        checksums = self._arrangement.column("checksum")
        unknown = np.flatnonzero(checksums.is_null().to_numpy(zero_copy_only=False))
        return checksums if not unknown.size else pc.coalesce(checksums, self._digests(unknown))

    def _digests(self, wanted: NDArray[np.int64]) -> pa.Array:
        """The sha256 of the images wanted, binary[n], `UNREADABLE` elsewhere: where a store keeps no checksums."""
        digests = np.empty((self.listing().count, 32), np.uint8)
        digests[:] = np.frombuffer(UNREADABLE, np.uint8)
        for index, content in self.reader(wanted):
            if isinstance(content, bytes):
                digests[index] = np.frombuffer(hashlib.sha256(content).digest(), np.uint8)
        return binary_rows(digests).cast(pa.large_binary())


@dataclass(frozen=True)
class TreeReader:
    """Some files of a tree; see `Reader`.

    Attributes:
        location: on whose filesystem they are.
        root: the top of the tree.
        indices: i64[n].
        paths: below the root, binary[n].
        sizes: i64[n].
        faults: strings[n], null where a file may be read.
    """

    location: Location
    root: str
    indices: NDArray[np.int64]
    paths: pa.Array
    sizes: NDArray[np.int64]
    faults: pa.Array

    def __iter__(self) -> Iterator[tuple[int, Content]]:
        """See `Reader`: in order, once the bad ones are named."""
        readable = []
        for place, fault in enumerate(self.faults.to_pylist()):
            if fault is None:
                readable.append(place)
            else:
                yield int(self.indices[place]), BadImage(fault)
        paths = [f"{self.root}/{text_of(self.paths[place].as_py())}" for place in readable]
        for position, content in read_files(self.location, paths, self.sizes[readable]):
            yield int(self.indices[readable[position]]), content
