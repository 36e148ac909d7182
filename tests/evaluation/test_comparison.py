"""Who is better, and what can be compared."""

from __future__ import annotations

import statistics
from typing import Any

import numpy as np
import pytest
from scipy.stats import t as student_t

from limbeck.evaluation.comparison import (
    ACCURACY,
    CONFIDENCE,
    GAP,
    Champion,
    Decision,
    Evaluated,
    Gate,
    decide,
    is_better,
    lower_bound,
    named_figures,
)
from limbeck.summary import Accuracy, RecoveredGap
from tests.tracking.tracked import as_champion, evaluation

LINEAGE = {"dataset": "d", "targets": "t", "train:digits": "a", "test:digits": "b"}
CELL = "digits/convnet/0.01"


def evaluated(shift: float = 0.0, *, lineage: dict[str, str] = LINEAGE, seeds: int = 4) -> Evaluated:
    return Evaluated.of(lineage, evaluation(shift, seeds))


def again(shift: float = 0.0, version: int = 7, *, seeds: int = 4, targets: str | None = "t") -> Champion:
    return as_champion(version, evaluation(shift, seeds, draw=version), targets)


def against(champion: Champion, new: Evaluated, metric: str = ACCURACY, confidence: float = CONFIDENCE) -> Decision:
    decision = decide(Gate("ifBetter", metric, confidence), new, champion.version, champion)
    assert decision is not None
    return decision


def cell(method: str, held_out: list[float], fraction: float = 0.01, **changes: Any) -> Accuracy:
    """By hand; the test accuracies are of no use to a gate, so they are nonsense."""
    return Accuracy(
        task="digits",
        architecture="convnet",
        method=method,
        label_fraction=fraction,
        labels=10,
        mean=0.99,
        deviation=0.0,
        values=[0.99],
        seeds=[0],
        selection_seeds=[1000 + k for k in range(len(held_out))],
        held_out=held_out,
        **changes,
    )


def by_hand(distilled: list[float], random: list[float], full: list[float], targets: str = "t") -> Evaluated:
    others = [cell("none", [0.1] * 3), cell("start", [0.22] * 3), cell("highLoss", [0.19] * 3)]
    of_set = [cell("distilled", distilled), cell("random", random), cell("full", full)]
    elsewhere = [cell(method, [0.9, 0.8, 0.7], 0.05) for method in ("distilled", "random", "full")]
    return Evaluated((*others, *of_set, *elsewhere), targets)


def test_every_figure_has_a_name():
    figures = evaluation(0.02)
    accuracies = [Accuracy.model_validate(entry) for entry in figures["accuracies"]]
    shown = named_figures(accuracies, [RecoveredGap.model_validate(entry) for entry in figures["recoveredGaps"]])
    assert len(shown) == 6 + 2 + 1
    assert shown["accuracy/digits/convnet/distilled/0.1"] == (pytest.approx(0.42), "digits")
    assert shown[GAP] == (pytest.approx(0.6, abs=0.02), None)


def test_the_metric_is_the_mean_over_all_settings_on_held_out_labels():
    new = by_hand([0.30, 0.32, 0.34], [0.2] * 3, [0.4] * 3)
    assert new.by_seed(f"{ACCURACY}/{CELL}") == pytest.approx({1000: 0.30, 1001: 0.32, 1002: 0.34})
    assert new.by_seed("accuracy/digits/convnet/distilled/0.01") == new.by_seed(f"{ACCURACY}/{CELL}")
    assert new.by_seed(ACCURACY) == pytest.approx({1000: 0.60, 1001: 0.56, 1002: 0.52})


