"""CIFAR-10 and CIFAR-100 in their authors' own form, which is pickles: read here without ever running one."""

from __future__ import annotations

import hashlib
import io
import math
import pickle
from collections.abc import Collection, Iterator, Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Any

import numpy as np
from numpy.typing import NDArray

from limbeck.data.sources.archives import tar_members
from limbeck.data.sources.listing import (
    Content,
    Indices,
    Listing,
    digest_of_entries,
    labels_of_integers,
    numbered,
)
from limbeck.data.sources.location import Location
from limbeck.errors import InputError

_SIDE = 32
_ROW = 3 * _SIDE * _SIDE
_MAX_FILE_BYTES = 512 * 2**20


_BATCHES: dict[str, dict[str, tuple[str, ...]]] = {
    "cifar-10": {"train": tuple(f"data_batch_{i}" for i in range(1, 6)), "test": ("test_batch",)},
    "cifar-100": {"train": ("train",), "test": ("test",)},
}
_TITLES = {"cifar-10": "batches.meta", "cifar-100": "meta"}
_KNOWN_FILES = {file for splits in _BATCHES.values() for files in splits.values() for file in files}
_LABEL_KEYS = ("labels", "fine_labels")
_TITLE_KEYS = ("label_names", "fine_label_names")


def looks_like_cifar(files: Sequence[str]) -> bool:
    """Whether files of these names, in one directory or archive, are CIFAR's."""
    return "data_batch_1" in files or "test_batch" in files or {"train", "test", "meta"} <= set(files)


class CifarSource:
    """A directory or tar archive with CIFAR's batches: split `train` (the default) or `test`."""

    format = "cifar"

    def __init__(self, location: Location) -> None:
        self.uri = location.uri
        self._location = location

    def listing(self) -> Listing:
        """See `Source.listing`. An image's name is its place in its split."""
        return self._scan.listing

    def fingerprint(self) -> str:
        """See `Source.fingerprint`: of the batches of the split and the file with the class names."""
        return self._scan.fingerprint

    @property
    def single_pass(self) -> bool:
        """See `Source.single_pass`: when it is an archive."""
        return not self._location.is_directory

    def checksums(self) -> None:
        """See `Source.checksums`: images have none of their own."""

    def reader(self, wanted: Indices) -> CifarReader:
        """See `Source.reader`."""
        return CifarReader(self._location, self._scan.places, np.sort(np.asarray(wanted, np.int64)))

    def read(self, wanted: Indices) -> Iterator[tuple[int, Content]]:
        """See `Source.read`."""
        return iter(self.reader(wanted))

    @cached_property
    def _scan(self) -> _Scan:
        """One pass over all files for everything but the pixels."""
        labels: dict[str, NDArray[np.int64]] = {}
        titles: tuple[str, ...] = ()
        digests: dict[str, bytes] = {}
        for file, content in _contents(self._location, _KNOWN_FILES.union(_TITLES.values())):
            parsed = _parsed(self._location, file, content)
            if file in _KNOWN_FILES:
                labels[file] = _labels(self._location, file, parsed, len(_images(self._location, file, parsed)))
            else:
                titles = _titles(self._location, file, parsed)
            digests[file] = hashlib.sha256(content).digest()
        files = self._batches(set(labels))
        ends = np.cumsum([len(labels[file]) for file in files]).tolist()
        places = {file: range(end - len(labels[file]), end) for file, end in zip(files, ends, strict=True)}
        indices, classes = labels_of_integers(np.concatenate([labels[file] for file in files]), titles, self.uri)
        used = sorted(set(digests) - (_KNOWN_FILES - set(files)))
        return _Scan(
            Listing(ends[-1], numbered(ends[-1]), indices, classes, 0),
            places,
            digest_of_entries((file, digests[file]) for file in used),
        )

    def _batches(self, present: set[str]) -> tuple[str, ...]:
        """The files of the split, in their order."""
        kind = "cifar-10" if present & {"data_batch_1", "test_batch"} else "cifar-100"
        splits = _BATCHES[kind]
        files = splits.get(self._location.split or "train")
        if files is None or not present.intersection(files):
            there = sorted(name for name, files in splits.items() if present.intersection(files))
            if not there:
                allowed = "expected data_batch_1..5 and test_batch (CIFAR-10), or train and test (CIFAR-100)"
                raise InputError(self.uri, "holds no CIFAR batch", allowed)
            if self._location.split is None:
                raise InputError(self.uri, "has no split 'train'", f"its splits are {', '.join(there)}")
            raise self._location.no_such_split(there)
        if missing := sorted(set(files) - present):
            raise InputError(self.uri, f"{missing[0]} is missing", f"the split needs {', '.join(files)}")
        return files


@dataclass(frozen=True)
class _Scan:
    """What is kept of the pass over the files: `places` are the indices of each batch's images."""

    listing: Listing
    places: dict[str, range]
    fingerprint: str


@dataclass(frozen=True)
class CifarReader:
    """Some images of CIFAR's batches; see `Reader`.

    Attributes:
        location: the directory or archive.
        places: the indices of each batch's images.
        wanted: i64[n], sorted.
    """

    location: Location
    places: dict[str, range]
    wanted: NDArray[np.int64]

    def __iter__(self) -> Iterator[tuple[int, Content]]:
        """See `Reader`: with one batch in memory at a time."""
        chosen = {}
        for file, places in self.places.items():
            start, stop = np.searchsorted(self.wanted, (places.start, places.stop))
            if stop > start:
                chosen[file] = self.wanted[start:stop]
        for file, content in _contents(self.location, chosen):
            images = _images(self.location, file, _parsed(self.location, file, content))
            for index in chosen[file].tolist():
                yield index, images[index - self.places[file].start].transpose(1, 2, 0)


