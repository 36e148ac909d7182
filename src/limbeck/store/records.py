"""What the store says of a result: its identity, its manifest, and where its data lies."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path, PurePosixPath
from typing import Any

from pydantic import BaseModel, ConfigDict, Field, ValidationError, field_validator
from pydantic.alias_generators import to_camel

from limbeck.store.files import json_digest

MANIFEST = "manifest.json"
ORIGIN = "origin"
"""What the names of files begin with that say where a result came from. They are kept and verified with it, and are no
part of its digest: the same images are the same dataset, on a disk or in a bucket."""


class _Record(BaseModel):
    model_config = ConfigDict(alias_generator=to_camel, populate_by_name=True, frozen=True, extra="forbid")


class FileEntry(_Record):
    """One file of a result."""

    path: str  # relative, with forward slashes
    size: int = Field(ge=0)
    sha256: str

    @field_validator("path")
    @classmethod
    def _within(cls, path: str) -> str:
        """A manifest is read from a bucket that others can write to: it names no file outside its folder."""
        parts = PurePosixPath(path).parts
        if not parts or parts[0] == "/" or ".." in parts or "\\" in path:
            raise ValueError("not a path within the result")
        return path


class Made(_Record):
    """How a result was made: what its key does not depend on."""

    seconds: float
    peak_memory_bytes: int
    peak_device_memory_bytes: int
    device: str
    limbeck_version: str
    torch_version: str


class Manifest(_Record):
    """What a result is made of and consists of."""

    format: int = 1
    stage: str
    key: str
    version: int
    section: dict[str, Any]  # the settings that shaped it
    inputs: dict[str, str]  # what it was made from: name -> digest
    refers: list[str]  # other results that it points into, as stage/key
    files: list[FileEntry]
    digest: str  # over the files, but for their origin: equal digests are equal results
    made: Made
    folder: str = Field("", pattern="^[0-9a-f]{0,64}$")  # beside the manifest, where the files are; "": with it
    checksums: dict[str, str] = Field(default_factory=dict[str, str])  # md5 of each file: object stores know theirs

    @property
    def size(self) -> int:
        """Bytes of all files."""
        return sum(entry.size for entry in self.files)

    def place(self, path: str) -> str:
        """Where one of the files lies in the store."""
        return f"{self.stage}/{self.key}/{self.folder}/{path}" if self.folder else f"{self.stage}/{self.key}/{path}"

    def text(self) -> bytes:
        """The manifest as a file; fields that a result of a local store does not need are left out."""
        unneeded = {name for name in ("folder", "checksums") if not getattr(self, name)}
        return (self.model_dump_json(by_alias=True, indent=2, exclude=unneeded) + "\n").encode()


@dataclass(frozen=True)
class Identity:
    """What a result's key is the digest of."""

    stage: str
    version: int
    section: Mapping[str, Any]
    inputs: Mapping[str, str]

    @property
    def key(self) -> str:
        """The content address: 32 hexadecimal digits, a folder name."""
        return json_digest(
            {
                "stage": self.stage,
                "version": self.version,
                "section": dict(self.section),
                "inputs": dict(self.inputs),
            }
        )[:32]


@dataclass(frozen=True)
class Result:
    """A finished, verified result with its files in a local folder."""

    path: Path
    manifest: Manifest

    @property
    def digest(self) -> str:
        """Digest of the result's content."""
        return self.manifest.digest


def digest_of(files: Sequence[FileEntry]) -> str:
    """The digest of a result with these files."""
    return json_digest([entry.model_dump() for entry in files if not entry.path.startswith(ORIGIN)])


class DamagedResultError(Exception):
    """A result whose files are not what its manifest says."""


def data_folder(filesystem: Any, path: str) -> str:
    """Where the files of the result at `path` of an fsspec filesystem are: there, or where its manifest says.

    Raises:
        FileNotFoundError: no manifest is there.
        ValueError: it is not a manifest.
    """
    try:
        folder = Manifest.model_validate_json(filesystem.cat_file(f"{path}/{MANIFEST}")).folder
    except ValidationError:
        raise ValueError(f"{MANIFEST} is not a manifest") from None
    return f"{path}/{folder}" if folder else path
