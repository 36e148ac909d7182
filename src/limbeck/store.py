"""The artifact store: results addressed by what they are made of, valid only once their manifest is there.

A result lies under `<output>/<stage>/<key>/`. Its key is the digest of what made it (see `Identity`), its
`manifest.json` names every file with size and sha256 and is written last: no manifest, no result. Work under way
lies apart, in the output's folder `work`, where a killed stage finds its checkpoints again.
"""

from __future__ import annotations

import fcntl
import hashlib
import json
import os
import shutil
import tempfile
import time
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import IO, Any

from fsspec.implementations.local import LocalFileSystem
from pydantic import BaseModel, ConfigDict, ValidationError
from pydantic.alias_generators import to_camel

from limbeck.errors import InputError, WorkError
from limbeck.spec import DistillationSpec
from limbeck.storage import PLAIN, Access

MANIFEST = "manifest.json"
_DOWNLOAD_PATIENCE, _LOCK_LOOK = 3600.0, 0.2  # seconds


class _Record(BaseModel):
    model_config = ConfigDict(alias_generator=to_camel, populate_by_name=True, frozen=True, extra="forbid")


class FileEntry(_Record):
    """One file of a result."""

    path: str  # relative, with forward slashes
    size: int
    sha256: str


class Made(_Record):
    """How a result was made: what its key does not depend on."""

    seconds: float
    peak_memory_bytes: int
    peak_device_memory_bytes: int
    device: str
    limbeck_version: str
    torch_version: str


class Manifest(_Record):
    """What a result is made of and consists of."""

    format: int = 1
    stage: str
    key: str
    version: int
    section: dict[str, Any]  # the settings that shaped it
    inputs: dict[str, str]  # what it was made from: name -> digest
    refers: list[str]  # other results that it points into, as stage/key
    files: list[FileEntry]
    digest: str  # over the files: equal digests are equal results
    made: Made


@dataclass(frozen=True)
class Identity:
    """What a result's key is the digest of."""

    stage: str
    version: int
    section: Mapping[str, Any]
    inputs: Mapping[str, str]

    @property
    def key(self) -> str:
        """The content address: 32 hexadecimal digits, a folder name."""
        return json_digest(
            {
                "stage": self.stage,
                "version": self.version,
                "section": dict(self.section),
                "inputs": dict(self.inputs),
            }
        )[:32]


@dataclass(frozen=True)
class Result:
    """A finished, verified result with its files in a local folder."""

    path: Path
    manifest: Manifest

    @property
    def digest(self) -> str:
        """Digest of the result's content."""
        return self.manifest.digest


class DamagedResultError(Exception):
    """A result whose files are not what its manifest says."""


