"""Choosing real images: the hardest, the most spread out, or any."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from limbeck.data.feed import Examples
from limbeck.interrupt import Stopped, StopRequest
from limbeck.matching import selection
from limbeck.matching.selection import choose, facility_location, k_center, loss_scores, random_subset
from limbeck.nn.encoders import EncoderConfig, build_student
from limbeck.nn.flat import FlatNetwork, flatten
from limbeck.seeding import generator


def test_a_score_is_an_image_s_own_mean_squared_error():
    student = build_student(EncoderConfig("convnet", 8, 4, "instance", 1), 3, 0)
    images, targets = torch.randn(1100, 3, 8, 8), torch.randn(1100, 3)
    scores = loss_scores(FlatNetwork(student), flatten(student), Examples.held(images, targets, torch.device("cpu")))
    with torch.no_grad():
        alone = [(student(images[i : i + 1])[0] - targets[i]).square().mean() for i in (0, 511, 512, 1099)]
    torch.testing.assert_close(scores[[0, 511, 512, 1099]], torch.stack(alone))
    assert scores.shape == (1100,)


def naive_k_center(points, size, first):
    """Each next point is the one whose nearest chosen point is farthest; the first of equals."""
    chosen = [first]
    while len(chosen) < size:
        nearest = [
            -1.0 if i in chosen else min(((p - points[c]).square().sum()).item() for c in chosen)
            for i, p in enumerate(points)
        ]
        chosen.append(max(range(len(points)), key=lambda i: nearest[i]))
    return chosen


@settings(deadline=None, max_examples=60)
@given(
    places=st.lists(st.tuples(st.integers(0, 6), st.integers(0, 6)), min_size=1, max_size=14),
    share=st.floats(0, 1),
    seed=st.integers(0, 9),
)
def test_k_center_is_the_greedy_choice_duplicates_included(places, share, seed):
    points = torch.tensor(places, dtype=torch.float32)
    size = max(1, round(share * len(points)))
    chosen = k_center(points.numpy(), size, seed).tolist()
    assert len(set(chosen)) == size
    assert chosen == naive_k_center(points, size, chosen[0])


def test_k_center_chooses_the_same_by_blocks(monkeypatch):
    points = np.random.default_rng(0).standard_normal((500, 7)).astype(np.float32)
    at_once = k_center(points, 40, 0)
    monkeypatch.setattr(selection, "_BLOCK", 33)
    assert torch.equal(k_center(points, 40, 0), at_once)


def test_k_center_reaches_within_twice_the_best_radius():
    centers = torch.tensor([[0.0, 0.0], [10.0, 0.0], [0.0, 10.0], [10.0, 10.0]])
    points = (centers[:, None] + 0.5 * torch.rand(4, 25, 2, generator=torch.Generator().manual_seed(0))).view(-1, 2)
    for seed in range(5):
        chosen = k_center(points.numpy(), 4, seed)
        assert sorted((chosen // 25).tolist()) == [0, 1, 2, 3]


def value(points, chosen):
    """Of a subset: the sum over all points of 1 + their largest cosine with one of it."""
    directions = points / np.linalg.norm(points, axis=1, keepdims=True)
    return (1.0 + (directions @ directions[chosen].T).max(1)).sum()


def test_a_subset_stands_for_all_better_than_others_of_its_size(monkeypatch):
    draws = np.random.default_rng(0)
    points = (4 * draws.normal(size=(8, 16))[draws.integers(8, size=600)] + draws.normal(size=(600, 16))).astype("f4")
    chosen = facility_location(points, 12, 0).tolist()
    assert len(set(chosen)) == 12
    others = [random_subset(600, 12, seed).tolist() for seed in range(20)]
    assert value(points, chosen) > max(value(points, other) for other in others)
    monkeypatch.setattr(selection, "_LOOKS", 600)  # every step looks at all: the greedy choice
    greedy = value(points, facility_location(points, 12, 0).tolist())
    best = []
    for _ in range(12):
        best.append(max((i for i in range(600) if i not in best), key=lambda i: value(points, [*best, i])))
    assert greedy == pytest.approx(value(points, best), rel=1e-4)
    assert value(points, chosen) > 0.98 * greedy
    monkeypatch.setattr(selection, "_STOOD_FOR", 200)  # a third of them
    sampled = facility_location(points, 12, 0).tolist()
    assert sampled != chosen
    assert value(points, sampled) > 0.97 * greedy


def test_facility_location_is_repeatable_and_the_same_by_blocks(monkeypatch):
    points = np.random.default_rng(0).standard_normal((300, 7)).astype(np.float32)
    points[5] = 0.0
    at_once = facility_location(points, 20, 0)
    monkeypatch.setattr(selection, "_BLOCK", 33)
    assert torch.equal(facility_location(points, 20, 0), at_once)
    assert not torch.equal(facility_location(points, 20, 1), at_once)


@given(count=st.integers(1, 60), share=st.floats(0, 1), seed=st.integers(0, 99))
def test_a_random_subset_has_no_repeats_and_is_repeatable(count, share, seed):
    size = round(share * count)
    chosen = random_subset(count, size, seed)
    assert len(chosen) == size == len(set(chosen.tolist()))
    assert all(0 <= index < count for index in chosen.tolist())
    assert torch.equal(chosen, random_subset(count, size, seed))


def test_another_seed_chooses_another_subset_and_another_first_centre():
    assert not torch.equal(random_subset(100, 10, 0), random_subset(100, 10, 1))
    points = torch.randn(100, 3, generator=torch.Generator().manual_seed(0))
    assert len({k_center(points.numpy(), 1, seed).item() for seed in range(6)}) > 1


@pytest.mark.parametrize(
    "chosen",
    [
        lambda: random_subset(9, 9, 0),
        lambda: k_center(np.zeros((9, 2), np.float32), 9, 0),
        lambda: facility_location(np.zeros((9, 2), np.float32), 9, 0),
    ],
)
def test_all_can_be_chosen(chosen):
    assert sorted(chosen().tolist()) == list(range(9))


def test_images_are_chosen_as_the_spec_names_it():
    points = np.random.default_rng(0).standard_normal((50, 4)).astype(np.float32)
    scores, steps = torch.tensor([1.0, 3.0, 3.0, 2.0] * 12 + [0.0, 4.0]), []
    assert choose("highLoss", points, scores, 4, 1).tolist() == [49, 1, 2, 5]  # the first of equals
    assert torch.equal(choose("random", points, scores, 7, 1), random_subset(50, 7, 1))
    assert torch.equal(choose("kCenter", points, scores, 7, 1), k_center(points, 7, 1))
    found = choose("facilityLocation", points, scores, 7, 1, lambda: steps.append(1))
    assert torch.equal(found, facility_location(points, 7, 1))
    assert len(steps) == 7


def test_more_than_there_are_cannot_be_chosen():
    points = np.zeros((9, 2), np.float32)
    for function in (k_center, facility_location):
        with pytest.raises(ValueError, match="10 of 9 points"):
            function(points, 10, 0)


def test_the_first_centre_comes_from_its_own_stream_of_the_seed():
    points = np.random.default_rng(0).standard_normal((1000, 2)).astype(np.float32)
    for seed in (0, 7):
        first = int(torch.randint(1000, (), generator=generator(seed, "k-center")))
        assert k_center(points, 3, seed)[0] == first


@pytest.mark.parametrize("how", ["kCenter", "facilityLocation"])
def test_a_stop_ends_a_choice_at_its_next_step(how):
    steps = 0

    def between() -> None:
        nonlocal steps
        steps += 1
        if steps == 3:
            raise Stopped

    points = np.random.default_rng(0).standard_normal((50, 4)).astype(np.float32)
    with pytest.raises(Stopped):
        choose(how, points, torch.zeros(50), 20, 0, between)
    assert steps == 3


def test_a_stop_ends_the_scoring_after_a_batch():
    request, batches = StopRequest(), 0

    def between() -> None:
        nonlocal batches
        batches += 1
        request.requested = batches == 2
        request.check()

    network = FlatNetwork(build_student(EncoderConfig("convnet", 8, 4, "instance", 1), 3, 0))
    examples = Examples.held(torch.zeros(2000, 3, 8, 8), torch.zeros(2000, 3), torch.device("cpu"))
    with pytest.raises(Stopped):
        loss_scores(network, torch.zeros(network.parameter_count), examples, between)
    assert batches == 2
