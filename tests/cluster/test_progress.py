"""How far a run is, from the run itself to the object's status."""

from __future__ import annotations

import json
import subprocess
import sys

import pytest

from limbeck_operator.manifests import STATUS_PORT
from tests.cluster.kubelet import play, until
from tests.cluster.operating import OUTCOME
from tests.stages.tiny import write_tiny

ADDRESS = "127.0.0.81"  # of this machine's own, as all of 127.0.0.0/8 are


@pytest.fixture
def running(tmp_path):
    """A run that takes a while, as a pod would do it."""
    spec = write_tiny(tmp_path / "tiny.yaml", tmp_path / "out", {"distill.iterations": 100_000})
    command = [sys.executable, "-m", "limbeck.cli", "run", str(spec), "--status", f"{ADDRESS}:{STATUS_PORT}"]
    with subprocess.Popen(command, stderr=subprocess.DEVNULL) as process:
        yield process
        process.kill()


def test_a_running_pod_is_asked_how_far_it_is(objects, start, running):
    start("--progress-seconds", "2")
    objects.create("one")
    play(objects.admin, objects.namespace, objects.pod("one"), "Running", address=ADDRESS)

    def distilling():
        status = objects.get("one").get("status") or {}
        found = status.get("progress") or {}
        return found.get("stage") == "distill" and found.get("metrics") and status

    first = until(distilling, "progress", 90)
    assert set(first["progress"]["metrics"]) == {"matching_loss", "learning_rate"}
    assert {entry["name"]: entry["state"] for entry in first["stages"]} == {
        "ingest source": "Complete",
        "ingest digits/train": "Complete",
        "ingest digits/test": "Complete",
        "teacher": "Complete",
        "targets": "Complete",
        "trajectories": "Complete",
        "select": "Complete",
        "distill": "Running",
        "evaluate": "Pending",
        "register": "Pending",
    }
    until(lambda: distilling()["progress"]["metrics"] != first["progress"]["metrics"], "further progress", 60)
    running.kill()  # what does not answer any more is no reason to say anything else
    play(
        objects.admin, objects.namespace, objects.pod("one"), "Succeeded", message=json.dumps(OUTCOME), address=ADDRESS
    )
    until(lambda: objects.condition("one", "Complete") == ("True", "Complete"), "completion")
    assert "progress" not in objects.get("one")["status"]
