"""A part of a dataset: some consecutive images, read, decoded and written as one file, with a record beside it.

Parts are what is made at once by one process, and what a cut ingest finds again. Neither torch nor anything that
imports it is needed here: processes that make parts start quickly.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import dataclass
from itertools import pairwise
from pathlib import Path

import numpy as np
from numpy.typing import NDArray
from pydantic import BaseModel, ConfigDict

from limbeck.data.decode import BadImage, decode_all
from limbeck.data.mapped import write_tensor
from limbeck.data.moments import Moments
from limbeck.data.shards import TENSOR, ShardedImages, shard_rows
from limbeck.data.sources.listing import Content, Reader
from limbeck.errors import WorkError

_CHUNK_IMAGES, _CHUNK_BYTES = 256, 8 * 2**20  # decoded at once; the bytes before and after
_PARTS_A_SHARD, _FEW_SHARDS = 8, 16


def part_rows(image_size: int, count: int) -> int:
    """Images in every part but the last: a shard's, or where there are few shards an eighth of it.

    It depends on what is made alone, not on the machine, so that another machine can go on.
    """
    shard = shard_rows(image_size)
    return shard if count > _FEW_SHARDS * shard else -(-shard // _PARTS_A_SHARD)


class PartRecord(BaseModel):
    """What a finished part is; its file is written before.

    Attributes:
        inputs: digest of what it was made from.
        rows: images in its file, the bad ones left out; where there is none, there is no file.
        sha256: of its file.
        total: sum over pixels, by channel.
        squares: sum of their squares, by channel.
        bad: place in the part and reason of each image that cannot be used.
        reused: images taken from an earlier dataset.
    """

    model_config = ConfigDict(frozen=True, extra="forbid")

    inputs: str
    rows: int
    sha256: str
    total: tuple[int, int, int]
    squares: tuple[int, int, int]
    bad: dict[int, str]
    reused: int

    def moments(self, image_size: int) -> Moments:
        """The sums, with the number of pixels."""
        return Moments(self.rows * image_size**2, self.total, self.squares)


@dataclass(frozen=True, eq=False)
class Earlier:
    """Images of an earlier dataset that are still what they were.

    Attributes:
        folder: the dataset's.
        count: images in it.
        rows: `int64[n]`, for each image wanted its row there, or -1.
    """

    folder: Path
    count: int
    rows: NDArray[np.int64]


@dataclass(frozen=True, eq=False)
class PartJob:
    """All that another process needs to make a part.

    Attributes:
        number: which part.
        path: its file.
        inputs: digest of what it is made from.
        uri: the source, for errors.
        wanted: `int64[n]`, the images' indices in the source, ascending.
        reader: reads those of them that are not reused.
        image_size: side of an image, in pixels.
        earlier: where some of them are reused from.
    """

    number: int
    path: Path
    inputs: str
    uri: str
    wanted: NDArray[np.int64]
    reader: Reader
    image_size: int
    earlier: Earlier | None

    @property
    def record_path(self) -> Path:
        """Where its record lies."""
        return self.path.with_suffix(".json")


def make_part(job: PartJob, advance: Callable[[int], None], threads: int = 1) -> PartRecord:
    """Read and decode the images of a part and write its file.

    Args:
        job: the part.
        advance: told of so many more images done, now and then.
        threads: that decode.

    Raises:
        InputError: the source turns out to be corrupt.
        WorkError: the storage failed or the disk is full.
    """
    side = job.image_size
    rows = np.zeros((len(job.wanted), 3, side, side), np.uint8)
    missing = np.ones(len(rows), np.bool_) if job.earlier is None else job.earlier.rows < 0
    bad: dict[int, str] = {}
    if not missing.all():
        advance(len(rows) - int(missing.sum()))
    if missing.any():
        for chunk in decoded(job.reader, job.uri, side, threads):
            places = np.searchsorted(job.wanted, chunk.indices)
            rows[places] = chunk.images
            missing[places] = False
            bad.update((int(places[place]), reason) for place, reason in chunk.bad.items())
            advance(len(places))
    return write_part(job, rows, bad, missing)


def write_part(job: PartJob, rows: NDArray[np.uint8], bad: dict[int, str], missing: NDArray[np.bool_]) -> PartRecord:
    """Write a part's file, without the images that are bad, and say what it is.

    Args:
        job: the part.
        rows: `uint8[n, 3, s, s]`, zeros where an image is bad; those that are reused are filled in here.
        bad: why images cannot be used, by their place; those that the source did not deliver are added.
        missing: `bool[n]`, where the source did not deliver an image.

    Raises:
        InputError: the earlier dataset is damaged.
        WorkError: the disk is full.
    """
    reused = 0
    if job.earlier is not None:
        places = np.flatnonzero(job.earlier.rows >= 0)
        reused = len(places)
        images = ShardedImages.open(job.earlier.folder, job.earlier.count, job.image_size)
        for start in range(0, reused, _CHUNK_IMAGES):
            some = places[start : start + _CHUNK_IMAGES]
            rows[some] = images[job.earlier.rows[some]]
    bad |= dict.fromkeys(np.flatnonzero(missing).tolist(), "disappeared while the source was read")
    moments = Moments.of(rows, len(rows) - len(bad))
    good = len(rows) - len(bad)
    # one piece between any two bad images: nothing is moved or copied
    edges = [-1, *sorted(bad), len(rows)]
    pieces = [rows[before + 1 : after] for before, after in pairwise(edges) if after > before + 1]
    sha256 = write_tensor(job.path, TENSOR, (good, *rows.shape[1:]), pieces) if good else ""
    return PartRecord.model_validate(
        {
            "inputs": job.inputs,
            "rows": good,
            "sha256": sha256,
            "total": moments.total,
            "squares": moments.squares,
            "bad": bad,
            "reused": reused,
        }
    )


@dataclass(frozen=True, eq=False)
class Chunk:
    """Some decoded images.

    Attributes:
        indices: `int64[n]`, in the source.
        images: `uint8[n, 3, s, s]`, zeros where one is bad.
        bad: why, by its place in the chunk.
    """

    indices: NDArray[np.int64]
    images: NDArray[np.uint8]
    bad: dict[int, str]


def decoded(reader: Reader, uri: str, image_size: int, threads: int) -> Iterator[Chunk]:
    """What a reader gives, decoded, some hundred images at a time and in its order.

    Raises:
        InputError: the source turns out to be corrupt.
        WorkError: the storage failed.
    """
    chunks = _chunks(reader, uri, _CHUNK_BYTES // (3 * image_size**2))
    if threads == 1:
        yield from (_decode(chunk, image_size) for chunk in chunks)
        return
    under_way: deque[Future[Chunk]] = deque()
    pool = ThreadPoolExecutor(threads)
    try:
        for chunk in chunks:
            under_way.append(pool.submit(_decode, chunk, image_size))
            if len(under_way) > 2 * threads:
                yield under_way.popleft().result()
        while under_way:
            yield under_way.popleft().result()
    finally:
        pool.shutdown(wait=True, cancel_futures=True)


def _decode(chunk: list[tuple[int, Content]], image_size: int) -> Chunk:
    images, bad = decode_all([content for _, content in chunk], image_size)
    return Chunk(np.array([index for index, _ in chunk], np.int64), images, bad)


def _chunks(reader: Reader, uri: str, most: int) -> Iterator[list[tuple[int, Content]]]:
    chunk: list[tuple[int, Content]] = []
    size = 0
    with working(f"{uri}: cannot be read"):
        for index, content in reader:
            chunk.append((index, content))
            size += _nbytes(content)
            if len(chunk) >= min(most, _CHUNK_IMAGES) or size >= _CHUNK_BYTES:
                yield chunk
                chunk, size = [], 0
    if chunk:
        yield chunk


def _nbytes(content: Content) -> int:
    if isinstance(content, BadImage):
        return 0
    return len(content) if isinstance(content, bytes) else content.nbytes


@contextmanager
def working(what: str) -> Iterator[None]:
    """Inside the block, what the system refuses is a WorkError that begins with `what`."""
    try:
        yield
    except OSError as error:
        raise WorkError(f"{what}: {error.strerror or error}") from error
