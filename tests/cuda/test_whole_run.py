"""A whole run on a GPU: the same bytes each time, after a stop too, and near what the CPU gives.

Skipped, with the reason, where there is no GPU; continuous integration has none.
"""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file

from limbeck.interrupt import Stopped, StopRequest
from limbeck.matching.experts import FILE
from limbeck.progress import SILENT, Progress
from limbeck.runner import Run
from limbeck.stages.task import make_deterministic
from limbeck.summary import Summary
from tests.stages.tiny import StopAt, digests, distillation, workshop

pytestmark = pytest.mark.skipif(not torch.cuda.is_available(), reason="there is no GPU here")

CHANGES: dict[str, Any] = {
    "student.width": 32,
    "trajectories.experts": 4,
    "distill.pairs": 2,
    "execution": {"checkpointSeconds": 0.0},
}


@pytest.fixture(scope="module", autouse=True)
def deterministic() -> None:
    make_deterministic()


def run(
    output: Path,
    device: str = "cuda",
    changes: dict[str, Any] | None = None,
    progress: Progress = SILENT,
    stop: StopRequest | None = None,
) -> Summary:
    shop = replace(workshop(output, progress, stop), device=torch.device(device))
    return Run(distillation(output, CHANGES | (changes or {})), shop).all()


@pytest.fixture(scope="module")
def first(tmp_path_factory) -> tuple[Path, Summary]:
    output = tmp_path_factory.mktemp("first")
    return output, run(output)


def test_two_runs_give_the_same_bytes(first, tmp_path):
    assert digests(run(tmp_path)) == digests(first[1])
    assert torch.cuda.get_device_name() in first[1].device


@pytest.mark.parametrize(("title", "steps"), [("teacher", 2), ("trajectories", 5), ("distill", 3), ("evaluate", 3)])
def test_a_stopped_run_goes_on_to_the_same_bytes(first, tmp_path, title, steps):
    progress = StopAt(title, steps)
    with pytest.raises(Stopped):
        run(tmp_path, progress=progress, stop=progress.stop)
    assert digests(run(tmp_path)) == digests(first[1])


def theta(output: Path) -> torch.Tensor:
    return torch.stack([load_file(path)["theta"] for path in sorted(output.glob(f"expert/*/{FILE}"))])


def test_experts_are_those_of_the_cpu_to_rounding(first, tmp_path):
    output, _ = first
    teacher = next(output.glob("teacher/*/teacher.safetensors"))
    pretrained = {
        "teacher": {
            "algorithm": "pretrained", "architecture": "convnet", "width": 8, "depth": 1, "checkpoint": str(teacher)
        }
    }  # fmt: skip
    found = {}
    for device in ("cpu", "cuda"):
        run(tmp_path / device, device, pretrained)
        found[device] = sorted(theta(tmp_path / device), key=lambda t: t[0].sum().item())
    for ours, cpu in zip(found["cuda"], found["cpu"], strict=True):
        assert torch.equal(ours[0], cpu[0])
        # convolutions are in TF32 there, with 10 bits after the point
        assert (ours[-1] - cpu[-1]).norm() < 5e-3 * (cpu[-1] - cpu[0]).norm()


@pytest.mark.parametrize("compile", ["always", "never"])
def test_compiled_and_eager_steps_agree(first, tmp_path, compile):  # noqa: A002 - the spec's own word
    output, _ = first
    run(tmp_path, changes={"execution": {"engine": {"compile": compile}}, "evaluate.tasks": []})
    ours, eager = ((theta(folder).sum(0)) for folder in (tmp_path, output))
    assert (ours - eager).norm() < 1e-3 * eager.norm()
