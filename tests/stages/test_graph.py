"""A setting is in the key of the stages that it shapes, and of no other; what follows is told by digests."""

from __future__ import annotations

from typing import Any

import pytest

from limbeck.spec import DistillationSpec
from limbeck.stages.graph import STAGES
from limbeck.stages.trajectories import expert_identity
from tests.stages.tiny import distillation

EVERYWHERE = {"register"}  # the registered set carries the spec that made it

CHANGES: list[tuple[str, Any, set[str]]] = [
    ("seed", 1, {"teacher", "trajectories", "select", "distill", "evaluate"}),
    ("source.imageSize", 16, {"teacher"}),  # for the rest, the dataset's digest tells it
    ("teacher.epochs", 2, {"teacher"}),
    ("teacher.projection", 32, {"teacher"}),
    ("teacher.augmentation", {"rotation": 5.0}, {"teacher"}),
    ("teacher.optimizer", {"rate": 0.01}, {"teacher"}),
    ("targets.standardize", False, {"targets"}),
    ("targets.components", 3, {"targets"}),
    ("targets.whitening", 0.5, {"targets"}),
    ("student.width", 16, {"trajectories", "select", "distill", "evaluate"}),
    ("student.augmentation", "flipShift", {"trajectories", "select", "distill", "evaluate"}),
    ("student.norm", "batch", {"trajectories", "select", "distill", "evaluate"}),
    ("trajectories.experts", 4, {"trajectories"}),
    ("trajectories.batch", 32, {"trajectories"}),
    ("trajectories.sharpnessRadius", 0.1, {"trajectories"}),
    ("trajectories.together", 3, {"trajectories"}),
    ("trajectories.optimizer", {"momentum": 0.5}, {"trajectories"}),
    ("trajectories.optimizer", {"rate": 0.2}, {"trajectories", "evaluate"}),  # also the baselines' rate
    ("distill.size", 11, {"select", "evaluate"}),  # for the rest, the selection's digest tells it
    ("distill.initialization", "kCenter", {"select"}),
    ("distill.seed", 9, {"select", "distill"}),  # no other stage: teacher, experts and rivals are shared
    ("distill.iterations", 9, {"distill"}),
    ("distill.innerSteps", 4, {"distill"}),
    ("distill.pixelStep", 1.0, {"distill"}),
    ("distill.method", "krrSt", {"distill"}),
    ("distill.downsampling", 2, {"distill", "evaluate"}),
    ("distill.innerOptimizer", {"momentum": 0.0}, {"distill"}),
    ("distill.expertGap", 3, {"trajectories", "distill"}),  # one more epoch of the experts
    ("distill.maxStartEpoch", 1, {"trajectories", "distill"}),
    ("evaluate.epochs", 3, {"evaluate"}),
    ("evaluate.seeds", [5], {"evaluate"}),
    ("evaluate.width", 8, {"evaluate"}),
    ("evaluate.steps", 8, {"evaluate"}),
    ("evaluate.probe", {"ridges": [0.1]}, {"evaluate"}),
    ("evaluate.selectionSeeds", [8], {"evaluate"}),
    ("evaluate.rateFactors", [1.0, 2.0], {"evaluate"}),
    ("evaluate.curvePoints", 3, {"evaluate"}),
    ("evaluate.heldOut", 0.3, {"evaluate"}),
    ("distill.pixels", "float32", {"distill", "evaluate"}),
    ("evaluate.baselineRate", 0.01, {"evaluate"}),
    ("registry.name", "digits", set()),
]
NOWHERE: list[tuple[str, Any]] = [
    ("output.uri", "elsewhere"),
    ("tracking.uri", "http://x"),
    ("execution.backend", "job"),
    ("execution.ray", {"address": "auto", "workers": 9}),
    ("execution.checkpointSeconds", 1.0),
    ("execution.resources", {"distill": {"gpus": 1}}),
]


def spec(changes: dict[str, Any]) -> DistillationSpec:
    return distillation("out", changes).spec


def shaped(changes: dict[str, Any]) -> set[str]:
    return {stage.name for stage in STAGES if stage.settings(spec(changes), 200) != stage.settings(spec({}), 200)}


@pytest.mark.parametrize(("field", "value", "stages"), CHANGES)
def test_a_setting_shapes_its_stages(field, value, stages):
    assert shaped({field: value}) == stages | EVERYWHERE


@pytest.mark.parametrize(("field", "value"), NOWHERE)
def test_where_and_by_whom_a_set_is_made_shapes_nothing(field, value):
    assert shaped({field: value}) == set()


def test_a_method_s_settings_shape_what_it_makes_and_not_what_the_other_does():
    assert shaped({"distill.kernel": {"pool": 3}}) == EVERYWHERE
    krr = {"distill.method": "krrSt"}
    (distill,) = (stage for stage in STAGES if stage.name == "distill")
    usual = distill.settings(spec(krr), 200)
    assert distill.settings(spec(krr | {"distill.innerSteps": 9}), 200) == usual
    assert distill.settings(spec(krr | {"distill.kernel": {"pool": 3}}), 200) != usual


def test_the_same_setting_said_in_another_way_shapes_nothing():
    assert shaped({"trajectories.epochs": 3}) == EVERYWHERE
    assert shaped({"evaluate.baselineRate": 0.1}) == EVERYWHERE
    assert shaped({"distill.seed": 0}) == EVERYWHERE  # that of the spec
    evaluate = next(stage for stage in STAGES if stage.name == "evaluate")
    said = [{"evaluate.epochs": epochs, "evaluate.steps": steps} for epochs, steps in ((None, None), (7, 4000))]
    first, second = (evaluate.settings(spec(changes), 200) for changes in said)
    assert first == second


@pytest.mark.parametrize("field", ["trajectories.experts", "evaluate.seeds", "distill.iterations", "teacher.epochs"])
def test_an_expert_does_not_know_how_many_there_are_or_what_comes_after_it(field):
    value = [7] if field == "evaluate.seeds" else 9
    assert expert_identity(spec({field: value}), 1, "d", "t").key == expert_identity(spec({}), 1, "d", "t").key


@pytest.mark.parametrize(
    ("field", "value"),
    [
        ("seed", 1),
        ("trajectories.batch", 32),
        ("trajectories.threads", 2),
        ("trajectories.together", 3),
        ("student.width", 16),
        ("distill.expertGap", 3),
        ("source.imageSize", 16),
    ],
)
def test_what_shapes_an_expert_is_in_its_key(field, value):
    assert expert_identity(spec({field: value}), 1, "d", "t").key != expert_identity(spec({}), 1, "d", "t").key


def test_experts_differ_by_index_dataset_and_targets():
    keys = {
        expert_identity(spec({}), *which).key for which in ((0, "d", "t"), (1, "d", "t"), (0, "e", "t"), (0, "d", "u"))
    }
    assert len(keys) == 4


def test_every_stage_comes_after_its_inputs():
    done = {"dataset", "tasks"}
    for stage in STAGES:
        assert set(stage.inputs) <= done
        done.add(stage.name)
