"""A million images on an object store, listed and fingerprinted: seconds, images a second, and the peak memory.

The store is a server in a process of its own that answers as Google's JSON listing does, so that gcsfs speaks HTTP to
it as it would to the real one; what lies between, latency above all, is not there. Every way runs in a fresh process.
"""

from __future__ import annotations

import base64
import hashlib
import json
import os
import subprocess
import sys
import time
from bisect import bisect_left
from collections.abc import Iterator
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Annotated, Any
from urllib.parse import parse_qs, unquote, urlsplit

import typer
from rich.console import Console
from rich.table import Table

BUCKET, FOLDER = "pictures", "train"
PAGE = 1000  # what Google gives at most
_NAMING_FIELDS = ("kind", "id", "selfLink", "mediaLink", "name", "bucket", "generation", "metageneration")
_CONTENT_FIELDS = ("contentType", "storageClass", "size", "md5Hash", "crc32c", "etag")
_ITEM_FIELDS = (*_NAMING_FIELDS, *_CONTENT_FIELDS, "timeCreated", "updated", "timeStorageClassUpdated")
_ASKED = {"prefix", "delimiter", "maxResults", "pageToken", "fields", "prettyPrint", "versions", "userProject"}

app = typer.Typer(add_completion=False)


def names_of(images: int) -> list[str]:
    """Names as ImageNet's, a thousand a class, sorted."""
    return [f"{FOLDER}/n{place // 1000:08d}/n{place // 1000:08d}_{place % 1000:05d}.JPEG" for place in range(images)]


def item(name: str) -> dict[str, str]:
    """An object resource with all fields that Google gives."""
    digest = hashlib.md5(name.encode(), usedforsecurity=False).digest()
    link = f"https://www.googleapis.com/storage/v1/b/{BUCKET}/o/{name.replace('/', '%2F')}"
    written, generation = "2026-01-05T07:31:22.845Z", str(1767598282000000 + digest[0])
    return {
        "kind": "storage#object",
        "id": f"{BUCKET}/{name}/{generation}",
        "selfLink": link,
        "mediaLink": f"{link}?generation={generation}&alt=media",
        "name": name,
        "bucket": BUCKET,
        "generation": generation,
        "metageneration": "1",
        "contentType": "image/jpeg",
        "storageClass": "STANDARD",
        "size": str(100_000 + digest[1]),
        "md5Hash": base64.b64encode(digest).decode(),
        "crc32c": base64.b64encode(digest[:4]).decode(),
        "etag": "CKih16GjycICEAE=",
        "timeCreated": written,
        "updated": written,
        "timeStorageClassUpdated": written,
    }


class Bucket:
    """What Google's `objects.list` answers, and a refusal for everything that it would not take."""

    def __init__(self, images: int) -> None:
        self.names = names_of(images)

    def page(self, query: dict[str, str]) -> dict[str, Any]:
        """One page.

        Raises:
            ValueError: Google would refuse the question.
        """
        if unknown := set(query) - _ASKED:
            raise ValueError(f"unknown parameters {unknown}")
        wanted, fields = self._fields(query.get("fields", ""))
        prefix, delimiter = query.get("prefix", ""), query.get("delimiter", "")
        most = min(int(query.get("maxResults", PAGE)), PAGE)
        token = base64.b64decode(query["pageToken"], validate=True).decode() if "pageToken" in query else prefix
        found, folders, place = [], list[str](), bisect_left(self.names, max(token, prefix))
        while place < len(self.names) and len(found) + len(folders) < most:
            name = self.names[place]
            if not name.startswith(prefix):
                place = len(self.names)
                break
            cut = name.find(delimiter, len(prefix)) if delimiter else -1
            if cut >= 0:
                folders.append(name[: cut + 1])
                place = bisect_left(self.names, name[:cut] + chr(ord(delimiter) + 1))
            else:
                found.append({key: value for key, value in item(name).items() if key in fields})
                place += 1
        answer: dict[str, Any] = {"kind": "storage#objects", "items": found, "prefixes": folders}
        if place < len(self.names) and self.names[place].startswith(prefix):
            answer["nextPageToken"] = base64.b64encode(self.names[place].encode()).decode()
        return {key: value for key, value in answer.items() if value and (not wanted or key in wanted)}

    def _fields(self, text: str) -> tuple[set[str], set[str]]:
        """The fields of the answer and of its items that are wanted; no field of the answer is all of them."""
        if not text:
            return set(), set(_ITEM_FIELDS)
        before, bracket, rest = text.partition("items(")
        inside, _, after = rest.partition(")")
        items = set(inside.split(",")) if bracket else set[str]()
        outer = {field for field in (before + after).split(",") if field} | ({"items"} if bracket else set())
        if not items <= set(_ITEM_FIELDS) or not outer <= {"kind", "items", "prefixes", "nextPageToken"}:
            raise ValueError(f"unknown fields in {text!r}")
        return outer, items


