"""What a person reads of a registered set: shares of the labels, bytes, and the differences to its rivals."""

from __future__ import annotations

from limbeck.summary import Difference
from limbeck.tracking.card import card
from tests.tracking.tracked import publishable


def published(folder, *, differences=(), without=None):
    request = publishable(folder)
    entries = [
        entry | {"bytes": 64_004 if entry["method"] == "distilled" else 44_804}
        for entry in request.evaluation["accuracies"]
        if (entry["method"], entry["labelFraction"]) != without
    ]
    evaluation = request.evaluation | {
        "accuracies": entries,
        "differences": [entry.model_dump(mode="json", by_alias=True) for entry in differences],
    }
    return card(request.model_copy(update={"evaluation": evaluation}), as_file=False)


def test_shares_of_the_labels_are_in_percent_and_budgets_in_bytes(tmp_path):
    text = published(tmp_path / "set")
    assert "4 synthetic images of 8x8 pixels, 64.0 kB with their targets, distilled from " in text
    assert "| pre-trained on | 10 % of the labels | 50 % of the labels | bytes |" in text
    assert all(line.endswith("| 44.8 kB |") for line in text.splitlines() if line.startswith("| random |"))
    assert all(line.endswith("| 64.0 kB |") for line in text.splitlines() if line.startswith("| distilled |"))


def test_the_differences_over_all_settings_have_their_intervals(tmp_path):
    over_all = Difference(
        against="start", task=None, architecture=None, label_fraction=None, mean=0.02, low=0.01, high=0.03, seeds=4
    )
    cell = over_all.model_copy(update={"task": "digits", "mean": 0.5})
    text = published(tmp_path / "set", differences=(cell, over_all))
    expected = "to start +2.0 points (95 % interval +1.0 to +3.0), over all settings."
    assert f"Difference of the distilled set: {expected}" in text


def test_a_method_that_lacks_a_setting_has_a_dash_there(tmp_path):
    text = published(tmp_path / "set", without=("random", 0.5))
    (row,) = (line for line in text.splitlines() if line.startswith("| random |"))
    assert row.split(" | ")[2] == "-"
