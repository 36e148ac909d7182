"""Which experts are trained side by side follows from the spec and the kind of device, and from nothing else."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from limbeck.matching.groups import group_of, group_size, grouped, share
from tests.stages.tiny import distillation

INDICES = st.sets(st.integers(0, 60)).map(sorted)


def spec(changes):
    return distillation("out", changes).spec


@pytest.mark.parametrize(
    ("changes", "size"),
    [
        ({}, 10),
        ({"source.imageSize": 32, "trajectories.batch": 256, "student.width": 128}, 5),
        ({"source.imageSize": 32, "trajectories.batch": 512, "student.width": 128}, 4),
        ({"source.imageSize": 64, "trajectories.batch": 512, "student.width": 128}, 1),
        ({"source.imageSize": 128, "trajectories.batch": 512, "student.width": 128}, 1),
    ],
)
def test_on_an_accelerator_a_larger_student_has_fewer_beside_it(changes, size):
    assert group_size(spec(changes), accelerated=True) == size
    assert group_size(spec(changes), accelerated=False) == 1


def test_what_the_spec_says_holds_on_every_device():
    assert {group_size(spec({"trajectories.together": 7}), accelerated=on) for on in (True, False)} == {7}


def test_a_resnet_keeps_more_of_a_step_than_a_convnet():
    changes = {"source.imageSize": 32, "trajectories.batch": 256, "student.width": 64}
    convnet = group_size(spec(changes), accelerated=True)
    assert group_size(spec(changes | {"student.architecture": "resnet18"}), accelerated=True) < convnet


@given(INDICES, st.integers(1, 12), st.integers(1, 5))
def test_workers_share_all_experts_and_no_group(indices, size, ranks):
    shares = [share(indices, size, rank, ranks) for rank in range(ranks)]
    assert sorted(index for own in shares for index in own) == indices
    groups = [{group_of(index, size) for index in own} for own in shares]
    assert sum(map(len, groups)) == len(set().union(*groups))


@given(INDICES, st.integers(1, 12))
def test_a_group_does_not_depend_on_what_else_is_there(indices, size):
    for group in grouped(indices, size):
        assert {group_of(index, size) for index in group} == {group_of(group[0], size)}
        assert set(group) == set(group_of(group[0], size)) & set(indices)
