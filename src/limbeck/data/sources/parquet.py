"""Images in Parquet files, as Hugging Face stores datasets: a column of encoded images, and one of labels."""

from __future__ import annotations

import contextlib
import json
import re
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from functools import cached_property
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq
from numpy.typing import NDArray

from limbeck.data.decode import MAX_ENCODED_BYTES, BadImage
from limbeck.data.sources.archives import checksums_of_places
from limbeck.data.sources.digests import digests_of_files
from limbeck.data.sources.folders import whole
from limbeck.data.sources.listing import (
    Content,
    Indices,
    Labels,
    Listing,
    Names,
    digest_of_entries,
    labels_of_integers,
    labels_of_names,
    places_in,
)
from limbeck.data.sources.location import Location
from limbeck.errors import InputError

IMAGE_COLUMNS = ("image", "img")
LABEL_COLUMNS = ("label", "labels", "fine_label")

_BATCH_ROWS = 256
_FILES_AT_ONCE = 16


@dataclass(frozen=True)
class _Part:
    """One file, its content but for the images.

    Attributes:
        name: the file's.
        path: where it is.
        rows: how many it has.
        image_column: the name of the column of images.
        labels: the column of labels, strings or integers; None when it has none.
        titles: the names of integer labels, when the file gives them.
    """

    name: str
    path: str
    rows: int
    image_column: str
    labels: pa.ChunkedArray | None
    titles: tuple[str, ...]

    @property
    def stem(self) -> str:
        """Its name without the suffix, by which its images are named."""
        return self.name.removesuffix(".parquet")


class ParquetSource:
    """A Parquet file, or a directory of them whose names begin with the name of their split."""

    format = "parquet"
    single_pass = False

    def __init__(self, location: Location) -> None:
        self.uri = location.uri
        self._location = location
        if not location.is_directory and location.split is not None:
            raise location.no_such_split([])

    def listing(self) -> Listing:
        """See `Source.listing`. An image's name is its file's and its row."""
        return self._listing

    def fingerprint(self) -> str:
        """See `Source.fingerprint`: of the names and checksums of the files."""
        return digest_of_entries(zip([part.stem for part in self._parts], self._digests, strict=True))

    def checksums(self) -> pa.Array:
        """See `Source.checksums`: the file's and the row."""
        digests = zip(self._parts, self._digests, strict=True)
        return pa.concat_arrays(
            [checksums_of_places(digest, pa.array(np.arange(part.rows))) for part, digest in digests]
        )

    def reader(self, wanted: Indices) -> ParquetReader:
        """See `Source.reader`."""
        ordered = np.sort(np.asarray(wanted, np.int64))
        files = []
        first = 0
        for part in self._parts:
            start, stop = np.searchsorted(ordered, (first, first + part.rows))
            if stop > start:
                files.append(_Rows(part.path, part.image_column, first, ordered[start:stop] - first))
            first += part.rows
        return ParquetReader(self._location, tuple(files))

    def read(self, wanted: Indices) -> Iterator[tuple[int, Content]]:
        """See `Source.read`."""
        return iter(self.reader(wanted))

    @cached_property
    def _files(self) -> list[str]:
        return [name for name, is_folder in self._location.children().items() if not is_folder]

    @cached_property
    def _parts(self) -> list[_Part]:
        location = self._location
        if not location.is_directory:
            return [self._part(location.path)]
        names = [name for name in self._files if _is_parquet(name)]
        chosen = [name for name in names if location.split is None or name.startswith(location.split)]
        if not names:
            raise InputError(self.uri, "holds no .parquet file")
        if not chosen:
            raise location.no_such_split(sorted({re.split(r"[-.]", name)[0] for name in names}))
        with ThreadPoolExecutor(_FILES_AT_ONCE if location.is_object_store else 1, "limbeck-parquet") as pool:
            parts = list(pool.map(self._part, [f"{location.path}/{name}" for name in chosen]))
        if len({part.labels is None for part in parts}) > 1:
            raise InputError(self.uri, "only some of its files have a label column", "all or none must")
        return sorted(parts, key=lambda part: f"{part.stem}/")

    def _part(self, path: str) -> _Part:
        name = path.rsplit("/", 1)[-1]
        with opened(self._location, path) as file:
            schema, rows = file.schema_arrow, file.metadata.num_rows
            image_column = self._image_column(name, schema)
            label_column = next((name for name in LABEL_COLUMNS if name in schema.names), None)
            if label_column is None:
                return _Part(name, path, rows, image_column, None, ())
            labels = file.read([label_column]).column(0)
            if len(labels) != rows:
                raise EOFError(f"{len(labels)} labels in {rows} rows")
        if pa.types.is_dictionary(labels.type):
            labels = labels.cast(labels.type.value_type)
        return _Part(name, path, rows, image_column, labels, _class_names(schema, label_column))

    def _image_column(self, name: str, schema: pa.Schema) -> str:
        column = next((name for name in IMAGE_COLUMNS if name in schema.names), None)
        if column is None:
            found = f"{name} has no image column, only {', '.join(schema.names[:20]) or '(none)'}"
            raise InputError(self.uri, found, f"it is called {' or '.join(IMAGE_COLUMNS)}")
        kind = schema.field(column).type
        if pa.types.is_struct(kind):
            kind = kind.field("bytes").type if kind.get_field_index("bytes") >= 0 else kind
        if not (pa.types.is_binary(kind) or pa.types.is_large_binary(kind)):
            found = f"column {column} of {name} has type {kind}"
            raise InputError(self.uri, found, "encoded images are binary, or a struct with binary bytes")
        return column

    @cached_property
    def _listing(self) -> Listing:
        names = pa.concat_arrays([places_in(f"{part.stem}/", part.rows) for part in self._parts])
        if not len(names):
            raise InputError(self.uri, "holds no image: it has no rows")
        labels, classes = self._labels()
        ignored = sum(not _is_parquet(name) for name in self._files) if self._location.is_directory else 0
        return Listing(len(names), Names(names), labels, classes, ignored)

    def _labels(self) -> Labels:
        columns = [part.labels for part in self._parts if part.labels is not None]
        if not columns:
            return None, ()
        kinds = {column.type for column in columns}
        if all(pa.types.is_integer(kind) for kind in kinds):
            values = np.concatenate(
                [pc.fill_null(column.cast(pa.int64(), safe=False), -1).to_numpy() for column in columns]
            )
            return labels_of_integers(values, self._parts[-1].titles, self.uri)
        if all(pa.types.is_string(kind) or pa.types.is_large_string(kind) for kind in kinds):
            return labels_of_names(pa.concat_arrays([whole(column.cast(pa.large_string())) for column in columns]))
        found = f"its label column has type {', '.join(sorted(str(kind) for kind in kinds))}"
        raise InputError(self.uri, found, "labels are integers or strings")

    @cached_property
    def _digests(self) -> list[bytes]:
        return digests_of_files(self._location, [part.name for part in self._parts])


