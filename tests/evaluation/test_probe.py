"""The probe reaches the optimum of its objective, whatever the scale of the features."""

from __future__ import annotations

import warnings

import numpy as np
import pytest
import torch
from sklearn.linear_model import LogisticRegression
from sklearn.preprocessing import StandardScaler

from limbeck.evaluation.probe import UnreachedError, fit_probes, standardized
from limbeck.nn.encoders import EncoderConfig, build_encoder

TOLERANCE = 1e-6


def problem(count, dimension, classes, scale, seed):
    draws = np.random.default_rng(seed)
    labels = np.arange(count) % classes
    centers = draws.normal(size=(classes, dimension))
    features = scale * (centers[labels] + 2 * draws.normal(size=(count, dimension))) + draws.normal(size=dimension)
    return features, labels


def fitted(features, labels, classes, ridges, iterations=2000, dtype=torch.float64):
    x, y = torch.tensor(features, dtype=dtype), torch.tensor(labels)
    return fit_probes(x, y, classes, ridges, iterations=iterations, tolerance=TOLERANCE)


@pytest.mark.parametrize("ridge", [1e-4, 1e-2, 1.0])
@pytest.mark.parametrize(("count", "dimension", "classes"), [(80, 12, 5), (300, 40, 10), (50, 200, 10), (60, 8, 2)])
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_the_probe_is_scikit_learn_s_on_standardised_features(ridge, count, dimension, classes, dtype):
    features, labels = problem(count + 1000, dimension, classes, 1.0, 0)
    train, test = features[:count], features[count:]
    # with two classes theirs has one column, whose penalty is that of ours at twice the weight
    strength = 1 / ((1 if classes == 2 else 2) * count * ridge)
    scaler = StandardScaler().fit(train)
    theirs = LogisticRegression(C=strength, tol=1e-10, max_iter=20_000)
    theirs.fit(scaler.transform(train), labels[:count])
    (probe,) = fitted(train, labels[:count], classes, [ridge], dtype=dtype)
    expected = theirs.score(scaler.transform(test), labels[count:])
    assert probe.accuracy(torch.tensor(test, dtype=dtype), torch.tensor(labels[count:])) == pytest.approx(
        expected, abs=0.0011
    )
    best = torch.tensor(theirs.coef_.T)
    ours = probe.weight[:, 1:] - probe.weight[:, :1] if classes == 2 else probe.weight
    torch.testing.assert_close(ours, best, atol=0.02 * best.abs().max().item(), rtol=0)


def test_the_gradient_at_the_optimum_is_within_the_tolerance():
    features, labels = problem(80, 12, 5, 1.0, 3)
    (probe,) = fitted(features, labels, 5, [1e-3])
    weight, bias = probe.weight.clone().requires_grad_(), probe.bias.clone().requires_grad_()
    rows = standardized(torch.tensor(features), probe.mean, probe.scale)
    loss = torch.nn.functional.cross_entropy(rows @ weight + bias, torch.tensor(labels))
    (loss + 1e-3 * weight.square().sum()).backward()
    assert weight.grad.abs().max() <= TOLERANCE
    assert bias.grad.abs().max() <= TOLERANCE


@pytest.mark.parametrize("scale", [1e-8, 1e-2, 1e6])
def test_the_scale_and_the_place_of_features_change_nothing(scale):
    features, labels = problem(160, 20, 5, 1.0, 1)
    train, test = features[:80], torch.tensor(features[80:])
    (usual,) = fitted(train, labels[:80], 5, [1e-2])
    (scaled,) = fitted(scale * train + 3 * scale, labels[:80], 5, [1e-2])
    y = torch.tensor(labels[80:])
    assert scaled.accuracy(scale * test + 3 * scale, y) == usual.accuracy(test, y)


def test_an_untrained_resnet_is_probed_at_what_its_features_hold():
    """Raw features of deviation 0.01 under an absolute ridge left only the bias: 25 % on the digits."""
    from sklearn.datasets import load_digits

    images, labels = load_digits(return_X_y=True)
    encoder = build_encoder(EncoderConfig("resnet18", 8, 16, "batch"), 0).eval()
    with torch.no_grad():
        features = encoder(
            torch.tensor(images[:600] / 16.0, dtype=torch.float32).reshape(-1, 1, 8, 8).expand(-1, 3, -1, -1)
        )
    (probe,) = fit_probes(features[:200], torch.tensor(labels[:200]), 10, [1e-3], iterations=2000, tolerance=TOLERANCE)
    assert probe.accuracy(features[200:], torch.tensor(labels[200:600])) > 0.6


def test_a_dimension_that_does_not_vary_stays_zero():
    features, labels = problem(60, 6, 3, 1.0, 2)
    constant = np.concatenate([features, np.full((60, 1), 1e3)], 1)
    (probe,) = fitted(constant, labels, 3, [1e-2], dtype=torch.float32)
    assert probe.scale[-1] == 0
    moved = torch.tensor(constant, dtype=torch.float32)
    before = probe.accuracy(moved, torch.tensor(labels))
    moved[:, -1] += 1e6
    assert probe.accuracy(moved, torch.tensor(labels)) == before


def test_each_ridge_has_its_own_optimum_in_the_order_given():
    features, labels = problem(80, 12, 5, 1.0, 4)
    ridges = [1e-3, 1.0, 1e-2]
    together = fitted(features, labels, 5, ridges)
    assert [probe.ridge for probe in together] == ridges
    for probe in together:
        (alone,) = fitted(features, labels, 5, [probe.ridge])
        torch.testing.assert_close(probe.weight, alone.weight, atol=2e-3, rtol=0.01)
    norms = [probe.weight.norm() for probe in sorted(together, key=lambda probe: probe.ridge)]
    assert norms[0] > norms[1] > norms[2]


