"""What is written when a replica stops leading: nothing begins then, and nothing that has begun comes late."""

from __future__ import annotations

import asyncio
import ctypes
import json
import os
import signal
import socket
import struct
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

import pytest

from limbeck_operator.fuse import STATUS
from limbeck_operator.kube import Kube, connect
from limbeck_operator.leader import NotLeadingError

JOB = {"apiVersion": "batch/v1", "kind": "Job", "metadata": {"name": "one", "namespace": "team"}}
LEASE = 1.5
_ATTACH_FILTER, _DETACH_FILTER = 26, 27  # SO_ATTACH_FILTER and SO_DETACH_FILTER of Linux


class Server:
    """Answers as an API server does, once `answers` is set."""

    def __init__(self) -> None:
        self.answers = threading.Event()
        self.asked = threading.Semaphore(0)  # one for each request that has come
        self.requests: list[str] = []
        self.connections: list[socket.socket] = []
        server = self

        class Handler(BaseHTTPRequestHandler):
            protocol_version = "HTTP/1.1"

            def setup(self) -> None:
                super().setup()
                server.connections.append(self.connection)

            def do(self) -> None:
                self.rfile.read(int(self.headers.get("Content-Length") or 0))
                server.requests.append(f"{self.command} {self.path}")
                server.asked.release()
                server.answers.wait()
                content = json.dumps({"metadata": {"resourceVersion": "1"}, "items": []}).encode()
                with suppress(OSError):  # nobody waits for it any more
                    self.send_response(200)
                    self.send_header("Content-Length", str(len(content)))
                    self.end_headers()
                    self.wfile.write(content)

            do_GET = do_POST = do_PATCH = do_DELETE = do  # noqa: N815

            def log_message(self, *_: Any) -> None:
                pass

        self._listener = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
        self._listener.daemon_threads = True
        self._thread = threading.Thread(target=self._listener.serve_forever, kwargs={"poll_interval": 0.01})
        self._thread.start()
        self.url = f"http://127.0.0.1:{self._listener.server_port}"

    def stop(self) -> None:
        self.answers.set()
        self._listener.shutdown()
        self._thread.join()
        self._listener.server_close()


@pytest.fixture
def server() -> Iterator[Server]:
    found = Server()
    yield found
    found.stop()


@pytest.fixture
def kubeconfig(server, tmp_path) -> str:
    path = tmp_path / "kubeconfig"
    path.write_text(
        json.dumps(
            {
                "current-context": "test",
                "contexts": [{"name": "test", "context": {"cluster": "test", "user": "test"}}],
                "clusters": [{"name": "test", "cluster": {"server": server.url}}],
                "users": [{"name": "test", "user": {"token": "t"}}],
            }
        )
    )
    return str(path)


class Leadership:
    """Whether one leads, and for how long still."""

    def __init__(self, seconds: float = 15.0) -> None:
        self.leads, self.seconds = True, seconds

    @contextmanager
    def acting(self) -> Iterator[float]:
        if not self.leads:
            raise NotLeadingError
        yield self.seconds


async def come(server: Server, number: int = 1) -> None:
    """Wait until so many more requests have come."""
    for _ in range(number):
        assert await asyncio.to_thread(server.asked.acquire, timeout=10)


def test_a_write_that_has_waited_for_a_thread_is_not_sent_when_the_lease_was_lost_meanwhile(server, kubeconfig):
    async def main():
        leadership = Leadership()
        kube = Kube(connect(kubeconfig), leadership.acting)
        reads = [asyncio.create_task(kube.listed("Job", "team", "a=b")) for _ in range(16)]
        await come(server, 16)
        write = asyncio.create_task(kube.create("Job", JOB))
        await asyncio.sleep(0)
        leadership.leads = False
        server.answers.set()
        with pytest.raises(NotLeadingError):
            await write
        await asyncio.gather(*reads)
        assert not [entry for entry in server.requests if entry.startswith("POST")]

    asyncio.run(main())


