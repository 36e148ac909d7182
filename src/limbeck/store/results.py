"""The store itself: results are found, made in a scratch folder, and committed, here and on object stores."""

from __future__ import annotations

import errno
import shutil
import time
from collections.abc import Iterator
from contextlib import contextmanager
from datetime import datetime
from pathlib import Path

from pydantic import ValidationError

from limbeck.errors import InputError, WorkError
from limbeck.patience import RETRIES, Retries
from limbeck.progress import SILENT, Progress
from limbeck.spec import DistillationSpec
from limbeck.storage import PLAIN, Access
from limbeck.store.cache import Cache, cache_folder
from limbeck.store.files import (
    file_digest,
    flush_folder,
    json_digest,
    locked,
    move_durably,
    take_away,
    write_atomically,
)
from limbeck.store.objects import Objects
from limbeck.store.records import MANIFEST, DamagedResultError, FileEntry, Identity, Made, Manifest, Result, digest_of
from limbeck.store.transfer import Download, Upload, download, md5_of, upload
from limbeck.store.usage import USED, Usage
from limbeck.store.verified import Verified

_DOWNLOAD_PATIENCE = 3600.0  # seconds
_ROUNDS = 20  # of a commit against others that come and go
_BETWEEN_ROUNDS = 0.2  # seconds
_FOLDER_DIGITS = 16


