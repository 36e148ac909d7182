"""What lies in a store: its results, who refers to them, and whether they are whole.

What there is comes from listings, which may miss what is new; that a result is to go is decided by itself alone.
"""

from __future__ import annotations

import hashlib
import re
from collections import defaultdict
from collections.abc import Iterable, Mapping
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from datetime import datetime

from pydantic import ValidationError

from limbeck.store.objects import Objects, Stat
from limbeck.store.records import MANIFEST, FileEntry, Manifest
from limbeck.store.transfer import PIECE, matches
from limbeck.store.usage import CONDEMNED, USED
from limbeck.store.verified import RECORD
from limbeck.summary import Summary

KEY = re.compile(r"[0-9a-f]{32}")  # a folder of another name is somebody's, and nothing of ours
_APART = {"runs", "logs", "work"}
_SUMMARY = "summary.json"
_STREAMS = 8


@dataclass(frozen=True)
class Run:
    """A finished run: when it was, and the keys of the results that its summary lists."""

    name: str
    finished: datetime
    keys: frozenset[str]


@dataclass(frozen=True)
class Shelf:
    """What lies at one place, stage/key.

    Attributes:
        place: stage/key.
        files: what the listing shows there, by name in the store.
        manifest: None where there is none, or it is damaged.
        fault: what is wrong with the manifest.
        runs: names of the runs whose summaries list it.
    """

    place: str
    files: Mapping[str, Stat]
    manifest: Manifest | None
    fault: str | None = None
    runs: tuple[str, ...] = ()

    @property
    def size(self) -> int:
        """Bytes of all that lies there."""
        return sum(stat.size for stat in self.files.values())

    @property
    def made(self) -> datetime:
        """When the manifest was written; where there is none, when the newest file was."""
        there = self.files.get(f"{self.place}/{MANIFEST}")
        return there.modified if there is not None else self.newest

    @property
    def used(self) -> datetime | None:
        """When it was last used."""
        there = self.files.get(f"{self.place}/{USED}")
        return None if there is None else there.modified

    @property
    def newest(self) -> datetime:
        """When anything there was last written; the mark of a collector that was killed does not make it younger."""
        times = {name: stat.modified for name, stat in self.files.items()}
        condemned = f"{self.place}/{CONDEMNED}"
        return max([time for name, time in times.items() if name != condemned] or times.values())

    @property
    def unnamed(self) -> dict[str, Stat]:
        """Data that the manifest does not name: of writers that another was faster than."""
        if self.manifest is None or not self.manifest.folder:
            return {}
        own, depth = f"{self.place}/{self.manifest.folder}/", self.place.count("/") + 2
        return {
            name: stat for name, stat in self.files.items() if name.count("/") >= depth and not name.startswith(own)
        }


@dataclass(frozen=True)
class Survey:
    """All that lies in a store.

    Attributes:
        shelves: by place.
        runs: finished runs.
        work: files of work under way, or abandoned, by name.
    """

    shelves: dict[str, Shelf]
    runs: list[Run] = field(default_factory=list[Run])
    work: dict[str, Stat] = field(default_factory=dict[str, Stat])


def survey(objects: Objects) -> Survey:
    """Look at all of a store: one listing, every manifest, every summary of a run."""
    listed = objects.listing("")
    places: dict[str, dict[str, Stat]] = defaultdict(dict)
    for name, stat in listed.items():
        parts = name.split("/")
        if len(parts) >= 3 and parts[0] not in _APART and KEY.fullmatch(parts[1]):
            places["/".join(parts[:2])][name] = stat
    summaries = {
        name: stat
        for name, stat in listed.items()
        if name.startswith("runs/") and name.endswith(f"/{_SUMMARY}") and name.count("/") == 2
    }
    with ThreadPoolExecutor(_STREAMS) as pool:
        runs = [
            run for run in pool.map(lambda item: _run(objects, item[0], item[1]), summaries.items()) if run is not None
        ]
        shelves = list(pool.map(lambda item: _shelf(objects, item[0], item[1], runs), places.items()))
    work = {name: stat for name, stat in listed.items() if name.startswith("work/")}
    return Survey({shelf.place: shelf for shelf in sorted(shelves, key=lambda shelf: shelf.place)}, runs, work)


