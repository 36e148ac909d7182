"""Where images come from: `open_source` turns a URI into a `Source`, whatever the images are kept in."""

from __future__ import annotations

import itertools

from limbeck.data.sources.listing import Content, Indices, Listing, Names, Reader, Source
from limbeck.data.sources.location import Location, locate
from limbeck.errors import InputError
from limbeck.storage import PLAIN, Access

__all__ = ["FORMATS", "Content", "Indices", "Listing", "Names", "Reader", "Source", "open_source"]

FORMATS = ("auto", "images", "zip", "tar", "webdataset", "npz", "npy", "parquet", "cifar", "digits")

_SAY_WHICH = f"give the format: {', '.join(FORMATS[1:])}"


def open_source(uri: str, format: str = "auto", access: Access = PLAIN) -> Source:  # noqa: A002 -- the spec's own word
    """Open the images at `uri`.

    Args:
        uri: a path, an fsspec URL, or `sklearn:digits`; `#name` at its end selects a split. `{000..123}` in the name
            of a file stands for the shards of a WebDataset.
        format: a member of `FORMATS`; `auto` decides by the suffix of a file and the contents of a directory.
        access: how storage is reached.

    Raises:
        InputError: nothing is there, it cannot be reached, or it is not of the format.
    """
    if format not in FORMATS:
        raise InputError(uri, f"unknown format {format!r}", f"it is one of {', '.join(FORMATS)}")
    if format == "digits" or (format == "auto" and uri.startswith("sklearn:")):
        from limbeck.data.sources.digits import DigitsSource

        return DigitsSource(uri)
    if format in ("auto", "webdataset") and "{" in uri:
        from limbeck.data.sources.webdataset import WebDatasetSource, locate_shards

        shards = locate_shards(uri, access)
        if shards is not None:
            return WebDatasetSource(*shards)
    location = locate(uri, access)
    return _of_format(_detect(location) if format == "auto" else format, location)


def _of_format(format: str, location: Location) -> Source:  # noqa: A002
    # Imported when needed: pyarrow alone takes longer to import than most commands take to run.
    match format:
        case "images":
            from limbeck.data.sources.trees import TreeSource

            return TreeSource(location)
        case "zip":
            from limbeck.data.sources.archives import ZipSource

            return ZipSource(location)
        case "tar":
            from limbeck.data.sources.archives import TarSource

            return TarSource(location)
        case "webdataset":
            from limbeck.data.sources.webdataset import WebDatasetSource

            return WebDatasetSource(location)
        case "npz":
            from limbeck.data.sources.arrays import NpzSource

            return NpzSource(location)
        case "npy":
            from limbeck.data.sources.arrays import NpySource

            return NpySource(location)
        case "parquet":
            from limbeck.data.sources.parquet import ParquetSource

            return ParquetSource(location)
        case _:
            from limbeck.data.sources.cifar import CifarSource

            return CifarSource(location)


def _detect(location: Location) -> str:
    from limbeck.data.sources.archives import TAR_SUFFIXES, tar_members
    from limbeck.data.sources.cifar import looks_like_cifar
    from limbeck.data.sources.folders import is_image
    from limbeck.data.sources.webdataset import is_shard

    if location.is_directory:
        children = location.children()
        files = [name for name, is_folder in children.items() if not is_folder]
        if looks_like_cifar(files):
            return "cifar"
        if any(name.endswith(".parquet") for name in files):
            return "parquet"
        shards = any(map(is_shard, files)) and not any(map(is_image, files))
        folders = any(is_folder and not name.startswith(".") for name, is_folder in children.items())
        return "webdataset" if shards and not folders else "images"
    name = location.name.lower()
    if name.endswith(TAR_SUFFIXES):
        first = itertools.islice(tar_members(location), 3)
        return "cifar" if looks_like_cifar([member.info.name.rsplit("/", 1)[-1] for member in first]) else "tar"
    for suffix in ("zip", "npz", "npy", "parquet"):
        if name.endswith(f".{suffix}"):
            return suffix
    raise InputError(location.uri, "its name does not tell what it holds", _SAY_WHICH)
