"""What paths in a tree or an archive say: which are images, in which split, and of which class."""

from __future__ import annotations

import re
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from typing import Any, NamedTuple

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from limbeck.data.sources.listing import Labels, Listing, Names, labels_of_names
from limbeck.data.sources.location import Location
from limbeck.errors import InputError

SUFFIXES = (".jpg", ".jpeg", ".png")

_BATCH = 8192  # rows gathered as Python objects before they become columns


class Entry(NamedTuple):
    """One file, on its way into `Files`.

    Attributes:
        name: its path from the top of the tree or archive, or from the top of the split.
        fault: why it must not be read; empty when it may.
        place: what its reader needs to find it again, in the order of the columns of `Files`.
    """

    name: str
    fault: str
    place: tuple[Any, ...]


class Files:
    """The files of a tree or an archive: columns of those that are images, and how many others there are.

    Args:
        columns: names and types of what a reader needs to find an image again.
    """

    def __init__(self, columns: dict[str, pa.DataType]) -> None:
        self.ignored = 0
        self._schema = pa.schema({"name": pa.large_string(), "fault": pa.string(), **columns})
        self._rows: list[tuple[Any, ...]] = []
        self._batches: list[pa.RecordBatch] = []

    def add(self, entry: Entry) -> None:
        """Keep a file when it is an image, else count it."""
        if not is_image(entry.name):
            self.ignored += 1
            return
        self._rows.append((entry.name, entry.fault or None, *entry.place))
        if len(self._rows) == _BATCH:
            self.close_batch()

    def extend(self, other: Files) -> None:
        """Take over all files of another of the same columns, which is left without any."""
        self.ignored += other.ignored
        other.close_batch()
        self._batches += other._batches
        other._batches = []

    def images(self, where: str) -> pa.Table:
        """The images sorted by name: "name", "fault" (null: none) and the columns; each name once.

        Raises:
            InputError: there is none.
        """
        self.close_batch()
        if not self._batches:
            beside = f" among {self.ignored} files" if self.ignored else ""
            raise InputError(where, f"holds no image{beside}", f"images are {' '.join(SUFFIXES)} files")
        columns = pa.Table.from_batches(self._batches, self._schema).columns
        self._batches = []
        order = pc.sort_indices(columns[0]).to_numpy()  # by code points, as Python sorts; equal names stay in order
        in_order = bool((np.diff(order.view(np.int64)) == 1).all())
        for place in range(len(columns)):  # one after the other, so that never more than one is there twice
            columns[place] = whole(columns[place])
            if not in_order:
                columns[place] = pc.take(columns[place], order)
            pa.default_memory_pool().release_unused()  # what threads that are gone had of the column
        return _each_once(pa.table(columns, schema=self._schema))

    def close_batch(self) -> None:
        """Turn what was added lately into columns, which take far less memory."""
        if self._rows:
            columns = [
                pa.array(values, field.type)
                for values, field in zip(zip(*self._rows, strict=True), self._schema, strict=True)
            ]
            self._batches.append(pa.record_batch(columns, self._schema))
            self._rows = []


@dataclass(frozen=True)
class Arrangement:
    """The images of a tree or archive in the order of their names (see `Files.images`), and what they amount to."""

    images: pa.Table
    listing: Listing

    def column(self, name: str) -> pa.Array:
        """One column, whole."""
        return whole(self.images[name])


def is_image(path: str) -> bool:
    """Whether a file counts as an image: by its suffix, unless it or a folder above it is hidden."""
    if not path.lower().endswith(SUFFIXES):
        return False
    if not (path.startswith(".") or "/." in path or "\\." in path):
        return True
    return not any(part.startswith(".") and part not in (".", "..") for part in re.split(r"[\\/]", path))


def tidy(path: str) -> str:
    """`./a//b.jpg` is `a/b.jpg`; bytes that are not UTF-8 are spelled out, so that it can be written."""
    if path.isascii() and not path.startswith(("/", "./")) and "//" not in path and "/./" not in path:
        return path.rstrip("/")
    joined = "/".join(part for part in path.split("/") if part not in ("", "."))
    return joined.encode("utf-8", "surrogateescape").decode("utf-8", "backslashreplace")


def unsafe_name(path: str) -> str:
    """Why an archive's member has a name that no honest archive has; empty when its name is good."""
    if path.startswith(("/", "\\")) or re.match(r"[A-Za-z]:[\\/]", path):
        return "has an absolute name"
    if ".." in re.split(r"[\\/]", path):
        return "has '..' in its name"
    return ""


def of_split(entries: Iterable[Entry], location: Location) -> Iterator[Entry]:
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
            yield entry._replace(name=entry.name.removeprefix(prefix))
    if location.split not in folders:
        raise location.no_such_split(sorted(folders))


def arrange(files: Files, where: str) -> Arrangement:
    """Sort out a tree's or an archive's files, once those of other splits are left out.

    An image's class is its first folder, when all images lie equally deep in folders; else it has none.

    Raises:
        InputError: there is no image among them.
    """
    images = files.images(where)
    names = whole(images["name"])
    labels, classes = _folder_labels(names, whole(images["fault"]))
    return Arrangement(images, Listing(len(names), Names(names), labels, classes, files.ignored))


def whole(column: pa.ChunkedArray) -> pa.Array:
    """A column in one piece."""
    return column.chunk(0) if column.num_chunks == 1 else column.combine_chunks()


def _each_once(images: pa.Table) -> pa.Table:
    """Of images of one name the first, which must not be read: nobody can say which is meant."""
    names = whole(images["name"])
    differs = np.ones(len(names), np.bool_)
    differs[1:] = pc.not_equal(names[1:], names[:-1]).to_numpy(zero_copy_only=False)
    if differs.all():
        return images
    first = np.flatnonzero(differs)
    times = np.diff(first, append=len(names)).tolist()
    repeated = pa.array([f"occurs {count} times" if count > 1 else None for count in times], pa.string())
    kept = images.take(pa.array(first)).combine_chunks()
    faults = pc.coalesce(repeated, whole(kept["fault"]))
    return kept.set_column(kept.schema.get_field_index("fault"), "fault", faults)


def _folder_labels(names: pa.Array, faults: pa.Array) -> Labels:
    good = faults.is_null()
    depths = np.unique(pc.count_substring(names, "/").filter(good).to_numpy())
    if depths.size != 1 or depths[0] == 0:
        return None, ()
    folders = pc.replace_substring_regex(names, "(?s)/.*", "")
    return labels_of_names(pc.if_else(good, folders, None))
