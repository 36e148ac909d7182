"""Workers on this machine: the same bytes however many there are, failures that stay where they are, and stopping."""

from __future__ import annotations

import json
import re
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import pytest
import torch

from limbeck.checkpoint import load_tensors
from limbeck.interrupt import Stopped
from limbeck.runner import Run
from limbeck.spec import Distillation
from limbeck.stages.trajectories import expert_identity
from limbeck.store import Store
from tests.fanout.processes import LimbeckProcess, marked, wait_for
from tests.stages.tiny import StopAt, distillation, result_files, run_tiny, tiny, workshop, write_tiny

FEW = {"trajectories.experts": 5, "evaluate.tasks": []}


def prepared(output: Path, changes: dict[str, Any]) -> None:
    """All stages before trajectories, in this process: their bytes depend on the threads of the process."""
    for name in ("ingest", "teacher", "targets"):
        Run(distillation(output, changes), workshop(output)).stage(name)


def expert_key(output: Path, spec: Path, index: int) -> str:
    settings = Distillation.model_validate(tiny(output, FEW)).spec
    digests = {}
    for stage in ("ingest", "targets"):
        found = [json.loads(path.read_text()) for path in output.glob(f"{stage}/*/manifest.json")]
        (digests[stage],) = {manifest["digest"] for manifest in found}
    return expert_identity(settings, index, digests["ingest"], digests["targets"]).key


@pytest.mark.parametrize("workers", [1, 2, 4])
def test_any_number_of_workers_gives_the_bytes_of_none(tmp_path, workers):
    changes = {**FEW, "trajectories.threads": 2, "student": {"width": 16, "depth": 1}, "trajectories.batch": 200}
    output, alone = tmp_path / "out", tmp_path / "alone"
    spec = write_tiny(tmp_path / "spec.yaml", output, changes)
    prepared(output, changes)
    run_tiny(alone, changes)
    run = LimbeckProcess("stage", "trajectories", spec, "--workers", workers, cwd=tmp_path)
    assert run.ends() == 0, run.err
    count = f"{workers} worker{'s'[: workers > 1]} on this machine, CPU 2{' each' if workers > 1 else ''}"
    assert f"trajectories: {count}" in run.err
    assert sorted(p.name for p in (output / "logs/trajectories").iterdir()) == [
        "ray.log",
        *(f"worker-{rank}.log" for rank in range(workers)),
    ]
    made = {name: digest for name, digest in result_files(output).items() if not name.startswith("logs/")}
    assert len([name for name in made if name.startswith("expert/")]) == 5
    assert made.items() <= result_files(alone).items()
    assert not marked(run.mark), "processes are left"


def test_threads_are_part_of_what_an_expert_is(tmp_path):
    """As many threads, the same bytes; and another number is another expert, whether or not its sums differ."""
    outputs = {}
    for threads in (1, 2):
        output = tmp_path / str(threads)
        run_tiny(output, {**FEW, "trajectories.threads": threads})
        outputs[threads] = {path.name for path in output.glob("expert/*")}
    assert not outputs[1] & outputs[2]


def test_two_workers_distil_as_one_with_both_pairs(tmp_path):
    changes = {**FEW, "distill.pairs": 2, "distill.iterations": 6}
    output, alone = tmp_path / "out", tmp_path / "alone"
    run_tiny(alone, changes)
    for stage in ("ingest", "teacher", "targets", "expert", "trajectories", "select"):
        shutil.copytree(alone / stage, output / stage)
    spec = write_tiny(tmp_path / "spec.yaml", output, changes)
    run = LimbeckProcess("stage", "distill", spec, "--workers", 2, cwd=tmp_path)
    assert run.ends() == 0, run.err
    assert "distill: 2 workers on this machine" in run.err
    ours, theirs = (
        load_tensors(next((tmp_path / name).glob("distill/*/synthetic.safetensors")))[0] for name in ("out", "alone")
    )
    for name in ("images", "targets", "rate"):
        torch.testing.assert_close(ours[name], theirs[name], rtol=1e-5, atol=1e-6)
    assert not torch.equal(ours["images"], ours["initial_images"])
    assert "already done" not in run.problems[-1]


