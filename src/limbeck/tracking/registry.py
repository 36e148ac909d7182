"""The model registry: distilled sets as versions, and the aliases `champion` and `previous`.

A version's source is a LoggedModel of type `distilled-dataset`, whose artifacts are the set's files, a card, and
`checksums.json`; the version carries the checksum of that file, so a copy can be told from an altered one.

Aliases are moved by one process at a time: MLflow knows no compare-and-swap, but it refuses a second registered model
of the same name, so an empty one, NAME--promoting, is the lock for the seconds that a promotion takes.
"""

from __future__ import annotations

import hashlib
import json
import logging
import os
import shutil
import tempfile
import time
import uuid
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from mlflow import MlflowClient
from mlflow.artifacts import download_artifacts
from mlflow.entities import LoggedModel, LoggedModelOutput
from mlflow.entities.model_registry import ModelVersion
from mlflow.exceptions import MlflowException
from mlflow.tracking._tracking_service.utils import _use_tracking_uri

from limbeck.data.distilled_files import PREVIEW, RECORD, TENSORS
from limbeck.errors import InputError, WorkError
from limbeck.evaluation.comparison import Decision, Evaluated, Gate, decide
from limbeck.store import file_digest
from limbeck.summary import Registered
from limbeck.tracking.card import card
from limbeck.tracking.messages import Publish
from limbeck.tracking.place import VARIABLE

if TYPE_CHECKING:
    from limbeck.data.distilled import DistilledSet

CHAMPION, PREVIOUS = "champion", "previous"
TYPE, CHECKSUMS, CARD = "distilled-dataset", "checksums.json", "README.md"
NOTE = "mlflow.note.content"  # what the interface shows as the description, as Markdown
DIGEST, CONTENT, DECISION = "limbeck.digest", "limbeck.checksums", "limbeck.decision"
_LOCK_SUFFIX, _LOCK_OWNER = "--promoting", "limbeck.owner"
_LOCK_PATIENCE, _LOCK_STALE, _LOCK_LOOK = 180.0, 120.0, 0.2  # seconds
_LOCK_LOOKS = 10  # without an owner, one after the other, that make a lock somebody's model
_LONGEST_NOTE = 5000
_URI = "models:/"

log = logging.getLogger(__name__)


@dataclass(frozen=True)
class Version:
    """One version of a registered distilled set."""

    name: str
    number: int
    aliases: tuple[str, ...]
    created: int  # milliseconds since 1970
    tags: dict[str, str]
    model_id: str
    run_id: str

    @property
    def checksum(self) -> str | None:
        """Of `checksums.json`, which `Registry.pull` verifies; None where limbeck has not registered it."""
        return self.tags.get(CONTENT)


