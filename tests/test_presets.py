"""A preset says what a spec does not."""

from __future__ import annotations

import pytest
from pydantic import ValidationError

from limbeck.presets import PRESETS, preset_fields
from limbeck.spec import Distill, DistillationSpec, Source, Targets
from limbeck.specfile import SpecError, read_spec

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
