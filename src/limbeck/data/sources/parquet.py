"""Images in Parquet files, as Hugging Face stores datasets: a column of encoded images, and one of labels."""

from __future__ import annotations

import contextlib
import json
import re
from collections.abc import Iterator
from dataclasses import dataclass
from functools import cached_property
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq

from limbeck.data.decode import MAX_ENCODED_BYTES, BadImage
from limbeck.data.sources.listing import (
    Content,
    Indices,
    Labels,
    Listing,
    Names,
    digest_of_entries,
    labels_of_integers,
    labels_of_names,
)
from limbeck.data.sources.location import Location
from limbeck.data.sources.reopening import Reopened
from limbeck.errors import InputError

IMAGE_COLUMNS = ("image", "img")
LABEL_COLUMNS = ("label", "labels", "fine_label")

_BATCH_ROWS = 256


@dataclass(frozen=True)
class _Part:
    """One file: its name without the suffix, where it is, how many rows it has, and its columns."""

    stem: str
    path: str
    rows: int
    image_column: str
    label_column: str | None


class ParquetSource:
    """A Parquet file, or a directory of them whose names begin with the name of their split."""

    format = "parquet"

    def __init__(self, location: Location) -> None:
        self.uri = location.uri
        self._location = location
        if not location.is_directory and location.split is not None:
            raise location.no_such_split([])

    def listing(self) -> Listing:
        """See `Source.listing`. An image's name is its file's and its row."""
        return self._listing

    def fingerprint(self) -> str:
        """See `Source.fingerprint`: of the names and bytes of the files."""
        return self._fingerprint

    @property
    def single_pass(self) -> bool:
        """See `Source.single_pass`."""
        return True

    def checksums(self) -> pa.Array | None:
        """See `Source.checksums`."""
        return None

    def reader(self, wanted: Indices) -> Reopened:
        """See `Source.reader`."""
        return Reopened(self.uri, self.format, self._location.access, wanted)

    def read(self, wanted: Indices) -> Iterator[tuple[int, Content]]:
        """See `Source.read`: in order, one row group at a time."""
        ordered = np.sort(np.asarray(wanted, np.int64))
        first = 0
        for part in self._parts:
            inside = ordered[(ordered >= first) & (ordered < first + part.rows)] - first
            if inside.size:
                yield from ((first + row, content) for row, content in self._read_part(part, inside))
            first += part.rows

    def _read_part(self, part: _Part, rows: Any) -> Iterator[tuple[int, Content]]:
        with self._opened(part.path) as file:
            first = 0
            for group in range(file.num_row_groups):
                end = first + file.metadata.row_group(group).num_rows
                if not ((rows >= first) & (rows < end)).any():
                    first = end
                    continue
                for batch in file.iter_batches(_BATCH_ROWS, [group], columns=[part.image_column]):
                    images = batch.column(0)
                    if pa.types.is_struct(images.type):
                        images = pc.struct_field(images, "bytes")
                    for row in rows[(rows >= first) & (rows < first + len(images))]:
                        yield int(row), _content(images[int(row) - first])
                    first += len(images)

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
        parts = [self._part(f"{location.path}/{name}") for name in chosen]
        if len({part.label_column for part in parts}) > 1:
            raise InputError(self.uri, "only some of its files have a label column", "all or none must")
        return sorted(parts, key=lambda part: f"{part.stem}/")

    def _part(self, path: str) -> _Part:
        with self._opened(path) as file:
            schema, rows = file.schema_arrow, file.metadata.num_rows
        image_column = next((name for name in IMAGE_COLUMNS if name in schema.names), None)
        label_column = next((name for name in LABEL_COLUMNS if name in schema.names), None)
        name = path.rsplit("/", 1)[-1]
        if image_column is None:
            found = f"{name} has no image column, only {', '.join(schema.names[:20]) or '(none)'}"
            raise InputError(self.uri, found, f"it is called {' or '.join(IMAGE_COLUMNS)}")
        kind = schema.field(image_column).type
        if pa.types.is_struct(kind):
            kind = kind.field("bytes").type if kind.get_field_index("bytes") >= 0 else kind
        if not (pa.types.is_binary(kind) or pa.types.is_large_binary(kind)):
            found = f"column {image_column} of {name} has type {kind}"
            raise InputError(self.uri, found, "encoded images are binary, or a struct with binary bytes")
        return _Part(name.removesuffix(".parquet"), path, rows, image_column, label_column)

    @cached_property
    def _listing(self) -> Listing:
        names = Names([f"{part.stem}/{row:08d}" for part in self._parts for row in range(part.rows)])
        if not names:
            raise InputError(self.uri, "holds no image: it has no rows")
        labels, classes = self._labels()
        ignored = sum(not _is_parquet(name) for name in self._files) if self._location.is_directory else 0
        return Listing(len(names), names, labels, classes, ignored)

    def _labels(self) -> Labels:
        columns: list[pa.ChunkedArray] = []
        titles: tuple[str, ...] = ()
        for part in self._parts:
            if part.label_column is None:
                return None, ()
            with self._opened(part.path) as file:
                titles = _class_names(file.schema_arrow, part.label_column)
                column = file.read([part.label_column]).column(0)
                if len(column) != part.rows:
                    raise EOFError(f"{len(column)} labels in {part.rows} rows")
            if pa.types.is_dictionary(column.type):
                column = column.cast(column.type.value_type)
            columns.append(column)
        kinds = {column.type for column in columns}
        if all(pa.types.is_integer(kind) for kind in kinds):
            values = np.concatenate(
                [pc.fill_null(column.cast(pa.int64(), safe=False), -1).to_numpy() for column in columns]
            )
            return labels_of_integers(values, titles, self.uri)
        if all(pa.types.is_string(kind) or pa.types.is_large_string(kind) for kind in kinds):
            return labels_of_names([name for column in columns for name in column.to_pylist()])
        found = f"its label column has type {', '.join(sorted(str(kind) for kind in kinds))}"
        raise InputError(self.uri, found, "labels are integers or strings")

    @cached_property
    def _fingerprint(self) -> str:
        return digest_of_entries((part.stem, self._location.sha256(part.path)) for part in self._parts)

    @contextlib.contextmanager
    def _opened(self, path: str) -> Iterator[pq.ParquetFile]:
        name = path.rsplit("/", 1)[-1]
        with self._location.open(path) as stream:
            try:
                with pq.ParquetFile(stream) as file:
                    yield file
            except (pa.ArrowException, OSError, EOFError, UnicodeDecodeError) as error:
                raise InputError(self.uri, f"{name} is not a readable Parquet file: {error}") from error


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