class Store:
    """Results under one URL. Local folders are used in place; other file systems through a local copy.

    A result appears at one moment: a local folder by being renamed to its place, a remote one by its manifest, which
    one request creates and none replaces. Of several writers of one result one wins, and the others use what it wrote.

    Args:
        url: a path or an fsspec URL.
        access: how it is reached.
        progress: where long transfers are shown.
        cache_size: bytes that copies of remote results may take here; by default half of what the disk could hold.
        retries: how often a request that fails for a moment is made.

    Raises:
        InputError: no file system is known by that URL, or it lacks a package or an option.
    """

    def __init__(
        self,
        url: str,
        access: Access = PLAIN,
        *,
        progress: Progress = SILENT,
        cache_size: int | None = None,
        retries: Retries = RETRIES,
    ) -> None:
        try:
            self._fs, root = access.open(url)
        except InputError as error:
            raise InputError("spec.output.uri", f"{error.where}: {error.found}", error.allowed) from None
        except ValueError as error:
            raise InputError("spec.output.uri", f"{url}: {error}", "a path or an fsspec URL") from None
        self.root: str = str(root).rstrip("/")
        self.url = url
        self.objects = Objects(self._fs, self.root, url, retries)
        self.usage = Usage(self.objects)
        self._local = self.objects.is_local
        self._mirror = Path(self.root) if self._local else cache_folder(url)
        self._cache = Cache(self._mirror, cache_size)
        self._progress = progress
        self._verified: dict[tuple[str, str], str] = {}  # the digest of each result that was checked
        self._damaged: dict[tuple[str, str], bytes | None] = {}  # the manifests of those that were found damaged

    @classmethod
    def of(cls, spec: DistillationSpec, progress: Progress = SILENT, url: str | None = None) -> Store:
        """Where the results of a spec go.

        Args:
            spec: whose output, storage options and cache size it is.
            progress: where long transfers are shown.
            url: the output as another process has found it, where that is not the spec's own.
        """
        size = spec.execution.cache_size
        if size is None:
            limit = None
        else:
            from limbeck.memory import quantity_bytes

            limit = quantity_bytes(size)
        return cls(url or spec.output.uri, Access.of(spec), progress=progress, cache_size=limit)

    def location(self, stage: str, key: str) -> str:
        """The URL (or path) of a result: what `limbeck.load` takes."""
        return self.objects.url(f"{stage}/{key}")

    def find(self, stage: str, key: str) -> Result | None:
        """The finished result, verified against its manifest; None when there is none, or it is being deleted.

        Files that look untouched since they were last verified are not read again (`limbeck.store.verified`).

        Raises:
            DamagedResultError: a file is missing, cut short or altered.
            WorkError: the storage does not answer.
        """
        self.usage.refresh()
        raw = self.objects.read(f"{stage}/{key}/{MANIFEST}")
        if raw is not None and not self.usage.is_claimed(f"{stage}/{key}"):
            claimed = self.usage.claim(f"{stage}/{key}")
            raw = self.objects.read(f"{stage}/{key}/{MANIFEST}") if claimed else None  # it may just have been deleted
        if raw is None:
            self._verified.pop((stage, key), None)
            return None
        try:
            manifest = self._parsed(raw, stage, key)
            return Result(self._here(manifest), manifest)
        except DamagedResultError:
            self._damaged[stage, key] = raw
            raise

    def _here(self, manifest: Manifest) -> Path:
        """The folder on this machine with the files of a result, all of them verified."""
        stage, key = manifest.stage, manifest.key
        folder = self._mirror / stage / key
        if self._verified.get((stage, key)) != manifest.digest:
            if self._local:
                Verified(manifest, folder).check()
            else:
                self._bring(manifest, folder)
            self._verified[stage, key] = manifest.digest
            self._damaged.pop((stage, key), None)
        return folder

    def _bring(self, manifest: Manifest, folder: Path) -> None:
        self._cache.use(f"{manifest.stage}/{manifest.key}", manifest.size)
        with self._arriving(manifest.stage, manifest.key):  # once a machine: the others wait, and find the files there
            here = Verified(manifest, folder)
            wanted = [
                Download(manifest.place(entry.path), folder / entry.path, entry.size, entry.sha256)
                for entry in here.suspects
            ]
            download(self.objects, wanted, self._progress, f"download {manifest.stage}")
            here.remember()
        self._cache.touch(f"{manifest.stage}/{manifest.key}")

    def holds(self, stage: str, key: str) -> bool:
        """Whether a result is finished; its files are not looked at."""
        try:
            return self._manifest(stage, key) is not None
        except DamagedResultError:
            return False

    def finished_at(self, stage: str, key: str) -> datetime:
        """When a result was finished, by the clock of what holds the store.

        Raises:
            FileNotFoundError: it is not finished.
        """
        there = self.objects.stat(f"{stage}/{key}/{MANIFEST}")
        if there is None:
            raise FileNotFoundError(f"{self.location(stage, key)}/{MANIFEST}")
        return there.modified

    def discard(self, stage: str, key: str) -> None:
        """Remove a result, unless it is not the one any more that this store has found damaged.

        Of a remote one the manifest goes: another machine may be writing the same data, which is replaced where it is
        damaged, and deleted by `limbeck store gc` where nobody names it.
        """
        self._verified.pop((stage, key), None)
        self.usage.forget(f"{stage}/{key}")
        found = self._damaged.get((stage, key))
        if found is not None and self.objects.read(f"{stage}/{key}/{MANIFEST}") != found:
            return
        if not self._local:
            self.objects.delete(f"{stage}/{key}/{MANIFEST}")
            self._cache.drop(f"{stage}/{key}")
        else:
            take_away(self._mirror / stage / key, self._trash)

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
        with locked(lock, patience) as taken:
            if not taken:
                raise WorkError(
                    f"{stage}/{key}: another limbeck is working on it in {self.url}; wait for it or stop it"
                )
            folder.mkdir(parents=True, exist_ok=True)  # now: who had the lock before has removed it
            yield folder
            shutil.rmtree(folder, ignore_errors=True)
            if not self._local:
                self.objects.delete_folder(f"work/{stage}/{key}")
            lock.unlink(missing_ok=True)  # still held: who waits for it sees that it is another file now

    def keep(self, file: Path) -> None:
        """Copy a file of a scratch folder to the store, where it is remote: another machine may have to go on."""
        self.usage.refresh()
        if not self._local:
            name = self.name_of(file)
            self.objects.patiently("writing", name, lambda: self.objects.put(file, name))

    def fetch(self, file: Path) -> None:
        """Bring such a copy here, where there is one."""
        if self._local:
            return
        partial = file.with_name(f".{file.name}.partial")
        try:
            self.objects.get(self.name_of(file), partial)  # at one go: the next one may be written meanwhile
        except FileNotFoundError:
            partial.unlink(missing_ok=True)
        else:
            partial.replace(file)

    def name_of(self, file: Path) -> str:
        """What a file or folder that `scratch` or `local_folder` has given is called in the store."""
        return file.relative_to(self._mirror).as_posix()

    @property
    def shared_url(self) -> str:
        """The store's URL, or its absolute path: what another process finds it by."""
        return self.root if self._local else self.url

    def commit(self, identity: Identity, scratch: Path, made: Made, refers: list[str]) -> Result:
        """Turn the files in `scratch` into the result, or find that another writer has been faster, and use that.

        Files whose names begin with "checkpoint" or "." are working state and are left behind.

        Raises:
            WorkError: the storage does not take them.
        """
        self.usage.refresh()
        names = sorted(
            path.relative_to(scratch).as_posix()
            for path in scratch.rglob("*")
            if path.is_file() and not path.name.startswith(("checkpoint", "."))
            if path.relative_to(scratch).parts[0] != _STAGED
        )
        files = [_entry(scratch, name) for name in names]
        whole = json_digest([entry.model_dump() for entry in files])
        manifest = Manifest(
            stage=identity.stage,
            key=identity.key,
            version=identity.version,
            section=dict(identity.section),
            inputs=dict(identity.inputs),
            refers=refers,
            files=files,
            digest=digest_of(files),
            made=made,
            folder="" if self._local else whole[:_FOLDER_DIGITS],
            checksums={} if self._local else {name: md5_of(scratch / name) for name in names},
        )
        return self._commit_here(manifest, scratch) if self._local else self._commit_there(manifest, scratch)

    def _commit_here(self, manifest: Manifest, scratch: Path) -> Result:
        """Make the whole folder beside its place, flushed to disk, and rename it: that fails where one is there."""
        stage, key = manifest.stage, manifest.key
        staged, folder = scratch / _STAGED, self._mirror / stage / key
        shutil.rmtree(staged, ignore_errors=True)
        for entry in manifest.files:
            move_durably(scratch / entry.path, staged / entry.path)
        write_atomically(staged / MANIFEST, manifest.text())
        (staged / USED).touch()
        folder.parent.mkdir(parents=True, exist_ok=True)
        for _ in range(_ROUNDS):
            try:
                staged.rename(folder)
            except OSError as error:
                if error.errno not in (errno.ENOTEMPTY, errno.EEXIST, errno.ENOTDIR):
                    raise
            else:
                flush_folder(folder.parent)
                self.usage.claim(f"{stage}/{key}")
                return Result(folder, manifest)
            theirs = self._theirs(stage, key)
            if theirs is not None:
                return theirs
            self.usage.wait(f"{stage}/{key}")
            if not self.holds(stage, key):  # what an interrupted run of an older version left
                take_away(folder, self._trash)
        raise WorkError(f"{folder}: other processes make it and remove it again and again")

    def _commit_there(self, manifest: Manifest, scratch: Path) -> Result:
        """Send the files to a folder that is named by their content, and create the manifest that names it."""
        stage, key = manifest.stage, manifest.key
        place = f"{stage}/{key}"
        self._cache.use(place, manifest.size)
        for _ in range(_ROUNDS):
            self.usage.claim_place(place)
            theirs = self._theirs(stage, key)
            if theirs is not None:
                return theirs
            sent = [
                Upload(scratch / entry.path, manifest.place(entry.path), entry.size, manifest.checksums[entry.path])
                for entry in manifest.files
            ]
            anew = (stage, key) in self._damaged
            upload(self.objects, sent, self._progress, f"upload {stage}", anew=anew)
            if self.objects.create(f"{place}/{MANIFEST}", manifest.text()):
                return Result(self._adopt(manifest, scratch), manifest)
            time.sleep(_BETWEEN_ROUNDS)
        raise WorkError(f"{self.location(stage, key)}: other processes make it and remove it again and again")

    def _theirs(self, stage: str, key: str) -> Result | None:
        """What another writer has committed, if that is whole."""
        try:
            return self.find(stage, key)
        except DamagedResultError:
            self.discard(stage, key)
            return None

    def _adopt(self, manifest: Manifest, scratch: Path) -> Path:
        """Move the files of a result that this machine has made to where its copy lies."""
        folder = self._mirror / manifest.stage / manifest.key
        with self._arriving(manifest.stage, manifest.key):
            self._cache.drop(f"{manifest.stage}/{manifest.key}")
            for entry in manifest.files:
                target = folder / entry.path
                target.parent.mkdir(parents=True, exist_ok=True)
                (scratch / entry.path).replace(target)
            folder.mkdir(parents=True, exist_ok=True)
        self._verified[manifest.stage, manifest.key] = manifest.digest
        self._damaged.pop((manifest.stage, manifest.key), None)
        return folder

    @contextmanager
    def _arriving(self, stage: str, key: str) -> Iterator[None]:
        """The right to change the copy of a result on this machine."""
        with locked(self._mirror / "work" / f"{stage}-{key}.download.lock", _DOWNLOAD_PATIENCE) as taken:
            if not taken:
                raise WorkError(f"{stage}/{key}: another process fetches it from {self.url}, and does not end")
            yield

    @property
    def _trash(self) -> Path:
        return self._mirror / "work" / "trash"

    def write_text(self, name: str, text: str) -> str:
        """Write a file that is not part of a result (a run's summary, say); returns its URL or path."""
        self.objects.write(name, text.encode())
        return self.objects.url(name)

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
        if self._local:
            path = self._mirror / name
            if path.is_dir():
                shutil.rmtree(path)
            else:
                path.unlink(missing_ok=True)
        elif self.objects.stat(name) is not None:
            self.objects.delete(name)
        else:
            self.objects.delete_folder(name)

    def read_text(self, name: str) -> str | None:
        """The content of such a file, or None when it is not there."""
        found = self.objects.read(name)
        return None if found is None else found.decode()

    def names(self, folder: str) -> list[str]:
        """What lies directly in a folder of the store, sorted; nothing where there is no such folder."""
        return self.objects.names(folder)

    def _manifest(self, stage: str, key: str) -> Manifest | None:
        raw = self.objects.read(f"{stage}/{key}/{MANIFEST}")
        return None if raw is None else self._parsed(raw, stage, key)

    def _parsed(self, raw: bytes, stage: str, key: str) -> Manifest:
        where = f"{self.location(stage, key)}/{MANIFEST}"
        try:
            manifest = Manifest.model_validate_json(raw)
        except ValidationError:
            raise DamagedResultError(f"{where} is not a manifest") from None
        if (manifest.stage, manifest.key) != (stage, key):
            raise DamagedResultError(f"{where} belongs to another result")
        return manifest


_STAGED = ".commit"  # in a scratch folder: what is about to be renamed


def _entry(folder: Path, name: str) -> FileEntry:
    path = folder / name
    return FileEntry(path=name, size=path.stat().st_size, sha256=file_digest(path))