class Store:
    """Results under one URL. Local folders are used in place; other file systems through a local copy.

    Args:
        url: a path or an fsspec URL.
        access: how it is reached.

    Raises:
        InputError: no file system is known by that URL, or it lacks a package or an option.
    """

    def __init__(self, url: str, access: Access = PLAIN) -> None:
        try:
            self._fs, root = access.open(url)
        except InputError as error:
            raise InputError("spec.output.uri", f"{error.where}: {error.found}", error.allowed) from None
        except ValueError as error:
            raise InputError("spec.output.uri", f"{url}: {error}", "a path or an fsspec URL") from None
        self.root: str = str(root).rstrip("/")
        self.url = url
        self._local = isinstance(self._fs, LocalFileSystem)
        self._mirror = Path(self.root) if self._local else _mirror_folder(url)
        self._verified: dict[tuple[str, str], str] = {}  # the digest of each result that was checked

    @classmethod
    def of(cls, spec: DistillationSpec) -> Store:
        """Where the results of a spec go."""
        return cls(spec.output.uri, Access.of(spec))

    def location(self, stage: str, key: str) -> str:
        """The URL (or path) of a result."""
        path = f"{self.root}/{stage}/{key}"
        return path if self._local else str(self._fs.unstrip_protocol(path))

    def find(self, stage: str, key: str) -> Result | None:
        """The finished result, verified against its manifest; None when there is none.

        Raises:
            DamagedResultError: a file is missing, cut short or altered.
        """
        manifest = self._manifest(stage, key)
        if manifest is None:
            return None
        folder = self._mirror / stage / key
        if self._verified.get((stage, key)) != manifest.digest:
            if not self._local:  # once a machine: the others wait, and find the files there
                with _locked(self._mirror / "work" / f"{stage}-{key}.download.lock", _DOWNLOAD_PATIENCE):
                    self._download(manifest, folder)
            _verify(manifest, folder)
            self._verified[stage, key] = manifest.digest
        return Result(folder, manifest)

    def holds(self, stage: str, key: str) -> bool:
        """Whether a result is finished; its files are not looked at."""
        return bool(self._fs.exists(f"{self.root}/{stage}/{key}/{MANIFEST}"))

    def finished_at(self, stage: str, key: str) -> datetime:
        """When a result was finished, by the clock of what holds the store.

        Raises:
            FileNotFoundError: it is not finished.
        """
        found = self._fs.modified(f"{self.root}/{stage}/{key}/{MANIFEST}")
        assert isinstance(found, datetime)
        return found if found.tzinfo is not None else found.replace(tzinfo=UTC)

    def discard(self, stage: str, key: str) -> None:
        """Remove a result, manifest first, so that nobody trusts what is left half-way."""
        self._verified.pop((stage, key), None)
        folder = f"{self.root}/{stage}/{key}"
        if self._fs.exists(f"{folder}/{MANIFEST}"):
            self._fs.rm_file(f"{folder}/{MANIFEST}")
        if self._fs.exists(folder):
            self._fs.rm(folder, recursive=True)
        if not self._local:
            shutil.rmtree(self._mirror / stage / key, ignore_errors=True)

    @contextmanager
    def scratch(self, stage: str, key: str, patience: float = 0.0) -> Iterator[Path]:
        """The folder in which a result is made; what an earlier, killed run left there is still there.

        Args:
            stage: of the result.
            key: of the result.
            patience: how many seconds to wait for another process that is making it.

        Raises:
            WorkError: another process is making this result.
        """
        folder = self._mirror / "work" / stage / key
        lock = folder.with_name(f"{key}.lock")
        with _locked(lock, patience) as taken:
            if not taken:
                raise WorkError(
                    f"{stage}/{key}: another limbeck is working on it in {self.url}; wait for it or stop it"
                )
            folder.mkdir(parents=True, exist_ok=True)  # now: who had the lock before has removed it
            yield folder
            shutil.rmtree(folder, ignore_errors=True)
            if not self._local and self._fs.exists(f"{self.root}/work/{stage}/{key}"):
                self._fs.rm(f"{self.root}/work/{stage}/{key}", recursive=True)
            lock.unlink(missing_ok=True)  # still held: who waits for it sees that it is another file now

    def keep(self, file: Path) -> None:
        """Copy a file of a scratch folder to the store, where it is remote: another machine may have to go on."""
        if not self._local:
            target = self._remote(file)
            self._fs.makedirs(target.rpartition("/")[0], exist_ok=True)
            self._fs.put_file(str(file), target)

    def fetch(self, file: Path) -> None:
        """Bring such a copy here, where there is one."""
        if self._local:
            return
        partial = file.with_name(f".{file.name}.partial")
        try:
            self._fs.get_file(self._remote(file), str(partial))
        except FileNotFoundError:
            partial.unlink(missing_ok=True)
        else:
            partial.replace(file)

    def _remote(self, file: Path) -> str:
        return f"{self.root}/{file.relative_to(self._mirror).as_posix()}"

    @property
    def shared_url(self) -> str:
        """The store's URL, or its absolute path: what another process finds it by."""
        return self.root if self._local else self.url

    def commit(self, identity: Identity, scratch: Path, made: Made, refers: list[str]) -> Result:
        """Turn the files in `scratch` into the result: files first, flushed to disk, the manifest last.

        Files whose names begin with "checkpoint" or "." are working state and are left behind.
        """
        stage, key = identity.stage, identity.key
        names = sorted(
            path.relative_to(scratch).as_posix()
            for path in scratch.rglob("*")
            if path.is_file() and not path.name.startswith(("checkpoint", "."))
        )
        files = [_entry(scratch, name) for name in names]
        manifest = Manifest(
            stage=stage,
            key=key,
            version=identity.version,
            section=dict(identity.section),
            inputs=dict(identity.inputs),
            refers=refers,
            files=files,
            digest=json_digest([entry.model_dump() for entry in files]),
            made=made,
        )
        folder = self._mirror / stage / key
        if not self._local:
            shutil.rmtree(folder, ignore_errors=True)
            theirs = self.find(stage, key)
            if theirs is not None:  # another machine was faster; its result is as good
                return theirs
        elif folder.exists():  # what a kill in mid-commit left: it has no manifest, or it would have been found
            self.discard(stage, key)
        for name in names:
            _move_durably(scratch / name, folder / name)
        text = manifest.model_dump_json(by_alias=True, indent=2) + "\n"
        if not self._local:
            for name in names:
                self._fs.makedirs(f"{self.root}/{stage}/{key}/{name}".rpartition("/")[0], exist_ok=True)
                self._fs.put_file(str(folder / name), f"{self.root}/{stage}/{key}/{name}")
            self._fs.pipe_file(f"{self.root}/{stage}/{key}/{MANIFEST}", text.encode())
        write_atomically(folder / MANIFEST, text.encode())
        return Result(folder, manifest)

    def write_text(self, name: str, text: str) -> str:
        """Write a file that is not part of a result (a run's summary, say); returns its URL or path."""
        path = f"{self.root}/{name}"
        if self._local:
            write_atomically(Path(path), text.encode())
            return path
        self._fs.makedirs(path.rpartition("/")[0], exist_ok=True)
        self._fs.pipe_file(path, text.encode())
        return str(self._fs.unstrip_protocol(path))

    @contextmanager
    def appended(self, name: str) -> Iterator[Path]:
        """A local file to append to (a log, say); at the end of the block it lies in the store under that name."""
        path = self._mirror / name
        path.parent.mkdir(parents=True, exist_ok=True)
        try:
            yield path
        finally:
            if path.exists():
                self.keep(path)

    def local_folder(self, name: str) -> Path:
        """A folder on this machine for what this machine alone needs; inside the store where that is local."""
        return self._mirror / name

    def remove(self, name: str) -> None:
        """Remove a file or folder that is not part of a result, if it is there."""
        if self._fs.exists(f"{self.root}/{name}"):
            self._fs.rm(f"{self.root}/{name}", recursive=True)

    def read_text(self, name: str) -> str | None:
        """The content of such a file, or None when it is not there."""
        try:
            return bytes(self._fs.cat_file(f"{self.root}/{name}")).decode()
        except FileNotFoundError:
            return None

    def names(self, folder: str) -> list[str]:
        """What lies directly in a folder of the store, sorted; nothing where there is no such folder."""
        try:
            return sorted(str(path).rpartition("/")[2] for path in self._fs.ls(f"{self.root}/{folder}", detail=False))
        except (FileNotFoundError, NotADirectoryError):
            return []

    def _manifest(self, stage: str, key: str) -> Manifest | None:
        try:
            manifest = Manifest.model_validate_json(self._fs.cat_file(f"{self.root}/{stage}/{key}/{MANIFEST}"))
        except FileNotFoundError:
            return None
        except ValidationError:
            raise DamagedResultError(f"{self.location(stage, key)}/{MANIFEST} is not a manifest") from None
        if (manifest.stage, manifest.key) != (stage, key):
            raise DamagedResultError(f"{self.location(stage, key)}/{MANIFEST} belongs to another result")
        return manifest

    def _download(self, manifest: Manifest, folder: Path) -> None:
        for entry in manifest.files:
            target = folder / entry.path
            if target.exists() and target.stat().st_size == entry.size and file_digest(target) == entry.sha256:
                continue
            target.parent.mkdir(parents=True, exist_ok=True)
            partial = target.with_name(target.name + ".partial")
            try:
                self._fs.get_file(f"{self.root}/{manifest.stage}/{manifest.key}/{entry.path}", str(partial))
            except FileNotFoundError:
                raise DamagedResultError(f"{folder / entry.path} is missing") from None
            partial.replace(target)


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
    _flush_folder(path.parent)


