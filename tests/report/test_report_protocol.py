"""What the report shows of the evaluation's protocol: steps, rates, budgets and differences."""

from __future__ import annotations

import re
from typing import Any

import pytest

MEANS = {
    "full": (0.75, 0.9),
    "distilled": (0.60, 0.8),
    "start": (0.55, 0.79),
    "random": (0.50, 0.7),
    "none": (0.3, 0.5),
}


@pytest.fixture
def page(make_data: Any, make_accuracies: Any, read_page: Any) -> Any:
    def of(**changes: Any) -> Any:
        accuracies = changes.pop("accuracies", None) or make_accuracies(MEANS, fractions=(0.01, 0.1))
        return read_page(make_data(accuracies=accuracies, iterations=0, **changes))

    return of


def rows(page: Any, start: str) -> list[str]:
    texts = [e.text.replace("\N{MINUS SIGN}", "-") for e in page.all("tr")]
    return [text for text in texts if text.startswith(start)]


def test_a_chart_over_steps_for_every_label_fraction_the_smallest_in_view(page: Any) -> None:
    found = page()
    charts = [e for e in found.all("svg") if "curve" in e.attributes["aria-labelledby"]]
    assert [e.text.split(".")[0] for e in found.all("title") if "steps" in e.text] == [
        f"Accuracy over pre-training steps with {share} of the labels: digits, convnet" for share in ("1 %", "10 %")
    ]
    assert ["details" in chart.inside for chart in charts] == [False, True]


def test_the_chart_names_every_method_and_marks_those_that_may_still_rise(page: Any) -> None:
    names = [e.text for e in page().all("text")]
    assert {"Full data ↑", "Distilled", "Start", "Random", "Untrained"} <= set(names)
    assert {"250", "1,000", "4,000", "Pre-training steps, log scale"} <= set(names)


def test_a_cell_whose_longest_pre_training_was_chosen_is_marked_and_explained(page: Any) -> None:
    found = page()
    assert {e.attributes["title"].replace("\N{NO-BREAK SPACE}", " ") for e in found.all("abbr")} == {
        "may still be rising at 4,000 steps"
    }
    assert re.match(r"Full data 75\.0↑ ± ", rows(found, "Full data")[0])
    assert "↑ may still be rising: the longest pre-training, of 4,000 steps, was the best on held-out" in found.text


def test_budget_steps_and_rate_of_every_method(page: Any) -> None:
    found = page()
    assert rows(found, "MethodImages") == ["MethodImagesBytes 1 %steps, rate 10 %steps, rate"]
    assert rows(found, "Full data 1,797") == ["Full data 1,797 805.1 kB 4,000↑0.05 4,000↑0.05"]
    assert rows(found, "Distilled 28") == ["Distilled 28 12.5 kB 1,0000.05 1,0000.05"]
    assert rows(found, "Start of the distillation 28") == ["Start of the distillation 28 12.5 kB 5000.05 5000.05"]
    assert not rows(found, "No pre-training \N{EN DASH}")
    assert "from grids of the same size, on held-out labels, with 2 seeds of their own; the seeds and" in found.text


def test_differences_to_start_and_random_by_setting_and_over_all(page: Any) -> None:
    found = page()
    interval = r"[+-]?\d+\.\d to \+\d+\.\d"
    assert re.fullmatch(rf"Start of the distillation \+3\.0 {interval}", rows(found, "Start of")[0])
    assert re.fullmatch(rf"Random subset \+10\.0 {interval}", rows(found, "Random subset")[0])
    assert re.fullmatch(
        rf"Distilled - startpoints, 95 % interval \+5\.0{interval} \+1\.0{interval}",
        rows(found, "Distilled - start")[0],
    )
    assert re.match(r"Distilled - randompoints, 95 % interval \+10\.0", rows(found, "Distilled - random")[0])


def test_the_luck_of_the_distillation_is_said_to_be_in_no_interval(page: Any) -> None:
    notes = " ".join(e.text for e in page().all("p"))
    assert "The luck of this one distillation is in no interval: another distill.seed gives another set." in notes


def test_the_gap_after_equal_steps_is_a_second_named_figure(page: Any) -> None:
    found = page()
    own, equal = rows(found, "Recovered gap")
    assert own == "Recovered gapeach method at its best steps 40 % 50 %"
    # After 1,000 steps: full 0.71, random 0.48, distilled 0.60; full 0.86, random 0.68, distilled 0.80.
    assert equal == "Recovered gapall after equal steps 52 %1,000 steps 67 %1,000 steps"
    figures = {e.text for e in found.all("dt")}
    assert {"Recovered gap", "Recovered gap, equal steps"} <= figures
    assert "there, all methods after 1,000 steps" in found.text


def test_the_key_figures_hold_the_bytes_of_the_set_and_of_its_source(page: Any) -> None:
    text = page().text
    assert "12.5 kB as stored: 8 by 8 pixels, 64-dimensional targets" in text
    assert "805.1 kB with their targets; the synthetic set is 1.56 % of that" in text


def test_one_seed_has_differences_and_no_interval(page: Any, make_accuracies: Any) -> None:
    found = page(accuracies=make_accuracies(MEANS, fractions=(0.01, 0.1), seeds=1))
    assert rows(found, "Start of")[0] == "Start of the distillation +3.0 \N{EN DASH}"
    assert rows(found, "Distilled - start") == ["Distilled - startpoints, 95 % interval +5.0 +1.0"]


def test_a_summary_of_an_earlier_version_shows_what_it_holds(page: Any, make_accuracies: Any) -> None:
    earlier = make_accuracies(MEANS, fractions=(0.01, 0.1), earlier=True)
    found = page(accuracies=earlier, differences=[], distilled={"bytes": None})
    assert len(found.all("svg")) == 1
    assert rows(found, "Recovered gap") == ["Recovered gap 40 % 50 %"]
    assert not rows(found, "MethodImages")
    assert not found.all("abbr")
    assert "the synthetic set is 1.56 % of it" in found.text


def test_a_method_probed_once_alone_gives_no_chart_over_steps(page: Any, make_accuracies: Any) -> None:
    once = [
        a.model_copy(update={"curve": a.curve[-1:], "steps": a.curve[-1].steps if a.curve else None})
        for a in make_accuracies(MEANS, fractions=(0.01, 0.1))
    ]
    assert len(page(accuracies=once).all("svg")) == 1
