"""The MLflow server that the chart runs, run here: the same command line, on another port and in another folder."""

from __future__ import annotations

import os
import re
import socket
import subprocess
import sys
import urllib.error
import urllib.request
from pathlib import Path

import pytest

from tests.charts.rendering import pods, render
from tests.cluster.kubelet import until

NAMES = ("limbeck-mlflow", "limbeck-mlflow.lab", "limbeck-mlflow.lab.svc", "limbeck-mlflow.lab.svc.cluster.local")
SEARCH = "/api/2.0/mlflow/experiments/search?max_results=1"


class Mlflow:
    """The server, and who asks it."""

    def __init__(self, port: int, container: dict, data: Path) -> None:
        self.port, self.container, self.data = port, container, data

    def ask(self, path: str, *, method: str = "GET", body: bytes | None = None, **headers: str) -> int:
        given = {name.capitalize(): value for name, value in headers.items()}
        request = urllib.request.Request(f"http://127.0.0.1:{self.port}{path}", body, given, method=method)
        try:
            with urllib.request.urlopen(request, timeout=30) as answer:
                return answer.status
        except urllib.error.HTTPError as error:
            return error.code


@pytest.fixture(scope="module")
def mlflow(tmp_path_factory):
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    values = {"enabled": True, "service": {"port": port}, "workers": 1, "allowedHosts": ["mlflow.example.com"]}
    (container,) = pods(render({"mlflow": values}))["limbeck-mlflow"]["spec"]["containers"]
    data, tmp = tmp_path_factory.mktemp("data"), tmp_path_factory.mktemp("tmp")
    folders = {"/mlflow": str(data), "/tmp": str(tmp)}  # what the pod has mounted there

    def here(text: str) -> str:
        return re.sub(r"(^|=|//)(/mlflow|/tmp)(?=/|$)", lambda found: found[1] + folders[found[2]], text)

    own = {entry["name"]: here(entry["value"]) for entry in container["env"]}
    path = f"{Path(sys.executable).parent}:{os.environ['PATH']}"
    log = tmp / "log"
    with log.open("wb") as out:
        process = subprocess.Popen(
            [*container["command"], *map(here, container["args"])],
            cwd=tmp,
            env={"PATH": path, "PYTHONPATH": os.environ.get("PYTHONPATH", ""), **own},
            stdout=out,
            stderr=subprocess.STDOUT,
            start_new_session=True,
        )
    server = Mlflow(port, container, data)
    try:
        until(lambda: server.ask("/health") == 200, f"MLflow: {log}", 120)
        yield server
    finally:
        process.terminate()
        try:
            process.wait(20)
        finally:
            if process.poll() is None:
                process.kill()
        sys.stderr.write(log.read_text())


def test_it_answers_to_every_name_that_its_service_has(mlflow):
    for name in NAMES:
        for host in (name, f"{name}:{mlflow.port}"):
            assert mlflow.ask(SEARCH, host=host) == 200, host
    assert mlflow.ask(SEARCH, host="mlflow.example.com") == 200
    assert mlflow.ask(SEARCH, host=f"localhost:{mlflow.port}") == 200  # kubectl port-forward


@pytest.mark.parametrize("host", ["evil.example.com", "limbeck-mlflow.other.svc", "limbeck-mlflow.lab.svc.evil.com"])
def test_it_answers_403_to_others_though_it_is_healthy(mlflow, host):
    assert mlflow.ask(SEARCH, host=host) == 403
    assert mlflow.ask("/health", host=host) == 200


def test_its_own_pages_may_change_things_and_others_may_not(mlflow):
    path, host = "/ajax-api/2.0/mlflow/experiments/search", f"limbeck-mlflow.lab.svc:{mlflow.port}"
    body, json = b'{"max_results": 1}', {"content-type": "application/json"}
    own = [f"http://{host}", "https://mlflow.example.com", "http://localhost:3000"]
    for origin in own:
        assert mlflow.ask(path, method="POST", body=body, host=host, origin=origin, **json) == 200, origin
    assert mlflow.ask(path, method="POST", body=body, host=host, origin="https://evil.example.com", **json) == 403


def test_it_is_ready_where_its_clients_are_answered(mlflow):
    probe = mlflow.container["readinessProbe"]["httpGet"]
    (header,) = probe["httpHeaders"]
    assert header["name"] == "Host"
    assert mlflow.ask(probe["path"], host=header["value"]) == 200
    for other in ("startupProbe", "livenessProbe"):
        assert mlflow.ask(mlflow.container[other]["httpGet"]["path"], host="10.0.0.7:5000") == 200


def test_files_go_through_it_to_its_volume(mlflow):
    where = "/api/2.0/mlflow-artifacts/artifacts/1/run/artifacts/note.txt"
    assert mlflow.ask(where, method="PUT", body=b"hello", host=NAMES[2]) == 200
    assert (mlflow.data / "artifacts" / "1" / "run" / "artifacts" / "note.txt").read_bytes() == b"hello"
    assert (mlflow.data / "mlflow.db").is_file()
