"""The probe reaches the optimum of its objective; label subsets are stratified."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from sklearn.linear_model import LogisticRegression

from limbeck.nn.probe import accuracy, fit_probe, label_subset


def problem(count, dimension, classes, scale, seed):
    draws = np.random.default_rng(seed)
    labels = np.arange(count) % classes
    centers = draws.normal(size=(classes, dimension))
    features = scale * (centers[labels] + draws.normal(size=(count, dimension))) + draws.normal(size=dimension)
    return features, labels


def objective(features, labels, weight, bias, regularization):
    loss = torch.nn.functional.cross_entropy(features @ weight + bias, labels)
    return (loss + regularization * weight.square().sum()).item()


@pytest.mark.parametrize("regularization", [1e-3, 1e-1])
@pytest.mark.parametrize(("classes", "scale"), [(2, 1.0), (5, 1.0), (5, 0.05), (5, 10.0)])
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_the_probe_is_scikit_learn_s_with_c_one_over_two_n_regularization(regularization, classes, scale, dtype):
    features, labels = problem(80, 12, classes, scale, 0)
    theirs = LogisticRegression(C=1 / (2 * len(labels) * regularization), tol=1e-10, max_iter=20_000)
    theirs.fit(features, labels)
    x, y = torch.tensor(features, dtype=dtype), torch.tensor(labels)
    weight, bias = fit_probe(x, y, classes, regularization=regularization, iterations=500)
    if classes == 2:  # theirs has one column; the optimum is symmetric, but their penalty is on the difference alone
        reference = LogisticRegression(C=1 / (len(labels) * regularization), tol=1e-10, max_iter=20_000)
        half = torch.tensor(reference.fit(features, labels).coef_[0]) / 2
        best, best_bias = torch.stack([-half, half], 1), torch.tensor(reference.intercept_[0] / 2)
        best_bias = torch.stack([-best_bias, best_bias])
    else:
        best, best_bias = torch.tensor(theirs.coef_.T), torch.tensor(theirs.intercept_)
    wide = torch.tensor(features)
    ours = objective(wide, y, weight.double(), bias.double(), regularization)
    reference_value = objective(wide, y, best, best_bias, regularization)
    assert reference_value * (1 - 1e-5) <= ours <= reference_value * (1 + 1e-5) + 1e-6
    torch.testing.assert_close(weight.double(), best, atol=0.03 * best.abs().max().item(), rtol=0)


def test_more_features_than_labels_and_a_class_without_labels_are_no_trouble():
    features, labels = problem(6, 50, 3, 1.0, 1)
    weight, bias = fit_probe(torch.tensor(features), torch.tensor(labels), 4, regularization=1e-3, iterations=200)
    assert weight.shape == (50, 4)
    assert bias.shape == (4,)
    assert accuracy(torch.tensor(features), torch.tensor(labels), weight, bias) == 1.0


def test_no_regularization_stays_finite():
    features, labels = problem(20, 5, 2, 1.0, 2)
    weight, bias = fit_probe(torch.tensor(features), torch.tensor(labels), 2, regularization=0.0, iterations=500)
    assert torch.isfinite(weight).all()
    assert torch.isfinite(bias).all()


def test_accuracy_is_the_share_of_right_answers():
    features, labels = torch.eye(4), torch.tensor([0, 1, 2, 0])
    assert accuracy(features, labels, torch.eye(4), torch.zeros(4)) == 0.75


@settings(deadline=None)
@given(
    counts=st.lists(st.integers(1, 30), min_size=2, max_size=6),
    fraction=st.floats(0.001, 1.0),
    seed=st.integers(0, 99),
)
def test_label_subsets_are_stratified_and_repeatable(counts, fraction, seed):
    labels = np.random.default_rng(seed).permutation(np.repeat(np.arange(len(counts)), counts))
    chosen = label_subset(labels, fraction, np.random.default_rng(seed))
    assert np.array_equal(chosen, np.unique(chosen))
    for name, count in enumerate(counts):
        found = (labels[chosen] == name).sum()
        assert 1 <= found <= count
        assert abs(found - max(1, fraction * count)) <= 0.5
    assert np.array_equal(chosen, label_subset(labels, fraction, np.random.default_rng(seed)))


def test_another_seed_chooses_other_labels():
    labels = np.arange(100) % 5
    assert not np.array_equal(*(label_subset(labels, 0.2, np.random.default_rng(seed)) for seed in (0, 1)))
