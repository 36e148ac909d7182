"""Stage 1 of the method: images from any source become one canonical dataset of uint8 squares.

The bytes written are a pure function of the source's content and the arguments.
"""

from __future__ import annotations

import hashlib
import json
import math
import os
from collections import deque
from collections.abc import Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

import numpy as np
from numpy.typing import NDArray

from limbeck.data.dataset import DESCRIPTION_FILE, INDEX_FILE, ImageDataset
from limbeck.data.decode import BadImage, decode
from limbeck.data.mapped import Mapped, create_mapped
from limbeck.data.shards import TENSOR, shard_file, shard_rows
from limbeck.data.sources import Content, Listing, Source
from limbeck.errors import InputError, WorkError
from limbeck.interrupt import StopRequest
from limbeck.progress import SILENT, Progress

_SCRATCH_FILE = "images.partial"
_CHUNK_IMAGES, _CHUNK_BYTES = 256, 8 * 2**20  # decoded by one thread at a time; the bytes before and after
_MAX_THREADS = 8  # each may hold one decoded image of MAX_PIXELS
_COPIED_AT_ONCE = 1024


def write_dataset(
    source: Source,
    out: Path,
    *,
    image_size: int,
    limit: int | None,
    seed: int,
    on_bad_image: Literal["fail", "skip"],
    progress: Progress = SILENT,
    stop: StopRequest | None = None,
) -> ImageDataset:
    """Decode a source's images into the directory `out` and open the result.

    Writes `images-N.safetensors` (of `limbeck.data.shards`), `index.parquet`
    (name and label of each) and `dataset.json` (the rest).

    Args:
        source: the images.
        out: the directory, created when missing; files of the same names are overwritten.
        image_size: side of the images written, in pixels.
        limit: keep a random sample of at most this many images; None keeps all.
        seed: what the sample depends on, beside each image's own name.
        on_bad_image: whether an image that cannot be used is an error or is left out and recorded.
        progress: where to report.
        stop: looked at between chunks of images.

    Raises:
        InputError: the source is corrupt, an image is bad and `on_bad_image` is `fail`, or no image is left.
        WorkError: the storage failed or the disk is full.
    """
    with _working(f"{source.uri}: cannot be read"):
        listing = source.listing()
        fingerprint = source.fingerprint()
    wanted = _sample(listing.names, limit, seed)
    scratch = out / _SCRATCH_FILE
    with _working(f"{out}: cannot be written"):
        out.mkdir(parents=True, exist_ok=True)
    try:
        rows = create_mapped(scratch, TENSOR, (len(wanted), 3, image_size, image_size))
        moments, bad = _fill(rows, source, wanted, progress, stop)
        skipped = {listing.names[index]: reason for index, reason in sorted(bad.items())}
        _refuse(skipped, len(wanted), source.uri, on_bad_image)
        kept = [index for index in wanted if index not in bad]
        description = {
            "fingerprint": fingerprint,
            "count": len(kept),
            "imageSize": image_size,
            "classes": list(listing.classes),
            "mean": moments.mean(),
            "std": moments.std(),
            "ignored": listing.ignored,
            "skipped": skipped,
        }
        kept_rows = [row for row, index in enumerate(wanted) if index not in bad]
        with _working(f"{out}: cannot be written"):
            _keep(rows, kept_rows, out)
            _write_index(listing, kept, out / INDEX_FILE)
            text = json.dumps(description, indent=2, ensure_ascii=False) + "\n"
            (out / DESCRIPTION_FILE).write_text(text, encoding="utf-8")
    finally:
        scratch.unlink(missing_ok=True)
    return ImageDataset.open(out)


@contextmanager
def _working(what: str) -> Iterator[None]:
    try:
        yield
    except OSError as error:
        raise WorkError(f"{what}: {error.strerror or error}") from error


def _sample(names: Sequence[str], limit: int | None, seed: int) -> list[int]:
    """The indices of at most `limit` names, sorted; which ones depends on the names and the seed alone."""
    if limit is None or limit >= len(names):
        return list(range(len(names)))
    drawn = [hashlib.sha256(f"{seed}:{name}".encode()).digest() for name in names]
    return sorted(sorted(range(len(names)), key=drawn.__getitem__)[:limit])


@dataclass
class _Moments:
    """Exact sums over pixels, by channel: integers, so that the order of summation does not matter."""

    count: int
    total: NDArray[np.int64]
    squares: NDArray[np.int64]

    @staticmethod
    def of(images: NDArray[np.uint8]) -> _Moments:
        """The sums over `uint8[n, 3, s, s]`."""
        return _Moments(
            images.size // 3,
            images.sum((0, 2, 3), np.int64),
            np.multiply(images, images, dtype=np.uint16).sum((0, 2, 3), np.int64),
        )

    def __iadd__(self, other: _Moments) -> _Moments:
        self.count += other.count
        self.total += other.total
        self.squares += other.squares
        return self

    def mean(self) -> list[float]:
        """Mean by channel, where white is 1."""
        return [int(total) / (255 * self.count) for total in self.total]

    def std(self) -> list[float]:
        """Standard deviation by channel, where white is 1; at least 1/255, so that one can divide by it."""
        variances = [
            (self.count * int(squares) - int(total) ** 2) / self.count**2
            for total, squares in zip(self.total, self.squares, strict=True)
        ]
        return [max(math.sqrt(variance), 1.0) / 255 for variance in variances]