@contextmanager
def _locked(path: Path, patience: float) -> Iterator[bool]:
    """Whether the lock file could be taken within `patience` seconds; it is held inside the block."""
    path.parent.mkdir(parents=True, exist_ok=True)
    deadline = time.monotonic() + patience
    while True:
        with path.open("w") as handle:
            taken = _take(handle, path)
            if taken or time.monotonic() >= deadline:
                yield taken
                return
        time.sleep(_LOCK_LOOK)


def _take(handle: IO[str], path: Path) -> bool:
    """Lock an open lock file, unless another process has it, or had it and removed it since it was opened."""
    try:
        fcntl.flock(handle, fcntl.LOCK_EX | fcntl.LOCK_NB)
        return os.fstat(handle.fileno()).st_ino == path.stat().st_ino
    except (BlockingIOError, FileNotFoundError):
        return False


def _entry(folder: Path, name: str) -> FileEntry:
    path = folder / name
    return FileEntry(path=name, size=path.stat().st_size, sha256=file_digest(path))


def _verify(manifest: Manifest, folder: Path) -> None:
    for entry in manifest.files:
        path = folder / entry.path
        if not path.is_file():
            raise DamagedResultError(f"{path} is missing")
        if path.stat().st_size != entry.size:
            raise DamagedResultError(f"{path} has {path.stat().st_size} bytes instead of {entry.size}")
        if file_digest(path) != entry.sha256:
            raise DamagedResultError(f"{path} is not what its manifest says (sha256 differs)")


def _move_durably(source: Path, target: Path) -> None:
    target.parent.mkdir(parents=True, exist_ok=True)
    with source.open("rb") as handle:
        os.fsync(handle.fileno())
    source.replace(target)
    _flush_folder(target.parent)


def _flush_folder(folder: Path) -> None:
    handle = os.open(folder, os.O_RDONLY)
    try:
        os.fsync(handle)
    finally:
        os.close(handle)


def _mirror_folder(url: str) -> Path:
    caches = Path(os.environ.get("XDG_CACHE_HOME", Path.home() / ".cache"))
    return caches / "limbeck" / hashlib.sha256(url.encode()).hexdigest()[:16]
