"""What an ingest makes, part by part: the same plan in every process that sees the same source and settings."""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
from numpy.typing import NDArray

from limbeck.data.dataset import ImageDataset
from limbeck.data.parts import Earlier, PartJob, part_rows, working
from limbeck.data.sources.listing import Listing, Names, Reader, Source, digest_of_entries


@dataclass(frozen=True, eq=False)
class Plan:
    """What is to be made, in parts.

    Attributes:
        source: the images.
        listing: what it holds.
        checksums: what it knows of each image's content, `binary[count]`; None: of no image.
        fingerprint: the source's.
        limit: how many images a random sample of them has at most; None: all are taken.
        wanted: `int64[n]`, the indices of the images to make, ascending.
        image_size: side of an image, in pixels.
        out: the folder of the parts.
        earlier: a dataset that some images are reused from.
        reused: `int64[n]`, for each image wanted its row there, or -1; None where none is reused.
    """

    source: Source
    listing: Listing
    checksums: pa.Array | None
    fingerprint: str
    limit: int | None
    wanted: NDArray[np.int64]
    image_size: int
    out: Path
    earlier: ImageDataset | None
    reused: NDArray[np.int64] | None

    @classmethod
    def of(
        cls,
        source: Source,
        out: Path,
        *,
        image_size: int,
        limit: int | None,
        seed: int,
        earlier: ImageDataset | None = None,
    ) -> Plan:
        """List a source, and plan the parts of its dataset; arguments are those of `write_dataset`.

        Raises:
            InputError: the source is corrupt.
            WorkError: the storage failed.
        """
        with working(f"{source.uri}: cannot be read"):
            listing = source.listing()
            fingerprint, checksums = source.fingerprint(), source.checksums()
        wanted = _sample(listing.names, limit, seed)
        reused = _unchanged(listing, checksums, wanted, earlier, image_size)
        return cls(source, listing, checksums, fingerprint, limit, wanted, image_size, out, earlier, reused)

    @property
    def rows(self) -> int:
        """Images in every part but the last."""
        return part_rows(self.image_size, len(self.wanted))

    @property
    def firsts(self) -> range:
        """Where each part begins among the images wanted."""
        return range(0, len(self.wanted), self.rows)

    @property
    def numbers(self) -> range:
        """Of all parts."""
        return range(len(self.firsts))

    def part(self, number: int) -> NDArray[np.int64]:
        """The indices of a part's images."""
        return self.wanted[self.firsts[number] : self.firsts[number] + self.rows]

    def path(self, number: int) -> Path:
        """A part's file."""
        return self.out / f".part-{number:05d}.safetensors"

    def record_path(self, number: int) -> Path:
        """Where its record lies."""
        return self.path(number).with_suffix(".json")

    def images(self, numbers: Sequence[int]) -> int:
        """How many images some parts have."""
        return sum(len(self.part(number)) for number in numbers)

    def unread(self, numbers: Sequence[int]) -> int:
        """How many images of some parts are to be read and decoded: those that are not reused."""
        return self.images(numbers) if self.reused is None else int((self.reused[self._places(numbers)] < 0).sum())

    def inputs(self, number: int) -> str:
        """A digest of what a part is made from: of its images' names and, as far as it is known, their content."""
        chosen = pa.array(self.part(number))
        names = self.listing.names.array.take(chosen).to_pylist()
        if self.checksums is None:
            contents = [b""] * len(names)
        else:
            contents = [entry or b"" for entry in self.checksums.take(chosen).cast(pa.binary()).to_pylist()]
        whole = f"{self.image_size} {self.fingerprint if self.checksums is None or b'' in contents else ''}"
        return digest_of_entries([(whole, b""), *zip(names, contents, strict=True)])

    def job(self, number: int) -> PartJob:
        """What makes a part."""
        wanted, inputs, earlier = self.part(number), self.inputs(number), None
        if self.reused is not None and self.earlier is not None:
            rows = self.reused[self.firsts[number] : self.firsts[number] + self.rows]
            if (rows >= 0).any():
                earlier = Earlier(self.earlier.path, len(self.earlier), rows)
        reader = self.reader([number])
        return PartJob(number, self.path(number), inputs, self.source.uri, wanted, reader, self.image_size, earlier)

    def reader(self, numbers: Sequence[int]) -> Reader:
        """What reads those images of some parts that are not reused."""
        places = self._places(numbers)
        if self.reused is not None:
            places = places[self.reused[places] < 0]
        return self.source.reader(self.wanted[places])

    def _places(self, numbers: Sequence[int]) -> NDArray[np.int64]:
        """The places of some parts' images among those wanted."""
        places = np.concatenate([np.arange(start, start + self.rows) for start in (self.firsts[n] for n in numbers)])
        return places[places < len(self.wanted)]

    def forget(self) -> None:
        """Remove all parts."""
        for path in self.out.glob(".part-*"):
            path.unlink()


def _sample(names: Names, limit: int | None, seed: int) -> NDArray[np.int64]:
    """The indices of at most `limit` names, ascending; which ones depends on the names and the seed alone."""
    if limit is None or limit >= len(names):
        return np.arange(len(names))
    digests = b"".join(hashlib.sha256(f"{seed}:{name}".encode()).digest()[:8] for name in names)
    drawn = np.frombuffer(digests, ">u8")
    return np.sort(np.argsort(drawn, kind="stable")[:limit])


def _unchanged(
    listing: Listing,
    checksums: pa.Array | None,
    wanted: NDArray[np.int64],
    earlier: ImageDataset | None,
    image_size: int,
) -> NDArray[np.int64] | None:
    """For each image wanted its row in the earlier dataset, -1 where it is another one; None where none is there."""
    known = None if earlier is None else earlier.checksums
    if earlier is None or known is None or checksums is None or earlier.images.shape[-1] != image_size:
        return None
    chosen = pa.array(wanted)
    rows = pc.index_in(listing.names.array.take(chosen), value_set=earlier.names.array)
    same = pc.equal(known.take(rows), checksums.take(chosen).cast(pa.binary()))
    kept = pc.if_else(pc.fill_null(same, False), rows, -1)
    found: NDArray[np.int64] = kept.cast(pa.int64()).to_numpy()
    return found if (found >= 0).any() else None
