"""What of a store may go, and its deletion beside jobs that run: `limbeck.store.usage` says why none loses a result.

What stays: what was made or used lately, what a registered version is, what a recent run lists, and all that those
refer to. What goes besides old results: data that no manifest names, and work that nobody goes on with.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Mapping, Set
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Literal

from pydantic import ValidationError

from limbeck.store.files import locked, take_away
from limbeck.store.objects import Objects, Stat
from limbeck.store.records import MANIFEST, Manifest
from limbeck.store.survey import KEY, Shelf, Survey, with_referred
from limbeck.store.usage import CONDEMNED, USED, Condemnation

Kind = Literal["result", "unfinished result", "unused data", "abandoned work"]

_OTHER_WORK = {"ray", "trash"}  # folders of work/ that hold no stage's results


@dataclass(frozen=True)
class Garbage:
    """What may be deleted.

    Attributes:
        kind: what it is.
        place: where it lies in the store.
        size: bytes.
        files: those that go.
    """

    kind: Kind
    place: str
    size: int
    files: tuple[str, ...]


def garbage_of(found: Survey, keep: timedelta, registered: Set[str], now: datetime | None = None) -> list[Garbage]:
    """What nothing needs.

    Args:
        found: what lies in the store.
        keep: what was made or used within this time stays.
        registered: digests of the results that versions of the registry are.
        now: the time.
    """
    since = (now or datetime.now(UTC)) - keep
    listed = {key for run in found.runs if run.finished > since for key in run.keys}
    needed = with_referred(
        found.shelves,
        (place for place, shelf in found.shelves.items() if _is_needed(shelf, since, registered, listed)),
    )
    garbage: list[Garbage] = []
    for place, shelf in found.shelves.items():
        if shelf.manifest is not None and place not in needed:
            garbage.append(_garbage("result", place, shelf.files, shelf.manifest))
        elif shelf.manifest is None and shelf.fault is None and shelf.newest < since:
            garbage.append(_garbage("unfinished result", place, shelf.files))
        elif shelf.unnamed and all(stat.modified < since for stat in shelf.unnamed.values()):
            garbage.append(_garbage("unused data", place, shelf.unnamed))
    return garbage + _abandoned(found.work, since)


def _abandoned(work: Mapping[str, Stat], since: datetime) -> list[Garbage]:
    """Folders of work/ in which nothing was written since."""
    folders: dict[str, dict[str, Stat]] = defaultdict(dict)
    for name, stat in work.items():
        parts = name.split("/")
        if len(parts) > 3 and (KEY.fullmatch(parts[2]) or parts[1] in _OTHER_WORK):
            folders["/".join(parts[:3])][name] = stat
    return [
        _garbage("abandoned work", place, files)
        for place, files in sorted(folders.items())
        if all(stat.modified < since for stat in files.values())
    ]


def _is_needed(shelf: Shelf, since: datetime, registered: Set[str], listed: Set[str]) -> bool:
    if shelf.manifest is None:
        return False
    used = shelf.used
    return (
        shelf.made > since
        or (used is not None and used > since)
        or shelf.manifest.digest in registered
        or shelf.manifest.key in listed
    )


def _garbage(kind: Kind, place: str, files: Mapping[str, Stat], manifest: Manifest | None = None) -> Garbage:
    named = [] if manifest is None else [manifest.place(entry.path) for entry in manifest.files]  # listings miss some
    return Garbage(kind, place, sum(stat.size for stat in files.values()), tuple(sorted({*files, *named})))


def delete(objects: Objects, garbage: Garbage, keep: timedelta) -> bool:
    """Delete it, unless somebody has begun to use it since it was found; whether it is gone."""
    if garbage.kind == "abandoned work":
        return _delete_work(objects, garbage)
    if garbage.kind == "unused data":
        return _delete_unused(objects, garbage, keep)
    condemnation = Condemnation(objects, garbage.place, keep)
    if not condemnation.holds():
        return False
    if objects.is_local:
        root = Path(objects.root)
        take_away(root / garbage.place, root / "work" / "trash")
        return True
    manifest, used, condemned = (f"{garbage.place}/{name}" for name in (MANIFEST, USED, CONDEMNED))
    data = [name for name in garbage.files if name not in (manifest, used, condemned)]
    for name in [manifest, *data, used]:
        if not condemnation.holds():
            return False
        objects.delete(name)
    condemnation.end()
    return True


def _delete_unused(objects: Objects, garbage: Garbage, keep: timedelta) -> bool:
    """Delete data beside a result that names other data, as long as it does, and nobody has written it anew."""
    since = datetime.now(UTC) - keep
    for name in garbage.files:
        raw, there = objects.read(f"{garbage.place}/{MANIFEST}"), objects.stat(name)
        if raw is None or there is None or there.modified > since:
            return False
        try:
            manifest = Manifest.model_validate_json(raw)
        except ValidationError:
            return False
        if name.startswith(f"{garbage.place}/{manifest.folder}/"):
            return False
        objects.delete(name)
    return True


def _delete_work(objects: Objects, garbage: Garbage) -> bool:
    if not objects.is_local:
        for name in garbage.files:
            objects.delete(name)
        return True
    folder = Path(objects.root) / garbage.place
    lock = folder.with_name(f"{folder.name}.lock")
    with locked(lock, 0.0) as taken:
        if taken:
            take_away(folder, Path(objects.root) / "work" / "trash")
            lock.unlink(missing_ok=True)
    return taken
