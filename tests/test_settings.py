"""Every numeric setting has a fast test that shows the effect that its description states: which one, by field."""

from __future__ import annotations

import ast
from collections.abc import Iterator
from pathlib import Path
from types import UnionType
from typing import Any, Union, get_args, get_origin

import pytest
from pydantic import BaseModel

from limbeck.spec import Distill, Evaluate, Registry, Targets, Teacher, Trajectories

TESTS = Path(__file__).parent
SECTIONS: dict[str, type[BaseModel]] = {
    "teacher": Teacher,
    "targets": Targets,
    "trajectories": Trajectories,
    "distill": Distill,
    "evaluate": Evaluate,
    "registry": Registry,
}

_SSL, _SET, _STAGES = "ssl/test_settings.py::", "matching/test_settings.py::", "stages/test_settings.py::"
_TEACHER = _SSL + "test_the_teacher_is_trained_as_a_plain_loop_with_these_settings_trains"
_EXPERTS = _STAGES + "test_experts_are_trained_as_a_plain_loop_with_these_settings_trains"
_MATCHING = _STAGES + "test_the_matching_loss_of_every_iteration_is_that_of_the_unrolled_loop_with_these_settings"
_MOVES = _SET + "test_the_set_moves_as_the_optimiser_written_out_moves_it"
_REGRESSION = _SET + "test_an_iteration_s_loss_is_the_ridge_s_on_a_batch_of_real_images_by_a_student_of_the_pool"
_EVALUATION = "evaluation/test_settings.py::"
_PROBED = _EVALUATION + "test_encoders_and_probes_are_those_of_a_plain_loop_with_these_settings"
_AMOUNT = _STAGES + "test_the_set_has_as_many_images_as_size_or_fraction_say"
SHOWN_BY = {
    "teacher.width": _STAGES + "test_the_teacher_s_width_is_the_channels_of_its_first_stage",
    "teacher.depth": _STAGES + "test_the_teacher_s_depth_is_its_blocks_each_halving_the_side",
    "teacher.epochs": _TEACHER,
    "teacher.batch": _TEACHER,
    "teacher.projection": _SSL + "test_projection_is_the_dimension_that_the_loss_sees",
    "teacher.temperature": "ssl/test_objectives.py::test_simclr_s_loss_is_that_of_the_paper",
    "teacher.redundancyWeight": "ssl/test_objectives.py::test_barlow_twins_loss_is_that_of_the_paper",
    "teacher.optimizer.rate": _TEACHER,
    "teacher.optimizer.weightDecay": _TEACHER,
    "teacher.optimizer.warmupEpochs": _TEACHER,
    "teacher.augmentation.minCrop": _SSL + "test_min_crop_is_the_smallest_share_of_the_area_that_a_view_keeps",
    "teacher.augmentation.flip": _SSL + "test_flip_is_the_share_of_views_that_are_mirrored",
    "teacher.augmentation.colorJitter": _SSL
    + "test_color_jitter_shifts_and_scales_by_up_to_0_8_of_its_strength_in_80_percent_of_the_views",
    "teacher.augmentation.grayscale": _SSL + "test_grayscale_is_the_share_of_views_without_colour",
    "teacher.augmentation.blur": _SSL + "test_blur_is_the_share_of_views_that_are_blurred",
    "teacher.augmentation.rotation": _SSL + "test_rotation_is_the_largest_angle_either_way",
    "targets.components": _STAGES + "test_targets_are_made_of_as_many_principal_components",
    "targets.whitening": _STAGES + "test_each_component_is_divided_by_its_variance_to_half_the_power_of_whitening",
    "trajectories.experts": _EXPERTS,
    "trajectories.epochs": _EXPERTS,
    "trajectories.batch": _EXPERTS,
    "trajectories.optimizer.rate": _EXPERTS,
    "trajectories.optimizer.momentum": _EXPERTS,
    "trajectories.optimizer.weightDecay": _EXPERTS,
    "trajectories.threads": _STAGES + "test_experts_are_trained_with_as_many_threads",
    "trajectories.together": "matching/test_groups.py::test_what_the_spec_says_holds_on_every_device",
    "trajectories.sharpnessRadius": _EXPERTS,
    "distill.size": _AMOUNT,
    "distill.fraction": _AMOUNT,
    "distill.downsampling": _STAGES + "test_downsampling_divides_the_side_and_a_fraction_of_the_pixels_is_more_images",
    "distill.seed": _MATCHING,
    "distill.iterations": _MATCHING,
    "distill.innerSteps": _MATCHING,
    "distill.innerBatch": _MATCHING,
    "distill.pairs": _MATCHING,
    "distill.expertGap": _MATCHING,
    "distill.maxStartEpoch": _MATCHING,
    "distill.startGrowth": _MATCHING,
    "distill.targetRank": _SET + "test_targets_of_a_rank_are_a_product_of_two_that_both_learn",
    "distill.averageLast": _SET + "test_the_result_is_the_mean_over_the_last_share_of_the_iterations",
    "distill.pixelStep": _MOVES,
    "distill.targetStep": _MOVES,
    "distill.rateStep": _MOVES,
    "distill.momentum": _MOVES,
    "distill.innerOptimizer.rate": _MATCHING,
    "distill.innerOptimizer.momentum": _MATCHING,
    "distill.innerOptimizer.weightDecay": _MATCHING,
    "distill.kernel.pool": _REGRESSION,
    "distill.kernel.poolSteps": _SET + "test_a_student_is_replaced_by_a_fresh_one_after_pool_steps",
    "distill.kernel.poolWeightDecay": _SET
    + "test_a_student_of_the_pool_takes_a_step_of_sgd_with_momentum_and_l2_decay_on_the_set",
    "distill.kernel.realBatch": _REGRESSION,
    "distill.kernel.ridge": _REGRESSION,
    "evaluate.labelFractions": _PROBED,
    "evaluate.heldOut": _PROBED,
    "evaluate.seeds": _PROBED,
    "evaluate.selectionSeeds": _PROBED,
    "evaluate.width": _EVALUATION + "test_width_is_the_channels_of_the_first_stage_of_what_is_not_the_student",
    "evaluate.epochs": _PROBED,
    "evaluate.steps": _PROBED,
    "evaluate.curvePoints": _PROBED,
    "evaluate.batch": _PROBED,
    "evaluate.momentum": _PROBED,
    "evaluate.weightDecay": _PROBED,
    "evaluate.baselineRate": _PROBED,
    "evaluate.rateFactors": _PROBED,
    "evaluate.probe.ridges": _PROBED,
    "evaluate.probe.iterations": _EVALUATION + "test_the_probe_s_iterations_are_counted",
    "evaluate.probe.tolerance": _EVALUATION
    + "test_at_a_tolerance_of_1_the_probe_stays_where_it_starts_and_answers_the_first_class",
    "registry.confidence": "evaluation/test_comparison.py::test_confidence_is_the_level_of_the_one_sided_t_interval",
}