class Registry:
    """The distilled sets of one MLflow."""

    def __init__(self, uri: str) -> None:
        self._uri = uri
        self._client = MlflowClient(tracking_uri=uri, registry_uri=uri)
        self._owner = f"{os.uname().nodename}/{os.getpid()}/{uuid.uuid4().hex}"  # of locks

    def log(self, request: Publish, run_id: str, experiment_id: str) -> LoggedModel:
        """The set as a LoggedModel, once: it is found again by the digest of its files.

        After a failure half-way the next call goes on with the same one.
        """
        found = self._client.search_logged_models(
            [experiment_id], filter_string=f"tags.`{DIGEST}` = '{request.digest}' AND source_run_id = '{run_id}'"
        )
        ready = [model for model in found if str(model.status) == "READY"]
        if ready:
            return ready[0]
        model = found[0] if found else None
        with tempfile.TemporaryDirectory() as temporary:
            folder = Path(temporary)
            for name in (TENSORS, RECORD, PREVIEW):
                shutil.copyfile(Path(request.folder) / name, folder / name)
            (folder / CARD).write_text(card(request, as_file=True))
            files = {file.name: file_digest(file) for file in sorted(folder.iterdir())}
            (folder / CHECKSUMS).write_text(json.dumps(files, indent=2) + "\n")
            if model is None:
                model = self._client.create_logged_model(
                    experiment_id,
                    name=_model_name(request.title),
                    source_run_id=run_id,
                    tags={**request.tags, DIGEST: request.digest},
                    params={
                        "images": str(request.images),
                        "imageSize": str(request.image_size),
                        "targetDimension": str(request.target_dimension),
                        **{name: str(value) for name, value in request.recipe.items()},
                    },
                    model_type=TYPE,
                )
            note = card(request, as_file=False)[:_LONGEST_NOTE]
            tags = {NOTE: note, CONTENT: file_digest(folder / CHECKSUMS)}
            self._client.set_logged_model_tags(model.model_id, tags)
            self._client.log_model_artifacts(model.model_id, str(folder))
        outputs = self._client.get_run(run_id).outputs
        if outputs is None or model.model_id not in {output.model_id for output in outputs.model_outputs}:
            self._client.log_outputs(run_id, [LoggedModelOutput(model.model_id, 0)])
        return self._client.finalize_logged_model(model.model_id, "READY")

    def register(self, name: str, request: Publish, model: LoggedModel, run_id: str) -> tuple[Registered, int | None]:
        """Make the set a version of `name`, and the champion where the gate has it so.

        A version whose promotion was decided before is left as it is: somebody may have rolled it back since.

        Returns:
            The version, and the champion's version where that must be evaluated again before the promotion can be
            decided: the same call with it as `request.champion` decides then.
        """
        self._check_name(name)
        version = self._version_of(name, request.digest) or self._create(name, request, model, run_id)
        known = version.tags.get(DECISION)
        if known is not None:
            champion = CHAMPION in version.aliases
            return Registered(name=name, version=version.number, champion=champion, decision=known), None
        decision, first = self._promote(name, version.number, request)
        return Registered(name=name, version=version.number, champion=decision.promote, decision=decision.reason), first

    def _create(self, name: str, request: Publish, model: LoggedModel, run_id: str) -> Version:
        try:
            self._client.create_registered_model(
                name, tags={"limbeck.type": TYPE}, description="Distilled sets, made by limbeck."
            )
        except MlflowException as error:
            if not _exists_already(error):
                raise
        tags = {**request.tags, DIGEST: request.digest, CONTENT: model.tags[CONTENT]}
        with _global_uri(self._uri):  # where a local store looks for the source
            made = self._client.create_model_version(
                name,
                source=f"{_URI}{model.model_id}",
                run_id=run_id,
                model_id=model.model_id,
                tags=tags,
                description=card(request, as_file=False)[:_LONGEST_NOTE],
            )
        return self._version(name, int(made.version))

    def _promote(self, name: str, number: int, request: Publish) -> tuple[Decision, int | None]:
        """Decide, under the lock, and move the aliases; or give the version that must be evaluated again first."""
        gate = Gate(request.promote, request.metric, request.confidence)
        new = Evaluated.of(request.lineage, request.evaluation)
        with self._lock(name) as owns:
            champion = self._aliased(name, CHAMPION)
            if champion is not None and champion.number == number:  # moved before, and cut off since
                decision = Decision(True, "promoted")
            else:
                current = None if champion is None else champion.number
                decided = decide(gate, new, current, request.champion)
                if decided is None:
                    waits = f"not decided: version {current}, the champion, was not evaluated beside it"
                    return Decision(False, waits), current
                decision = decided
                if decision.promote:
                    self._move(name, number, champion, owns)
            self._client.set_model_version_tag(name, str(number), DECISION, decision.reason)
            return decision, None

    def promote(self, name: str, number: int, reason: str = "by hand") -> None:
        """Make a version the champion, whatever its figures.

        Raises:
            InputError: there is no such version.
        """
        version = self._version(name, number)
        with self._lock(name) as owns:
            champion = self._aliased(name, CHAMPION)
            if champion is not None and champion.number == number:
                return
            self._move(name, version.number, champion, owns)
            self._client.set_model_version_tag(name, str(number), DECISION, f"promoted {reason}")

    def rollback(self, name: str) -> tuple[int, int]:
        """Make the previous champion the champion again, and the champion the previous one; their numbers now.

        Raises:
            InputError: there is none.
        """
        self._check_exists(name)
        with self._lock(name) as owns:
            champion, previous = self._aliased(name, CHAMPION), self._aliased(name, PREVIOUS)
            if champion is None or previous is None:
                raise InputError(name, "no previous champion", "limbeck registry promote NAME VERSION")
            self._move(name, previous.number, champion, owns)
            self._client.set_model_version_tag(name, str(champion.number), DECISION, "rolled back by hand")
            return previous.number, champion.number

    def _move(self, name: str, number: int, champion: Version | None, owns: Any) -> None:
        """Give the aliases; the one that is replaced first, so that a cut leaves a champion at any time."""
        if not owns():
            raise WorkError(f"{name}: another process has taken over the promotion; try again")
        if champion is not None and champion.number != number:
            self._client.set_registered_model_alias(name, PREVIOUS, str(champion.number))
        self._client.set_registered_model_alias(name, CHAMPION, str(number))
        now = self._aliased(name, CHAMPION)
        if now is None or now.number != number:
            found = "no version" if now is None else f"version {now.number}"
            raise WorkError(f"{name}: the alias {CHAMPION} was moved to {found} meanwhile; try again")

    @contextmanager
    def _lock(self, name: str) -> Iterator[Any]:
        """The right to move the aliases; gives a function that says whether it is still held.

        A lock that has been there for two minutes belongs to a process that is gone.
        """
        lock, owner = f"{name}{_LOCK_SUFFIX}", self._owner
        deadline, first_seen = time.monotonic() + _LOCK_PATIENCE, dict[str, float]()
        while True:
            try:
                self._client.create_registered_model(
                    lock, tags={_LOCK_OWNER: owner}, description="limbeck is moving the aliases; gone in a moment."
                )
                break
            except MlflowException as error:
                if not _exists_already(error) and not _is_missing(error):  # missing: given back while MLflow looked
                    raise
            holder = self._holder(lock)
            if holder == owner:  # the answer to our request was lost, not the request
                break
            if holder is not None and time.monotonic() - first_seen.setdefault(holder, time.monotonic()) > _LOCK_STALE:
                log.warning("%s: the lock of %s is given up", name, holder)
                self._unlock(lock, holder)
            if time.monotonic() > deadline:
                raise WorkError(f"{name}: another process is moving its aliases, and does not finish")
            time.sleep(_LOCK_LOOK)
        try:
            yield lambda: self._holder(lock) == owner
        finally:
            self._unlock(lock, owner)

    def _unlock(self, lock: str, owner: str) -> None:
        try:
            if self._holder(lock) == owner:
                self._client.delete_registered_model(lock)
        except MlflowException as error:
            if not _is_missing(error):  # missing: somebody else was faster
                raise

    def _holder(self, lock: str) -> str | None:
        """Who holds a lock; None where nobody does.

        MLflow reads a model and then its tags, not in one transaction: one that is deleted in between has none. So a
        lock without an owner is looked at again.

        Raises:
            WorkError: the name is taken by something that is no lock.
        """
        for look in range(_LOCK_LOOKS):
            if look:
                time.sleep(_LOCK_LOOK)
            try:
                holder = self._client.get_registered_model(lock).tags.get(_LOCK_OWNER)
            except MlflowException as error:
                if _is_missing(error):
                    return None
                raise
            if holder is not None:
                return str(holder)
        raise WorkError(f"{lock} is a registered model of somebody's, and limbeck needs that name as a lock")

    def names(self) -> list[str]:
        """All registered distilled sets."""
        found, token = list[str](), None
        while True:
            page = self._client.search_registered_models(
                filter_string=f"tags.`limbeck.type` = '{TYPE}'", page_token=token
            )
            found += [model.name for model in page]
            token = page.token
            if not token:
                return sorted(found)

    def versions(self, name: str) -> list[Version]:
        """All versions of one, newest first.

        Raises:
            InputError: there is no such set.
        """
        self._check_exists(name)
        found, token = list[ModelVersion](), None
        while True:
            page = self._client.search_model_versions(f"name='{name}'", page_token=token)
            found += list(page)
            token = page.token
            if not token:
                break
        champions = self._client.get_registered_model(name).aliases
        versions = [_version(entry, champions) for entry in found]
        return sorted(versions, key=lambda version: -version.number)

    def resolve(self, uri: str) -> Version:
        """The version that `models:/NAME@ALIAS` or `models:/NAME/VERSION` means.

        Raises:
            InputError: it is neither, or there is none.
        """
        rest = uri.removeprefix(_URI)
        name, at, alias = rest.partition("@")
        if at:
            self._check_exists(name)
            version = self._aliased(name, alias)
            if version is None:
                raise InputError(uri, f"{name} has no alias {alias!r}", f"{_URI}{name}/VERSION, or promote one")
            return version
        name, _, number = rest.partition("/")
        if not number.isdecimal():
            raise InputError(uri, "neither an alias nor a version", f"{_URI}NAME@{CHAMPION} or {_URI}NAME/VERSION")
        return self._version(name, int(number))

    def pull(self, version: Version, folder: Path) -> Path:
        """The files of a version, in `folder`, every checksum verified before it is there.

        Raises:
            InputError: a file is missing, altered, or one too many; nothing is left.
        """
        what = f"{_URI}{version.name}/{version.number}"
        if folder.exists() and (not folder.is_dir() or any(folder.iterdir())):
            raise InputError(str(folder), "something is there", "an empty or a new folder")
        folder.parent.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryDirectory(dir=folder.parent, prefix=".pull-") as temporary:
            os.environ.setdefault("MLFLOW_ENABLE_ARTIFACTS_PROGRESS_BAR", "false")
            with _global_uri(self._uri):
                local = Path(download_artifacts(f"{_URI}{version.model_id}", dst_path=temporary))
            _verify(local, what, version.checksum)
            local.chmod(0o755)
            if folder.exists():
                folder.rmdir()
            local.replace(folder)
        return folder

    def load(self, uri: str) -> DistilledSet:
        """The set that a `models:/` URI means.

        Raises:
            InputError: there is none, or it is damaged.
        """
        from limbeck.data.distilled import DistilledSet

        version = self.resolve(uri)
        with tempfile.TemporaryDirectory() as temporary:
            return DistilledSet.load(self.pull(version, Path(temporary) / "set"))

    def _version_of(self, name: str, digest: str) -> Version | None:
        try:
            versions = self.versions(name)
        except InputError:
            return None
        return next((version for version in versions if version.tags.get(DIGEST) == digest), None)

    def _aliased(self, name: str, alias: str) -> Version | None:
        number = self._client.get_registered_model(name).aliases.get(alias)
        return None if number is None else self._version(name, int(number))

    def _version(self, name: str, number: int) -> Version:
        try:
            entry = self._client.get_model_version(name, str(number))
            aliases = self._client.get_registered_model(name).aliases
        except MlflowException as error:
            if not _is_missing(error):
                raise
            self._check_exists(name)
            numbers = ", ".join(str(version.number) for version in self.versions(name)) or "none yet"
            raise InputError(f"{name}/{number}", "there is no such version", numbers) from None
        return _version(entry, aliases)

    def _check_exists(self, name: str) -> None:
        try:
            self._client.get_registered_model(name)
        except MlflowException as error:
            if not _is_missing(error):
                raise
            allowed = ", ".join(self.names()) or "none is registered here"
            raise InputError(name, f"no such distilled set in {_shown(self._uri)}", allowed) from None

    def _check_name(self, name: str) -> None:
        if name.endswith(_LOCK_SUFFIX):
            raise InputError("spec.registry.name", name, f"a name that does not end in {_LOCK_SUFFIX}")


