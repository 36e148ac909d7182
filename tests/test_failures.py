# ruff: noqa: F811 -- a fixture that is imported is an argument too
"""A full disk and too little memory end a stage in one line that says what to change."""

from __future__ import annotations

import errno
import os
import shutil
import subprocess
from collections.abc import Iterator
from pathlib import Path

import pytest
import torch
from safetensors import SafetensorError

from limbeck import checkpoint
from limbeck.checkpoint import save_tensors
from limbeck.errors import InputError, WorkError
from limbeck.evaluation import encoders
from limbeck.failures import MachineError, explained
from limbeck.runner import Run
from limbeck.stages import distill as distill_stage
from limbeck.stages import teacher as teacher_stage
from limbeck.stages.trajectories import ExpertMaker
from tests.stages.command import limbeck  # noqa: F401 - a fixture
from tests.stages.tiny import (
    distillation,
    finished,  # noqa: F401 - a fixture
    one_thread,  # noqa: F401 - a fixture
    workshop,
    write_tiny,
)

# what safetensors 0.5 and later raise where the disk is full
FULL = SafetensorError("Error while serializing: I/O error: No space left on device (os error 28)")
CUDA = torch.OutOfMemoryError(
    "CUDA out of memory. Tried to allocate 20.00 MiB. GPU 0 has a total capacity of 79.10 GiB of which 3.00 MiB is "
    "free. See documentation for Memory Management\n(https://pytorch.org/docs/stable/notes/cuda.html)"
)


_RESULTS = {"trajectories": ["trajectories", "expert"], "evaluate": ["evaluate", "encoder"]}


@pytest.fixture
def small_disk(tmp_path: Path) -> Iterator[Path]:
    """A file system of eight megabytes of its own."""
    folder = tmp_path / "disk"
    folder.mkdir()
    mounted = shutil.which("mount") and os.geteuid() == 0
    command = ["mount", "-t", "tmpfs", "-o", "size=8m", "tmpfs", str(folder)]
    if not mounted or subprocess.run(command, check=False, capture_output=True).returncode:
        pytest.skip("mounting a file system needs more rights")
    yield folder
    subprocess.run(["umount", str(folder)], check=True)


def test_a_full_disk_is_an_error_of_the_system_and_leaves_nothing(small_disk):
    with pytest.raises(OSError, match="No space left") as caught:
        save_tensors(small_disk / "x.safetensors", {"x": torch.zeros(3_000_000)})
    assert caught.value.errno == errno.ENOSPC
    assert caught.value.filename == str(small_disk / "x.safetensors")
    assert list(small_disk.iterdir()) == []
    save_tensors(small_disk / "x.safetensors", {"x": torch.zeros(1_000_000)})


def test_a_run_whose_disk_is_full_says_so_in_a_line_and_goes_on_when_there_is_room(limbeck, tmp_path, small_disk):
    changes = {"evaluate.tasks": []}
    for stage in ("ingest", "teacher", "targets", "trajectories", "select"):
        Run(distillation(small_disk, changes), workshop(small_disk)).stage(stage)
    with (small_disk / "filler").open("wb") as filler:
        os.posix_fallocate(filler.fileno(), 0, shutil.disk_usage(small_disk).free)
    spec = write_tiny(tmp_path / "tiny.yaml", small_disk, changes)
    outcome = limbeck("run", spec)
    assert outcome.code == 1
    assert "Traceback" not in outcome.err
    assert outcome.problems[-1].startswith("distill: ")
    assert "the disk is full (No space left on device" in outcome.problems[-1]
    assert " of 8.0 MiB are free); make room there, or set spec.output.uri" in outcome.problems[-1]
    (small_disk / "filler").unlink()
    assert limbeck("run", spec).code == 0