def test_the_gaps_of_both_sets_are_taken_from_the_new_set_s_random_and_full():
    """No other method, no other label fraction, and nobody's test images."""
    new = by_hand([0.30, 0.32, 0.34], [0.19, 0.20, 0.21], [0.38, 0.40, 0.42])
    assert new.by_seed(f"{GAP}/{CELL}") == pytest.approx({1000: 0.5, 1001: 0.6, 1002: 0.7})
    accuracies = [cell("champion", [0.26, 0.25, 0.24]), cell("distilled", [0.5] * 3), cell("random", [0.0] * 3)]
    champion = Champion(version=7, accuracies=accuracies, targets="t")
    assert champion.by_seed(f"{GAP}/{CELL}", new) == pytest.approx({1000: 0.3, 1001: 0.25, 1002: 0.2})
    reason = against(champion, new, f"{GAP}/{CELL}").reason
    assert reason.startswith(f"{GAP}/{CELL} 0.600 on held-out labels, 0.35 above version 7 (95 % one-sided bound +0.")


@pytest.mark.parametrize(
    "metric", ["", "nonsense", "accuracy/digits", "accuracy/digits/convnet/random/0.1", "recovered_gap/digits"]
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
        ("ifBetter", 0.01, 0.0, True, "1.0 points above version 7 (95 % one-sided bound +0."),
        ("ifBetter", 0.0, 0.0, False, "version 7"),
        ("ifBetter", 0.0005, 0.0, False, "above version 7, which is not enough (95 % one-sided bound -0."),
        ("ifBetter", -0.01, 0.0, False, "1.0 points below version 7 (95 % one-sided bound -1."),
    ],
)
@pytest.mark.parametrize("metric", [ACCURACY, GAP])
def test_the_policy(policy, new, champion, promoted, phrase, metric):
    old = None if champion is None else again(champion)
    decision = decide(Gate(policy, metric), evaluated(new), old and old.version, old)
    assert decision is not None
    assert decision.promote is promoted
    if metric == ACCURACY:
        assert phrase in decision.reason
    assert "\n" not in decision.reason


def test_a_champion_is_evaluated_before_it_is_compared():
    gate = Gate("ifBetter")
    assert decide(gate, evaluated(0.5), 7, None) is None
    assert decide(gate, evaluated(0.5), 8, again(version=7)) is None  # another one has become champion meanwhile


def test_a_stronger_confidence_asks_for_more():
    new, champion = evaluated(0.004), again()
    assert against(champion, new, confidence=0.9).promote
    refused = against(champion, new, confidence=0.999)
    assert not refused.promote
    assert "99.9 % one-sided bound -" in refused.reason


def test_the_gap_of_a_weak_teacher_does_not_replace_a_better_set():
    """The repository's own results: 24.3 and 30.8 %, gap 0.898 of its own full set, against 25.7 and 34.1 %, 0.637."""
    spread, other = np.array([-0.002, 0.001, 0.001]), np.array([0.001, 0.0, -0.001])

    def figures(method: str, low: float, high: float, noise: Any = spread) -> list[Accuracy]:
        return [cell(method, list(low + noise)), cell(method, list(high + noise), 0.05)]

    rivals = [*figures("random", 0.205, 0.258), *figures("full", 0.2473, 0.3137)]
    new = Evaluated((*figures("distilled", 0.243, 0.308), *rivals), "weak teacher")
    champion = Champion(version=3, accuracies=figures("champion", 0.257, 0.341, other), targets="teacher")
    gaps = new.by_seed(GAP)
    assert gaps is not None
    assert statistics.fmean(gaps.values()) == pytest.approx(0.898, abs=0.002)
    by_accuracy = against(champion, new)
    assert not by_accuracy.promote
    assert "points below version 3" in by_accuracy.reason
    by_gap = against(champion, new, GAP)
    assert not by_gap.promote
    assert "not compared with version 3: it has other targets" in by_gap.reason
    unknown = against(champion.model_copy(update={"targets": None}), Evaluated(new.accuracies, None), GAP)
    assert not unknown.promote


