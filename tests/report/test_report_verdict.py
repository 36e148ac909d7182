from typing import Any

import pytest

from limbeck.report.verdict import verdict_of
from limbeck.report.wording import count, duration, fraction, memory, number, percent, words

DIGITS = {"full": (0.75,), "random": (0.50,)}


@pytest.fixture
def verdict(make_data: Any, make_accuracies: Any) -> Any:
    def of(means: dict[str, tuple[float, ...]], *, fractions: Any = (0.05,), seeds: int = 5, **changes: Any) -> Any:
        accuracies = make_accuracies(means, fractions=fractions, seeds=seeds)
        found = verdict_of(make_data(accuracies=accuracies, iterations=0, **changes).summary)
        return found.sentence.replace("\N{NO-BREAK SPACE}", " "), " ".join(found.remarks).replace(
            "\N{NO-BREAK SPACE}", " "
        )

    return of


@pytest.mark.parametrize(
    ("means", "sentence"),
    [
        (
            DIGITS | {"distilled": (0.605,)},
            "28 synthetic images recover 42 % of the gap between a random subset and the full data.",
        ),
        (
            DIGITS | {"distilled": (0.505,)},
            "28 synthetic images recover 2 % of the gap between a random subset and the full data.",
        ),
        (
            DIGITS | {"distilled": (0.8,)},
            "28 synthetic images pre-train as well as the full data: 120 % of the "
            "gap between a random subset and the full data.",
        ),
        (
            DIGITS | {"distilled": (0.45,)},
            "28 synthetic images do not beat a random subset of as many pixels: 45.0 % accuracy against 50.0 %.",
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
    assert "beats the random subset in all 2 settings measured" in remarks


def test_the_settings_lost_are_counted_beside_the_one_won(verdict: Any) -> None:
    means = {"full": (0.6, 0.8), "random": (0.4, 0.6), "distilled": (0.5, 0.55)}
    assert "in 1 of the 2 settings measured" in verdict(means, fractions=(0.01, 0.5))[1]
    means = {"full": (0.6, 0.8), "random": (0.4, 0.6), "distilled": (0.3, 0.55)}
    assert "in none of the 2 settings measured" in verdict(means, fractions=(0.01, 0.5))[1]


def test_a_difference_within_the_spread_of_the_seeds_is_called_that(verdict: Any) -> None:
    assert "within one standard deviation over the seeds: 0.1 %" in verdict(DIGITS | {"distilled": (0.501,)})[1]
    assert verdict(DIGITS | {"distilled": (0.605,)})[1] == ""


def test_one_seed_is_called_one_seed(verdict: Any) -> None:
    assert verdict(DIGITS | {"distilled": (0.605,)}, seeds=1)[1] == "It rests on one seed, so chance is not ruled out."


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
        (words("distilledSet"), "Distilled set"),
        (words("MLflow"), "MLflow"),
    ],
)
def test_numbers_read_as_people_write_them(shown: str, expected: str) -> None:
    assert shown.replace("\N{NO-BREAK SPACE}", " ") == expected
