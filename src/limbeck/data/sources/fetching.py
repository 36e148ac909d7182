"""Bytes of many files, or of many places in a few, fetched together and ahead of their use in bounded memory."""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass
from typing import TypeVar, cast

import numpy as np
import pyarrow as pa
from numpy.typing import NDArray

from limbeck.data.decode import BadImage
from limbeck.data.sources.listing import Content
from limbeck.data.sources.location import Location
from limbeck.errors import InputError, WorkError
from limbeck.patience import is_transient

_BATCH_REQUESTS, _BATCH_BYTES = 128, 8 * 2**20  # at once; as much again is fetched while they are used
_WINDOW_BYTES = 2 * 2**20  # in one request, where several images lie side by side
_GAP_BYTES = 2**17  # between two images that one request may waste: about what another request would cost

Batch = TypeVar("Batch")
Fetched = TypeVar("Fetched")


@dataclass(frozen=True)
class Span:
    """Bytes `start` to `stop` of a file; all of them where both are None."""

    path: str
    start: int | None = None
    stop: int | None = None


def fetch(location: Location, spans: Sequence[Span]) -> list[bytes | Exception]:
    """Read the spans, concurrently where the filesystem can: the one place where images are fetched.

    Args:
        location: on whose filesystem they are.
        spans: what is wanted.

    Returns:
        The bytes of each, fewer where its file ends before; or why it cannot be read.

    Raises:
        WorkError: the storage failed again and again.
    """
    if location.is_local:
        return [_read_local(span) for span in spans]
    # Not `cat`, which would take a file name such as `photo[1].jpg` for a pattern.
    found = _fetched(location, spans)
    missing = [place for place, content in enumerate(found) if _failed_for_a_moment(content)]
    if not missing:
        return found

    def again() -> None:
        for place, content in zip(missing, _fetched(location, [spans[place] for place in missing]), strict=True):
            found[place] = content
        missing[:] = [place for place in missing if _failed_for_a_moment(found[place])]
        for place in missing:
            raise cast("Exception", found[place])

    location.patiently("reading", again)
    return found


def _fetched(location: Location, spans: Sequence[Span]) -> list[bytes | Exception]:
    paths, starts, stops = zip(*((span.path, span.start, span.stop) for span in spans), strict=True)
    return list(location.files.cat_ranges(list(paths), list(starts), list(stops), on_error="return"))


def _failed_for_a_moment(content: bytes | Exception) -> bool:
    return isinstance(content, Exception) and is_transient(content)


def _read_local(span: Span) -> bytes | Exception:
    """Read a span of a local file: plainly, since a filesystem object costs several times what the reading does."""
    try:
        handle = os.open(span.path, os.O_RDONLY)
        try:
            start = span.start or 0
            size = (os.fstat(handle).st_size if span.stop is None else span.stop) - start
            pieces = []
            while size > 0 and (piece := os.pread(handle, size, start)):  # a signal or a pipe may cut it short
                pieces.append(piece)
                start, size = start + len(piece), size - len(piece)
            return pieces[0] if len(pieces) == 1 else b"".join(pieces)
        finally:
            os.close(handle)
    except OSError as error:
        return error


def read_files(location: Location, paths: Sequence[str], sizes: NDArray[np.int64]) -> Iterator[tuple[int, Content]]:
    """Read whole files, in order.

    Args:
        location: on whose filesystem they are.
        paths: theirs.
        sizes: i64[n], by which batches are made.

    Yields:
        The place of each in `paths`, and its bytes, or why it cannot be read.

    Raises:
        WorkError: the storage failed.
    """
    for places, contents in _ahead(
        location, _batches(sizes), lambda batch: fetch(location, [Span(paths[place]) for place in batch])
    ):
        for place, content in zip(places, contents, strict=True):
            if isinstance(content, FileNotFoundError | PermissionError | IsADirectoryError):
                yield place, BadImage(f"cannot be read: {content.strerror or type(content).__name__}")
            elif isinstance(content, Exception):
                raise WorkError(f"{location.uri}: cannot be read: {content}") from content
            else:
                yield place, content