@pytest.mark.parametrize("seeds", [1, 2])
def test_fewer_than_three_seeds_decide_nothing(seeds):
    decision = decide(Gate("ifBetter"), evaluated(0.3, seeds=seeds), 7, None)  # so nothing is evaluated for it
    assert decision is not None
    assert not decision.promote
    assert decision.reason.endswith("give evaluate.selectionSeeds at least 3")
    first = decide(Gate("ifBetter"), evaluated(seeds=seeds), None, None)
    assert first is not None
    assert first.promote


@pytest.mark.parametrize("shift", [0.0, 0.01])
def test_differences_that_do_not_vary_are_no_evidence(shift):
    same = as_champion(7, evaluation(0.0), "t")
    decision = against(same, evaluated(shift))
    assert not decision.promote
    assert "the difference is the same for all 4 seeds" in decision.reason


@pytest.mark.parametrize(
    ("champion", "phrase"),
    [
        (again(seeds=3), "not evaluated for both in the same settings"),
        (Champion(version=7, refusal="its images have 32x32 pixels"), "version 7: its images have 32x32 pixels"),
        (Champion(version=7, targets="t"), "not evaluated for both in the same settings"),
    ],
)
def test_what_cannot_be_compared_is_refused_in_a_line(champion, phrase):
    decision = against(champion, evaluated(0.3))
    assert not decision.promote
    assert phrase in decision.reason
    assert decision.reason.endswith("limbeck registry promote decides otherwise")


def test_a_set_without_figures_replaces_nobody():
    nothing = Evaluated((), "t")
    decision = decide(Gate("ifBetter"), nothing, 7, None)
    assert decision is not None
    assert not decision.promote
    assert decision.reason.startswith("accuracy was not evaluated, so version 7 stays the champion")


def test_a_gap_counts_where_the_full_set_is_better_than_the_random_one():
    one_gap = evaluation(0.0)
    for entry in one_gap["accuracies"]:
        if entry["method"] == "full" and entry["labelFraction"] == 0.1:
            entry["heldOut"] = [value - 1.0 for value in entry["heldOut"]]
    new = Evaluated.of(LINEAGE, one_gap)
    assert new.by_seed(GAP) == new.by_seed(f"{GAP}/digits/convnet/0.5")
    assert again().by_seed(GAP, new) == again().by_seed(f"{GAP}/digits/convnet/0.5", evaluated())


def test_the_bound_is_student_s():
    differences = np.array([[0.01, 0.02, 0.03], [0.03, 0.02, 0.01], [0.0, 0.0, 0.0]])
    bounds = lower_bound(differences, 0.95)
    assert bounds[:2] == pytest.approx([0.02 - 2.919986 * 0.01 / 3**0.5] * 2)  # t of a printed table
    assert bounds[2] == -np.inf
    assert list(is_better(differences, 0.95)) == [True, True, False]
    with pytest.raises(ValueError, match="2 differences; at least 3"):
        lower_bound(differences[:, :2], 0.95)


@pytest.mark.parametrize("differences", [[0.02, 0.01, 0.03], [0.01, 0.04, -0.01, 0.02]])
def test_confidence_is_the_level_of_the_one_sided_t_interval(differences):
    """The set is promoted up to the level at which the interval ends at 0, by Student's distribution."""
    spread = statistics.stdev(differences) / len(differences) ** 0.5
    level = float(student_t.cdf(statistics.fmean(differences) / spread, len(differences) - 1))
    champion = Champion(version=7, accuracies=[cell("champion", [0.3] * len(differences))], targets="t")
    new = Evaluated((cell("distilled", [0.3 + difference for difference in differences]),), "t")
    assert 0.5 < level < 0.999
    for confidence, promoted in ((level - 1e-3, True), (level + 1e-3, False), (0.5, True), (0.999, False)):
        assert against(champion, new, confidence=confidence).promote is promoted


