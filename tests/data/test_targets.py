"""Targets on disk: the representations, standardised, the same bytes whatever the teacher's batches were."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from safetensors.numpy import load_file

from limbeck.data import targets
from limbeck.data.targets import FILE, STANDARDIZATION_FILE, open_targets, read_standardization, write_targets
from limbeck.errors import InputError, WorkError
from limbeck.interrupt import Stopped

ROWS = (1e3 + 1e-1 * np.random.default_rng(0).standard_normal((100, 6))).astype(np.float32)  # a large offset


@pytest.fixture(autouse=True)
def small_blocks(monkeypatch):
    monkeypatch.setattr(targets, "_BLOCK", 16)


def test_a_target_is_a_representation_about_the_mean_in_units_of_the_deviation_over_all(tmp_path):
    write_targets(tmp_path, 100, [ROWS], standardize=True)
    made_by = read_standardization(tmp_path)
    center, scale = made_by.center, made_by.scale
    exact = ROWS.astype(np.float64)
    assert (center.numpy() == exact.mean(0).astype(np.float32)).all()
    assert scale.item() == np.float32((exact - exact.mean(0)).std(ddof=1))
    assert (open_targets(tmp_path) == (ROWS - center.numpy()) / scale.numpy()).all()
    assert (load_file(tmp_path / FILE)["targets"] == open_targets(tmp_path)).all()


def test_without_standardising_it_is_the_representation(tmp_path):
    write_targets(tmp_path, 100, [ROWS], standardize=False)
    assert (open_targets(tmp_path) == ROWS).all()
    made_by = read_standardization(tmp_path)
    center, scale = made_by.center, made_by.scale
    assert torch.equal(center, torch.zeros(6))
    assert scale == 1.0


@settings(deadline=None, max_examples=20)
@given(cuts=st.sets(st.integers(1, 99)))
def test_the_bytes_do_not_depend_on_the_batches(tmp_path_factory, cuts):
    whole, parts = tmp_path_factory.mktemp("whole"), tmp_path_factory.mktemp("parts")
    write_targets(whole, 100, [ROWS], standardize=True)
    write_targets(parts, 100, np.split(ROWS, sorted(cuts)), standardize=True)
    for file in (FILE, STANDARDIZATION_FILE):
        assert (whole / file).read_bytes() == (parts / file).read_bytes()


def test_what_was_cut_is_no_result_and_is_written_over(tmp_path):
    def cut():
        yield ROWS[:70]
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        write_targets(tmp_path, 100, cut(), standardize=True)
    with pytest.raises(InputError, match="no such file"):
        open_targets(tmp_path)
    write_targets(tmp_path, 100, [ROWS], standardize=True)
    (tmp_path / "other").mkdir()
    write_targets(tmp_path / "other", 100, [ROWS], standardize=True)
    assert (tmp_path / FILE).read_bytes() == (tmp_path / "other" / FILE).read_bytes()
    assert not list(tmp_path.glob(".*"))


@pytest.mark.parametrize("value", [np.nan, np.inf, -np.inf])
def test_a_representation_that_is_not_finite_is_an_error_at_once(tmp_path, value):
    bad = ROWS[:20].copy()
    bad[3, 2] = value

    def rows():
        yield bad
        raise AssertionError("the teacher need not go on")

    with pytest.raises(WorkError, match="not finite"):
        write_targets(tmp_path, 100, rows(), standardize=True)


def correlated(rows: int = 2000, dimensions: int = 6) -> np.ndarray:
    draws = np.random.default_rng(0)
    mixed = draws.normal(size=(rows, dimensions)) * np.geomspace(4.0, 0.25, dimensions)
    return (mixed @ (np.eye(dimensions) + 0.2 * draws.normal(size=(dimensions, dimensions))) + 3.0).astype(np.float32)


@pytest.mark.parametrize("standardize", [True, False])
@pytest.mark.parametrize(("components", "whitening"), [(0, 1.0), (0, 0.5), (4, 0.0), (3, 0.5), (9, 0.25)])
def test_projected_targets_are_the_leading_components_more_or_less_of_one_variance(
    tmp_path, components, whitening, standardize
):
    rows = correlated()
    write_targets(tmp_path, len(rows), [rows], standardize=standardize, components=components, whitening=whitening)
    found = np.array(open_targets(tmp_path), np.float64)
    kept = min(components, 6) or 6
    assert found.shape == (len(rows), kept)
    covariance = np.cov(found.T)
    variances = np.diag(covariance)
    assert np.abs(covariance - np.diag(variances)).max() < 2e-3 * variances.max()
    own = np.sort(np.linalg.eigvalsh(np.cov(rows.T.astype(np.float64))))[::-1]
    expected = own * (own + 0.01 * own.mean()) ** -whitening
    if standardize:
        expected = expected / expected[:kept].mean()
        assert np.abs(found.mean(0)).max() < 1e-4
        assert found.var(0, ddof=1).mean() == pytest.approx(1.0, rel=1e-3)
    np.testing.assert_allclose(variances, expected[:kept], rtol=1e-3)
    again = read_standardization(tmp_path)(torch.from_numpy(rows))
    torch.testing.assert_close(again, torch.from_numpy(found).float(), rtol=1e-4, atol=1e-4)
    assert {path.name for path in tmp_path.iterdir()} == {FILE, STANDARDIZATION_FILE}


def test_projected_bytes_do_not_depend_on_the_batches(tmp_path):
    rows = correlated(100)
    for name, parts in (("whole", [rows]), ("parts", np.split(rows, [3, 50, 90]))):
        (tmp_path / name).mkdir()
        write_targets(tmp_path / name, 100, parts, standardize=True, components=4, whitening=0.5)
    for file in (FILE, STANDARDIZATION_FILE):
        assert (tmp_path / "whole" / file).read_bytes() == (tmp_path / "parts" / file).read_bytes()


def test_a_dimension_that_does_not_vary_stays_without_infinities(tmp_path):
    rows = correlated(100)
    rows[:, 2] = 7.0
    write_targets(tmp_path, 100, [rows], standardize=True, whitening=1.0)
    assert np.isfinite(open_targets(tmp_path)).all()


@pytest.mark.parametrize("given", [{"standardize": True}, {"standardize": False, "components": 2}])
def test_a_stop_ends_the_work_on_representations_after_a_block(tmp_path, given):
    blocks = 0

    def between() -> None:
        nonlocal blocks
        blocks += 1
        raise Stopped

    with pytest.raises(Stopped):
        write_targets(tmp_path, 100, [ROWS], **given, between=between)
    assert blocks == 1
    write_targets(tmp_path, 100, [ROWS], **given)
