"""What was verified here before: a file that looks untouched since then is not read again.

Beside the files of a result lies `.verified`: the sha256 that was read of each, and its size, times of change and inode
at that moment. It is a hint: where it is damaged, missing or cannot be written, all files are read. A change that
leaves all of these as they were, such as a failing disk's, is found by `limbeck store verify` alone, which reads all.
"""

from __future__ import annotations

import json
import os
import stat
import tempfile
import time
from contextlib import suppress
from pathlib import Path
from typing import Any

from limbeck.store.files import file_digest
from limbeck.store.records import DamagedResultError, FileEntry, Manifest

RECORD = ".verified"
_RACY_NS = 2 * 10**9  # a file changed so shortly before it was read may have changed again and look the same


class Verified:
    """The files of one result in a folder, as they look now.

    Args:
        manifest: of the result.
        folder: where its files lie.
    """

    def __init__(self, manifest: Manifest, folder: Path) -> None:
        self._manifest, self._folder = manifest, folder
        self._began = time.time_ns()
        self._known = _read(folder / RECORD)
        self._looks = {entry.path: _look(folder / entry.path) for entry in manifest.files}

    @property
    def suspects(self) -> list[FileEntry]:
        """The files that are to be read: they are not known to be what the manifest says."""
        return [entry for entry in self._manifest.files if not self._is_known(entry)]

    def check(self) -> None:
        """Read the suspects, and remember that they are whole.

        Raises:
            DamagedResultError: a file is missing, cut short or altered.
        """
        for entry in self.suspects:
            path, look = self._folder / entry.path, self._looks[entry.path]
            if look is None:
                raise DamagedResultError(f"{path} is missing")
            if look[0] != entry.size:
                raise DamagedResultError(f"{path} has {look[0]} bytes instead of {entry.size}")
            if file_digest(path) != entry.sha256:
                raise DamagedResultError(f"{path} is not what its manifest says (sha256 differs)")
        self.remember()

    def remember(self) -> None:
        """Remember that all files are whole: they were read since this object was made."""
        if not self.suspects:
            return
        whole: dict[str, list[str | int]] = {
            entry.path: [entry.sha256, *look]
            for entry in self._manifest.files
            if (look := self._looks[entry.path]) is not None
            and max(look[1:3]) < self._began - _RACY_NS
            and look == _look(self._folder / entry.path)
        }
        if whole != self._known:
            _write(self._folder / RECORD, whole)

    def _is_known(self, entry: FileEntry) -> bool:
        look = self._looks[entry.path]
        return look is not None and self._known.get(entry.path) == [entry.sha256, *look]


def _look(path: Path) -> tuple[int, ...] | None:
    """Size, mtime, ctime (ns) and inode; None where there is no such file."""
    try:
        found = path.stat()
    except (FileNotFoundError, NotADirectoryError):
        return None
    if not stat.S_ISREG(found.st_mode):
        return None
    return found.st_size, found.st_mtime_ns, found.st_ctime_ns, found.st_ino


def _read(record: Path) -> dict[str, Any]:
    try:
        found = json.loads(record.read_bytes())
    except (OSError, ValueError, RecursionError):
        return {}
    return found if isinstance(found, dict) else {}


def _write(record: Path, files: dict[str, list[str | int]]) -> None:
    """Put a new record in the place of the old one, unless nothing can be written there or the result is gone."""
    scratch: str | None = None
    try:
        handle, scratch = tempfile.mkstemp(dir=record.parent, prefix=f"{RECORD}.")
        with os.fdopen(handle, "w") as file:
            json.dump(files, file)
        Path(scratch).chmod(0o644)
        Path(scratch).replace(record)
    except OSError:
        if scratch is not None:
            with suppress(OSError):
                Path(scratch).unlink()
