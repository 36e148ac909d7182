# ruff: noqa: F811 -- a fixture that is imported is an argument too
"""What distill starts from, what it leaves, and how an optimisation that collapses ends."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch

from limbeck.checkpoint import load_tensors
from limbeck.data.distilled import DistilledSet
from limbeck.matching.matcher import Matcher
from limbeck.runner import Run
from limbeck.stages.start import starting_set
from limbeck.stages.task import StageTask
from tests.stages.command import limbeck  # noqa: F401 - a fixture
from tests.stages.tiny import (
    distillation,
    one_thread,  # noqa: F401 - a fixture
    run_tiny,
    workshop,
    write_tiny,
)

BARE = {"evaluate.tasks": [], "evaluate.baselines": []}
ADAM = {"distill.pixelStep": 0.05, "distill.targetStep": 0.05}
STILL = {"distill.pixelStep": 0.0, "distill.targetStep": 0.0, "distill.rateStep": 0.0}


def synthetic_of(output: Path) -> dict[str, torch.Tensor]:
    (path,) = output.glob("distill/*/synthetic.safetensors")
    return load_tensors(path)[0]


def start_of(output: Path, changes: dict[str, Any]) -> dict[str, torch.Tensor]:
    """What the spec's distillation would start from, without its result."""
    run = Run(distillation(output, changes), workshop(output))
    run.stage("select")
    inputs = {name: run.results[name] for name in ("dataset", "teacher", "targets", "select")}
    return vars(starting_set(StageTask(distillation(output, changes).spec, workshop(output), inputs, Path())))


@pytest.mark.parametrize(
    "changes",
    [
        {"distill.pixels": "uint8", "distill.downsampling": 2, "distill.averageLast": 0.5},
        {"distill.pixels": "uint8", "distill.optimizer": "adam", "distill.targetRank": 3},
        {"distill.pixels": "float32", "distill.downsampling": 2},
        {"distill.method": "krrSt", "distill.kernel": {"pool": 2, "poolSteps": 2, "realBatch": 8}},
    ],
    ids=["averaged", "adam", "float32", "krrSt"],
)
def test_the_starting_set_is_what_a_distillation_of_no_steps_leaves(tmp_path, changes):
    changes = BARE | STILL | {"distill.iterations": 2} | changes
    assert run_tiny(tmp_path, changes).succeeded
    start, left = start_of(tmp_path, changes), synthetic_of(tmp_path)
    for name in ("images", "stored", "targets", "rate"):
        assert torch.equal(start[name], left[name]), name
    assert torch.equal(start["images"], left["initial_images"])
    assert torch.equal(start["targets"], left["initial_targets"])


@pytest.mark.parametrize(
    "changes",
    [
        {"distill.downsampling": 2, "distill.averageLast": 0.5},
        {"distill.method": "krrSt", "distill.kernel": {"pool": 2, "poolSteps": 2, "realBatch": 8}},
    ],
    ids=["mkdt", "krrSt"],
)
def test_a_registered_set_holds_the_bytes_of_what_was_evaluated(tmp_path, changes):
    assert run_tiny(tmp_path, BARE | {"distill.pixelStep": 200.0} | changes).succeeded
    left = synthetic_of(tmp_path)
    (folder,) = tmp_path.glob("register/*")
    loaded = DistilledSet.load(folder)
    assert loaded.pixel_type == "uint8"
    assert torch.equal(loaded.images, left["images"])
    assert torch.equal(loaded.kept, left["stored"])
    assert torch.equal(loaded.targets, left["targets"])
    assert load_tensors(folder / "distilled.safetensors")[0]["images"].dtype == torch.uint8
    assert not torch.equal(left["images"], left["initial_images"])


def test_the_paper_s_pixels_are_float32():
    document = distillation("x").model_dump(by_alias=True, exclude_unset=True)["spec"]
    spec = {"preset": "paper", "source": document["source"]}
    assert type(distillation("x").spec).model_validate(spec).distill.pixels == "float32"


