# ruff: noqa: F811 -- a fixture that is imported is an argument too
"""A preset says what a spec does not."""

from __future__ import annotations

from typing import Any

import pytest
from pydantic import ValidationError

from limbeck.presets import PRESETS, preset_fields
from limbeck.spec import Distill, DistillationSpec, Source, Targets
from limbeck.specfile import SpecError, read_spec
from tests.stages.command import limbeck  # noqa: F401 - a fixture
from tests.stages.tiny import Lines, run_tiny, write_tiny

SOURCE = {"source": {"uri": "sklearn:digits"}}


def test_what_is_given_stands_and_the_rest_is_the_preset_s():
    given = {"preset": "paper", "distill": {"expertGap": 3, "innerOptimizer": {"momentum": 0.9}}}
    spec = DistillationSpec.model_validate(SOURCE | given)
    assert (spec.distill.expert_gap, spec.distill.inner_optimizer.momentum) == (3, 0.9)
    assert (spec.distill.inner_optimizer.weight_decay, spec.distill.pixel_step) == (0.0, 1000.0)
    assert not spec.targets.standardize
    assert spec.teacher == DistillationSpec.model_validate(SOURCE).teacher


def test_the_default_is_the_recommended_one_and_leaves_the_fields_defaults():
    assert DistillationSpec.model_validate(SOURCE) == DistillationSpec.model_validate(
        SOURCE | {"preset": "recommended"}
    )
    assert DistillationSpec(source=Source(uri="sklearn:digits")) == DistillationSpec.model_validate(SOURCE)


def test_from_python_a_preset_is_completed_too():
    source = Source(uri="sklearn:digits")
    spec = DistillationSpec(source=source, preset="paper", distill=Distill(iterations=5), targets=Targets())
    assert (spec.distill.iterations, spec.distill.inner_optimizer.momentum) == (5, 0.0)
    assert not spec.targets.standardize
    named = {"pixel_step": 5.0, "inner_optimizer": {"weight_decay": 0.1}}
    spec = DistillationSpec.model_validate({"source": source, "preset": "paper", "distill": named})
    assert (spec.distill.pixel_step, spec.distill.inner_optimizer.weight_decay) == (5.0, 0.1)
    assert (spec.distill.momentum, spec.distill.inner_optimizer.momentum) == (0.5, 0.0)


@pytest.mark.parametrize("preset", PRESETS)
def test_a_completed_spec_is_its_own_completion(preset):
    spec = DistillationSpec.model_validate(SOURCE | {"preset": preset})
    assert DistillationSpec.model_validate(spec.wire()) == spec


@pytest.mark.parametrize("preset", ["papers", None, ["paper"], 3])
def test_a_preset_that_there_is_not_is_refused(preset):
    with pytest.raises(ValidationError, match="preset"):
        DistillationSpec.model_validate(SOURCE | {"preset": preset})


PUBLISHED = {  # DESIGN: distill's iterations, innerSteps, maxStartEpoch, pixelStep
    (32, 0.02): (5000, 40, 2, 1e3),
    (32, 0.05): (5000, 40, 5, 1e4),
    (64, 0.02): (10_000, 10, 2, 1e5),
}


def paper(image_size: int | None, distill: dict[str, Any], **rest: Any) -> DistillationSpec:
    source = SOURCE["source"] | ({} if image_size is None else {"imageSize": image_size})
    return DistillationSpec.model_validate({"preset": "paper", "source": source, "distill": distill} | rest)


def by_size(spec: DistillationSpec) -> tuple[int, int, int, float]:
    distill = spec.distill
    return distill.iterations, distill.inner_steps, distill.max_start_epoch, distill.pixel_step


@pytest.mark.parametrize(("image_size", "fraction"), PUBLISHED)
def test_the_paper_s_settings_follow_the_image_size_and_the_fraction(image_size, fraction):
    spec = paper(image_size, {"fraction": fraction})
    assert by_size(spec) == PUBLISHED[image_size, fraction]
    assert (spec.distill.expert_gap, spec.distill.target_step, spec.distill.rate_step) == (2, 1.0, 1e-4)
    assert spec.preset_note is None
    assert DistillationSpec.model_validate(spec.wire()) == spec


def test_absent_and_null_are_the_usual_size_and_fraction():
    assert by_size(paper(None, {})) == by_size(paper(32, {"fraction": None, "size": None})) == PUBLISHED[32, 0.02]
    assert by_size(paper(64, {})) == PUBLISHED[64, 0.02]
    source, distill = Source(uri="a", image_size=64), Distill(inner_steps=7)
    made = DistillationSpec(source=source, preset="paper", distill=distill)
    assert by_size(made) == (10_000, 7, 2, 1e5)  # what is given stands


@pytest.mark.parametrize(
    ("image_size", "distill", "amount"),
    [
        (32, {"fraction": 0.1}, "10 % at 32x32"),
        (64, {"fraction": 0.05}, "5 % at 64x64"),
        (16, {}, "2 % at 16x16"),
        (32, {"size": 1000}, "a set of 1,000 images (distill.size) at 32x32"),
    ],
)
def test_elsewhere_cifar_s_settings_at_2_percent_are_used_and_noted(image_size, distill, amount):
    spec = paper(image_size, distill)
    assert by_size(spec) == PUBLISHED[32, 0.02]
    noted = f"preset: paper: no published settings for {amount} pixels; those of CIFAR at 2 % are used"
    assert spec.preset_note == noted
    assert paper(image_size, distill, preset="recommended").preset_note is None


@pytest.mark.parametrize("wrong", [{"distill": {"fraction": "0.05"}}, {"distill": 3}, {"source": {"imageSize": "x"}}])
def test_a_size_that_is_wrong_is_left_to_the_spec_s_own_checks(wrong):
    with pytest.raises(ValidationError):
        DistillationSpec.model_validate(SOURCE | {"preset": "paper"} | wrong)


def test_a_run_and_validate_tell_that_there_are_no_published_settings(limbeck, tmp_path):
    few = {"preset": "paper", "trajectories.epochs": 3, "evaluate.tasks": [], "distill.fraction": None}
    lines = Lines()
    run_tiny(tmp_path / "out", few, lines)
    (note,) = [line for line in lines.lines if "preset" in line]
    assert note.startswith("note: preset: paper: no published settings for a set of 10 images (distill.size) at 8x8")
    outcome = limbeck("validate", write_tiny(tmp_path / "tiny.yaml", tmp_path, few))
    assert outcome.code == 0
    assert note in outcome.err


def test_every_field_of_a_preset_is_one_of_the_spec_s():
    wire = DistillationSpec.model_validate(SOURCE).wire()
    for path in preset_fields():
        found = wire
        for name in path:
            found = found[name]


def test_what_is_wrong_beside_a_preset_is_named_with_its_line(tmp_path):
    file = tmp_path / "spec.yaml"
    head = "apiVersion: limbeck.dev/v1alpha1\nkind: Distillation\nmetadata: {name: one}\nspec:\n  preset: paper\n"
    file.write_text(f"{head}  source: {{uri: a}}\n  trajectories: {{epochs: 2}}\n")
    with pytest.raises(SpecError, match=r":7: spec\.trajectories\.epochs: found 2"):
        read_spec(file)
    assert read_spec(file, ["trajectories.epochs=9", "preset=recommended"]).distillation.spec.preset == "recommended"
