"""What summaries say of the rows: own plateaus chosen on held-out labels, gaps, differences with their intervals."""

from __future__ import annotations

import math

import pytest
from scipy.stats import ttest_rel

from limbeck.evaluation.scores import Score, differences, read_scores, recovered_gaps, summarize, write_scores


def row(method, seed, steps, split, accuracy, *, fraction=0.1, rate=0.1):
    return Score("digits", "convnet", method, fraction, 20, seed, steps, rate, 0.01, split, accuracy, 10, 2000)


def curve(method, test, held_out, **options):
    """Rows of a method: accuracies by steps, one a seed."""
    rows = [
        row(method, seed, steps, "test", v, **options)
        for steps, values in test.items()
        for seed, v in enumerate(values)
    ]
    return rows + [
        row(method, 100 + seed, steps, "heldOut", v, **options)
        for steps, values in held_out.items()
        for seed, v in enumerate(values)
    ]


def test_the_plateau_is_chosen_on_held_out_labels_and_not_on_the_test_images():
    scores = curve("random", {10: [0.9, 0.9], 20: [0.4, 0.6]}, {10: [0.3], 20: [0.5]})
    (entry,) = summarize(scores)
    assert (entry.steps, entry.mean, entry.values, entry.seeds) == (20, 0.5, [0.4, 0.6], [0, 1])
    assert (entry.held_out, entry.selection_seeds) == ([0.5], [100])
    assert entry.deviation == pytest.approx(math.sqrt(0.02))
    assert [(point.steps, point.mean, point.held_out) for point in entry.curve] == [(10, 0.9, [0.3]), (20, 0.5, [0.5])]
    assert (entry.rate, entry.images, entry.bytes, entry.labels) == (0.1, 10, 2000, 20)


def test_a_method_without_steps_has_its_one_figure_and_no_curve():
    (entry,) = summarize([row("none", seed, None, "test", 0.2 + seed / 10, rate=None) for seed in (0, 1)])
    assert (entry.steps, entry.rate, entry.values, entry.curve) == (None, None, [0.2, pytest.approx(0.3)], [])


def test_a_selection_alone_has_held_out_figures_and_no_mean():
    (entry,) = summarize(curve("champion", {}, {10: [0.3, 0.5], 20: [0.2, 0.2]}))
    assert entry.held_out == [0.3, 0.5]
    assert math.isnan(entry.mean)


def test_the_gap_takes_each_method_at_its_own_plateau_and_beside_it_all_at_the_set_s_steps():
    scores = curve("distilled", {10: [0.5], 20: [0.45]}, {10: [0.6], 20: [0.4]})
    scores += curve("random", {10: [0.3], 20: [0.4]}, {10: [0.3], 20: [0.4]})
    scores += curve("full", {10: [0.5], 20: [0.8]}, {10: [0.5], 20: [0.7]})
    (gap,) = recovered_gaps(summarize(scores))
    assert gap.value == pytest.approx((0.5 - 0.4) / (0.8 - 0.4))
    assert gap.equal_steps == 10
    assert gap.equal_steps_value == pytest.approx((0.5 - 0.3) / (0.5 - 0.3))


def test_there_is_no_gap_where_everything_is_no_better_than_a_random_subset():
    scores = [
        r for m, v in (("distilled", 0.5), ("random", 0.5), ("full", 0.5)) for r in curve(m, {10: [v]}, {10: [v]})
    ]
    (gap,) = recovered_gaps(summarize(scores))
    assert gap.value is None
    assert gap.equal_steps_value is None


def test_differences_are_paired_by_seed_with_student_s_interval():
    ours, theirs = [0.50, 0.61, 0.55, 0.70], [0.40, 0.55, 0.50, 0.66]
    scores = curve("distilled", {10: ours}, {10: [0.5]}) + curve("start", {10: theirs}, {10: [0.5]})
    over_all, cell = differences(summarize(scores))
    low, high = ttest_rel(ours, theirs).confidence_interval(0.95)
    for entry in (over_all, cell):
        assert (entry.against, entry.seeds) == ("start", 4)
        assert entry.mean == pytest.approx(sum(ours) / 4 - sum(theirs) / 4)
        assert (entry.low, entry.high) == (pytest.approx(low), pytest.approx(high))
    assert (over_all.task, cell.task, cell.label_fraction) == (None, "digits", 0.1)


def test_the_difference_over_all_is_the_mean_over_settings_of_each_seed():
    scores = []
    for fraction, shift in ((0.1, 0.1), (0.5, 0.3)):
        scores += curve("distilled", {10: [0.5 + shift, 0.6 + shift]}, {10: [0.5]}, fraction=fraction)
        scores += curve("random", {10: [0.5, 0.6]}, {10: [0.5]}, fraction=fraction)
    over_all = differences(summarize(scores))[0]
    assert over_all.mean == pytest.approx(0.2)
    assert over_all.low == pytest.approx(0.2)


def test_one_seed_has_no_interval():
    scores = curve("distilled", {10: [0.5]}, {10: [0.5]}) + curve("random", {10: [0.4]}, {10: [0.4]})
    assert [(entry.low, entry.high) for entry in differences(summarize(scores))] == [(None, None)] * 2


def test_rows_come_back_from_the_table_as_they_were(tmp_path):
    scores = [*curve("random", {10: [0.9]}, {10: [0.3]}), row("none", 0, None, "test", 0.2, rate=None)]
    write_scores(tmp_path / "scores.parquet", scores)
    assert read_scores(tmp_path / "scores.parquet") == scores