# ---- collapse


@pytest.mark.parametrize(
    ("changes", "phrase"),
    [
        ({"distill.rateStep": 1000.0, "distill.optimizer": "adam"}, "one step takes the inner learning rate from 0.05"),
        ({"distill.rateStep": 10.0, "distill.optimizer": "sgd"}, "one step takes the inner learning rate from 0.05"),
        ({"distill.rateStep": 0.1, "distill.optimizer": "adam"}, "one step takes the inner learning rate from 0.5"),
    ],
)
def test_a_collapsed_rate_is_one_line_and_no_set(limbeck, tmp_path, changes, phrase):
    spec = write_tiny(tmp_path / "tiny.yaml", tmp_path / "out", BARE | ADAM | {"distill.iterations": 60} | changes)
    for _ in range(2):  # nor does the same command get past it
        outcome = limbeck("run", spec)
        assert outcome.code == 1
        assert outcome.problems[-1].startswith("distill: iteration ")
        assert phrase in outcome.problems[-1]
        assert f"lower spec.distill.rateStep (now {changes['distill.rateStep']:g})" in outcome.problems[-1]
        assert "Traceback" not in outcome.err
    assert not list((tmp_path / "out").glob("register/*"))
    assert not list((tmp_path / "out").glob("distill/*/manifest.json"))


def test_a_rate_that_falls_until_students_stand_still_is_one_line(limbeck, tmp_path, monkeypatch):
    """No step is large, and no bound is reached."""
    match = Matcher.match

    def falling(self: Matcher, drawn: Any, images: Any, targets: Any, rate: torch.Tensor) -> Any:
        found = match(self, drawn, images, targets, rate)
        slope = torch.tensor(1.0 if rate > 0.001 else 0.0)
        return replace(found, gradient=replace(found.gradient, rate=slope))

    monkeypatch.setattr(Matcher, "match", falling)
    changes = BARE | ADAM | {"distill.iterations": 60, "distill.rateStep": 0.05, "distill.optimizer": "adam"}
    outcome = limbeck("run", write_tiny(tmp_path / "tiny.yaml", tmp_path / "out", changes))
    assert outcome.code == 1
    assert outcome.problems[-1].startswith("distill: the learning rate has fallen from 0.05 to 0.00")
    assert outcome.problems[-1].endswith("1 is that of no training); lower spec.distill.rateStep (now 0.05)")


def test_a_set_whose_first_step_changes_nothing_is_not_registered(limbeck, tmp_path):
    changes = BARE | STILL | {"distill.innerOptimizer": {"rate": 1e-30}, "distill.iterations": 1}
    outcome = limbeck("run", write_tiny(tmp_path / "tiny.yaml", tmp_path / "out", changes))
    assert outcome.code == 1
    assert (
        "at the learned rate, 1e-30, changes no weight of a student; change spec.distill.innerOptimizer.rate"
        in (outcome.problems[-1])
    )
    assert not list((tmp_path / "out").glob("register/*"))


@pytest.mark.parametrize("name", ["images", "targets", "rate"])
def test_a_gradient_that_is_not_finite_is_one_line_with_its_iteration(limbeck, tmp_path, monkeypatch, name):
    """Loss and rate are finite; the set is not touched."""
    match, seen = Matcher.match, []

    def broken(self: Matcher, *arguments: Any) -> Any:
        found = match(self, *arguments)
        seen.append(found)
        if len(seen) == 3:
            getattr(found.gradient, name).view(-1)[0] = torch.nan
        return found

    monkeypatch.setattr(Matcher, "match", broken)
    outcome = limbeck("run", write_tiny(tmp_path / "tiny.yaml", tmp_path / "out", BARE))
    assert outcome.code == 1
    assert outcome.problems[-1].startswith("distill: iteration 2, learning rate 0.0")
    assert f"the gradient of the {name} is not finite; lower spec.distill.pixelStep" in outcome.problems[-1]
    assert not list((tmp_path / "out").glob("distill/*/manifest.json"))