@dataclass(frozen=True)
class _Rows:
    """Some rows of one file: `rows` i64[n] are sorted, the first row of the file has the index `first`."""

    path: str
    image_column: str
    first: int
    rows: NDArray[np.int64]


@dataclass(frozen=True)
class ParquetReader:
    """Some rows of Parquet files; see `Reader`."""

    location: Location
    files: tuple[_Rows, ...]

    def __iter__(self) -> Iterator[tuple[int, Content]]:
        """See `Reader`: in order, one row group at a time."""
        for wanted in self.files:
            with opened(self.location, wanted.path) as file:
                for row, content in _contents(file, wanted.image_column, wanted.rows):
                    yield wanted.first + row, content


def _contents(file: pq.ParquetFile, image_column: str, rows: NDArray[np.int64]) -> Iterator[tuple[int, Content]]:
    first = 0
    for group in range(file.num_row_groups):
        end = first + file.metadata.row_group(group).num_rows
        if not ((rows >= first) & (rows < end)).any():
            first = end
            continue
        for batch in file.iter_batches(_BATCH_ROWS, [group], columns=[image_column]):
            images = batch.column(0)
            if pa.types.is_struct(images.type):
                images = pc.struct_field(images, "bytes")
            for row in rows[(rows >= first) & (rows < first + len(images))]:
                yield int(row), _content(images[int(row) - first])
            first += len(images)


@contextlib.contextmanager
def opened(location: Location, path: str) -> Iterator[pq.ParquetFile]:
    """Open a Parquet file on the location's filesystem; a row group is fetched by few requests.

    Raises:
        InputError: it is gone, or it is none.
    """
    name = path.rsplit("/", 1)[-1]
    # Arrow asks for a row group's pages together: blocks around them would be fetched in vain.
    with location.open(path, block=0) as stream:
        try:
            with pq.ParquetFile(stream, pre_buffer=True) as file:
                yield file
        except (pa.ArrowException, OSError, EOFError, UnicodeDecodeError) as error:
            raise InputError(location.uri, f"{name} is not a readable Parquet file: {error}") from error


def _is_parquet(name: str) -> bool:
    return name.endswith(".parquet") and not name.startswith(".")


def _content(value: Any) -> Content:
    buffer = value.as_buffer()
    if buffer is None:
        return BadImage("has no bytes")
    if buffer.size > MAX_ENCODED_BYTES:
        return BadImage(f"has {buffer.size:,} bytes, more than {MAX_ENCODED_BYTES >> 20} MiB")
    return bytes(buffer)


def _class_names(schema: pa.Schema, column: str) -> tuple[str, ...]:
    """The class names that Hugging Face's `datasets` leaves in the schema; empty when there are none."""
    try:
        features = json.loads(schema.metadata[b"huggingface"])["info"]["features"]
        return tuple(str(name) for name in features[column]["names"])
    except (KeyError, TypeError, ValueError):
        return ()
