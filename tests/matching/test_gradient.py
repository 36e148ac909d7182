"""The replayed gradient is the unrolled one, in the memory of one step."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from itertools import accumulate, pairwise

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from limbeck.matching.match import distance_weights, inner_order, match
from limbeck.matching.steps import Steps, student_loss
from limbeck.matching.unroll import InnerLoop, replay_gradient, run_inner_loop
from limbeck.nn.augmentation import Moves
from limbeck.nn.encoders import EncoderConfig, build_student
from limbeck.nn.flat import FlatNetwork, flatten
from tests.matching.plain import unrolled_match


def relative_error(ours, reference):
    return ((ours - reference).norm() / reference.norm().clamp_min(1e-30)).item()


def check_exact(config, size, dimension, steps, batch, pairs, hold, inner, seed, augmented=False, by_layer=False):
    """Stacked pairs, replayed, against each pair unrolled alone; the gradients are of the sum."""
    students = [build_student(config, dimension, seed, pair).double() for pair in range(pairs)]
    loss, generator = student_loss(FlatNetwork(students[0])), torch.Generator().manual_seed(seed)
    images = torch.randn(size, 3, config.image_size, config.image_size, generator=generator, dtype=torch.float64)
    targets = torch.randn(size, dimension, generator=generator, dtype=torch.float64)
    start = torch.stack([flatten(student) for student in students])
    goal = start + 0.1 + 0.1 * torch.rand(start.shape, generator=generator, dtype=torch.float64)  # all tensors move
    orders = [inner_order(size, batch, steps, generator) for _ in range(pairs)]
    batches = [None] * steps if orders[0] is None else list(torch.stack(orders, 1))
    rate = torch.tensor(0.05, dtype=torch.float64)

    seen = min(batch, size)
    drawn = [Moves.draw((steps, seen), config.image_size, generator) for _ in range(pairs)] if augmented else None
    sizes = FlatNetwork(students[0]).sizes if by_layer else None
    moves = Moves.stack(drawn).steps() if drawn else None
    hold = min(hold, steps)
    arguments = (start, goal, images, targets, rate, batches, inner, hold)
    ours = match(Steps(loss), *arguments, moves=moves, layers=sizes)
    ends = [0, *accumulate(sizes or ())]
    layers = [slice(*pair) for pair in pairwise(ends)] if sizes else None
    totals = [torch.zeros_like(tensor) for tensor in (images, targets, rate)]
    for pair in range(pairs):
        own = [None if each is None else each[pair] for each in batches]
        own_moves = drawn and [Moves(*(part[step] for part in drawn[pair]._parts())) for step in range(steps)]
        arguments = (start[pair], goal[pair], images, targets, rate, own, inner, own_moves, layers)
        value, gradients = unrolled_match(loss, *arguments)
        assert relative_error(ours.losses[pair], value) < 1e-10
        for total, gradient in zip(totals, gradients, strict=True):
            total += gradient
    replayed = (ours.gradient.images, ours.gradient.targets, ours.gradient.rate)
    for gradient, reference in zip(replayed, totals, strict=True):
        assert relative_error(gradient, reference) < 1e-10


@settings(max_examples=50, deadline=None)
@given(
    norm=st.sampled_from(["instance", "batch", "none"]),
    image_size=st.sampled_from([4, 8]),
    width=st.integers(4, 6),
    size=st.integers(2, 7),
    dimension=st.integers(1, 5),
    steps=st.integers(1, 6),
    batch=st.integers(2, 8),
    pairs=st.integers(1, 3),
    hold=st.integers(0, 6),
    momentum=st.sampled_from([0.0, 0.5, 0.9]),
    weight_decay=st.sampled_from([0.0, 1e-2]),
    seed=st.integers(0, 1000),
    ways=st.tuples(st.booleans(), st.booleans()),
)
def test_convnet_gradient_equals_the_unrolled_one(
    norm, image_size, width, size, dimension, steps, batch, pairs, hold, momentum, weight_decay, seed, ways
):
    """Also with augmented images, and with the loss taken by layer."""
    config, inner = EncoderConfig("convnet", image_size, width, norm, depth=1), InnerLoop(momentum, weight_decay)
    check_exact(config, size, dimension, steps, batch, pairs, hold, inner, seed, *ways)


@settings(max_examples=8, deadline=None)
@given(
    norm=st.sampled_from(["instance", "batch"]),
    size=st.integers(3, 5),
    steps=st.integers(1, 4),
    pairs=st.integers(1, 2),
    hold=st.integers(0, 2),
    momentum=st.sampled_from([0.0, 0.9]),
    seed=st.integers(0, 1000),
)
def test_resnet10_gradient_equals_the_unrolled_one(norm, size, steps, pairs, hold, momentum, seed):
    config = EncoderConfig("resnet10", 32, 4, norm)  # at 16 instance norm is left 2x2 pixels, and amplifies rounding
    check_exact(config, size, 3, steps, 3, pairs, hold, InnerLoop(momentum, 1e-3), seed)


def test_by_layer_every_tensor_that_moved_counts_alike_and_one_that_did_not_counts_nothing():
    start, goal = torch.zeros(1, 6), torch.tensor([[1.0, 2.0, 0.0, 0.0, 10.0, 0.0]])
    weights = distance_weights(start, goal, [2, 2, 2])
    torch.testing.assert_close(weights, torch.tensor([[0.1, 0.1, 0.0, 0.0, 0.005, 0.005]]))
    assert (weights * (start - goal).square()).sum() == pytest.approx(1.0)


@pytest.mark.parametrize("hold", [0, 2, 5])
def test_the_last_steps_are_held_and_used_up_by_the_replay(hold):
    student = build_student(EncoderConfig("convnet", 8, 4, "instance", 1), 3, 0)
    steps, theta, rate = Steps(student_loss(FlatNetwork(student))), flatten(student)[None], torch.tensor(0.05)
    images, targets, batches = torch.randn(4, 3, 8, 8), torch.randn(4, 3), [None] * 5
    path = run_inner_loop(steps, theta, images, targets, rate, batches, InnerLoop(), hold)
    assert sorted(path.held) == list(range(5 - hold, 5))
    replay_gradient(steps, path, torch.ones_like(theta), images, targets, rate, batches, InnerLoop())
    assert not path.held


@pytest.mark.parametrize("batch", [3, 7, 20])
def test_inner_batches_have_one_length_and_use_every_image_equally(batch):
    size, steps = 7, 21
    order = inner_order(size, batch, steps, torch.Generator().manual_seed(0))
    if batch >= size:
        assert order is None
    else:
        assert order.shape == (steps, batch)
        counts = order.flatten().bincount(minlength=size)
        assert counts.min() == counts.max() == steps * batch // size


MEASURE = """
import json, sys, torch
from limbeck.measure import MemoryPeak
from limbeck.matching.match import match
from limbeck.matching.steps import Steps, student_loss
from limbeck.matching.unroll import InnerLoop
from limbeck.nn.encoders import EncoderConfig, build_student
from limbeck.nn.flat import FlatNetwork, flatten
from tests.matching.plain import unrolled_match

