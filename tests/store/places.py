"""Places for a store: a folder, memory, and the emulators of Google's and Amazon's object stores, with their faults."""

from __future__ import annotations

import os
import random
import threading
import uuid
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field
from http.client import HTTPConnection
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

import pytest
from moto.server import ThreadedMotoServer

from limbeck.patience import Retries
from limbeck.spec import StorageOption, StorageOptions
from limbeck.storage import Access
from limbeck.store import Identity, Made, Store
from tests.buckets import google_server

os.environ.setdefault("GCSFS_EXPERIMENTAL_ZB_HNS_SUPPORT", "false")  # it is looked at when gcsfs is imported

IDENTITY = Identity("teacher", 1, {"width": 8}, {"dataset": "d"})
MADE = Made(
    seconds=1.0,
    peak_memory_bytes=2,
    peak_device_memory_bytes=3,
    device="cpu",
    limbeck_version="0",
    torch_version="0",
)
FILES = {"weights.bin": b"weights" * 100, "deeper/history.json": b"{}", "empty": b""}
QUICK = Retries(attempts=12, first=0.05, longest=0.5)
KEY = IDENTITY.key


@dataclass(frozen=True)
class Place:
    """A new, empty place for a store."""

    kind: str
    url: str
    access: Access = field(default_factory=Access)

    def store(self, machine: Path, **options: Any) -> Store:
        """The store as a machine sees it whose cache lies in that folder."""
        with pytest.MonkeyPatch.context() as patch:
            patch.setenv("XDG_CACHE_HOME", str(machine))
            return Store(self.url, self.access, **{"retries": QUICK, **options})


def commit(store: Store, files: dict[str, bytes] = FILES, identity: Identity = IDENTITY) -> str:
    with store.scratch(identity.stage, identity.key) as scratch:
        for name, content in files.items():
            (scratch / name).parent.mkdir(parents=True, exist_ok=True)
            (scratch / name).write_bytes(content)
        return store.commit(identity, scratch, MADE, []).digest


def access_to(prefix: str, **variables: str) -> Access:
    """Options whose values are in variables of the environment."""
    options = [StorageOption(name=name, environment=variable) for name, variable in variables.items()]
    return Access((StorageOptions(prefix=prefix, options=options),))


@dataclass(frozen=True)
class Emulators:
    """The addresses of the emulators; each has a bucket `limbeck`."""

    google: str
    amazon: str

    def place(self, kind: str, folder: Path, through: Callable[[str], str] = lambda address: address) -> Place:
        """A new place of a kind; an emulator is reached through another address where one is given."""
        name = uuid.uuid4().hex
        if kind == "file":
            return Place(kind, str(folder / name))
        if kind == "memory":
            return Place(kind, f"memory://{name}")
        address = through(self.google if kind == "gs" else self.amazon)
        variable = f"EMULATOR_{urlsplit(address).port}"
        os.environ[variable] = address
        if kind == "gs":
            access = access_to("gs://limbeck", endpoint_url=variable, token="EMULATOR_TOKEN")
        else:
            access = access_to("s3://limbeck", endpoint_url=variable, key="EMULATOR_KEY", secret="EMULATOR_SECRET")
        return Place(kind, f"{kind}://limbeck/{name}", access)


@contextmanager
def emulators() -> Iterator[Emulators]:
    amazon = ThreadedMotoServer(ip_address="127.0.0.1", port=0, verbose=False)
    with pytest.MonkeyPatch.context() as patch, google_server() as google:
        patch.setenv("AWS_EC2_METADATA_DISABLED", "true")
        for name in ("TOKEN", "KEY", "SECRET"):
            patch.setenv(f"EMULATOR_{name}", "anon")
        amazon.start()
        try:
            found = Emulators(f"http://{google.host}:{google.port}", "http://{}:{}".format(*amazon.get_host_and_port()))
            for kind in ("gs", "s3"):
                filesystem, _ = found.place(kind, Path()).access.open(f"{kind}://limbeck/x")
                with suppress(FileExistsError):  # moto keeps its buckets for as long as the process lives
                    filesystem.mkdir("limbeck")
            yield found
        finally:
            amazon.stop()


class Storm:
    """A proxy before an emulator that is busy, rude or deaf for a share of the requests."""

    def __init__(self, target: str, share: float) -> None:
        self.requests, self.refused = 0, 0
        storm, chance, lock = self, random.Random(0), threading.Lock()
        host = urlsplit(target).netloc

        class Handler(BaseHTTPRequestHandler):
            protocol_version = "HTTP/1.1"

            def _serve(self) -> None:
                body = self._body()
                with lock:
                    storm.requests += 1
                    harm = chance.choice(["503", "429", "drop", "deaf"]) if chance.random() < share else None
                    storm.refused += harm is not None
                if harm in ("503", "429"):
                    self.send_response(int(harm))
                    self.send_header("Content-Length", "0")
                    self.end_headers()
                    return
                if harm == "drop":  # before anything has happened
                    self.close_connection = True
                    return
                connection = HTTPConnection(host, timeout=30)
                headers = {k: v for k, v in self.headers.items() if k.lower() not in ("transfer-encoding", "expect")}
                headers["Content-Length"] = str(len(body))
                connection.request(self.command, self.path, body, headers)
                answer = connection.getresponse()
                data = answer.read()
                connection.close()
                if harm == "deaf":  # it is done, and the answer is lost
                    self.close_connection = True
                    return
                self.send_response(answer.status)
                for name, value in answer.getheaders():
                    if name.lower() not in ("transfer-encoding", "connection", "content-length"):
                        self.send_header(name, value)
                length = answer.getheader("Content-Length") if self.command == "HEAD" else str(len(data))
                self.send_header("Content-Length", length or "0")
                self.end_headers()
                self.wfile.write(data)

            def _body(self) -> bytes:
                if "chunked" not in self.headers.get("Transfer-Encoding", ""):
                    return self.rfile.read(int(self.headers.get("Content-Length", 0)))
                body = b""
                while size := int(self.rfile.readline().split(b";")[0], 16):
                    body += self.rfile.read(size)
                    self.rfile.readline()
                self.rfile.readline()
                return body

            do_GET = do_PUT = do_POST = do_HEAD = do_DELETE = _serve  # noqa: N815 - as http.server calls them

            def log_message(self, *args: object) -> None:
                pass

        self._server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
        self.address = f"http://127.0.0.1:{self._server.server_port}"
        threading.Thread(target=self._server.serve_forever, daemon=True).start()

    def close(self) -> None:
        self._server.shutdown()
        self._server.server_close()


class Watched:
    """A filesystem that tells before each call: by raising, that call fails; by a kill, the process does."""

    CALLS = frozenset({"cat_file", "find", "get_file", "info", "ls", "pipe_file", "put_file", "rm_file"})

    def __init__(self, filesystem: Any, before: Callable[[str, str], None]) -> None:
        self._filesystem, self._before = filesystem, before

    def __getattr__(self, name: str) -> Any:
        found = getattr(self._filesystem, name)
        if name not in self.CALLS:
            return found

        def call(path: str, *args: Any, **options: Any) -> Any:
            self._before(name, args[0] if name == "put_file" else path)
            return found(path, *args, **options)

        return call


def watch(store: Store, before: Callable[[str, str], None]) -> Store:
    """Have every call of a store's filesystem told."""
    store.objects.filesystem = Watched(store.objects.filesystem, before)
    return store
