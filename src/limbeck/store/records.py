"""What the store says of a result: its identity, its manifest, and where its data lies."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
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
    """What a result's key is the digest of.

    Attributes:
        stage: which makes it.
        version: of the stage.
        section: the settings that shape it.
        inputs: the digests of what it is made from.
        length: where results of all lengths begin alike, up to 65,535: how far this one goes.
    """

    stage: str
    version: int
    section: Mapping[str, Any]
    inputs: Mapping[str, str]
    length: int | None = None

    @property
    def key(self) -> str:
        """The content address: 32 hexadecimal digits, a folder name; the last four are the length, if it has one."""
        digest = json_digest(
            {
                "stage": self.stage,
                "version": self.version,
                "section": dict(self.section),
                "inputs": dict(self.inputs),
            }
        )
        return digest[:32] if self.length is None else f"{digest[:28]}{self.length:04x}"

    def longer(self, keys: Iterable[str]) -> list[Identity]:
        """What the same settings and inputs made at a greater length, by the keys of what is there; shortest first."""
        assert self.length is not None
        own = self.key[:-4]
        lengths = sorted(int(key[-4:], 16) for key in keys if key[:-4] == own)
        return [replace(self, length=length) for length in lengths if length > self.length]


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
