"""Who is better, and what can be compared."""

from __future__ import annotations

import statistics
from typing import Any

import pytest

from limbeck.summary import Accuracy, RecoveredGap
from limbeck.tracking.comparison import GAP, Evaluated, decide, named_figures
from tests.tracking.tracked import evaluation, spec_of

LINEAGE = {"dataset": "d", "train:digits": "a", "test:digits": "b"}


def evaluated(shift: float = 0.0, *, lineage: dict[str, str] = LINEAGE, seeds: int = 4, **evaluate: Any) -> Evaluated:
    return Evaluated.of(spec_of(**evaluate), lineage, evaluation(shift, seeds))


def test_a_metric_by_seed_has_the_mean_that_the_run_shows():
    figures = evaluation(0.02)
    accuracies = [Accuracy.model_validate(entry) for entry in figures["accuracies"]]
    shown = named_figures(accuracies, [RecoveredGap.model_validate(entry) for entry in figures["recoveredGaps"]])
    new = evaluated(0.02)
    assert len(shown) == 6 + 2 + 1
    for name, (value, task) in shown.items():
        values = new.by_seed(name)
        assert values is not None
        assert statistics.fmean(values.values()) == pytest.approx(value), name
        assert (task is None) == (name == GAP)
    assert shown[GAP][0] == pytest.approx(0.6, abs=0.02)


@pytest.mark.parametrize(
    "metric", ["", "nonsense", "accuracy", "accuracy/digits/convnet/none/0.1", "recovered_gap/digits"]
)
def test_what_was_not_evaluated_has_no_values(metric):
    assert evaluated().by_seed(metric) is None


@pytest.mark.parametrize(
    ("policy", "new", "champion", "promoted", "phrase"),
    [
        ("ifBetter", 0.0, None, True, "the first champion"),
        ("never", 0.5, None, False, "never"),
        ("never", 0.5, 0.0, False, "never"),
        ("always", -0.1, 0.0, True, "always"),
        ("ifBetter", 0.01, 0.0, True, "better than version 7"),
        ("ifBetter", 0.0, 0.0, False, "not better than version 7"),
        ("ifBetter", -0.01, 0.0, False, "not better than version 7"),
    ],
)
def test_the_policy(policy, new, champion, promoted, phrase):
    old = None if champion is None else (7, evaluated(champion))
    decision = decide(policy, GAP, evaluated(new), old)
    assert decision.promote is promoted
    assert phrase in decision.reason


def test_a_difference_within_the_seeds_deviation_is_no_difference():
    better = evaluation(0.0)
    for entry in better["accuracies"]:
        if entry["method"] == "distilled":  # up by 0.03 for one seed of four: 0.0075 on average, error 0.0075
            entry["values"][0] += 0.03
            entry["mean"] += 0.0075
    new = Evaluated.of(spec_of(), LINEAGE, better)
    decision = decide("ifBetter", "accuracy/digits/convnet/distilled/0.1", new, (1, evaluated()))
    assert not decision.promote
    assert "standard error 0.007" in decision.reason or "standard error 0.008" in decision.reason


@pytest.mark.parametrize(
    ("other", "named"),
    [
        ({"epochs": 4}, "evaluate.epochs"),
        ({"baselineRate": 0.3}, "evaluate.baselineRate"),
        ({"lineage": {**LINEAGE, "test:digits": "c"}}, "the tasks' data"),
    ],
)
def test_a_champion_of_other_settings_is_never_replaced_silently(other, named):
    decision = decide("ifBetter", GAP, evaluated(0.3, **other), (3, evaluated()))
    assert not decision.promote
    assert named in decision.reason
    assert "version 3" in decision.reason
    assert decide("always", GAP, evaluated(0.3, **other), (3, evaluated())).promote


def test_another_source_or_other_baselines_are_no_other_settings():
    new = evaluated(0.3, lineage={**LINEAGE, "dataset": "other"}, baselines=["random", "full", "none"])
    assert decide("ifBetter", GAP, new, (3, evaluated())).promote


def test_another_number_of_seeds_cannot_be_compared():
    decision = decide("ifBetter", GAP, evaluated(0.3, seeds=3), (3, evaluated()))
    assert not decision.promote


def test_a_champion_that_cannot_be_read_is_not_replaced():
    decision = decide("ifBetter", GAP, evaluated(0.3), (3, None))
    assert not decision.promote
    assert "the files of version 3, the champion, cannot be read" in decision.reason
    assert decide("always", GAP, evaluated(), (3, None)).promote


def test_a_gap_that_only_one_side_has_does_not_count():
    """Where the full set is no better than the random one there is no gap, and the mean is of other settings."""
    one_gap = evaluation(0.0)
    for entry in one_gap["accuracies"]:
        if entry["method"] == "full" and entry["labelFraction"] == 0.1:
            entry["values"] = [value - 1.0 for value in entry["values"]]
            entry["mean"] -= 1.0
    old = Evaluated.of(spec_of(), LINEAGE, one_gap)
    new = evaluated(0.0)
    assert new.by_seed(GAP) != old.by_seed(GAP)
    both = new.compared(GAP, old)
    assert both is not None
    assert both[0] == both[1] == old.by_seed(GAP)
    assert not decide("ifBetter", GAP, new, (3, old)).promote
