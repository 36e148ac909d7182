"""Finished parts become the dataset's files: shards without gaps, and an index beside them."""

from __future__ import annotations

import os
from collections.abc import Iterator, Sequence
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
from numpy.typing import NDArray

from limbeck.data.mapped import read_rows, write_tensor
from limbeck.data.parts import working
from limbeck.data.shards import TENSOR, shard_file, shard_rows
from limbeck.data.sources.listing import Listing

_GROUP_ROWS = 2**16

SCHEMA = pa.schema([("name", pa.string()), ("label", pa.int64())])
"""The columns of the index; the label is null where an image has none."""

ORIGIN_SCHEMA = pa.schema([("checksum", pa.binary())])
"""The column of the origin: null where the source knew nothing of an image's content."""


@dataclass(frozen=True)
class PartFile:
    """A part's file and the number of images in it, at least one."""

    path: Path
    rows: int


def write_shards(parts: Sequence[PartFile], image_size: int, out: Path) -> None:
    """Write the dataset's shards.

    A part that is a shard as it stands gets a second name. Else the parts' images are copied, a shard at a time.

    Args:
        parts: in the order of their images.
        image_size: side of an image, in pixels.
        out: the folder.

    Raises:
        WorkError: the disk is full, or a part cannot be read.
    """
    each, count = shard_rows(image_size), sum(part.rows for part in parts)
    sizes = [min(each, count - first) for first in range(0, count, each)]
    if sizes == [part.rows for part in parts]:
        for index, part in enumerate(parts):
            _link(part, out / shard_file(index), image_size)
    else:
        pieces = _pieces(parts)
        buffer = np.empty((sizes[0], 3, image_size, image_size), np.uint8)
        for index, size in enumerate(sizes):
            _gather(pieces, buffer[:size])
            write_tensor(out / shard_file(index), TENSOR, (size, *buffer.shape[1:]), [buffer[:size]])
    for old in out.glob("images-*.safetensors"):  # of a larger dataset that lay here
        if old.name not in {shard_file(index) for index in range(len(sizes))}:
            old.unlink()


@dataclass
class _Rest:
    """What is left of a part."""

    part: PartFile
    first: int = 0


def _pieces(parts: Sequence[PartFile]) -> list[_Rest]:
    return [_Rest(part) for part in reversed(parts)]


def _gather(rests: list[_Rest], out: NDArray[np.uint8]) -> None:
    """Fill `out` with the next images; the next part is the last of `rests`."""
    filled = 0
    while filled < len(out):
        rest = rests[-1]
        count = min(rest.part.rows - rest.first, len(out) - filled)
        read_rows(rest.part.path, rest.first, out[filled : filled + count])
        filled, rest.first = filled + count, rest.first + count
        if rest.first == rest.part.rows:
            rests.pop()


def _link(part: PartFile, target: Path, image_size: int) -> None:
    with working(f"{target}: cannot be written"):
        target.unlink(missing_ok=True)
    with suppress(OSError):  # where the filesystem knows no links
        os.link(part.path, target)
        return
    rows = np.empty((part.rows, 3, image_size, image_size), np.uint8)
    read_rows(part.path, 0, rows)
    write_tensor(target, TENSOR, rows.shape, [rows])


def write_index(listing: Listing, kept: NDArray[np.int64], path: Path) -> None:
    """Write name and label of the images whose indices are `kept`, a row group at a time.

    Raises:
        WorkError: the disk is full.
    """
    with working(f"{path}: cannot be written"), pq.ParquetWriter(path, SCHEMA) as writer:
        for rows in _groups(kept):
            labels = np.full(len(rows), -1, np.int64) if listing.labels is None else listing.labels[rows]
            columns = [
                listing.names.array.take(pa.array(rows)).cast(pa.string()),
                pa.array(labels, pa.int64(), mask=labels < 0),
            ]
            writer.write_table(pa.Table.from_arrays(columns, schema=SCHEMA), row_group_size=_GROUP_ROWS)


def write_origin(checksums: pa.Array | None, kept: NDArray[np.int64], path: Path) -> None:
    """Write what the source knows of the content of the images whose indices are `kept`; no file where that is nothing.

    Raises:
        WorkError: the disk is full.
    """
    path.unlink(missing_ok=True)
    if checksums is None:
        return
    with working(f"{path}: cannot be written"), pq.ParquetWriter(path, ORIGIN_SCHEMA) as writer:
        for rows in _groups(kept):
            column = checksums.take(pa.array(rows)).cast(pa.binary())
            writer.write_table(pa.Table.from_arrays([column], schema=ORIGIN_SCHEMA), row_group_size=_GROUP_ROWS)


def _groups(kept: NDArray[np.int64]) -> Iterator[NDArray[np.int64]]:
    for start in range(0, len(kept), _GROUP_ROWS):
        yield kept[start : start + _GROUP_ROWS]