def read_spans(
    location: Location, paths: pa.Array, starts: NDArray[np.int64], stops: NDArray[np.int64]
) -> Iterator[tuple[int, bytes]]:
    """Read places in files, those side by side by one request, in the order in which they lie in the files.

    Args:
        location: on whose filesystem they are.
        paths: strings[n], of any encoding; equal ones need not be together.
        starts: i64[n], bytes.
        stops: i64[n], bytes.

    Yields:
        The place of each in `paths`, and its bytes; fewer than asked for where the file ends before.

    Raises:
        InputError: a file is gone, or may not be read.
        WorkError: the storage failed.
    """
    coded = paths if pa.types.is_dictionary(paths.type) else paths.dictionary_encode()
    codes = coded.indices.to_numpy()
    order = np.lexsort((starts, codes))
    edges = _windows(codes[order], starts[order], stops[order])
    firsts, lasts = order[edges[:-1]], edges[1:]
    ends = np.array([stops[order[a:b]].max() for a, b in zip(edges[:-1], lasts, strict=True)], np.int64)

    def of_batch(windows: Sequence[int]) -> list[bytes | Exception]:
        spans = [
            Span(coded.dictionary[int(codes[firsts[window]])].as_py(), int(starts[firsts[window]]), int(ends[window]))
            for window in windows
        ]
        return fetch(location, spans)

    for windows, contents in _ahead(location, _batches(ends - starts[firsts]), of_batch):
        for window, content in zip(windows, contents, strict=True):
            if isinstance(content, FileNotFoundError | PermissionError):
                raise InputError(location.uri, f"cannot be opened: {content.strerror or content}") from content
            if isinstance(content, Exception):
                raise WorkError(f"{location.uri}: cannot be read: {content}") from content
            base = starts[firsts[window]]
            for place in order[edges[window] : edges[window + 1]].tolist():
                yield place, content[starts[place] - base : stops[place] - base]


def _windows(codes: NDArray[np.integer], starts: NDArray[np.int64], stops: NDArray[np.int64]) -> list[int]:
    """Where in sorted places a request ends and the next one begins: the edges of m requests, [m + 1]."""
    if not starts.size:
        return [0]
    edges, first, end = [0], int(starts[0]), int(stops[0])
    for place in range(1, len(starts)):
        start, stop = int(starts[place]), int(stops[place])
        far = start > end + _GAP_BYTES or max(stop, end) - first > _WINDOW_BYTES
        if codes[place] != codes[place - 1] or far:
            edges.append(place)
            first, end = start, stop
        end = max(end, stop)
    return [*edges, len(starts)]


def _batches(sizes: NDArray[np.int64]) -> Iterator[list[int]]:
    batch: list[int] = []
    size = 0
    for place, more in enumerate(sizes.tolist()):
        if batch and (len(batch) == _BATCH_REQUESTS or size + more > _BATCH_BYTES):
            yield batch
            batch, size = [], 0
        batch.append(place)
        size += more
    if batch:
        yield batch


def _ahead(
    location: Location, batches: Iterator[Batch], fetch_batch: Callable[[Batch], Fetched]
) -> Iterator[tuple[Batch, Fetched]]:
    """Each batch and what was fetched of it, while the next one is being fetched.

    Where that is local the system reads ahead, and a thread only takes turns with the one that decodes.
    """
    if location.is_local:
        yield from ((batch, fetch_batch(batch)) for batch in batches)
        return
    with ThreadPoolExecutor(1, "limbeck-fetch") as pool:
        under_way: tuple[Batch, Future[Fetched]] | None = None
        for batch in batches:
            following = batch, pool.submit(fetch_batch, batch)
            if under_way is not None:
                yield under_way[0], under_way[1].result()
            under_way = following
        if under_way is not None:
            yield under_way[0], under_way[1].result()
