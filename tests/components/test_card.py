"""What Kubeflow lists of a finished run."""

from __future__ import annotations

from limbeck_components.work import _card
from tests.test_cli_table import summary


def test_the_card_of_a_run_has_label_fractions_as_percent_and_the_differences():
    card = _card(summary())
    assert "| recoveredGap digits convnet 1 % | 0.4 |" in card
    assert "| difference | to start +0.2 points (95 % interval -0.4 to +0.8), to random +6.0 points" in card
