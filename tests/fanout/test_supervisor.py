"""The command's side, with drivers that are scripts: a driver that dies, says nothing, or writes what is no event."""

from __future__ import annotations

import subprocess
import sys
import time

import fsspec
import pytest

from limbeck.errors import InputError, WorkError
from limbeck.fanout import supervisor
from limbeck.fanout.driver import _storage
from limbeck.fanout.messages import Connected, Ended, Failure, Progress, Said, event_line, read_event
from limbeck.fanout.supervisor import RayFanout
from limbeck.interrupt import Stopped, StopRequest
from limbeck.runner import Run
from limbeck.storage import PLAIN
from limbeck.store import Store
from tests.stages.tiny import Lines, distillation, workshop

REAL = subprocess.Popen
FEW = {"trajectories.experts": 3, "evaluate.tasks": []}


@pytest.mark.parametrize(
    "event",
    [
        Said(line="two\nlines é"),
        Connected(),
        Progress(done=3, note="n"),
        Ended(untrained=[Failure(index=2, cause=None)], where="spec.seed", error="e"),
    ],
)
def test_events_come_back_as_they_went(event):
    line = event_line(event)
    assert line.count("\n") == 1
    assert read_event(line) == event
    assert read_event("(raylet) " + line) == event
    assert read_event("something that Ray prints") is None


@pytest.fixture
def driven(tmp_path, monkeypatch):
    """Runs the stage trajectories with a script as the driver, which finds `say` and the job there."""

    def run(script: str, stop: StopRequest | None = None) -> Lines:
        head = (
            "import sys, json, time\nfrom limbeck.fanout.messages import *\n"
            "def say(event):\n    sys.stdout.write(event_line(event)); sys.stdout.flush()\n"
            "job = Job.model_validate_json(sys.stdin.readline())\n"
        )

        def popen(command, **options):
            return REAL([sys.executable, "-c", head + script], **options)

        shop = workshop(tmp_path / "out")
        for name in ("ingest", "teacher", "targets"):
            Run(distillation(tmp_path / "out", FEW), shop).stage(name)
        monkeypatch.setattr(supervisor.subprocess, "Popen", popen)
        lines, stop = Lines(), stop or StopRequest()
        store = Store(str(tmp_path / "out"))
        fanout = RayFanout(distillation(tmp_path / "out", FEW).spec, 2, store, lines, stop)
        fanned = type(shop)(store, shop.device, lines, stop, fanout)
        Run(distillation(tmp_path / "out", FEW), fanned).stage("trajectories")
        return lines

    return run


def test_a_driver_that_dies_is_told_with_the_way_to_the_logs(driven, tmp_path):
    with pytest.raises(WorkError) as raised:
        driven("say(Connected()); sys.exit(7)")
    text = str(raised.value)
    assert "trajectories: Ray went away (exit code 7)" in text
    assert "the same command goes on from there" in text
    assert text.endswith(f"Logs: {tmp_path}/out/logs/trajectories")


def test_a_driver_that_never_connects_is_given_up(driven, monkeypatch):
    monkeypatch.setattr(supervisor, "_LOCAL_SECONDS", 0.5)
    with pytest.raises(InputError, match="Ray on this machine gave no answer within 0 s; a machine that is less busy"):
        driven("say(Connecting()); time.sleep(100)")


def test_the_fault_of_the_spec_and_of_the_work_are_told_apart(driven):
    with pytest.raises(InputError, match=r"^spec\.execution\.ray: no room$"):
        driven('say(Connected()); say(Ended(error="no room", where="spec.execution.ray"))')
    with pytest.raises(WorkError, match=r"trajectories: died too often\. Logs: "):
        driven('say(Connected()); say(Ended(error="died too often"))')


def test_experts_that_are_said_to_be_made_and_are_not_there_are_missed(driven):
    with pytest.raises(WorkError, match=r"experts 0, 1, 2 were trained but are not in .*; do the workers see it\?"):
        driven("say(Connected()); say(Ended())")


def test_noise_is_no_event_and_lines_are_shown(driven):
    with pytest.raises(WorkError, match=r"1 of 3 experts failed(.|\n)*expert 1 of seed 0: torn"):
        driven(
            'print("noise"); say(Said(line="hello")); say(Progress(done=2, note=""))\n'
            'say(Ended(untrained=[Failure(index=1, cause="torn")]))'
        )


def test_a_stop_reaches_the_driver(driven):
    stop = StopRequest()
    stop.requested = True
    started = time.monotonic()
    with pytest.raises(Stopped):
        driven("assert sys.stdin.readline().strip() == STOP; say(Ended(stopped=True))", stop)
    assert time.monotonic() - started < 30


def test_ray_s_own_files_go_through_the_file_system_of_the_store(tmp_path):
    filesystem, path = _storage(str(tmp_path / "out"), PLAIN)
    assert (filesystem, path) == (None, f"{tmp_path}/out/work/ray")
    filesystem, path = _storage("memory://bucket/out", PLAIN)
    filesystem.create_dir(path)
    with filesystem.open_output_stream(f"{path}/marker") as stream:
        stream.write(b"here")
    assert fsspec.filesystem("memory").cat_file("/bucket/out/work/ray/marker") == b"here"