def numeric(model: type[BaseModel], path: str) -> Iterator[str]:
    """The paths of a section's numeric fields."""
    for name, field in model.model_fields.items():
        where = f"{path}.{field.alias or name}"
        for kind in kinds(field.annotation):
            if isinstance(kind, type) and issubclass(kind, BaseModel):
                yield from numeric(kind, where)
            elif {kind, *of_list(kind)} & {int, float}:
                yield where


def kinds(annotation: Any) -> tuple[Any, ...]:
    """A type, or those of a union, without what is annotated about them."""
    if get_origin(annotation) in (Union, UnionType):
        return tuple(kind for part in get_args(annotation) for kind in kinds(part))
    return kinds(get_args(annotation)[0]) if hasattr(annotation, "__metadata__") else (annotation,)


def of_list(kind: Any) -> tuple[Any, ...]:
    """The types of a list's entries."""
    return kinds(get_args(kind)[0]) if get_origin(kind) is list else ()


def test_every_numeric_setting_has_its_test():
    found = {path for name, model in SECTIONS.items() for path in numeric(model, name)}
    assert found == set(SHOWN_BY)


@pytest.mark.parametrize("test", sorted(set(SHOWN_BY.values())))
def test_the_test_of_a_setting_exists_and_names_it(test):
    file, name = test.split("::")
    tree = ast.parse((TESTS / file).read_text())
    (function,) = [node for node in tree.body if isinstance(node, ast.FunctionDef) and node.name == name]
    text = ast.unparse(function) + file_level(tree, function)
    for path in (path for path, shown in SHOWN_BY.items() if shown == test):
        field = path.rpartition(".")[2]
        snake = "".join(f"_{letter.lower()}" if letter.isupper() else letter for letter in field)
        assert field in text or snake in text, f"{test} does not set {path}"


def file_level(tree: ast.Module, function: ast.FunctionDef) -> str:
    """The functions of the file that the test calls: some set the field there."""
    called = {
        node.func.id for node in ast.walk(function) if isinstance(node, ast.Call) and isinstance(node.func, ast.Name)
    }
    return "".join(ast.unparse(node) for node in tree.body if isinstance(node, ast.FunctionDef) and node.name in called)