def _fill(
    rows: Mapped, source: Source, wanted: Sequence[int], progress: Progress, stop: StopRequest | None
) -> tuple[_Moments, dict[int, str]]:
    """Decode the images `wanted` into `rows`, in that order; returns the bad ones and their reasons."""
    row_of = {index: row for row, index in enumerate(wanted)}
    missing = set(wanted)
    bad: dict[int, str] = {}
    moments = _Moments(0, np.zeros(3, np.int64), np.zeros(3, np.int64))
    threads = min(os.cpu_count() or 1, _MAX_THREADS)
    under_way: deque[Future[_Decoded]] = deque()

    with progress.bar("ingest", len(wanted), "images") as bar, ThreadPoolExecutor(threads) as pool:

        def collect() -> None:
            nonlocal moments
            decoded = under_way.popleft().result()
            moments += decoded.moments
            bad.update(decoded.bad)
            missing.difference_update(decoded.indices)
            bar.advance(len(decoded.indices))

        try:
            for chunk in _chunks(source, wanted, _CHUNK_BYTES // rows[0].nbytes):
                under_way.append(pool.submit(_decode_chunk, chunk, rows, row_of))
                if len(under_way) > 2 * threads:
                    collect()
                if stop is not None:
                    stop.check()
            while under_way:
                collect()
        finally:
            pool.shutdown(wait=True, cancel_futures=True)
    bad.update(dict.fromkeys(missing, "disappeared while the source was read"))
    return moments, bad


def _chunks(source: Source, wanted: Sequence[int], most: int) -> Iterator[list[tuple[int, Content]]]:
    chunk: list[tuple[int, Content]] = []
    size = 0
    with _working(f"{source.uri}: cannot be read"):
        for index, content in source.read(wanted):
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


@dataclass(frozen=True)
class _Decoded:
    indices: list[int]
    bad: dict[int, str]
    moments: _Moments


def _decode_chunk(chunk: list[tuple[int, Content]], rows: Mapped, row_of: dict[int, int]) -> _Decoded:
    bad: dict[int, str] = {}
    good = []
    for index, content in chunk:
        try:
            if isinstance(content, BadImage):
                raise content
            image = decode(content, rows.shape[-1])
        except BadImage as error:
            bad[index] = error.reason
        else:
            good.append(image)
            rows[row_of[index]] = image
    images = np.stack(good) if good else np.empty((0, *rows.shape[1:]), np.uint8)
    return _Decoded([index for index, _ in chunk], bad, _Moments.of(images))


def _refuse(skipped: dict[str, str], count: int, uri: str, on_bad_image: Literal["fail", "skip"]) -> None:
    if not skipped or (on_bad_image == "skip" and len(skipped) < count):
        return
    shown = ", ".join(f"{_printable(name)} ({reason})" for name, reason in list(skipped.items())[:3])
    more = ", ..." if len(skipped) > 3 else ""
    allowed = "mend or remove them, or set onBadImage: skip" if len(skipped) < count else "no image is left"
    raise InputError(uri, f"{len(skipped)} of {count} images cannot be used: {shown}{more}", allowed)


def _printable(name: str) -> str:
    return "".join(character if character.isprintable() else "?" for character in name)


def _keep(rows: Mapped, kept: list[int], out: Path) -> None:
    """Write the shards from the scratch file."""
    each = shard_rows(rows.shape[-1])
    for index, first in enumerate(range(0, len(kept), each)):
        chosen = kept[first : first + each]
        shard = create_mapped(out / shard_file(index), TENSOR, (len(chosen), *rows.shape[1:]))
        for start in range(0, len(chosen), _COPIED_AT_ONCE):
            shard[start : start + _COPIED_AT_ONCE] = rows[chosen[start : start + _COPIED_AT_ONCE]]
        shard.flush()


def _write_index(listing: Listing, kept: Sequence[int], path: Path) -> None:
    import pyarrow as pa
    import pyarrow.parquet as pq

    names = [listing.names[index] for index in kept]
    labels = np.full(len(kept), -1, np.int64) if listing.labels is None else listing.labels[list(kept)]
    table = {"name": pa.array(names, pa.string()), "label": pa.array(labels, pa.int64(), mask=labels < 0)}
    pq.write_table(pa.table(table), path)
