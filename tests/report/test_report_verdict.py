import re
from typing import Any

import pytest

from limbeck.report.verdict import verdict_of
from limbeck.report.wording import count, duration, fraction, gain, memory, number, percent, points, size, words

DIGITS = {"full": (0.75,), "random": (0.50,)}


@pytest.fixture
def verdict(make_data: Any, make_accuracies: Any) -> Any:
    def of(
        means: dict[str, tuple[float, ...]],
        *,
        fractions: Any = (0.05,),
        seeds: int = 5,
        earlier: bool = False,
        **changes: Any,
    ) -> Any:
        accuracies = make_accuracies(means, fractions=fractions, seeds=seeds, earlier=earlier)
        found = verdict_of(make_data(accuracies=accuracies, iterations=0, **changes).summary)
        plain = str.maketrans({"\N{NO-BREAK SPACE}": " ", "\N{MINUS SIGN}": "-"})
        return found.sentence.translate(plain), " ".join(found.remarks).translate(plain)

    return of


@pytest.mark.parametrize(
    ("means", "sentence"),
    [
        (
            DIGITS | {"distilled": (0.605,)},
            "28 synthetic images recover 42 % of the gap between a random subset and the full data.",
        ),
        (
            DIGITS | {"distilled": (0.555,)},
            "28 synthetic images recover 22 % of the gap between a random subset and the full data.",
        ),
        (
            DIGITS | {"distilled": (0.8,)},
            "28 synthetic images pre-train as well as the full data: 120 % of the "
            "gap between a random subset and the full data.",
        ),
        (
            {"full": (0.49,), "random": (0.5,), "distilled": (0.55,)},
            "28 synthetic images reach 55.0 % accuracy, a random subset 50.0 %; "
            "the full data does not beat the random subset, so there is no gap to recover.",
        ),
        (
            {"random": (0.5,), "distilled": (0.55,)},
            "28 synthetic images reach 55.0 % accuracy, a random subset 50.0 %; the full data was not measured.",
        ),
        (
            {"full": (0.7,), "distilled": (0.55,)},
            "28 synthetic images reach 55.0 % accuracy; no random subset was measured to compare with.",
        ),
        (
            DIGITS,
            "28 synthetic images stand for 1,797 real ones; the run did not evaluate the synthetic set, "
            "so how well it pre-trains is not known.",
        ),
    ],
)
def test_the_verdict_says_what_was_measured(verdict: Any, means: Any, sentence: str) -> None:
    where = "On digits with 5 % of the labels, " if "distilled" in means else ""
    assert verdict(means)[0] == where + sentence


def test_one_synthetic_image_takes_the_singular(verdict: Any) -> None:
    assert "1 synthetic image recovers 42 %" in verdict(DIGITS | {"distilled": (0.605,)}, images=1)[0]
    assert "1 synthetic image stands for" in verdict({}, images=1)[0]


def test_a_run_that_failed_is_not_praised(verdict: Any) -> None:
    assert verdict(DIGITS | {"distilled": (0.8,)}, succeeded=False) == (
        "This run did not succeed; what follows is what it had reached.",
        "",
    )


def test_the_headline_is_the_smallest_label_fraction_even_where_another_looks_better(verdict: Any) -> None:
    means = {"full": (0.8, 0.6), "random": (0.6, 0.4), "distilled": (0.75, 0.41)}
    sentence, remarks = verdict(means, fractions=(0.5, 0.01))
    assert sentence.startswith("On digits with 1 % of the labels, 28 synthetic images recover 5 %")
    assert "over all settings; by the interval, in 1 of the 2 settings." in remarks
    assert "On digits with 1 % of the labels alone, the difference to the random subset is +1.0 points" in remarks


def test_a_set_above_its_start_and_random_says_by_how_much(verdict: Any) -> None:
    means = {"full": (0.6, 0.8), "random": (0.4, 0.6), "start": (0.42, 0.62), "distilled": (0.5, 0.7)}
    sentence, remarks = verdict(means, fractions=(0.01, 0.5))
    assert sentence.startswith("On digits with 1 % of the labels, 28 synthetic images recover 50 %")
    start, random = (
        r"\(95 % interval \+\d\.\d to \+\d+\.\d\) over all settings; by the interval, in all 2 settings",
    ) * 2
    assert re.search(rf"It is better than what it started from by \+8\.0 points {start}\.", remarks)
    assert re.search(rf"It is better than a random subset by \+10\.0 points {random}\.", remarks)