@pytest.mark.parametrize(
    ("stage", "error", "phrases"),
    [
        ("distill", FULL, ["distill: ", "the disk is full", "are free)", "the same command then continues"]),
        ("encoder", OSError(errno.ENOSPC, "No space left on device"), ["evaluate: ", "the disk is full"]),
        ("ingest", OSError(errno.EDQUOT, "Disk quota exceeded"), ["ingest: ", "the disk is full"]),
        ("ingest", WorkError("/x: cannot be written: No space left on device"), ["ingest: ", "the disk is full"]),
        ("teacher", CUDA, ["teacher: the accelerator's memory does not suffice", "20.00 MiB", "spec.teacher.batch"]),
        ("expert", CUDA, ["trajectories: ", "spec.trajectories.batch or spec.trajectories.together"]),
        ("distill", CUDA, ["spec.distill.innerBatch, spec.distill.pairs or spec.execution.engine.memoryBudget"]),
        ("encoder", CUDA, ["evaluate: ", "spec.evaluate.batch"]),
        ("targets", CUDA, ["targets: ", "use a machine with more memory"]),
        (
            "distill",
            RuntimeError("[enforce fail at alloc_cpu.cpp:117] DefaultCPUAllocator: can't allocate memory: you tried"),
            ["this machine's memory does not suffice", "spec.distill.innerBatch"],
        ),
        ("distill", RuntimeError("CUDA error: out of memory"), ["the accelerator's memory does not suffice"]),
        (
            "encoder",
            RuntimeError("CUDA error: CUBLAS_STATUS_ALLOC_FAILED when calling x"),
            ["the accelerator's memory"],
        ),
        (
            "teacher",
            RuntimeError("cuDNN error: CUDNN_STATUS_ALLOC_FAILED"),
            ["the accelerator's memory", "teacher.batch"],
        ),
        ("select", MemoryError(), ["select: this machine's memory does not suffice"]),
    ],
)
def test_what_the_machine_lacks_is_one_line_of_the_stage(tmp_path, monkeypatch, stage, error, phrases):
    def fail(*_: object) -> None:
        raise error

    monkeypatch.setattr(checkpoint, "save_file", fail)
    with pytest.raises(MachineError) as caught, explained(stage, tmp_path):
        save_tensors(tmp_path / "x", {"x": torch.zeros(1)})
    assert "\n" not in str(caught.value)
    for phrase in phrases:
        assert phrase in str(caught.value)


@pytest.mark.parametrize("error", [ValueError("x"), InputError("x", "y"), WorkError("it diverged"), OSError("x")])
def test_other_errors_stay_what_they_are(tmp_path, error):
    with pytest.raises(type(error)) as caught, explained("distill", tmp_path):
        raise error
    assert caught.value is error


def test_a_line_is_not_explained_twice(tmp_path):
    with pytest.raises(MachineError) as caught, explained("evaluate", tmp_path), explained("teacher", tmp_path):
        raise CUDA
    assert str(caught.value).startswith("teacher: ")


@pytest.mark.parametrize(
    ("stage", "where", "name", "phrase"),
    [
        ("teacher", teacher_stage, "train_ssl", "teacher: the accelerator's memory does not suffice"),
        ("trajectories", ExpertMaker, "_train", "lower spec.trajectories.batch or spec.trajectories.together"),
        ("distill", distill_stage, "choose_method", "lower spec.distill.innerBatch"),
        ("evaluate", encoders, "pretrain_encoder", "lower spec.evaluate.batch"),
    ],
)
def test_every_stage_says_what_to_lower(limbeck, tmp_path, finished, monkeypatch, stage, where, name, phrase):
    """The results of the stages before are there; this one's memory does not suffice."""
    output = Path(shutil.copytree(finished, tmp_path / "out"))
    for results in _RESULTS.get(stage, [stage]):
        shutil.rmtree(output / results)

    def fail(*_: object, **__: object) -> None:
        raise CUDA

    monkeypatch.setattr(where, name, fail)
    outcome = limbeck("stage", stage, write_tiny(tmp_path / "tiny.yaml", output))
    assert outcome.code == 1
    assert phrase in outcome.err
    assert "Traceback (most" not in outcome.problems[-1]
