"""What paths in a tree or an archive say: which are images, in which split, and of which class."""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Iterable
from dataclasses import dataclass, replace
from typing import Generic, TypeVar

from limbeck.data.sources.listing import Listing, Names, labels_of_names
from limbeck.data.sources.location import Location
from limbeck.errors import InputError

SUFFIXES = (".jpg", ".jpeg", ".png")

Place = TypeVar("Place")


@dataclass(frozen=True)
class Entry(Generic[Place]):
    """One file.

    Attributes:
        name: its path from the top of the tree or archive, or from the top of the split once arranged.
        place: what its reader needs to find it again.
        fault: why it must not be read; empty when it may.
    """

    name: str
    place: Place
    fault: str = ""


@dataclass(frozen=True)
class Arrangement(Generic[Place]):
    """The images of a tree or archive in the order of their names, and what they amount to."""

    entries: tuple[Entry[Place], ...]
    listing: Listing


def is_image(path: str) -> bool:
    """Whether a file counts as an image: by its suffix, unless it or a folder above it is hidden."""
    hidden = any(part.startswith(".") and part not in (".", "..") for part in re.split(r"[\\/]", path))
    return path.lower().endswith(SUFFIXES) and not hidden


def tidy(path: str) -> str:
    """`./a//b.jpg` is `a/b.jpg`; bytes that are not UTF-8 are spelled out, so that it can be written."""
    joined = "/".join(part for part in path.split("/") if part not in ("", "."))
    return joined.encode("utf-8", "surrogateescape").decode("utf-8", "backslashreplace")


def unsafe_name(path: str) -> str:
    """Why an archive's member has a name that no honest archive has; empty when its name is good."""
    if path.startswith(("/", "\\")) or re.match(r"[A-Za-z]:[\\/]", path):
        return "has an absolute name"
    if ".." in re.split(r"[\\/]", path):
        return "has '..' in its name"
    return ""


def of_split(entries: Iterable[Entry[Place]], location: Location) -> Iterable[Entry[Place]]:
    """The files of an archive that are in the location's split, named from there; all files when it has none.

    Raises:
        InputError: the archive has no such folder at its top.
    """
    if location.split is None:
        yield from entries
        return
    prefix, folders = f"{location.split}/", set()
    for entry in entries:
        if "/" in entry.name and not entry.fault:
            folders.add(entry.name.split("/", 1)[0])
        if entry.name.startswith(prefix):
            yield replace(entry, name=entry.name.removeprefix(prefix))
    if location.split not in folders:
        raise location.no_such_split(sorted(folders))


def arrange(entries: Iterable[Entry[Place]], where: str) -> Arrangement[Place]:
    """Sort out a tree's or an archive's files, once those of other splits are left out.

    An image's class is its first folder, when all images lie equally deep in folders; else it has none.

    Raises:
        InputError: there is no image among them.
    """
    inside = list(entries)
    images = [entry for entry in inside if is_image(entry.name)]
    ignored = len(inside) - len(images)
    if not images:
        beside = f" among {ignored} files" if ignored else ""
        raise InputError(where, f"holds no image{beside}", f"images are {' '.join(SUFFIXES)} files")
    ordered = _unique(images)
    labels, classes = labels_of_names(_classes(ordered))
    names = Names([entry.name for entry in ordered])
    return Arrangement(tuple(ordered), Listing(len(names), names, labels, classes, ignored))


def _unique(images: list[Entry[Place]]) -> list[Entry[Place]]:
    times = Counter(entry.name for entry in images)
    first = {entry.name: entry for entry in reversed(images)}
    return [
        replace(first[name], fault=f"occurs {times[name]} times") if times[name] > 1 else first[name]
        for name in sorted(times)
    ]


def _classes(entries: list[Entry[Place]]) -> list[str | None]:
    depths = {entry.name.count("/") for entry in entries if not entry.fault}
    if len(depths) != 1 or depths == {0}:
        return [None] * len(entries)
    return [None if entry.fault else entry.name.split("/", 1)[0] for entry in entries]