def test_the_reason_gives_the_figure_the_difference_and_its_bound():
    champion = Champion(version=7, accuracies=[cell("champion", [0.26, 0.25, 0.24])], targets="t")
    others = [cell("random", [0.2] * 3), cell("full", [0.4] * 3), cell("start", [0.1] * 3)]

    def reason(distilled: list[float], metric: str = ACCURACY, confidence: float = 0.95) -> str:
        return against(champion, Evaluated((cell("distilled", distilled), *others), "t"), metric, confidence).reason

    # differences 0.04, 0.07, 0.10: t(0.95, 2) * 0.03 / 3**0.5 = 0.0506
    assert reason([0.30, 0.32, 0.34]) == (
        "accuracy 0.320 on held-out labels, 7.0 points above version 7 (95 % one-sided bound +1.9 over 3 seeds)"
    )
    assert reason([0.30, 0.32, 0.34], GAP) == (
        "recovered_gap 0.600 on held-out labels, 0.35 above version 7 (95 % one-sided bound +0.10 over 3 seeds)"
    )
    assert reason([0.30, 0.32, 0.34], confidence=0.995) == (  # t(0.995, 2) = 9.925
        "accuracy 0.320 on held-out labels, 7.0 points above version 7, which is not enough "
        "(99.5 % one-sided bound -10.2 over 3 seeds)"
    )
    assert reason([0.23, 0.25, 0.24]) == (
        "accuracy 0.240 on held-out labels, 1.0 points below version 7 (95 % one-sided bound -3.9 over 3 seeds)"
    )
    assert reason([0.27, 0.26, 0.25]) == (
        "accuracy 0.260 on held-out labels, 1.0 points above version 7, which is not enough (the difference is the "
        "same for all 3 seeds, so it has no interval)"
    )
    assert reason([0.26, 0.25, 0.24]).endswith(
        "0.0 points above version 7 (the difference is the same for all 3 seeds, so it has no interval)"
    )


def test_every_refusal_is_the_whole_line():
    new = by_hand([0.30, 0.32, 0.34], [0.2] * 3, [0.4] * 3)
    shown = "accuracy 0.560 on held-out labels"
    otherwise = "limbeck registry promote decides otherwise"

    def line(gate: Gate, new: Evaluated, version: int | None, champion: Champion | None = None) -> str:
        decision = decide(gate, new, version, champion)
        assert decision is not None
        return decision.reason

    gate = Gate("ifBetter")
    assert (gate.metric, gate.confidence) == (ACCURACY, CONFIDENCE) == ("accuracy", 0.95)
    assert line(Gate("never"), new, None) == "spec.registry.promote is never"
    assert line(gate, new, None) == f"the first champion; {shown}"
    assert line(Gate("always"), new, 7) == f"spec.registry.promote is always; {shown}"
    assert line(gate, Evaluated((), "t"), None) == "the first champion; accuracy was not evaluated"
    assert line(gate, Evaluated((), "t"), 7) == (
        f"accuracy was not evaluated, so version 7 stays the champion; {otherwise}"
    )
    for seeds, few in ((1, "1 selection seed"), (2, "2 selection seeds")):
        assert line(gate, Evaluated((cell("distilled", [0.5] * seeds),), "t"), 7) == (
            f"not compared with version 7: {few}; give evaluate.selectionSeeds at least 3"
        )
    assert line(gate, new, 7, Champion(version=7, refusal="why")) == (f"not compared with version 7: why; {otherwise}")
    assert line(gate, new, 7, Champion(version=7, targets="t")) == (
        f"not compared with version 7: accuracy was not evaluated for both in the same settings; {otherwise}"
    )
    assert line(Gate("ifBetter", GAP), new, 7, Champion(version=7, targets="other")) == (
        "not compared with version 7: it has other targets, so its recovered_gap is another quantity; "
        "registry.metric: accuracy compares them"
    )


