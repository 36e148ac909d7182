"""Images in WebDataset's shards: tar archives in which the members of one sample share the name up to its first dot."""

from __future__ import annotations

import re
from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, replace
from functools import cached_property

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from limbeck.data.sources.archives import (
    TAR_SUFFIXES,
    SpanReader,
    TarReader,
    checksums_of_places,
    tar_fault,
    tar_members,
)
from limbeck.data.sources.digests import digests_of_files
from limbeck.data.sources.folders import Entry, Files, is_image, tidy, whole
from limbeck.data.sources.listing import (
    Content,
    Indices,
    Labels,
    Listing,
    Names,
    Reader,
    digest_of_entries,
    labels_of_names,
)
from limbeck.data.sources.location import Location, locate
from limbeck.errors import InputError
from limbeck.storage import Access

IMAGE_EXTENSIONS = ("jpg", "jpeg", "png")
LABEL_EXTENSION = "cls"

_BRACES = re.compile(r"(.*/)?([^/{}]*)\{(\d+)\.\.(\d+)\}([^/{}]*)")
_MOST_SHARDS = 100_000
_LONGEST_LABEL = 1024  # bytes
_SHARDS_AT_ONCE, _LOCAL_SHARDS_AT_ONCE = 16, 2
_COLUMNS = {"shard": pa.int32(), "start": pa.int64(), "size": pa.int64(), "label": pa.large_string()}


class WebDatasetSource:
    """A directory of tar shards; an image's name is its shard's, its sample's key and its extension.

    Args:
        location: the directory; a split is how the names of its shards begin.
        shards: the file names of those to read; None reads all.
    """

    format = "webdataset"

    def __init__(self, location: Location, shards: Sequence[str] | None = None) -> None:
        self.uri = location.uri
        self._location = location
        self._named = shards
        if not location.is_directory:
            raise InputError(self.uri, "is a file", "format webdataset reads a directory of .tar shards")

    @property
    def single_pass(self) -> bool:
        """See `Source.single_pass`: when a shard is compressed."""
        return bool(self._compressed)

    def listing(self) -> Listing:
        """See `Source.listing`: by one pass over the headers of every shard."""
        return self._listing

    def fingerprint(self) -> str:
        """See `Source.fingerprint`: of the names and checksums of the shards."""
        return digest_of_entries(zip(self._shards, self._digests, strict=True))

    def checksums(self) -> pa.Array:
        """See `Source.checksums`: the shard's and where in it the image is."""
        shards, starts = self._column("shard").to_numpy(), self._column("start")
        order, found = [], []
        for shard, digest in enumerate(self._digests):
            here = np.flatnonzero(shards == shard)
            order.append(here)
            found.append(checksums_of_places(digest, starts.take(pa.array(here))))
        return pa.concat_arrays(found).take(pa.array(np.argsort(np.concatenate(order))))

    def reader(self, wanted: Indices) -> WebDatasetReader:
        """See `Source.reader`."""
        indices = np.asarray(wanted, np.int64)
        images = self._images.take(pa.array(indices))
        shards, starts = images["shard"].to_numpy(), images["start"].to_numpy()
        stops, faults = starts + images["size"].to_numpy(), whole(images["fault"])
        folder, readers = f"{self._location.path}/", list[Reader]()
        in_stream = np.isin(shards, list(self._compressed))
        for shard in np.unique(shards[in_stream]).tolist():
            here = np.flatnonzero(shards == shard)
            chosen = faults.take(pa.array(here))
            readers.append(TarReader(self._location, indices[here], starts[here], chosen, folder + self._shards[shard]))
        here = np.flatnonzero(~in_stream)
        paths = pa.DictionaryArray.from_arrays(shards[here], [folder + name for name in self._shards])
        chosen = faults.take(pa.array(here))
        readers.append(SpanReader(self._location, indices[here], paths, starts[here], stops[here], chosen))
        return WebDatasetReader(tuple(readers))

    def read(self, wanted: Indices) -> Iterator[tuple[int, Content]]:
        """See `Source.read`."""
        return iter(self.reader(wanted))

    @cached_property
    def _names(self) -> list[str]:
        """Of all files in the directory."""
        return [name for name, is_folder in self._location.children().items() if not is_folder]

    @cached_property
    def _shards(self) -> list[str]:
        """The file names of the shards, sorted."""
        there = [name for name in self._names if is_shard(name)]
        if self._named is not None:
            missing = sorted(set(self._named) - set(self._names))
            if missing:
                more = f" and {len(missing) - 1} more" if len(missing) > 1 else ""
                raise InputError(self.uri, f"shard {missing[0]}{more} is not there", "every shard of the range")
            return sorted(self._named)
        if not there:
            raise InputError(self.uri, "holds no .tar shard")
        split = self._location.split
        chosen = [name for name in there if split is None or name.startswith(split)]
        if not chosen:
            raise self._location.no_such_split(sorted({re.split(r"[-._]", name)[0] for name in there}))
        return chosen

    @cached_property
    def _compressed(self) -> frozenset[int]:
        """Which shards can only be read from their beginning."""
        return frozenset(number for number, shard in enumerate(self._indexed) if shard.compressed)

    @cached_property
    def _indexed(self) -> list[_Shard]:
        at_once = _SHARDS_AT_ONCE if self._location.is_object_store else _LOCAL_SHARDS_AT_ONCE
        with ThreadPoolExecutor(at_once, "limbeck-shards") as pool:
            return list(pool.map(lambda shard: _index(self._location, *shard), enumerate(self._shards)))

    @cached_property
    def _images(self) -> pa.Table:
        files = Files(_COLUMNS)
        for shard in self._indexed:
            files.extend(shard.files)
        return files.images(self.uri)

    def _column(self, name: str) -> pa.Array:
        return whole(self._images[name])

    @cached_property
    def _listing(self) -> Listing:
        names = Names(self._column("name"))
        labels, classes = _labels(self._column("label"), self._column("fault"))
        ignored = sum(shard.files.ignored for shard in self._indexed)
        if self._named is None:
            ignored += sum(not is_shard(name) for name in self._names)
        return Listing(len(names), names, labels, classes, ignored)

    @cached_property
    def _digests(self) -> list[bytes]:
        return digests_of_files(self._location, self._shards)


