"""What summaries say of the rows: own plateaus chosen on held-out labels, gaps, differences with their intervals."""

from __future__ import annotations

import math
from dataclasses import replace
from statistics import fmean, stdev

import pytest
from scipy.stats import ttest_rel

from limbeck.evaluation.scores import (
    Score,
    by_setting,
    differences,
    read_scores,
    recovered_gaps,
    summarize,
    write_scores,
)
from limbeck.summary import Accuracy, CurvePoint


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


def test_an_entry_says_all_that_its_rows_say():
    scores = [
        Score("digits", "convnet", "random", 0.1, 20, seed, steps, 0.3, 0.01, split, value, 11, 2222)
        for split, seed, steps, value in [
            ("heldOut", 77, 10, 0.2),
            ("heldOut", 78, 10, 0.4),
            ("heldOut", 77, 5, 0.1),
            ("heldOut", 78, 5, 0.3),
            ("test", 2, 10, 0.5),
            ("test", 1, 10, 0.8),
            ("test", 2, 5, 0.6),
            ("test", 1, 5, 0.8),
        ]
    ]
    scores[0] = replace(scores[0], labels=19, images=1, bytes=2, rate=9.0)  # of a selection seed: not what is reported
    (entry,) = summarize(scores)
    assert entry == Accuracy(
        task="digits",
        architecture="convnet",
        method="random",
        label_fraction=0.1,
        labels=20,
        mean=0.65,
        deviation=stdev([0.5, 0.8]),
        values=[0.5, 0.8],
        seeds=[2, 1],
        steps=10,
        rate=0.3,
        images=11,
        bytes=2222,
        selection_seeds=[77, 78],
        held_out=[0.2, 0.4],
        curve=[
            CurvePoint(
                steps=5, mean=fmean([0.6, 0.8]), deviation=stdev([0.6, 0.8]), values=[0.6, 0.8], held_out=[0.1, 0.3]
            ),
            CurvePoint(steps=10, mean=0.65, deviation=stdev([0.5, 0.8]), values=[0.5, 0.8], held_out=[0.2, 0.4]),
        ],
    )


def test_tasks_architectures_methods_and_fractions_are_kept_apart():
    """Gaps and differences of a setting come from its own rows alone."""
    settings = [
        (task, net, fraction) for task in ("a", "b") for net in ("convnet", "resnet10") for fraction in (0.1, 0.5)
    ]
    scores, expected = [], []
    for number, (task, net, fraction) in enumerate(settings):
        low, high, ours = 0.1 + number / 100, 0.7 + number / 50, 0.3 + number / 30
        for method, value in (("random", low), ("full", high), ("distilled", ours), ("none", 0.05)):
            scores += [
                Score(task, net, method, fraction, 20, seed, 4, 0.1, 0.01, split, value + seed / 1000, 10, 20)
                for split, seed in (("heldOut", 7), ("test", 0), ("test", 1))
            ]
        expected.append((task, net, fraction, (ours - low) / (high - low), ours - low))
    entries = summarize(scores)
    assert list(by_setting(entries)) == settings
    assert all(list(methods) == ["random", "full", "distilled", "none"] for methods in by_setting(entries).values())
    gaps = recovered_gaps(entries)
    assert [(g.task, g.architecture, g.label_fraction) for g in gaps] == settings
    assert [g.value for g in gaps] == [pytest.approx(row[3]) for row in expected]
    assert [(g.equal_steps, g.equal_steps_value) for g in gaps] == [(4, pytest.approx(row[3])) for row in expected]
    over_all, *cells = differences(entries)
    assert (over_all.task, over_all.architecture, over_all.label_fraction, over_all.seeds) == (None, None, None, 2)
    assert over_all.mean == pytest.approx(sum(row[4] for row in expected) / 8)
    assert [(d.against, d.task, d.architecture, d.label_fraction) for d in cells] == [("random", *s) for s in settings]
    assert [d.mean for d in cells] == [pytest.approx(row[4]) for row in expected]


def test_a_gap_at_equal_steps_needs_all_three_methods_after_those_steps():
    scores = curve("distilled", {10: [0.5]}, {10: [0.6]}) + curve("random", {10: [0.3]}, {10: [0.3]})
    assert recovered_gaps(summarize(scores)) == []
    (gap,) = recovered_gaps(summarize(scores + curve("full", {20: [0.8]}, {20: [0.7]})))
    assert gap.value == pytest.approx(0.4)
    assert (gap.equal_steps, gap.equal_steps_value) == (None, None)


def test_without_held_out_figures_the_longest_training_is_reported():
    (entry,) = summarize(curve("random", {20: [0.4], 5: [0.9], 10: [0.7]}, {}))
    assert (entry.steps, entry.mean, entry.held_out, entry.selection_seeds) == (20, 0.4, [], [])
    assert [point.steps for point in entry.curve] == [5, 10, 20]
    assert [point.held_out for point in entry.curve] == [[], [], []]


def test_seeds_without_a_partner_are_left_out_of_the_differences():
    ours = [row("distilled", seed, 10, "test", 0.5 + seed / 10) for seed in (0, 1, 2)]
    theirs = [row("random", seed, 10, "test", 0.4 + seed / 20) for seed in (1, 2, 9)]
    strangers = [row("start", 8, 10, "test", 0.4)]
    over_all, cell = differences(summarize(ours + theirs + strangers))
    assert cell.mean == pytest.approx((0.6 - 0.45 + 0.7 - 0.5) / 2)
    assert (over_all.seeds, cell.seeds, cell.against) == (2, 2, "random")
    ours += [row("distilled", seed, 10, "test", 0.5, fraction=0.5) for seed in (2, 3)]
    theirs += [row("random", seed, 10, "test", 0.1, fraction=0.5) for seed in (2, 3)]
    over_all, *cells = differences(summarize(ours + theirs))
    assert over_all.mean == pytest.approx((0.2 + 0.4) / 2)  # of the one seed that all settings have
    assert [entry.seeds for entry in (over_all, *cells)] == [1, 2, 2]


@pytest.mark.parametrize("uneven", ["distilled", "random"])
@pytest.mark.parametrize("seeds", [[0], [0, 1, 2]])
def test_accuracies_without_a_seed_each_are_an_error(uneven, seeds):
    rows = [r for m in ("distilled", "random") for r in curve(m, {10: [0.5, 0.6]}, {10: [0.5]})]
    entries = [e.model_copy(update={"seeds": seeds}) if e.method == uneven else e for e in summarize(rows)]
    with pytest.raises(ValueError, match="zip"):
        differences(entries)