def test_a_champion_s_gaps_come_from_its_own_cells():
    """Not from those of another method that it was evaluated with, and not from the new set's."""
    new = by_hand([0.30, 0.32, 0.34], [0.2] * 3, [0.4] * 3)
    others = [cell(method, [0.37] * 3) for method in ("distilled", "random", "full", "start", "none")]
    elsewhere = cell("champion", [0.8] * 3, 0.05)
    for order in (1, -1):
        own = [*others, cell("champion", [0.26, 0.25, 0.24]), elsewhere][::order]
        champion = Champion(version=7, accuracies=own, targets="t")
        assert champion.by_seed(f"{GAP}/{CELL}", new) == pytest.approx({1000: 0.3, 1001: 0.25, 1002: 0.2})
        assert champion.by_seed(f"{ACCURACY}/{CELL}", new) == pytest.approx({1000: 0.26, 1001: 0.25, 1002: 0.24})
    assert Champion(version=7, accuracies=others).by_seed(f"{GAP}/{CELL}", new) is None


@pytest.mark.parametrize(
    ("metric", "known"),
    [
        (f"{ACCURACY}/digits/convnet/0.01", True),
        (f"{ACCURACY}/digits/convnet/0.1", False),
        (f"{ACCURACY}/other/convnet/0.01", False),
        (f"{ACCURACY}/digits/resnet10/0.01", False),
        (f"{ACCURACY}/digits/convnet/distilled/0.01", True),
        (f"{ACCURACY}/digits/convnet/random/0.01", False),
        (f"{ACCURACY}/digits/distilled/convnet/0.01", False),
        (f"{GAP}/digits/convnet/distilled/0.01", False),
        (f"loss/{CELL}", False),
    ],
)
def test_a_metric_names_one_setting_or_none(metric, known):
    found = by_hand([0.30, 0.32, 0.34], [0.2] * 3, [0.4] * 3).by_seed(metric)
    assert found == (pytest.approx({1000: 0.30, 1001: 0.32, 1002: 0.34}) if known else None)


def test_settings_with_other_seeds_have_no_mean():
    few = cell("distilled", [0.4, 0.5], 0.05)
    assert Evaluated((cell("distilled", [0.3] * 3), few), "t").by_seed(ACCURACY) is None
    assert Evaluated((few,), "t").by_seed(ACCURACY) == {1000: 0.4, 1001: 0.5}


def test_names_of_gaps_and_their_mean():
    gaps = [
        RecoveredGap(task="a", architecture="convnet", label_fraction=0.01, value=0.4),
        RecoveredGap(task="b", architecture="resnet10", label_fraction=0.5, value=0.8),
        RecoveredGap(task="b", architecture="convnet", label_fraction=0.5, value=None),
    ]
    assert named_figures([cell("random", [0.3])], gaps) == {
        "accuracy/digits/convnet/random/0.01": (0.99, "digits"),
        "recovered_gap/a/convnet/0.01": (0.4, "a"),
        "recovered_gap/b/resnet10/0.5": (0.8, "b"),
        "recovered_gap": (pytest.approx(0.6), None),
    }
    assert GAP not in named_figures([], gaps[2:])


@pytest.mark.parametrize("missing", ["random", "full"])
def test_without_one_of_the_rivals_there_is_no_gap(missing):
    cells = [cell("distilled", [0.3] * 3), cell("random", [0.2] * 3), cell("full", [0.4] * 3)]
    assert Evaluated(tuple(c for c in cells if c.method != missing), "t").by_seed(GAP) is None
    assert Evaluated(tuple(cells), "t").by_seed(GAP) == pytest.approx(dict.fromkeys((1000, 1001, 1002), 0.5))


@pytest.mark.parametrize("seeds", [[1000, 1001], [1000, 1001, 1002, 1003]])
def test_held_out_accuracies_without_a_seed_each_are_an_error(seeds):
    entry = cell("distilled", [0.3] * 3).model_copy(update={"selection_seeds": seeds})
    with pytest.raises(ValueError, match="zip"):
        Evaluated((entry,), "t").by_seed(ACCURACY)