class Handler(BaseHTTPRequestHandler):
    """Google's paths for a bucket's listing and an object's description."""

    protocol_version = "HTTP/1.1"
    disable_nagle_algorithm = True
    bucket: Bucket

    def do_GET(self) -> None:
        """Answer a question."""
        address = urlsplit(self.path)
        query = {key: values[0] for key, values in parse_qs(address.query, keep_blank_values=True).items()}
        listing = f"/storage/v1/b/{BUCKET}/o"
        if address.path == listing:
            try:
                self._answer(200, self.bucket.page(query))
            except ValueError as error:
                self._answer(400, {"error": {"code": 400, "message": str(error)}})
            return
        name = unquote(address.path.removeprefix(f"{listing}/"))
        place = bisect_left(self.bucket.names, name)
        if address.path.startswith(f"{listing}/") and self.bucket.names[place : place + 1] == [name]:
            self._answer(200, item(name))
        else:
            self._answer(404, {"error": {"code": 404, "message": "Not Found"}})

    def _answer(self, status: int, body: dict[str, Any]) -> None:
        encoded = json.dumps(body).encode()
        self.send_response(status)
        self.send_header("Content-Type", "application/json; charset=UTF-8")
        self.send_header("Content-Length", str(len(encoded)))
        self.end_headers()
        self.wfile.write(encoded)

    def log_message(self, *_: object) -> None:
        """Say nothing."""


@app.command(hidden=True)
def serve(images: int) -> None:
    """Be the store; prints the port."""
    Handler.bucket = Bucket(images)
    server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    print(server.server_port, flush=True)
    server.serve_forever()


def peak_mib() -> float:
    """The most memory that this process has had, since it is what it is."""
    status = Path("/proc/self/status").read_text()
    return int(status.partition("VmHWM:")[2].split()[0]) / 1024


def by_limbeck(uri: str) -> int:
    """List and fingerprint as ingest and preflight do."""
    from limbeck.data.sources import open_source

    source = open_source(uri)
    count = source.listing().count
    assert len(source.fingerprint()) == 64
    assert "torch" not in sys.modules
    return count


def by_find(uri: str) -> int:
    """The plain way: everything at once, and a list of names."""
    import fsspec

    files, path = fsspec.core.url_to_fs(uri, use_listings_cache=False)
    found = files.find(path, detail=True)
    names = sorted(found)
    digest = hashlib.sha256()
    for name in names:
        digest.update(f"{name} {found[name]['md5Hash']}".encode())
    return len(names)


def by_command(uri: str) -> int:
    """`limbeck fingerprint`, in this process."""
    import tempfile

    from limbeck.cli import app as command

    with tempfile.TemporaryDirectory() as folder:
        spec = Path(folder) / "spec.yaml"
        head = "apiVersion: limbeck.dev/v1alpha1\nkind: Distillation\nmetadata: {name: listing}\n"
        spec.write_text(f"{head}spec: {{source: {{uri: {uri}}}}}\n")
        command(["fingerprint", str(spec)], standalone_mode=False)
    return 0


WAYS = {"limbeck": by_limbeck, "find": by_find, "command": by_command}


@app.command(hidden=True)
def once(way: str, uri: str) -> None:
    """Do it one way, in this process; prints what it took."""
    start = time.perf_counter()
    count = WAYS[way](uri)
    taken = time.perf_counter() - start
    print(json.dumps({"seconds": taken, "mib": peak_mib(), "images": count, "torch": "torch" in sys.modules}))


@contextmanager
def store(images: int) -> Iterator[dict[str, str]]:
    """A store with so many images; gives the environment by which gcsfs finds it."""
    command = [sys.executable, __file__, "serve", str(images)]
    server = subprocess.Popen(command, stdout=subprocess.PIPE, text=True)  # noqa: S603 - this script itself
    try:
        assert server.stdout is not None
        port = server.stdout.readline().strip()
        host = f"http://127.0.0.1:{port}"
        yield os.environ | {"STORAGE_EMULATOR_HOST": host, "GCSFS_EXPERIMENTAL_ZB_HNS_SUPPORT": "false"}
    finally:
        server.kill()
        server.wait()


@app.command()
def main(
    images: Annotated[list[int] | None, typer.Option(help="How many objects; may be given more than once.")] = None,
    ways: Annotated[list[str] | None, typer.Option("--way", help=f"One of {', '.join(WAYS)}.")] = None,
) -> None:
    """Measure each way at each size."""
    table = Table("way", "images", "seconds", "images/s", "peak MiB", "torch imported")
    for count in images or [100_000, 1_000_000]:
        with store(count) as environment:
            for way in ways or list(WAYS):
                command = [sys.executable, __file__, "once", way, f"gs://{BUCKET}/{FOLDER}"]
                done = subprocess.run(  # noqa: S603 - this script itself
                    command, env=environment, stdout=subprocess.PIPE, text=True, check=True
                )
                found = json.loads(done.stdout.splitlines()[-1])
                assert found["images"] in (0, count), found
                table.add_row(
                    way,
                    f"{count:,}",
                    f"{found['seconds']:.1f}",
                    f"{count / found['seconds']:,.0f}",
                    f"{found['mib']:,.0f}",
                    "yes" if found["torch"] else "no",
                )
    Console().print(table)


if __name__ == "__main__":
    app()