def test_an_expert_that_always_fails_leaves_the_others_alone(tmp_path, caplog):
    spec, output = write_tiny(tmp_path / "spec.yaml", tmp_path / "out", FEW), tmp_path / "out"
    prepared(output, FEW)
    obstacle = output / "work" / "expert" / expert_key(output, spec, 3)  # its scratch folder cannot be made
    obstacle.parent.mkdir(parents=True, exist_ok=True)
    obstacle.write_text("in the way")
    first = LimbeckProcess("run", spec, "--workers", 2, cwd=tmp_path)
    assert first.ends() == 1
    assert first.problems[-2:] == [
        "trajectories: 1 of 5 experts failed; those that are done are kept, and another run tries the rest",
        f"  expert 3 of seed 0: [Errno 17] File exists: '{obstacle}'",
    ]
    assert "Traceback" not in first.err
    assert len(list(output.glob("expert/*/manifest.json"))) == 4
    assert "Traceback" in (output / "logs/trajectories/worker-1.log").read_text()  # for who has to find out why
    made = {path: path.stat().st_mtime_ns for path in output.glob("expert/*/manifest.json")}

    obstacle.unlink()
    caplog.set_level("INFO", logger="limbeck")
    Run(distillation(output, FEW), workshop(output)).stage("trajectories")
    assert [line for line in caplog.messages if "start at" in line] == ["experts [3] start at step 0 of 9"]
    assert all(path.stat().st_mtime_ns == when for path, when in made.items())


def test_ctrl_c_stops_the_workers_where_they_can_go_on(tmp_path, caplog):
    changes = {**FEW, "trajectories": {"experts": 2, "batch": 16, "epochs": 100}, "source.limit": 1400}
    spec, output = write_tiny(tmp_path / "spec.yaml", tmp_path / "out", changes), tmp_path / "out"
    prepared(output, changes)
    run = LimbeckProcess("stage", "trajectories", spec, "--workers", 2, cwd=tmp_path)
    logs = lambda: "".join(p.read_text() for p in output.glob("logs/trajectories/worker-*.log"))  # noqa: E731
    wait_for(lambda: logs().count("start at step") == 2, 90, "start")
    time.sleep(2)
    run.process.send_signal(signal.SIGINT)
    asked = time.monotonic()
    assert run.ends() == 1
    assert time.monotonic() - asked < 30
    assert run.problems[-1] == (
        f"stopped; what is finished is kept. To go on: limbeck stage trajectories {spec} --workers 2"
    )
    assert not marked(run.mark), "processes are left"
    assert len(list(output.glob("work/expert/*/checkpoint.safetensors"))) == 2
    caplog.set_level("INFO", logger="limbeck")
    progress = StopAt("trajectories", 1)
    with pytest.raises(Stopped):
        Run(distillation(output, changes), workshop(output, progress, progress.stop)).stage("trajectories")
    (begun,) = [int(re.findall(r"start at step (\d+)", line)[0]) for line in caplog.messages if "start at" in line]
    assert begun > 100  # it goes on from where it was stopped


def test_without_workers_there_is_no_ray(tmp_path):
    spec = write_tiny(tmp_path / "spec.yaml", tmp_path / "out", {**FEW, "trajectories.experts": 1})
    script = f"""
import sys
from limbeck import cli
sys.argv = ["limbeck", "run", {str(spec)!r}]
try:
    cli.main()
except SystemExit as ended:
    assert not ended.code, ended.code
assert "limbeck.fanout" not in sys.modules
assert not [name for name in sys.modules if name == "ray" or name.startswith("ray.")]
"""
    subprocess.run([sys.executable, "-c", script], check=True, cwd=tmp_path, timeout=200)
    assert not (tmp_path / "out" / "logs").exists()


def test_a_store_that_no_other_process_sees_is_refused(tmp_path, limbeck):
    spec = write_tiny(tmp_path / "spec.yaml", "memory://fanout", FEW)
    outcome = limbeck("run", spec, "--workers", 2)
    assert outcome.code == 2
    assert "spec.output.uri: memory://fanout: no other process sees it; a folder or a bucket" in outcome.problems[-1]


def test_ray_that_is_not_installed_is_named(tmp_path, limbeck, monkeypatch):
    monkeypatch.setattr("limbeck.fanout.supervisor.find_spec", lambda name: None)
    outcome = limbeck("run", write_tiny(tmp_path / "spec.yaml", tmp_path / "out", FEW), "--workers", 2)
    assert outcome.code == 2
    assert outcome.problems[-1].endswith("ray: not installed; pip install 'limbeck[ray]'")
    assert Store(str(tmp_path / "out")).names("expert") == []


def test_more_gpus_than_this_machine_has_is_told(tmp_path):
    changes = {**FEW, "execution.ray": {"gpusPerWorker": 9, "startTimeoutSeconds": 2}}
    spec = write_tiny(tmp_path / "spec.yaml", tmp_path / "out", changes)
    prepared(tmp_path / "out", changes)
    run = LimbeckProcess("stage", "trajectories", spec, "--workers", 1, cwd=tmp_path)
    assert run.ends() == 2, run.err
    assert "a worker of CPU 1, GPU 9 found no room in this machine within 2 s" in run.problems[-1]
    assert not marked(run.mark), "processes are left"