steps, way = int(sys.argv[1]), sys.argv[2]
student = build_student(EncoderConfig("convnet", image_size=32, width=32, norm="instance"), 16, 0)
start = flatten(student)
loss = student_loss(FlatNetwork(student))
images, targets, rate, inner = torch.randn(32, 3, 32, 32), torch.randn(32, 16), torch.tensor(0.05), InnerLoop(0.9)
def go(n):
    if way == "ours":
        match(Steps(loss), start[None], start[None] + 0.01, images, targets, rate, [None] * n, inner)
    else:
        unrolled_match(loss, start, start + 0.01, images, targets, rate, [None] * n, inner)
go(1)
with MemoryPeak() as peak:
    go(steps)
print(json.dumps({"growth": peak.resident_bytes - peak.resident_before, "parameters": start.numel() * 4}))
"""


def measured(steps, way):
    # every tensor of some size in pages of its own, so that resident memory is live memory and not the allocator's
    environment = {**os.environ, "MALLOC_MMAP_THRESHOLD_": "32768", "MALLOC_TRIM_THRESHOLD_": "32768"}
    environment["OMP_NUM_THREADS"] = "1"
    command = [sys.executable, "-c", MEASURE, str(steps), way]
    done = subprocess.run(command, capture_output=True, text=True, check=True, env=environment)
    return json.loads(done.stdout)


def test_peak_memory_does_not_grow_with_the_steps_beyond_the_stored_parameters():
    few, many = measured(4, "ours"), measured(40, "ours")
    stored = 2 * (40 - 4) * many["parameters"]  # theta_k and v_k
    spare = 8 * 2**20  # the allocator's rounding; one step's graph of this problem is about 60 MiB
    assert many["growth"] - few["growth"] <= stored + spare
    # the same measurement sees the plain way grow, so it would see ours
    assert measured(16, "plain")["growth"] > 3 * many["growth"]
