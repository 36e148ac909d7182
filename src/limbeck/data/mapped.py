"""One tensor in one safetensors file, read and written through a memory map: larger than memory is fine."""

from __future__ import annotations

import json
import math
import os
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import DTypeLike

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
    code = next(code for code, known in _DTYPES.items() if known == np.dtype(dtype))
    nbytes = math.prod(shape) * _DTYPES[code].itemsize
    entry = {"dtype": code, "shape": list(shape), "data_offsets": [0, nbytes]}
    header = json.dumps({name: entry}, separators=(",", ":")).encode()
    start = math.ceil((8 + len(header)) / _ALIGNMENT) * _ALIGNMENT
    header = header.ljust(start - 8)
    try:
        with path.open("wb") as file:
            file.write(len(header).to_bytes(8, "little") + header)
            file.flush()
            if hasattr(os, "posix_fallocate"):
                os.posix_fallocate(file.fileno(), 0, start + nbytes)
            file.truncate(start + nbytes)
        return np.memmap(path, _DTYPES[code], "r+", start, tuple(shape))
    except OSError as error:
        raise WorkError(f"{path}: cannot write {start + nbytes:,} bytes: {error.strerror or error}") from error


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