@contextmanager
def _global_uri(uri: str) -> Iterator[None]:
    """Inside the block MLflow's own default is `uri`: what a client does not pass on looks nowhere else."""
    before = os.environ.get(VARIABLE)
    try:
        with _use_tracking_uri(uri):  # which leaves the variable behind
            yield
    finally:
        os.environ.pop(VARIABLE, None)
        if before is not None:
            os.environ[VARIABLE] = before


def _shown(uri: str) -> str:
    from limbeck.redact import redact_url

    return redact_url(uri)


def _verify(folder: Path, what: str, expected: str | None) -> None:
    """Check every file of a copy against the checksums that the registry vouches for."""
    whole = "the files as limbeck registered them"
    listing = folder / CHECKSUMS
    if not listing.is_file() or expected is None:
        raise InputError(what, f"no {CHECKSUMS}", "a version that limbeck registered")
    if hashlib.sha256(listing.read_bytes()).hexdigest() != expected:
        raise InputError(what, f"{CHECKSUMS} was altered", whole)
    checksums = json.loads(listing.read_text())
    present = {file.relative_to(folder).as_posix() for file in folder.rglob("*") if file.is_file()} - {CHECKSUMS}
    for name in sorted(present ^ checksums.keys()):
        raise InputError(what, f"{name} is {'one too many' if name in present else 'missing'}", whole)
    for name, digest in checksums.items():
        if file_digest(folder / name) != digest:
            raise InputError(what, f"{name} was altered (sha256 differs)", whole)


def _version(entry: ModelVersion, aliases: dict[str, str]) -> Version:
    number = int(entry.version)
    names = tuple(sorted(alias for alias, of in aliases.items() if int(of) == number))
    return Version(
        entry.name,
        number,
        names,
        entry.creation_timestamp,
        dict(entry.tags),
        (entry.source or "").removeprefix(_URI),
        entry.run_id or "",
    )


def _model_name(title: str) -> str:
    """The title without what MLflow forbids in the name of a LoggedModel."""
    return "".join("-" if letter in "/:.%\"'" else letter for letter in title)


def _exists_already(error: MlflowException) -> bool:
    return str(error.error_code) == "RESOURCE_ALREADY_EXISTS"


def _is_missing(error: MlflowException) -> bool:
    return str(error.error_code) == "RESOURCE_DOES_NOT_EXIST"
