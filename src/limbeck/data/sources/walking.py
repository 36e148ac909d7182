"""Every file below a directory, here or on object storage, with what its storage tells without being asked twice."""

from __future__ import annotations

import os
from collections.abc import Callable, Iterable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from functools import partial
from typing import Any

import pyarrow as pa
import pyarrow.compute as pc

from limbeck.data.decode import MAX_ENCODED_BYTES
from limbeck.data.sources.folders import Entry, Files, tidy, whole
from limbeck.data.sources.location import Location, stored_checksum
from limbeck.storage import scheme_of

LOCAL_COLUMNS = {
    "path": pa.large_binary(),  # below the root, where it is not the name; see `paths_of`
    "size": pa.int64(),
    "mtime": pa.int64(),  # ns
    "ctime": pa.int64(),  # ns
    "inode": pa.uint64(),
}
REMOTE_COLUMNS = {"path": pa.large_binary(), "size": pa.int64(), "checksum": pa.large_binary()}

_FOLDERS_AT_ONCE = 8
_DEEPEST_SEARCH = 3  # levels that are looked at for folders to list at once
_PAGE = 5000  # objects; stores give fewer (1,000) when they like to
_GOOGLE_FIELDS = "items(name,size,md5Hash,crc32c),prefixes,nextPageToken"


def walk(location: Location, root: str) -> Files:
    """The files below `root`, which lies on the location's filesystem.

    Returns:
        Columns as `LOCAL_COLUMNS` or `REMOTE_COLUMNS` say. On object stores a folder is a prefix, and an object whose
        name ends in a slash, by which some tools mark one, is no file.

    Raises:
        OSError: it cannot be listed.
    """
    if location.is_local:
        files = Files(LOCAL_COLUMNS)
        for entry in _walk_local(root):
            files.add(entry)
        return files
    page = _pages_of(location, root)
    if page is None:
        return location.patiently("listing", partial(_walk_plainly, location.files, root))
    return _walk_store(page)


def _walk_local(root: str) -> Iterator[Entry]:
    """Every file below `root`; linked folders are entered, unless they lead back to a folder above."""
    waiting: list[tuple[str, tuple[str, ...]]] = [("", (os.path.realpath(root),))]
    while waiting:
        folder, above = waiting.pop()
        with os.scandir(f"{root}/{folder}") as found:
            for item in found:
                path = f"{folder}{item.name}"
                if item.is_dir():
                    here = os.path.realpath(item.path) if item.is_symlink() else f"{above[-1]}/{item.name}"
                    if here not in above:
                        waiting.append((f"{path}/", (*above, here)))
                elif item.is_file():
                    of = item.stat()
                    place = (of.st_size, of.st_mtime_ns, of.st_ctime_ns, of.st_ino)
                    yield _entry(path, too_large(of.st_size), place)
                else:
                    fault = "is a broken link" if item.is_symlink() else "is not a regular file"
                    yield _entry(path, fault, (0, 0, 0, 0))


def _walk_plainly(files: Any, root: str) -> Files:
    """By a filesystem of any kind, folder by folder."""
    found = Files(REMOTE_COLUMNS)
    prefix = root.rstrip("/") + "/"
    for _, _, inside in files.walk(root, detail=True, on_error="raise"):
        for info in inside.values():
            path = info["name"].removeprefix(prefix)
            if path and not path.endswith("/"):
                size = info.get("size") or 0
                found.add(_entry(path, too_large(size), (size, stored_checksum(info))))
    return found


@dataclass(frozen=True)
class _Page:
    """One page of a store's listing, all names from the bucket's top.

    Attributes:
        objects: (name, size, checksum) of each.
        prefixes: of what lies deeper, where the listing was one level; each ends in a slash.
        following: what asks for the next page; None at the end.
    """

    objects: Iterable[tuple[str, int, bytes | None]]
    prefixes: Sequence[str]
    following: str | None


@dataclass(frozen=True)
class _Store:
    """How to ask a store for pages: a prefix, whether one level is meant, and what the page before said."""

    location: Location
    page: Callable[[str, bool, str | None], _Page]
    prefix: str

    def pages(self, prefix: str, one_level: bool) -> Iterator[_Page]:
        following: str | None = None
        while True:
            page = self.location.patiently("listing", partial(self.page, prefix, one_level, following))
            yield page
            following = page.following
            if following is None:
                return