def _run(objects: Objects, name: str, stat: Stat) -> Run | None:
    raw = objects.read(name)
    if raw is None:
        return None
    try:
        summary = Summary.model_validate_json(raw)
    except ValidationError:
        return None
    return Run(summary.name, stat.modified, frozenset(stage.key for stage in summary.stages))


def _shelf(objects: Objects, place: str, files: dict[str, Stat], runs: Iterable[Run]) -> Shelf:
    key = place.partition("/")[2]
    named = tuple(sorted(run.name for run in runs if key in run.keys))
    raw = objects.read(f"{place}/{MANIFEST}")
    if raw is None:
        return Shelf(place, files, None, runs=named)
    try:
        manifest = Manifest.model_validate_json(raw)
    except ValidationError:
        return Shelf(place, files, None, f"{MANIFEST} is not a manifest", named)
    if f"{manifest.stage}/{manifest.key}" != place:
        return Shelf(place, files, None, f"{MANIFEST} belongs to another result", named)
    return Shelf(place, files, manifest, runs=named)


def with_referred(shelves: Mapping[str, Shelf], places: Iterable[str]) -> set[str]:
    """The places, and all that the results there refer to, and so on."""
    found: set[str] = set()
    waiting = list(places)
    while waiting:
        place = waiting.pop()
        if place in found:
            continue
        found.add(place)
        shelf = shelves.get(place)
        if shelf is not None and shelf.manifest is not None:
            waiting += shelf.manifest.refers
    return found


@dataclass(frozen=True)
class Verdict:
    """How a result was verified.

    Attributes:
        place: stage/key.
        faults: a line for each file that is not what the manifest says.
        vouched: files that the store's own checksum shows to be whole, without reading them.
        read: files that were read to the end.
    """

    place: str
    faults: tuple[str, ...]
    vouched: int
    read: int


def verify(objects: Objects, shelf: Shelf) -> Verdict | None:
    """Read every file of a result where it lies; None where no result is finished.

    A damaged one in a folder of this machine is forgotten to have been verified, so that the next run sees it, too.
    """
    if shelf.fault is not None:
        return Verdict(shelf.place, (f"{objects.url(shelf.place)}/{shelf.fault}",), 0, 0)
    if shelf.manifest is None:
        return None
    manifest = shelf.manifest
    with ThreadPoolExecutor(_STREAMS) as pool:
        checks = list(pool.map(lambda entry: _check(objects, manifest, entry), manifest.files))
    faults = tuple(fault for fault, _ in checks if fault is not None)
    if faults and objects.is_local:
        objects.delete(f"{shelf.place}/{RECORD}")
    vouched = sum(was_vouched for _, was_vouched in checks)
    return Verdict(shelf.place, faults, vouched, len(checks) - vouched)


def _check(objects: Objects, manifest: Manifest, entry: FileEntry) -> tuple[str | None, bool]:
    """What is wrong with a file, and whether the store's checksum told."""
    name = manifest.place(entry.path)
    url, there = objects.url(name), objects.stat(name)
    if there is None:
        return f"{url} is missing", False
    if there.size != entry.size:
        return f"{url} has {there.size} bytes instead of {entry.size}", False
    md5 = manifest.checksums.get(entry.path)
    if md5 is not None and matches(there, None, md5):
        return None, True
    found = hashlib.sha256()
    for start in range(0, entry.size, PIECE):
        found.update(_piece(objects, name, start, min(start + PIECE, entry.size)))
    if found.hexdigest() != entry.sha256:
        return f"{url} is not what its manifest says (sha256 differs)", False
    return None, False


def _piece(objects: Objects, name: str, start: int, end: int) -> bytes:
    return objects.patiently("reading", name, lambda: objects.read_range(name, start, end))
