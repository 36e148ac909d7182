"""Workers killed again and again, then the head: nothing finished is lost, and the result is the same."""

from __future__ import annotations

import random
import re
import shutil
import time
from collections import Counter
from pathlib import Path

import pytest

from tests.fanout.processes import LimbeckProcess, kill, wait_for
from tests.soak import times
from tests.stages.tiny import result_files, run_tiny, write_tiny

EXPERTS, KILLS = times(10, 20), times(4, 10)
# an expert takes some seconds, and loses a tenth of one with its worker
LONG = {
    "source.limit": 1400,
    "trajectories": {"experts": EXPERTS, "batch": 16, "epochs": 16},
    "execution.checkpointSeconds": 0.1,
    "evaluate.tasks": [],
}


def logs(output: Path) -> str:
    return "".join(path.read_text() for path in sorted((output / "logs" / "trajectories").glob("worker-*.log")))


def starts(output: Path) -> list[tuple[int, int]]:
    """Every start of an expert, and at which step."""
    found = re.findall(r"experts \[(\d+)\] start at step (\d+) of", logs(output))
    return [(int(index), int(step)) for index, step in found]


@pytest.mark.timeout(900)
def test_dead_workers_and_a_dead_head_cost_nothing_but_time(tmp_path):
    spec, output, calm = write_tiny(tmp_path / "spec.yaml", tmp_path / "out", LONG), tmp_path / "out", tmp_path / "calm"
    run_tiny(calm, LONG)
    for stage in ("ingest", "teacher", "targets"):  # their bytes depend on the threads of the process
        shutil.copytree(calm / stage, output / stage)
    draws = random.Random(4)
    first = LimbeckProcess("stage", "trajectories", spec, "--workers", 2, cwd=tmp_path)
    seen = 0
    for _ in range(KILLS):
        wait_for(lambda: len(starts(output)) >= seen + 2, 90, f"new group of workers: {first.err}")  # noqa: B023
        time.sleep(draws.uniform(0.5, 2.5))
        kill(draws.choice(first.pids("RayTrainWorker")))
        seen = len(starts(output))
        assert first.process.poll() is None, first.err
    wait_for(lambda: len(starts(output)) >= seen + 2, 90, "group after the last")
    assert first.err.count("the group of workers starts again") >= KILLS - 1, first.err
    # the machine of the head is gone, and with it what runs there; workers that outlive their head finish what they can
    kill(*first.pids("gcs_server"), *first.pids("raylet/raylet"), *first.pids("RayTrainWorker"))
    killed = time.monotonic()
    assert first.ends(150) == 1
    assert re.search("trajectories: Ray went away .* what is finished is kept", first.problems[-1]), first.err
    assert "Traceback" not in first.err
    wait_for(lambda: not first.pids(""), 90, "end of the processes that are left")  # agents outlive a killed raylet
    print(f"the head's death was told after {time.monotonic() - killed:.0f} s: {first.problems[-1]}")  # noqa: T201
    kept = len(list(output.glob("expert/*/manifest.json")))
    assert kept < EXPERTS, "all was done before the head was killed: nothing is shown"
    second = LimbeckProcess("stage", "trajectories", spec, "--workers", 2, cwd=tmp_path)
    assert second.ends(400) == 0, second.err
    done = Counter(re.findall(r"expert (\d+) is done", logs(output)))
    assert set(map(int, done)) <= set(range(EXPERTS))  # a kill between the commit of one and its line takes the line
    assert max(done.values()) == 1  # none that was finished was trained again
    from_nothing = Counter(index for index, step in starts(output) if step == 0)
    # a kill within the tenth of a second before the first save costs an expert its start, of two that are at work
    assert sum(from_nothing.values()) - EXPERTS <= KILLS, from_nothing
    print(f"{len(starts(output))} starts, {sum(from_nothing.values())} of them from step 0")  # noqa: T201
    made = {name: digest for name, digest in result_files(output).items() if not name.startswith("logs/")}
    assert len([name for name in made if name.startswith("expert/")]) == EXPERTS
    assert made.items() <= result_files(calm).items()
