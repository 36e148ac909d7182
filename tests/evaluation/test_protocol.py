"""Labels are drawn stratified and apart from those held out; rates and steps are chosen by held-out means."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from limbeck.evaluation.probe import Probe
from limbeck.evaluation.protocol import (
    Candidate,
    best_probe,
    best_rate,
    best_steps,
    curve_points,
    draw_labels,
    held_out_split,
)
from limbeck.seeding import derive

CELL = ("digits", 0.1)


@settings(deadline=None)
@given(counts=st.lists(st.integers(1, 30), min_size=2, max_size=6), share=st.floats(0.01, 0.99))
def test_every_class_is_seen_and_held_out_in_the_same_share(counts, share):
    labels = np.random.default_rng(0).permutation(np.repeat(np.arange(len(counts)), counts))
    seen, held = held_out_split(labels, share, "task")
    assert np.array_equal(np.sort(np.concatenate([seen, held])), np.arange(len(labels)))
    for name, count in enumerate(counts):
        kept = int((labels[held] == name).sum())
        assert kept == (0 if count == 1 else min(count - 1, max(1, round(share * count))))


def test_the_split_is_the_task_s_alone():
    labels = np.arange(100) % 5
    first, again, other = (held_out_split(labels, 0.2, name)[1] for name in ("a", "a", "b"))
    assert np.array_equal(first, again)
    assert not np.array_equal(first, other)


@settings(deadline=None)
@given(
    counts=st.lists(st.integers(2, 30), min_size=2, max_size=6),
    fraction=st.floats(0.001, 1.0),
    seed=st.integers(0, 99),
)
def test_drawn_labels_are_stratified_repeatable_and_never_held_out(counts, fraction, seed):
    labels = np.random.default_rng(seed).permutation(np.repeat(np.arange(len(counts)), counts))
    seen, held = held_out_split(labels, 0.2, "task")
    chosen = draw_labels(labels, seen, fraction, np.random.default_rng(seed))
    assert np.array_equal(chosen, np.unique(chosen))
    assert not np.intersect1d(chosen, held).size
    for name, count in enumerate(counts):
        free = int((labels[seen] == name).sum())
        assert (labels[chosen] == name).sum() == min(free, max(1, round(fraction * count)))
    assert np.array_equal(chosen, draw_labels(labels, seen, fraction, np.random.default_rng(seed)))


def test_another_seed_draws_other_labels():
    labels = np.arange(100) % 5
    seen, _ = held_out_split(labels, 0.2, "task")
    draws = [draw_labels(labels, seen, 0.2, np.random.default_rng(seed)) for seed in (0, 1)]
    assert not np.array_equal(*draws)


@pytest.mark.parametrize(
    ("last", "count", "points"),
    [(4000, 4, (500, 1000, 2000, 4000)), (10, 2, (5, 10)), (3, 5, (1, 2, 3)), (1, 3, (1,)), (7, 1, (7,))],
)
def test_a_curve_has_the_last_step_and_halves_of_it(last, count, points):
    assert curve_points(last, count) == points


def test_the_best_steps_have_the_highest_mean_and_of_equals_are_the_fewest():
    assert best_steps({10: [0.2, 0.4], 20: [0.5, 0.3], 40: [0.1, 0.6]}) == 20
    assert best_steps({20: [0.3], 10: [0.3]}) == 10


def test_the_best_rate_is_judged_at_its_own_best_steps_over_all_settings():
    other = ("digits", 0.5)
    small = Candidate(0.3, {CELL: {10: [0.2], 20: [0.5]}, other: {10: [0.6], 20: [0.6]}})
    large = Candidate(3.0, {CELL: {10: [0.6], 20: [0.1]}, other: {10: [0.4], 20: [0.8]}})
    assert small.value == pytest.approx(0.55)
    assert large.value == pytest.approx(0.7)
    assert best_rate([small, large]) is large


def test_of_equal_rates_the_one_nearest_the_method_s_own_is_taken():
    candidates = [Candidate(factor, {CELL: {10: [0.5]}}) for factor in (0.3, 1.0, 3.0)]
    assert best_rate(candidates).factor == 1.0


def test_the_split_comes_from_its_own_stream_class_by_class():
    """Another split would make champions of earlier versions incomparable."""
    labels = np.arange(40) % 4
    draws, held = np.random.default_rng(derive(0, "held out", "task")), list[int]()
    for name in range(4):
        held += list(draws.permutation(np.arange(name, 40, 4))[:3])
    assert list(held_out_split(labels, 0.3, "task")[1]) == sorted(held)


def test_the_best_probe_has_the_highest_accuracy_and_of_equals_the_strongest_ridge():
    probes = [Probe(ridge, *[torch.zeros(1)] * 4) for ridge in (0.1, 1.0, 0.01, 10.0)]
    assert best_probe(zip(probes, (0.5, 0.5, 0.5, 0.4), strict=True)) == (probes[1], 0.5)
    assert best_probe(zip(probes, (0.5, 0.5, 0.6, 0.4), strict=True)) == (probes[2], 0.6)
