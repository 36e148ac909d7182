"""Digests of local files, remembered as git remembers them: a file that looks untouched is not read again."""

from __future__ import annotations

import hashlib
import os
import tempfile
import time
from collections import deque
from collections.abc import Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq
from numpy.typing import NDArray

from limbeck.data.sources.location import Location, stored_checksum

UNREADABLE = hashlib.sha256(b"").digest()
"""The digest of what cannot be read: as an image an empty file is no better."""

_LOOKS = {"size": pa.int64(), "mtime": pa.int64(), "ctime": pa.int64(), "inode": pa.uint64()}
_KEPT = pa.schema({"path": pa.large_binary(), **_LOOKS, "digest": pa.binary(32)})
_RACY_NS = 2 * 10**9  # a file changed so shortly before it was read may have changed again and look the same
_FILES_AT_ONCE = 128
_THREADS = 8
_PIECE = 2**20  # bytes
_WORTH_REMEMBERING = 64 * 2**20  # bytes; fewer are read about as quickly as they are looked up


def digests_of(root: str, paths: pa.Array, looks: pa.Table, readable: NDArray[np.bool_]) -> pa.Array:
    """The sha256 of files below a folder; those that cannot be read have `UNREADABLE`.

    Args:
        root: the folder.
        paths: where they lie below it, binary[n].
        looks: "size", "mtime", "ctime" (ns) and "inode", as the disk said when they were listed, before this call.
        readable: bool[n]; others are not opened.

    Returns:
        fixed_size_binary(32)[n].
    """
    began = time.time_ns()
    digests = np.empty((len(paths), 32), np.uint8)
    digests[:] = np.frombuffer(UNREADABLE, np.uint8)
    missing = readable.copy()
    cache = _cache_file(root) if (pc.sum(looks["size"]).as_py() or 0) >= _WORTH_REMEMBERING else None
    if cache is not None:
        missing &= ~_recall(cache, paths, looks, digests)
    places = np.flatnonzero(missing)
    _read(root, paths, places, digests)
    found = binary_rows(digests)
    if cache is not None and places.size:
        settled = readable & (looks["mtime"].to_numpy() < began - _RACY_NS)
        kept = pa.table([paths, *(looks[name] for name in _LOOKS), found], schema=_KEPT)
        _remember(cache, kept.filter(pa.array(settled)))
    return found


def digests_of_files(location: Location, names: Sequence[str]) -> list[bytes]:
    """What stands for the content of whole files: their store's checksums, else their sha256.

    Args:
        location: the directory that they are directly in; or a file, which then is the only one.
        names: theirs.

    Raises:
        InputError: one is gone, or may not be read.
    """
    folder = location.path if location.is_directory else location.path.rpartition("/")[0]
    if location.is_local:
        paths = [f"{folder}/{name}" for name in names]
        found = [Path(path).stat() for path in paths]
        looks = pa.table(
            {
                "size": pa.array([of.st_size for of in found], pa.int64()),
                "mtime": pa.array([of.st_mtime_ns for of in found], pa.int64()),
                "ctime": pa.array([of.st_ctime_ns for of in found], pa.int64()),
                "inode": pa.array([of.st_ino for of in found], pa.uint64()),
            }
        )
        encoded = pa.array([os.fsencode(name) for name in names], pa.large_binary())
        return list(digests_of(folder, encoded, looks, np.ones(len(names), np.bool_)).to_pylist())
    if not location.is_directory:
        return [location.checksum or location.sha256()]
    known = location.entries()
    return [stored_checksum(known[name]) or location.sha256(f"{folder}/{name}") for name in names]


def binary_rows(rows: NDArray[Any]) -> pa.Array:
    """The rows of a contiguous array [n, ...] as binary values of one size, without a copy."""
    kind = pa.binary(rows.nbytes // max(len(rows), 1))
    return pa.FixedSizeBinaryArray.from_buffers(kind, len(rows), [None, pa.py_buffer(rows)])


def _cache_file(root: str) -> Path | None:
    """Where a folder's digests are remembered; None where there is no home."""
    home = os.environ.get("XDG_CACHE_HOME")
    try:
        folder = Path(home) if home else Path.home() / ".cache"
    except RuntimeError:
        return None
    name = hashlib.sha256(os.fsencode(os.path.realpath(root))).hexdigest()
    return folder / "limbeck" / "digests" / f"{name}.parquet"


def _recall(cache: Path, paths: pa.Array, looks: pa.Table, digests: NDArray[np.uint8]) -> NDArray[np.bool_]:
    """Fill in the digests of those files that look as they did; says which."""
    untouched = np.zeros(len(paths), np.bool_)
    try:
        kept = pq.read_table(cache, schema=_KEPT).combine_chunks()
    except (OSError, pa.ArrowException):  # there is none, or it is damaged: then files are read
        return untouched
    if not len(kept):
        return untouched
    found = pc.index_in(paths, kept["path"].chunk(0))
    here = np.flatnonzero(found.is_valid().to_numpy(zero_copy_only=False))
    there = found.drop_null().to_numpy()
    same = np.ones(len(here), np.bool_)
    for name in _LOOKS:
        same &= looks[name].to_numpy()[here] == kept[name].to_numpy()[there]
    untouched[here[same]] = True
    chosen = kept["digest"].take(pa.array(there[same])).combine_chunks()
    if len(chosen):
        digests[untouched] = np.frombuffer(b"".join(chosen.to_pylist()), np.uint8).reshape(-1, 32)
    return untouched


def _read(root: str, paths: pa.Array, places: NDArray[np.int64], digests: NDArray[np.uint8]) -> None:
    """Fill in the digests of the files at `places`, some at once."""

    def digest_batch(batch: NDArray[np.int64]) -> None:
        for place, path in zip(batch.tolist(), paths.take(pa.array(batch)).to_pylist(), strict=True):
            digests[place] = np.frombuffer(_sha256(f"{root}/".encode() + path), np.uint8)

    waiting: deque[Future[None]] = deque()
    with ThreadPoolExecutor(_THREADS, "limbeck-digest") as pool:
        for start in range(0, len(places), _FILES_AT_ONCE):
            waiting.append(pool.submit(digest_batch, places[start : start + _FILES_AT_ONCE]))
            if len(waiting) > 2 * _THREADS:
                waiting.popleft().result()
        while waiting:
            waiting.popleft().result()


def _sha256(path: bytes) -> bytes:
    """The digest of one file: read plainly, since a file object and its buffer cost ten times what a picture does."""
    try:
        handle = os.open(path, os.O_RDONLY)
        try:
            digest = hashlib.sha256()
            piece = min(os.fstat(handle).st_size + 1, _PIECE)
            while content := os.read(handle, piece):
                digest.update(content)
            return digest.digest()
        finally:
            os.close(handle)
    except (FileNotFoundError, PermissionError, IsADirectoryError):
        return UNREADABLE


def _remember(cache: Path, kept: pa.Table) -> None:
    """Put a new file in the place of the old one; where nothing can be written, nothing is remembered."""
    scratch: str | None = None
    try:
        cache.parent.mkdir(parents=True, exist_ok=True)
        handle, scratch = tempfile.mkstemp(dir=cache.parent, prefix=cache.stem)
        with os.fdopen(handle, "wb") as file:
            pq.write_table(kept, file)
        os.replace(scratch, cache)  # noqa: PTH105
    except (OSError, pa.ArrowException):
        if scratch is not None:
            Path(scratch).unlink(missing_ok=True)