def _pages_of(location: Location, root: str) -> _Store | None:
    """How the store of a location is asked, where that is known; other filesystems give what they give."""
    page = {"gs": _google_page, "gcs": _google_page, "s3": _s3_page, "s3a": _s3_page}.get(scheme_of(location.address))
    if page is None:
        return None
    bucket, _, key = root.partition("/")
    return _Store(location, partial(page, location.files, bucket), f"{key.rstrip('/')}/" if key else "")


def _google_page(files: Any, bucket: str, prefix: str, one_level: bool, following: str | None) -> _Page:
    # gcsfs's own listing asks for every field of every object, and keeps all pages before it gives the first.
    found = files.call(
        "GET", "b/{}/o", bucket, json_out=True, prefix=prefix or None, delimiter="/" if one_level else None,
        maxResults=_PAGE, pageToken=following, fields=_GOOGLE_FIELDS,
    )  # fmt: skip
    objects = ((item["name"], int(item.get("size", 0)), stored_checksum(item)) for item in found.get("items", ()))
    return _Page(objects, found.get("prefixes", ()), found.get("nextPageToken"))


def _s3_page(files: Any, bucket: str, prefix: str, one_level: bool, following: str | None) -> _Page:
    options = {"Delimiter": "/"} if one_level else {}
    if following is not None:
        options["ContinuationToken"] = following
    found = files.call_s3("list_objects_v2", Bucket=bucket, Prefix=prefix, **options, **files.req_kw)
    objects = (
        (item["Key"], item["Size"], stored_checksum({"ETag": item["ETag"], "size": item["Size"]}))
        for item in found.get("Contents", ())
    )
    prefixes = [item["Prefix"] for item in found.get("CommonPrefixes", ())]
    return _Page(objects, prefixes, found.get("NextContinuationToken"))


def _walk_store(store: _Store) -> Files:
    """Page by page, folders at once: a store gives the pages of one listing only one after the other."""
    total = Files(REMOTE_COLUMNS)
    folders = [store.prefix]
    with ThreadPoolExecutor(_FOLDERS_AT_ONCE, "limbeck-list") as pool:
        for _ in range(_DEEPEST_SEARCH):
            deeper: list[str] = []
            for files, prefixes in pool.map(lambda folder: _listed(store, folder, True), folders):
                total.extend(files)
                deeper += prefixes
            folders = deeper
            if not folders or len(folders) >= _FOLDERS_AT_ONCE:
                break
        # In the stores' order, which is that of names: then nothing needs to be sorted, which takes memory.
        for files, _ in pool.map(lambda folder: _listed(store, folder, False), folders):
            total.extend(files)
    return total


def _listed(store: _Store, prefix: str, one_level: bool) -> tuple[Files, list[str]]:
    files, prefixes = Files(REMOTE_COLUMNS), list[str]()
    skipped = len(store.prefix)
    for page in store.pages(prefix, one_level):
        prefixes += page.prefixes
        for name, size, checksum in page.objects:
            if not name.endswith("/"):
                files.add(_entry(name[skipped:], too_large(size), (size, checksum)))
    files.close_batch()
    return files, prefixes


def _entry(path: str, fault: str, place: tuple[Any, ...]) -> Entry:
    name = tidy(path)
    return Entry(name, fault, (None if name == path else path.encode("utf-8", "surrogateescape"), *place))


def paths_of(files: pa.Table) -> pa.Array:
    """Where the files of `walk` lie below its root: binary[n], on a disk not always UTF-8; see `text_of`."""
    names = whole(files["name"]).cast(pa.large_binary())
    return pc.coalesce(whole(files["path"]), names)


def text_of(path: bytes) -> str:
    """A path of `paths_of` as the filesystem takes it."""
    return path.decode("utf-8", "surrogateescape")


def too_large(size: int) -> str:
    """Why an image of so many bytes must not be read; empty when it may."""
    return f"has {size:,} bytes, more than {MAX_ENCODED_BYTES >> 20} MiB" if size > MAX_ENCODED_BYTES else ""