@dataclass(frozen=True)
class WebDatasetReader:
    """Some images of shards; see `Reader`: first those of compressed shards, each in one pass."""

    readers: tuple[Reader, ...]

    def __iter__(self) -> Iterator[tuple[int, Content]]:
        """See `Reader`."""
        for reader in self.readers:
            yield from reader


@dataclass(frozen=True)
class _Shard:
    """What a pass over a shard's headers found."""

    files: Files
    compressed: bool


def is_shard(name: str) -> bool:
    """Whether a file of this name is a shard."""
    return name.lower().endswith(TAR_SUFFIXES) and not name.startswith(".")


def key_of(path: str) -> tuple[str, str]:
    """The key of a member's sample, and the member's extension: `a.b/c.d.e` has `a.b/c` and `d.e`.

    Both as WebDataset reads them; the extension in small letters, and empty where the name has no dot.
    """
    folder, slash, name = path.rpartition("/")
    stem, _, extension = name.partition(".")
    return f"{folder}{slash}{stem}", extension.lower()


def locate_shards(uri: str, access: Access) -> tuple[Location, list[str]] | None:
    """The directory and the shards of a URI such as `gs://bucket/train-{000..123}.tar`; None for any other.

    Raises:
        InputError: the range is empty or absurd, or the directory cannot be reached.
    """
    match = _BRACES.fullmatch(uri)
    if match is None:
        return None
    folder, before, first, last, after = match.groups()
    count = int(last) - int(first) + 1
    if not 0 < count <= _MOST_SHARDS:
        raise InputError(uri, f"{{{first}..{last}}} names {count} shards", f"1 to {_MOST_SHARDS}")
    shards = [f"{before}{number:0{len(first)}d}{after}" for number in range(int(first), int(last) + 1)]
    return replace(locate(folder or ".", access), uri=uri), shards


def _index(location: Location, number: int, name: str) -> _Shard:
    """One pass over a shard: its images, each with the label of its sample."""
    path = f"{location.path}/{name}"
    stem = re.sub(r"\.(tar|tgz)(\.\w+)?$", "", name, flags=re.IGNORECASE)
    found: list[tuple[str, str, str, int, int]] = []
    labels: dict[str, str] = {}
    files = Files(_COLUMNS)
    compressed = False
    for member in tar_members(location, path):
        compressed = member.compressed
        info, fault = member.info, tar_fault(member.info)
        key, extension = key_of(info.name)
        if extension in IMAGE_EXTENSIONS and is_image(info.name):
            original = info.name[len(key) :]
            found.append((key, f"{stem}/{tidy(key)}{original}", fault, info.offset_data, info.size))
        elif extension == LABEL_EXTENSION and not fault:
            if info.size > _LONGEST_LABEL:
                where, allowed = f"{location.uri}: {name}: {info.name}", "an integer or the name of a class"
                raise InputError(where, f"has {info.size:,} bytes", allowed)
            labels[key] = member.content().decode("utf-8", "backslashreplace").strip()
        elif extension != LABEL_EXTENSION:
            files.ignored += 1
    for key, image, fault, start, size in found:
        files.add(Entry(image, fault, (number, start, size, labels.get(key) or None)))
    return _Shard(files, compressed)


def _labels(texts: pa.Array, faults: pa.Array) -> Labels:
    """Integers or names: where all are integers, 007 is 7 and a negative one is none."""
    texts = pc.if_else(faults.is_null(), texts, None)
    coded = texts.dictionary_encode()
    found = coded.dictionary.to_pylist()
    if all(re.fullmatch(r"[+-]?\d{1,18}", text) for text in found):
        titles = [str(int(text)) if int(text) >= 0 else None for text in found]
        texts = pa.array(titles, pa.large_string()).take(coded.indices)
    return labels_of_names(texts)
