"""One tensor in one safetensors file, read and written through a memory map, or in pieces: it may exceed memory."""

from __future__ import annotations

import hashlib
import json
import math
import os
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import DTypeLike, NDArray

from limbeck.errors import InputError, WorkError

Mapped = np.memmap[Any, np.dtype[Any]]

_ALIGNMENT = 64
_MAX_HEADER = 100 * 2**20  # safetensors' own limit
_DTYPES = {
    "BOOL": np.dtype(np.bool_),
    "U8": np.dtype(np.uint8),
    "I32": np.dtype("<i4"),
    "I64": np.dtype("<i8"),
    "F16": np.dtype("<f2"),
    "F32": np.dtype("<f4"),
    "F64": np.dtype("<f8"),
}


def create_mapped(path: Path, name: str, shape: Sequence[int], dtype: DTypeLike = np.uint8) -> Mapped:
    """Create a safetensors file that holds the one tensor `name`, zeros until written.

    The disk space is reserved at once, so that a full disk is an error here and not a crash of the process
    later. Call `flush()` on the result when it is filled.

    Args:
        path: the file, overwritten when it exists.
        name: the tensor's name in the file.
        shape: the tensor's shape; it holds at least one element.
        dtype: one of bool, uint8, int32, int64, float16, float32, float64.

    Returns:
        A writable map of the tensor; its data begins at a multiple of 64 bytes.

    Raises:
        WorkError: the file cannot be created or the disk is full.
    """
    head = _head(name, shape, dtype)
    start, nbytes = len(head), math.prod(shape) * np.dtype(dtype).itemsize
    try:
        with path.open("wb") as file:
            file.write(head)
            file.flush()
            if hasattr(os, "posix_fallocate"):
                os.posix_fallocate(file.fileno(), 0, start + nbytes)
            file.truncate(start + nbytes)
        return np.memmap(path, np.dtype(dtype), "r+", start, tuple(shape))
    except OSError as error:
        raise WorkError(f"{path}: cannot write {start + nbytes:,} bytes: {error.strerror or error}") from error


def write_tensor(path: Path, name: str, shape: Sequence[int], pieces: Iterable[NDArray[Any]]) -> str:
    """Write a safetensors file that holds the one tensor `name`, uint8, and see it on the disk before it has its name.

    The bytes are those that `create_mapped` would leave, but written plainly: nothing of the file stays mapped.

    Args:
        path: the file, replaced when it exists.
        name: the tensor's name in the file.
        shape: the tensor's shape.
        pieces: `uint8[...]`, contiguous; one after another they are the tensor.

    Returns:
        The sha256 of the file, in hex.

    Raises:
        WorkError: the file cannot be written or the disk is full.
    """
    partial = path.with_name(f".{path.name}.partial")
    digest = hashlib.sha256()
    try:
        with partial.open("wb", buffering=0) as file:
            for piece in (np.frombuffer(_head(name, shape, np.uint8), np.uint8), *pieces):
                rest = piece.data.cast("B")
                digest.update(rest)
                while rest.nbytes:
                    rest = rest[file.write(rest) :]
            os.fsync(file.fileno())
        partial.replace(path)
    except OSError as error:
        partial.unlink(missing_ok=True)
        raise WorkError(f"{path}: cannot be written: {error.strerror or error}") from error
    return digest.hexdigest()


def read_rows(path: Path, first: int, out: NDArray[np.uint8]) -> None:
    """Fill `out`, `uint8[n, ...]` and contiguous, with the rows `first` to `first + n` of a file of one uint8 tensor.

    Raises:
        WorkError: it cannot be read, or has fewer rows.
    """
    try:
        with path.open("rb", buffering=0) as file:
            start = 8 + int.from_bytes(file.read(8), "little")
            file.seek(start + first * out[0].nbytes)
            rest = out.data.cast("B")
            while rest.nbytes:
                count = file.readinto(rest)
                if not count:
                    raise WorkError(f"{path}: is cut short")
                rest = rest[count:]
    except OSError as error:
        raise WorkError(f"{path}: cannot be read: {error.strerror or error}") from error


def _head(name: str, shape: Sequence[int], dtype: DTypeLike) -> bytes:
    """What such a file begins with, padded so that the tensor begins at a multiple of 64 bytes."""
    code = next(code for code, known in _DTYPES.items() if known == np.dtype(dtype))
    nbytes = math.prod(shape) * _DTYPES[code].itemsize
    entry = {"dtype": code, "shape": list(shape), "data_offsets": [0, nbytes]}
    header = json.dumps({name: entry}, separators=(",", ":")).encode()
    start = math.ceil((8 + len(header)) / _ALIGNMENT) * _ALIGNMENT
    return (start - 8).to_bytes(8, "little") + header.ljust(start - 8)


def open_mapped(path: Path, name: str) -> Mapped:
    """The tensor `name` of a safetensors file, as a read-only memory map.

    Raises:
        InputError: the file is missing, is not safetensors, or does not hold such a tensor.
    """
    try:
        with path.open("rb") as file:
            header_size = int.from_bytes(file.read(8), "little")
            if header_size > _MAX_HEADER:
                raise InputError(str(path), "not a safetensors file")
            header = json.loads(file.read(header_size))
        entry = header[name]
        begin, end = entry["data_offsets"]
        dtype, shape = _DTYPES[entry["dtype"]], tuple(int(side) for side in entry["shape"])
        if begin < 0 or end - begin != math.prod(shape) * dtype.itemsize:
            raise ValueError
        return np.memmap(path, dtype, "r", 8 + header_size + begin, shape)
    except FileNotFoundError as error:
        raise InputError(str(path), "no such file") from error
    except (OSError, ValueError, TypeError, KeyError, AttributeError) as error:
        raise InputError(str(path), f"not a safetensors file with a tensor {name!r}, or cut short") from error
