"""Heads of Ray clusters, started as an administrator starts one."""

from __future__ import annotations

import os
import shutil
import socket
import subprocess
import sys
import tempfile
import time
import uuid
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

from tests.fanout.processes import MARK, kill, marked, wait_for

TOKEN = {"RAY_AUTH_MODE": "token", "RAY_AUTH_TOKEN": uuid.uuid4().hex * 2}


@dataclass(frozen=True)
class Head:
    gcs: str
    client: str
    dashboard: str


def free_port() -> int:
    """One that is not in the range that Ray gives to its workers."""
    while True:
        with socket.socket() as listener:
            listener.bind(("127.0.0.1", 0))
            port = int(listener.getsockname()[1])
        if port > 20_000:
            return port


@contextmanager
def head(environment: dict[str, str]) -> Iterator[Head]:
    """`ray start --head`, with two CPUs, in a folder of its own."""
    gcs, client, dashboard = free_port(), free_port(), free_port()
    mark = uuid.uuid4().hex
    folder = Path(tempfile.mkdtemp(prefix="rc", dir="/tmp"))
    ray = Path(sys.executable).with_name("ray")
    command = [ray, "start", "--head", "--block", "--disable-usage-stats", "--num-cpus=2", f"--temp-dir={folder}"]
    command += [f"--port={gcs}", f"--ray-client-server-port={client}", f"--dashboard-port={dashboard}"]
    command += ["--object-store-memory=134217728", f"--dashboard-agent-listen-port={free_port()}"]
    path = {"PATH": f"{ray.parent}:{os.environ['PATH']}"}  # as in an image: its python is the one with limbeck
    with (folder / "out").open("w") as out:
        process = subprocess.Popen(
            command, stdout=out, stderr=out, env={**os.environ, **path, **TOKEN, **environment, MARK: mark}
        )
    try:
        for port in (gcs, client, dashboard):
            wait_for(lambda: answers(port), 60, f"head: {(folder / 'out').read_text()}")  # noqa: B023
        time.sleep(3)
        yield Head(f"127.0.0.1:{gcs}", f"ray://127.0.0.1:{client}", f"http://127.0.0.1:{dashboard}")
    finally:
        process.terminate()
        try:
            process.wait(15)
        except subprocess.TimeoutExpired:
            process.kill()
        kill(*marked(mark))
        shutil.rmtree(folder, ignore_errors=True)


def answers(port: int) -> bool:
    try:
        socket.create_connection(("127.0.0.1", port), 1).close()
    except OSError:
        return False
    return True
