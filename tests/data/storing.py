"""Storage of every kind, real servers behind it, for the tests of sources."""

import os
import pickle
import uuid
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path

import fsspec
import pytest

from limbeck.data.sources import Source, open_source
from limbeck.spec import StorageOption, StorageOptions
from limbeck.storage import PLAIN, Access
from tests.buckets import google

STORES = ("local", "memory", "gs", "s3")
_KEY, _SECRET = "LIMBECK_TEST_S3_KEY", "LIMBECK_TEST_S3_SECRET"


@dataclass
class Shelf:
    """A place of its own on one kind of storage."""

    url: str
    access: Access = PLAIN
    options: dict[str, object] = field(default_factory=dict)

    def filesystem(self) -> object:
        return self.access.open(self.url)[0]

    def put(self, local: Path, name: str = "") -> str:
        """Copy a file or a folder there; returns its URL."""
        files, root = self.access.open(self.url)
        target = f"{root}/{name or local.name}"
        if local.is_dir():
            for path in sorted(path for path in local.rglob("*") if path.is_file()):
                there = f"{target}/{path.relative_to(local)}"
                files.makedirs(there.rsplit("/", 1)[0], exist_ok=True)
                files.pipe_file(there, path.read_bytes())
        else:
            files.makedirs(root, exist_ok=True)
            files.pipe_file(target, local.read_bytes())
        return f"{self.url}/{name or local.name}"

    def source(self, uri: str, kind: str = "auto") -> Source:
        return open_source(uri, kind, self.access)


@contextmanager
def amazon() -> Iterator[tuple[str, Access]]:
    """A bucket of moto's S3 server, reached by what a spec would say."""
    from moto.server import ThreadedMotoServer

    bucket = f"bucket-{uuid.uuid4().hex}"  # moto keeps what is made for as long as the process lives
    server = ThreadedMotoServer(ip_address="127.0.0.1", port=0, verbose=False)
    server.start()
    try:
        host, port = server.get_host_and_port()
        access = amazon_access(f"http://{host}:{port}")
        access.open(f"s3://{bucket}")[0].mkdir(bucket)
        yield f"s3://{bucket}", access
    finally:
        server.stop()


def amazon_access(endpoint: str) -> Access:
    os.environ.update({_KEY: "a-key", _SECRET: "a-secret-that-nobody-must-see"})
    options = [
        StorageOption(name="endpoint_url", value=endpoint),
        StorageOption(name="key", environment=_KEY),
        StorageOption(name="secret", environment=_SECRET),
    ]
    return Access((StorageOptions(prefix="s3://", options=options),))


@pytest.fixture(scope="module", params=STORES)
def shelf(request, tmp_path_factory) -> Iterator[Shelf]:
    name = uuid.uuid4().hex
    match request.param:
        case "local":
            yield Shelf(str(tmp_path_factory.mktemp("shelf")))
        case "memory":
            yield Shelf(f"memory://limbeck-{name}")
            fsspec.filesystem("memory").rm(f"/limbeck-{name}", recursive=True)
        case "gs":
            with google() as bucket:
                yield Shelf(f"{bucket}/{name}")
        case _:
            with amazon() as (bucket, access):
                yield Shelf(f"{bucket}/{name}", access)


def read_elsewhere(source: Source, wanted: list[int]) -> dict[int, object]:
    """What a reader gives after a pickle's way to another process."""
    return dict(pickle.loads(pickle.dumps(source.reader(wanted))))
