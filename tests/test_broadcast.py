"""What a run says over HTTP of where it stands."""

from __future__ import annotations

import json
import socket
import subprocess
import sys
import urllib.error
import urllib.request
from collections.abc import Iterator
from contextlib import contextmanager

import pytest

from limbeck import cli
from limbeck.broadcast import Broadcast
from limbeck.errors import InputError
from limbeck.interrupt import Stopped
from limbeck.progress import Bar
from limbeck.runner import Run
from limbeck.standing import Standing
from limbeck.tracking.recorder import UNRECORDED
from tests.stages.tiny import (
    Lines,
    distillation,
    one_thread,  # noqa: F401 - a fixture
    workshop,
    write_tiny,
)


def ask(broadcast: Broadcast) -> Standing:
    with urllib.request.urlopen(f"http://{broadcast.address}/status", timeout=10) as answer:
        assert answer.headers["Content-Type"] == "application/json"
        return Standing.model_validate_json(answer.read())


class Asking(Lines):
    """Progress that asks a broadcast where the run stands whenever a bar has advanced."""

    def __init__(self, broadcast: Broadcast) -> None:
        super().__init__()
        self._broadcast = broadcast
        self.answers: list[Standing] = []

    @contextmanager
    def bar(self, title: str, total: int, unit: str, done: int = 0) -> Iterator[Bar]:
        owner = self

        class _Bar:
            def advance(self, steps: int = 1, note: str = "") -> None:
                owner.answers.append(ask(owner._broadcast))

        yield _Bar()


@pytest.fixture
def broadcast() -> Iterator[Broadcast]:
    found = Broadcast("127.0.0.1:0")
    yield found
    found.close()


def test_a_run_says_how_far_it_is(tmp_path, broadcast):
    before = ask(broadcast)
    assert (before.stage, before.stages) == (None, [])
    progress = Asking(broadcast)
    recorder, shop = broadcast.around(UNRECORDED, workshop(tmp_path / "out", progress))
    Run(distillation(tmp_path / "out"), shop, recorder).all()
    order = list(dict.fromkeys(answer.stage for answer in progress.answers))
    assert order[0] == "ingest source"
    assert order[-2:] == ["distill", "evaluate"]
    distilling = [answer for answer in progress.answers if answer.stage == "distill"]
    assert [answer.percentage for answer in distilling] == [0, 12, 25, 37, 50, 62, 75, 87]
    assert set(distilling[-1].metrics) == {"matching_loss", "learning_rate"}
    assert all(answer.estimated_remaining_seconds is not None for answer in distilling[1:])
    states = {entry.name: entry.state for entry in distilling[0].stages}
    assert (states["teacher"], states["distill"], states["evaluate"]) == ("Complete", "Running", "Pending")
    after = ask(broadcast)
    assert {entry.state for entry in after.stages} == {"Complete"}
    assert (after.run, after.stage, after.metrics) == ("tiny", None, {})


def test_what_was_found_done_and_what_was_cut_is_said(tmp_path, broadcast):
    Run(distillation(tmp_path / "out"), workshop(tmp_path / "out")).stage("ingest")
    recorder, shop = broadcast.around(UNRECORDED, workshop(tmp_path / "out"))
    shop.stop.requested = True
    with pytest.raises(Stopped):
        Run(distillation(tmp_path / "out"), shop, recorder).all()
    stages = {entry.name: entry for entry in ask(broadcast).stages}
    assert (stages["ingest source"].state, stages["ingest source"].reused) == ("Complete", True)
    assert {entry.state for entry in stages.values()} == {"Complete", "Failed", "Pending"}


def test_only_the_status_is_served(broadcast):
    with pytest.raises(urllib.error.HTTPError, match="404"):
        urllib.request.urlopen(f"http://{broadcast.address}/etc/passwd", timeout=10)


@pytest.mark.parametrize("address", ["8081", "host:", ":8081", "host:port", "host:99999"])
def test_an_address_that_is_none_is_named(address):
    with pytest.raises(InputError, match="HOST:PORT"):
        Broadcast(address)


def test_a_run_goes_on_where_nobody_can_ask(tmp_path, monkeypatch, capfd):
    with socket.create_server(("127.0.0.1", 0)) as taken:
        address = f"127.0.0.1:{taken.getsockname()[1]}"
        spec = write_tiny(tmp_path / "tiny.yaml", tmp_path / "out")
        monkeypatch.setattr(sys, "argv", ["limbeck", "run", str(spec), "--status", address])
        with pytest.raises(SystemExit) as ended:
            cli.main()
    assert not ended.value.code
    assert f"nobody can ask where the run stands: {address}: " in capfd.readouterr().err


def test_the_command_serves_while_it_works(tmp_path):
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        address = f"127.0.0.1:{free.getsockname()[1]}"
    spec = write_tiny(tmp_path / "tiny.yaml", tmp_path / "out", {"distill.iterations": 20_000})
    command = [sys.executable, "-m", "limbeck.cli", "run", str(spec), "--status", address]
    with subprocess.Popen(command, stderr=subprocess.PIPE, text=True) as process:
        assert process.stderr is not None
        for line in process.stderr:  # the stage before distill has ended
            if line.startswith("select"):
                break
        while True:
            with urllib.request.urlopen(f"http://{address}/status", timeout=10) as answer:
                found = json.loads(answer.read())
            if found.get("stage") == "distill" and "metrics" in found and found["metrics"]:
                break
        process.terminate()
        assert "stopped; what is finished is kept" in process.stderr.read()
    assert process.returncode == 1
    assert found["run"] == "tiny"