def _contents(location: Location, known: Collection[str]) -> Iterator[tuple[str, bytes]]:
    """The name and bytes of every file of these names that is there."""
    if location.is_directory:
        for file, is_folder in location.children().items():
            if file in known and not is_folder:
                with location.open(f"{location.path}/{file}") as opened:
                    content = opened.read(_MAX_FILE_BYTES + 1)
                _check_size(location, file, len(content))
                yield file, content
    else:
        for member in tar_members(location):
            file = member.info.name.rsplit("/", 1)[-1]
            if file in known and member.info.isreg():
                _check_size(location, file, member.info.size)
                yield file, member.content()


def _check_size(location: Location, file: str, size: int) -> None:
    if size > _MAX_FILE_BYTES:
        raise _not_cifar(location, file, f"has more than {_MAX_FILE_BYTES >> 20} MiB")


def _parsed(location: Location, file: str, content: bytes) -> dict[str, Any]:
    try:
        parsed = _Unpickler(io.BytesIO(content), encoding="bytes").load()
        return {key.decode() if isinstance(key, bytes) else str(key): value for key, value in parsed.items()}
    except Exception as error:
        # A forged pickle can make its reader stumble in any way; none of them runs anything.
        raise _not_cifar(location, file, str(error)) from error


def _images(location: Location, file: str, parsed: dict[str, Any]) -> NDArray[np.uint8]:
    data = parsed.get("data")
    if not isinstance(data, _PickledArray):
        raise _not_cifar(location, file, "has no array under 'data'")
    images = data.uint8()
    if images is None or not images.size or images.size % _ROW or images.shape[0] * _ROW != images.size:
        raise _not_cifar(location, file, f"its data are not uint8 [n, {_ROW}]")
    return images.reshape(-1, 3, _SIDE, _SIDE)


def _labels(location: Location, file: str, parsed: dict[str, Any], count: int) -> NDArray[np.int64]:
    labels = next((parsed[key] for key in _LABEL_KEYS if key in parsed), None)
    if not isinstance(labels, list) or not all(isinstance(label, int) for label in labels):
        raise _not_cifar(location, file, f"has no list of integers under {' or '.join(_LABEL_KEYS)}")
    if len(labels) != count:
        raise _not_cifar(location, file, f"has {len(labels)} labels for {count} images")
    return np.array(labels, np.int64)


def _titles(location: Location, file: str, parsed: dict[str, Any]) -> tuple[str, ...]:
    names: Any = next((parsed[key] for key in _TITLE_KEYS if key in parsed), [])
    if not isinstance(names, list) or not all(isinstance(name, bytes | str) for name in names):
        raise _not_cifar(location, file, "its class names are not a list of strings")
    return tuple(name.decode() if isinstance(name, bytes) else name for name in names)


def _not_cifar(location: Location, file: str, reason: str) -> InputError:
    return InputError(f"{location.uri}: {file}", f"is not a CIFAR batch: {reason}")


class _PickledType:
    """Stands for `numpy.dtype` while a pickle is read: keeps the type's name, builds nothing."""

    def __init__(self, name: object = None, *_: object) -> None:
        self.name = name.decode() if isinstance(name, bytes) else name

    def __setstate__(self, state: object) -> None:
        """A dtype's byte order and flags: uint8 has none that matter."""


class _PickledArray:
    """Stands for `numpy.ndarray` while a pickle is read: keeps the state as it comes, builds nothing."""

    def __init__(self, *_: object) -> None:
        self._state: object = None

    def __setstate__(self, state: object) -> None:
        self._state = state

    @classmethod
    def of_buffer(cls, content: object, kind: object, shape: object, order: object) -> _PickledArray:
        """Stands for numpy's `_frombuffer`, by which pickle protocol 5 keeps arrays."""
        array = cls()
        array._state = (1, shape, kind, order == "F", content)
        return array

    def uint8(self) -> NDArray[np.uint8] | None:
        """The array, or None when it is not one of uint8 whose bytes fit its shape."""
        match self._state:
            case (_, tuple(shape), _PickledType(name="u1" | "uint8"), order, bytes() | bytearray() as data):
                if math.prod(shape) == len(data):
                    return np.frombuffer(data, np.uint8).reshape(shape, order="F" if order else "C")
        return None


def _latin1(text: str, _: str) -> bytes:
    """Stands for `_codecs.encode`, by which Python 3 writes bytes in old protocols: always as latin-1."""
    return text.encode("latin-1")


_STAND_INS = {
    ("numpy.core.multiarray", "_reconstruct"): _PickledArray,
    ("numpy._core.multiarray", "_reconstruct"): _PickledArray,
    ("numpy.core.numeric", "_frombuffer"): _PickledArray.of_buffer,
    ("numpy._core.numeric", "_frombuffer"): _PickledArray.of_buffer,
    ("numpy", "ndarray"): _PickledArray,
    ("numpy", "dtype"): _PickledType,
    ("_codecs", "encode"): _latin1,
}


class _Unpickler(pickle.Unpickler):
    """Reads lists, dicts, strings, numbers and numpy arrays; finds nothing else, so nothing can run."""

    def find_class(self, module: str, name: str) -> Any:
        try:
            return _STAND_INS[module, name]
        except KeyError:
            raise pickle.UnpicklingError(f"asks for {module}.{name}, which no batch needs") from None