def test_whoever_is_told_to_stop_in_a_write_stops_when_it_has_ended(server, kubeconfig):
    async def main():
        kube = Kube(connect(kubeconfig), Leadership().acting)
        write = asyncio.create_task(kube.create("Job", JOB))
        await come(server)
        write.cancel()
        await asyncio.wait({write}, timeout=0.2)
        assert not write.done()
        write.cancel()
        server.answers.set()
        await asyncio.wait({write})
        assert write.cancelled()

    asyncio.run(main())


def test_a_write_lasts_no_longer_than_the_lease(server, kubeconfig):
    async def main():
        kube = Kube(connect(kubeconfig), Leadership(0.5).acting)
        begun = time.monotonic()
        with pytest.raises(Exception, match="timed out"):
            await kube.create("Job", JOB)
        assert time.monotonic() - begun < 0.5

    asyncio.run(main())


@contextmanager
def cut(connection: socket.socket) -> Iterator[None]:
    """All that comes to a socket is lost, as by a network that is cut: a filter of the kernel takes 0 bytes of it."""
    program = ctypes.create_string_buffer(struct.pack("HBBI", 0x06, 0, 0, 0))
    connection.setsockopt(socket.SOL_SOCKET, _ATTACH_FILTER, struct.pack("HP", 1, ctypes.addressof(program)))
    yield
    connection.setsockopt(socket.SOL_SOCKET, _DETACH_FILTER, 0)


@pytest.mark.skipif(sys.platform != "linux", reason="other kernels are not told when to give up")
def test_what_the_network_has_held_back_does_not_come_once_it_is_back(server, kubeconfig):
    async def main():
        kube = Kube(connect(kubeconfig, unheard=0.5), Leadership(0.5).acting)
        server.answers.set()
        await kube.create("Job", JOB)
        await come(server)
        (connection,) = server.connections
        with cut(connection):
            with pytest.raises(Exception, match="timed out"):
                await kube.create("Job", JOB)
            await asyncio.sleep(0.4)
        assert not await asyncio.to_thread(server.asked.acquire, timeout=2)  # by itself the kernel sends it 1 s later

    asyncio.run(main())


CHILD = f"""
import asyncio, sys
from limbeck_operator.fuse import fuse
from limbeck_operator.kube import Kube, connect
from limbeck_operator.leader import LeaderElector, Terms

class Lease:
    async def read(self, timeout):
        return None

    async def create(self, spec, timeout):
        return {{"metadata": {{"resourceVersion": "1"}}, "spec": spec}}

    async def replace(self, lease, timeout):
        return lease

client = connect(sys.argv[1])
send = client.call_api

def slowly(*arguments, **options):
    print("a look at the clock, and then", flush=True)
    sys.stdin.readline()
    return send(*arguments, **options)

client.call_api = slowly
elector = LeaderElector(Lease(), "child", Terms({LEASE}, {LEASE} * 2 / 3, {LEASE} * 2 / 15), fuse=fuse())
kube = Kube(client, elector.acting)

async def lead():
    await kube.create("Job", {JOB})
    sys.exit(0)

asyncio.run(elector.run(lead))
"""


@pytest.mark.skipif(sys.platform != "linux", reason="other kernels have no such timers")
@pytest.mark.parametrize("as_first_process", [False, True])
def test_a_process_that_was_stopped_in_a_write_until_another_may_lead_never_sends_it(
    server, kubeconfig, as_first_process
):
    command = [sys.executable, "-c", CHILD, kubeconfig]
    if as_first_process:  # as in a container
        command = ["unshare", "--user", "--map-root-user", "--pid", "--fork", *command]
        if subprocess.run([*command[:5], "true"], check=False, capture_output=True).returncode:
            pytest.skip("no process may have its own process namespace here")
    server.answers.set()
    for late, status in ((False, 0), (True, STATUS)):
        with subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True) as process:
            assert process.stdin is not None
            assert process.stdout is not None
            assert process.stdout.readline() == "a look at the clock, and then\n"
            child = process.pid if not as_first_process else int(children(process.pid))
            os.kill(child, signal.SIGSTOP)
            if late:
                time.sleep(LEASE)
            process.stdin.write("\n")
            process.stdin.flush()
            os.kill(child, signal.SIGCONT)
            assert process.wait(20) == status
        assert len(server.requests) == 1


def children(process: int) -> str:
    return Path(f"/proc/{process}/task/{process}/children").read_text()
