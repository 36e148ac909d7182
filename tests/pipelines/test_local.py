# ruff: noqa: F811 -- a fixture that is imported is an argument too
"""The pipeline by Kubeflow's own local runner: the same bytes as `limbeck run`, kills that cost nothing, failures."""

from __future__ import annotations

import json
import shutil
import signal
import time
from pathlib import Path

import pytest
from mlflow import MlflowClient

from tests.fanout.processes import LimbeckProcess, kill, wait_for
from tests.stages.command import limbeck  # noqa: F401 - a fixture
from tests.stages.tiny import finished, result_files, write_tiny  # noqa: F401 - a fixture

ALONE = {"OMP_NUM_THREADS": "1", "MKL_NUM_THREADS": "1"}  # the number of threads may change the last bits of a sum
TASKS = ["fingerprint", "ingest", "teacher", "targets", "trajectories", "select", "distill"]
TASKS += ["encoders", "encoders-2", "encoders-3", "encoders-4", "encoders-5", "evaluate", "register", "outcome"]


def manifests(output: Path) -> dict[str, int]:
    """When every result was committed."""
    return {str(path.relative_to(output)): path.stat().st_mtime_ns for path in output.glob("*/*/manifest.json")}


@pytest.mark.timeout(900)
def test_killed_twice_it_ends_with_the_bytes_of_limbeck_run(tmp_path):
    store = f"sqlite:///{tmp_path / 'mlflow.db'}"
    changes = {"tracking": {"uri": store}, "registry.name": "tiny-set"}
    calm, output = tmp_path / "calm", tmp_path / "out"
    plain = write_tiny(tmp_path / "calm.yaml", calm, {"registry.name": "tiny-set"})
    once = LimbeckProcess("run", plain, cwd=tmp_path, environment=ALONE)
    assert once.ends() == 0, once.err
    spec = write_tiny(tmp_path / "spec.yaml", output, changes)
    log = output / "work" / "pipeline" / "tiny" / "pipeline.log"
    done: dict[str, int] = {}
    for task in ("teacher", "distill"):
        log.unlink(missing_ok=True)
        process = LimbeckProcess("pipeline", "run", spec, "--local", cwd=tmp_path, environment=ALONE)
        wait_for(lambda: log.exists() and f"Executing task '{task}'" in log.read_text(), 200, task)  # noqa: B023
        time.sleep(1.0)
        kill(*process.pids(""))
        process.process.wait()
        now = manifests(output)
        assert done.items() <= now.items()  # nothing was made again
        done = now
    assert {path.split("/")[0] for path in done} >= {"ingest", "teacher", "targets", "trajectories", "select"}
    last = LimbeckProcess("pipeline", "run", spec, "--local", cwd=tmp_path, environment=ALONE)
    assert last.ends(400) == 0, last.err
    tasks = [line.split()[0] for line in last.problems]
    assert sorted(tasks) == sorted(TASKS)
    assert (tasks[:6], tasks[-3:]) == (TASKS[:6], TASKS[-3:])  # between them any order will do
    assert done.items() <= manifests(output).items()
    mine, theirs = result_files(output), result_files(calm)
    assert {name: digest for name, digest in mine.items() if not name.startswith("mlruns")} == theirs
    outcome = json.loads((output / "runs" / "tiny" / "outcome.json").read_text())
    assert outcome["state"] == "SUCCEEDED"
    assert (output / "runs" / "tiny" / "report.html").exists()

    client = MlflowClient(store)
    runs = client.search_runs([client.get_experiment_by_name("limbeck").experiment_id])
    (parent,) = [run for run in runs if "mlflow.parentRunId" not in run.data.tags]
    assert parent.info.status == "FINISHED"
    names = sorted(run.info.run_name for run in runs if run is not parent)
    stages = ["distill", "evaluate", "register", "select", "targets", "teacher", "trajectories"]
    assert names == sorted([*stages, "ingest source", "ingest digits/train", "ingest digits/test"])
    assert int(client.get_model_version_by_alias("tiny-set", "champion").version) == 1

    artifacts = {path.name: path for path in log.parent.rglob("*") if path.is_file()}
    assert "<img" in artifacts["images"].read_text()
    assert "| digits | convnet | distilled | 10 % |" in artifacts["table"].read_text()
    assert "models:/tiny-set/1" in artifacts["card"].read_text()
    record = json.loads(artifacts["distilled"].read_text())
    assert (output / record["stage"] / record["key"] / "manifest.json").exists()


def test_a_stage_that_fails_is_named_with_what_it_says_and_nothing_after_it_runs(tmp_path, limbeck, finished):
    output = Path(shutil.copytree(finished, tmp_path / "out"))
    for stage in ("trajectories", "expert"):
        shutil.rmtree(output / stage)
    (output / "expert").write_text("in the way")
    outcome = limbeck("pipeline", "run", write_tiny(tmp_path / "spec.yaml", output), "--local")
    assert outcome.code == 1
    assert outcome.problems[-1].startswith("trajectories: ")
    assert "pipeline.log" in outcome.problems[-1]
    assert "Traceback" not in outcome.err
    assert not any(line.startswith("distill") for line in outcome.err.splitlines())
    record = json.loads((output / "runs" / "tiny" / "outcome.json").read_text())
    assert record["state"] == "FAILED"


def test_a_stop_is_passed_on_and_said(tmp_path):
    spec = write_tiny(tmp_path / "spec.yaml", tmp_path / "out", {"distill.iterations": 100_000})
    process = LimbeckProcess("pipeline", "run", spec, "--local", cwd=tmp_path, environment=ALONE)
    log = tmp_path / "out" / "work" / "pipeline" / "tiny" / "pipeline.log"
    wait_for(lambda: log.exists() and "Executing task 'distill'" in log.read_text(), 200, "distill")
    wait_for(lambda: list((tmp_path / "out" / "work" / "distill").rglob("*")), 60, "the work")
    time.sleep(3.0)
    process.process.send_signal(signal.SIGTERM)
    assert process.ends(60) == 1
    assert "stopped; what is finished is kept" in process.problems[-1]
    wait_for(lambda: not process.pids(""), 10, "end of all processes")
    assert list((tmp_path / "out" / "work" / "distill").rglob("*.safetensors"))  # it has saved its state


def test_without_local_it_is_said_what_there_is(tmp_path, limbeck):
    outcome = limbeck("pipeline", "run", write_tiny(tmp_path / "spec.yaml", tmp_path / "out"))
    assert outcome.code == 2
    assert "limbeck pipeline submit" in outcome.problems[-1]
