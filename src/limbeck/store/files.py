"""Files of this machine: digests, writes that are whole or not at all, and locks that end with their process."""

from __future__ import annotations

import fcntl
import hashlib
import json
import os
import shutil
import tempfile
import time
import uuid
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import IO, Any

_LOCK_LOOK = 0.2  # seconds


def json_digest(value: Any) -> str:
    """sha256, in hexadecimal, of a JSON value in canonical form (sorted keys, no spaces)."""
    text = json.dumps(value, sort_keys=True, separators=(",", ":"), ensure_ascii=False, allow_nan=False)
    return hashlib.sha256(text.encode()).hexdigest()


def file_digest(path: Path) -> str:
    """sha256, in hexadecimal, of a file's bytes."""
    with path.open("rb") as handle:
        return hashlib.file_digest(handle, "sha256").hexdigest()


def write_atomically(path: Path, data: bytes) -> None:
    """Write a file so that a reader, or a kill, sees the old content or the new, never a part."""
    path.parent.mkdir(parents=True, exist_ok=True)
    with tempfile.NamedTemporaryFile(dir=path.parent, prefix=f".{path.name}.", delete=False) as handle:
        handle.write(data)
        handle.flush()
        os.fsync(handle.fileno())
    Path(handle.name).chmod(0o644)
    Path(handle.name).replace(path)
    flush_folder(path.parent)


def move_durably(source: Path, target: Path) -> None:
    """Move a file within a file system; it is on the disk before it is at its new place."""
    target.parent.mkdir(parents=True, exist_ok=True)
    with source.open("rb") as handle:
        os.fsync(handle.fileno())
    source.replace(target)
    flush_folder(target.parent)


def flush_folder(folder: Path) -> None:
    """Have the names in a folder on the disk."""
    handle = os.open(folder, os.O_RDONLY)
    try:
        os.fsync(handle)
    finally:
        os.close(handle)


def take_away(folder: Path, trash: Path) -> None:
    """Remove a folder, if it is there, at one moment; its files are deleted after."""
    shutil.rmtree(set_aside(folder, trash), ignore_errors=True)
    with suppress(OSError):  # another process's are in it
        trash.rmdir()


def set_aside(folder: Path, trash: Path) -> Path:
    """Move a folder, if it is there, to a new name in another folder; that name."""
    gone = trash / uuid.uuid4().hex
    while os.path.lexists(folder):
        trash.mkdir(parents=True, exist_ok=True)
        with suppress(FileNotFoundError):  # another process has taken the folder away, or removed the trash
            folder.rename(gone)
    return gone


@contextmanager
def locked(path: Path, patience: float) -> Iterator[bool]:
    """Whether the lock file could be taken within `patience` seconds; it is held inside the block."""
    path.parent.mkdir(parents=True, exist_ok=True)
    deadline = time.monotonic() + patience
    while True:
        with path.open("w") as handle:
            taken = take(handle, path)
            if taken or time.monotonic() >= deadline:
                yield taken
                return
        time.sleep(_LOCK_LOOK)


def take(handle: IO[str], path: Path) -> bool:
    """Lock an open lock file, unless another process has it, or had it and removed it since it was opened."""
    try:
        fcntl.flock(handle, fcntl.LOCK_EX | fcntl.LOCK_NB)
        return os.fstat(handle.fileno()).st_ino == path.stat().st_ino
    except (BlockingIOError, FileNotFoundError):
        return False