@pytest.mark.parametrize(
    ("start", "better"), [(0.604, "is not better than"), (0.606, "is not better than"), (0.7, "is worse than")]
)
def test_a_set_not_above_its_start_by_the_interval_says_so_first(verdict: Any, start: float, better: str) -> None:
    sentence, remarks = verdict(DIGITS | {"distilled": (0.605,), "start": (start,)})
    gain = rf"{(0.605 - start) * 100:+.1f}".replace("+", r"\+")
    assert re.fullmatch(
        rf"This set {better} what it started from: {gain} points \(95 % interval -\d+\.\d to [+-]\d\.\d\) "
        r"in the one setting measured\.",
        sentence,
    )
    assert remarks.startswith("On digits with 5 % of the labels, 28 synthetic images recover 42 % of the gap")


def test_the_interval_over_all_settings_decides(verdict: Any) -> None:
    means = {"random": (0.3, 0.3), "start": (0.4, 0.6), "distilled": (0.5, 0.5)}
    sentence, remarks = verdict(means, fractions=(0.01, 0.5))
    assert sentence.startswith("This set is not better than what it started from: 0.0 points (95 % interval -")
    assert sentence.endswith(") over all settings.")
    assert "By the interval, it is better than what it started from in 1 of the 2 settings." in remarks


def test_a_set_above_neither_rival_names_both(verdict: Any) -> None:
    sentence, remarks = verdict(DIGITS | {"distilled": (0.45,), "start": (0.45,)})
    assert sentence.startswith("This set is not better than what it started from: 0.0 points")
    assert ". It is worse than a random subset: -5.0 points (95 % interval -" in sentence
    assert "28 synthetic images do not beat a random subset of as many bytes: 45.0 % accuracy" in remarks


def test_a_control_that_was_not_measured_is_missed(verdict: Any) -> None:
    missing = "What it started from was not evaluated (the baseline start)"
    assert missing in verdict(DIGITS | {"distilled": (0.605,)})[1]
    assert missing not in verdict(DIGITS | {"distilled": (0.605,), "start": (0.5,)})[1]


def test_one_seed_shows_no_set_better(verdict: Any) -> None:
    sentence = verdict(DIGITS | {"distilled": (0.605,), "start": (0.5,)}, seeds=1)[0]
    assert sentence == (
        "This set is not shown to be better than what it started from: +10.5 points (no interval: one seed) in the one "
        "setting measured. It is not shown to be better than a random subset: +10.5 points (no interval: one seed) in "
        "the one setting measured."
    )


def test_methods_that_may_still_rise_are_named_beside_the_headline(verdict: Any) -> None:
    assert "Still rising at 4,000 steps: full data." in verdict(DIGITS | {"distilled": (0.605,)})[1]


def test_a_summary_of_an_earlier_version_says_that_it_holds_no_differences(verdict: Any) -> None:
    sentence, remarks = verdict(DIGITS | {"distilled": (0.605,)}, earlier=True, differences=[])
    assert sentence.endswith("28 synthetic images recover 42 % of the gap between a random subset and the full data.")
    assert "The summary holds no paired differences, so chance is not ruled out" in remarks


@pytest.mark.parametrize(
    ("shown", "expected"),
    [
        (count(1, "image"), "1 image"),
        (count(1797, "image"), "1,797 images"),
        (percent(0.42), "42 %"),
        (percent(0.001), "under 1 %"),
        (percent(-0.33), "\N{MINUS SIGN}33 %"),
        (percent(-0.0001), "0 %"),
        (percent(12.3), "1,230 %"),
        (percent(float("nan")), "\N{EN DASH}"),
        (percent(0.4567, 1), "45.7 %"),
        (fraction(0.005), "0.5 %"),
        (fraction(1.0), "100 %"),
        (number(0.07123), "0.07123"),
        (number(-2.5), "\N{MINUS SIGN}2.5"),
        (number(float("inf")), "\N{EN DASH}"),
        (duration(0.04), "0.0 s"),
        (duration(42.4), "42 s"),
        (duration(59.7), "1 min 00 s"),
        (duration(134), "2 min 14 s"),
        (duration(3599.9), "1 h 00 min"),
        (duration(float("nan")), "\N{EN DASH}"),
        (memory(340 * 2**20), "340 MiB"),
        (memory(3 * 2**29), "1.5 GiB"),
        (points(0.0024), "+0.2"),
        (points(-0.0041), "\N{MINUS SIGN}0.4"),
        (points(-0.0001), "0.0"),
        (gain(0.002, -0.004, 0.008), "+0.2 points (95 % interval \N{MINUS SIGN}0.4 to +0.8)"),
        (gain(0.002, None, None), "+0.2 points (no interval: one seed)"),
        (size(512), "512 B"),
        (size(64_000), "64.0 kB"),
        (size(999_960), "1.0 MB"),
        (size(3_200_000_000), "3.2 GB"),
        (words("distilledSet"), "Distilled set"),
        (words("MLflow"), "MLflow"),
    ],
)
def test_numbers_read_as_people_write_them(shown: str, expected: str) -> None:
    assert shown.replace("\N{NO-BREAK SPACE}", " ") == expected