def test_a_class_without_labels_is_no_trouble():
    features, labels = problem(6, 50, 3, 1.0, 1)
    (probe,) = fitted(features, labels, 4, [1e-3])
    assert probe.weight.shape == (50, 4)
    assert probe.accuracy(torch.tensor(features), torch.tensor(labels)) == 1.0


@pytest.mark.parametrize("bad", [np.nan, np.inf])
def test_features_that_are_not_finite_are_an_error(bad):
    features, labels = problem(20, 5, 2, 1.0, 2)
    features[3, 2] = bad
    with pytest.raises(FloatingPointError, match=r"^the encoder's features are not finite$"):
        fitted(features, labels, 2, [1e-3])


def test_an_optimum_that_is_not_reached_is_an_error():
    features, labels = problem(80, 12, 5, 1.0, 0)
    with pytest.raises(UnreachedError, match=r"after 2 iterations .* spec\.evaluate\.probe\.iterations"):
        fitted(features, labels, 5, [1e-4], iterations=2)


def test_accuracy_is_the_share_of_right_answers():
    features, labels = problem(40, 12, 4, 10.0, 5)
    (probe,) = fitted(features, labels, 4, [1e-3])
    wrong = torch.tensor(labels).clone()
    wrong[:10] = (wrong[:10] + 1) % 4
    assert probe.accuracy(torch.tensor(features), wrong) == 0.75


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_features_are_standardised_by_the_mean_and_deviation_of_the_fitted_images(dtype):
    features, labels = problem(30, 6, 3, 1.0, 6)
    features[:, 4], features[:, 5] = 0.0, 1e-8 * features[:, 0]  # what is zero stays zero, what is small does not
    (probe,) = fitted(features, labels, 3, [1e-2], dtype=dtype)
    held = features.astype(np.float32 if dtype == torch.float32 else np.float64).astype(np.float64)
    deviation = held.std(0)
    torch.testing.assert_close(probe.mean, torch.tensor(held.mean(0)))
    expected = np.divide(1.0, deviation, out=np.zeros(6), where=deviation > 0)
    torch.testing.assert_close(probe.scale, torch.tensor(expected))
    rows = (held - held.mean(0)) * expected
    torch.testing.assert_close(
        standardized(torch.tensor(features, dtype=dtype), probe.mean, probe.scale), torch.tensor(rows)
    )
    assert (probe.mean.dtype, probe.weight.dtype, probe.bias.dtype) == (torch.float64,) * 3


@pytest.mark.parametrize("share", [0.5e-6, 2e-6])
def test_a_dimension_whose_deviation_is_below_a_millionth_of_its_mean_is_constant(share):
    features, labels = problem(40, 3, 2, 1.0, 7)
    features[:, 2] = -1000.0 * (1.0 + share * np.where(np.arange(40) < 20, 1.0, -1.0))
    (probe,) = fitted(features, labels, 2, [1e-2])
    assert (probe.scale[2] > 0) == (share > 1e-6)


@pytest.mark.parametrize("tolerance", [1e-2, 1e-4, 1e-8])
def test_the_probe_ends_as_soon_as_no_entry_of_the_gradient_exceeds_the_tolerance(tolerance):
    features, labels = problem(60, 8, 4, 1.0, 8)
    x, y = torch.tensor(features), torch.tensor(labels)
    with warnings.catch_warnings():
        warnings.simplefilter("error")  # SciPy's other methods warn of options that they do not have
        (probe,) = fit_probes(x, y, 4, [1e-2], iterations=2000, tolerance=tolerance)
    weight, bias = probe.weight.clone().requires_grad_(), probe.bias.clone().requires_grad_()
    loss = torch.nn.functional.cross_entropy(standardized(x, probe.mean, probe.scale) @ weight + bias, y)
    (loss + 1e-2 * weight.square().sum()).backward()
    largest = max(weight.grad.abs().max().item(), bias.grad.abs().max().item())
    assert tolerance / 100 < largest <= tolerance * (1 + 1e-6)


def test_iterations_are_the_most_that_a_probe_takes():
    features, labels = problem(80, 12, 5, 1.0, 0)
    x, y = torch.tensor(features), torch.tensor(labels)
    for iterations in (1, 7):
        message = (
            rf"^after {iterations} iterations the probe's gradient is \d\.\de-\d\d, not 1e-06, ridge 0\.0001; raise "
            r"spec\.evaluate\.probe\.iterations, or leave out small ridges$"
        )
        with pytest.raises(UnreachedError, match=message):
            fit_probes(x, y, 5, [1e-4], iterations=iterations, tolerance=1e-6)


def test_weights_that_are_not_finite_are_an_error(monkeypatch):
    class Found:
        x, jac, nit = np.array([np.nan, 0.0]), np.zeros(2), 1

    monkeypatch.setattr("scipy.optimize.minimize", lambda *arguments, **options: Found)
    features, labels = problem(20, 5, 2, 1.0, 2)
    with pytest.raises(FloatingPointError, match=r"^the probe's weights are not finite with ridge 0\.001$"):
        fitted(features, labels, 2, [1e-3])


def test_a_gradient_that_is_not_a_number_is_no_optimum(monkeypatch):
    class Found:
        x, jac, nit = np.zeros(13 * 5), np.full(13 * 5, np.nan), 1

    monkeypatch.setattr("scipy.optimize.minimize", lambda *_, **__: Found)
    features, labels = problem(80, 12, 5, 1.0, 0)
    with pytest.raises(UnreachedError, match=r"the probe's gradient is nan"):
        fitted(features, labels, 5, [1e-3])
