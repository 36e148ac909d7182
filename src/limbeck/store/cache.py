"""The copies of a remote store's results on this machine: how many may lie there, and which go first."""

from __future__ import annotations

import hashlib
import os
import re
import shutil
import uuid
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import IO

from limbeck.errors import WorkError
from limbeck.store.files import locked, set_aside, take, take_away

_KEY = re.compile(r"[0-9a-f]{32}")
_PATIENCE = 600.0  # seconds for a lock that is held for moments


class Cache:
    """A folder of results, stage/key, bounded in size; results that a process uses stay.

    Every store that uses results has a file here that lists them, and holds its lock as long as it lives.

    Args:
        folder: where they lie.
        limit: bytes; by default half of what the disk could hold for it.
    """

    def __init__(self, folder: Path, limit: int | None) -> None:
        self.folder, self._limit = folder, limit
        self._uses: IO[str] | None = None
        self._listed: set[str] = set()

    def use(self, place: str, size: int) -> None:
        """Keep what is or will be at a place, stage/key, and make room for `size` bytes there.

        The least recently used go first; where all others are in use, they stay, and the bound is broken.
        """
        folder = self.folder / place
        if place in self._listed and folder.exists():
            return
        with self._locked():
            self._list(place)
            victims = self._victims(place, size)
            gone = [set_aside(victim, self._trash) for victim in victims]
        for path in gone:
            shutil.rmtree(path, ignore_errors=True)

    def touch(self, place: str) -> None:
        """A result was used now."""
        with suppress(FileNotFoundError):
            os.utime(self.folder / place)

    def drop(self, place: str) -> None:
        """Remove the copy of a result."""
        take_away(self.folder / place, self._trash)

    @property
    def _trash(self) -> Path:
        return self.folder / "work" / "trash"

    @property
    def _users(self) -> Path:
        return self.folder / "work" / "users"

    @contextmanager
    def _locked(self) -> Iterator[None]:
        path = self.folder / "work" / "cache.lock"
        with locked(path, _PATIENCE) as taken:
            if not taken:
                raise WorkError(f"{path} is locked, and does not come free")
            yield

    def _list(self, place: str) -> None:
        if self._uses is None:
            self._users.mkdir(parents=True, exist_ok=True)
            path = self._users / uuid.uuid4().hex
            self._uses = path.open("w")
            take(self._uses, path)
        if place not in self._listed:
            self._uses.write(f"{place}\n")
            self._uses.flush()
            self._listed.add(place)

    def _victims(self, place: str, size: int) -> list[Path]:
        """What is to go so that `size` bytes fit."""
        sizes, ages = dict[Path, int](), dict[Path, float]()
        for path in self._results():
            with suppress(FileNotFoundError):  # another process removes what it has found damaged
                ages[path] = path.stat().st_mtime
                sizes[path] = _size(path)
        total = sum(sizes.values())
        limit = self._limit if self._limit is not None else (total + shutil.disk_usage(self.folder).free) // 2
        needed = total + size - sizes.get(self.folder / place, 0) - limit
        victims: list[Path] = []
        if needed <= 0:
            return victims
        used = self._in_use()
        for path in sorted(ages, key=lambda path: ages[path]):
            if needed <= 0:
                break
            if path.relative_to(self.folder).as_posix() not in used:
                victims.append(path)
                needed -= sizes[path]
        return victims

    def _results(self) -> Iterator[Path]:
        for stage in self.folder.iterdir():
            if stage.is_dir() and stage.name != "work":
                yield from (path for path in stage.iterdir() if _KEY.fullmatch(path.name) and path.is_dir())

    def _in_use(self) -> set[str]:
        """What living stores use; the lists of those that are gone are removed."""
        used = set(self._listed)
        for path in self._users.iterdir():
            with path.open("r+") as handle:  # NFS locks nothing that is open for reading alone
                if take(handle, path):
                    path.unlink()
                else:
                    used.update(handle.read().split())
        return used


def cache_folder(url: str) -> Path:
    """Where the copies of a store's results lie on this machine."""
    caches = Path(os.environ.get("XDG_CACHE_HOME", Path.home() / ".cache"))
    return caches / "limbeck" / hashlib.sha256(url.encode()).hexdigest()[:16]


def _size(folder: Path) -> int:
    total = 0
    for place, _, files in os.walk(folder):
        for name in files:
            with suppress(FileNotFoundError):  # it is just renamed
                total += os.lstat(f"{place}/{name}").st_size
    return total
