"""What the terminal shows of a run."""

from __future__ import annotations

import pytest

from limbeck.cli_table import print_summary
from limbeck.summary import Accuracy, CurvePoint, Difference, DistilledSummary, RecoveredGap, SourceSummary, Summary

METHODS = {
    "distilled": (0.42, 1000),
    "start": (0.39, 500),
    "random": (0.36, 2000),
    "full": (0.51, 4000),
    "none": (0.3, None),
}


def accuracy(method: str, mean: float, steps: int | None, label_fraction: float) -> Accuracy:
    point = {"mean": mean, "deviation": 0.01, "values": [mean - 0.01, mean + 0.01]}
    curve = [CurvePoint(steps=s, held_out=[mean], **point) for s in (500, 1000, 2000, 4000)] if steps else []
    setting = {"task": "digits", "architecture": "convnet", "label_fraction": label_fraction, "labels": 20}
    return Accuracy(method=method, **setting, **point, seeds=[0, 1], steps=steps, curve=curve)


def summary(**changes: object) -> Summary:
    gap = {"task": "digits", "architecture": "convnet", "equal_steps": 1000, "equal_steps_value": 0.63}
    whole = {"task": None, "architecture": None, "label_fraction": None, "seeds": 2}
    settings = {
        "name": "tiny",
        "limbeck_version": "0.1.0",
        "succeeded": True,
        "seconds": 1.0,
        "device": "cpu",
        "source": SourceSummary(uri="images", fingerprint="ab", images=9, image_size=8, skipped={}),
        "distilled": DistilledSummary(
            images=3,
            image_size=8,
            target_dimension=4,
            learning_rate=0.1,
            matching_loss_first=1.0,
            matching_loss_last=0.5,
            path="out/register/ab",
        ),
        "stages": [],
        "accuracies": [accuracy(m, *of, f) for f in (0.01, 0.05) for m, of in METHODS.items()],
        "recovered_gaps": [RecoveredGap(label_fraction=f, value=0.4, **gap) for f in (0.01, 0.05)],
        "differences": [
            Difference(against="random", mean=0.06, low=0.04, high=0.08, **whole),
            Difference(against="start", mean=0.002, low=-0.004, high=0.008, **whole),
        ],
        "links": {"report": "report.html"},
        "spec": {},
    }
    return Summary(**(settings | changes))


@pytest.fixture
def printed(capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setenv("COLUMNS", "120")

    def of(found: Summary) -> list[str]:
        print_summary(found, "out/")
        return [
            " ".join(line.replace("│", " ").replace("┃", " ").split()) for line in capsys.readouterr().out.splitlines()
        ]

    return of


def test_label_fractions_read_as_percent_and_steps_stand_beside(printed):
    lines = printed(summary())
    assert "pre-trained on 1 % 5 % after steps" in lines
    assert "distilled 42.0 ± 1.0 42.0 ± 1.0 1,000" in lines
    assert "full 51.0 ± 1.0 51.0 ± 1.0 4,000↑" in lines
    assert "none 30.0 ± 1.0 30.0 ± 1.0 -" in lines
    assert "recovered gap 0.40 0.40" in lines
    assert "recovered gap, equal steps 0.63 0.63" in lines
    assert "↑ may still be rising: the longest pre-training was the best" in lines
    assert not [line for line in lines if "0.01" in line]


def test_one_line_names_the_differences_to_start_and_random(printed):
    assert (
        "difference to start +0.2 points (95 % interval -0.4 to +0.8), to random +6.0 points "
        "(95 % interval +4.0 to +8.0), over all settings"
    ) in printed(summary())


def test_steps_that_differ_between_label_fractions_are_all_named(printed):
    two = [accuracy("distilled", 0.4, 1000, 0.01), accuracy("distilled", 0.5, 4000, 0.05)]
    assert "distilled 40.0 ± 1.0 50.0 ± 1.0 1,000 / 4,000↑" in printed(summary(accuracies=two, recovered_gaps=[]))


def test_what_was_not_measured_is_a_dash(printed):
    some = [accuracy("full", 0.5, 1000, 0.01), accuracy("none", 0.3, None, 0.01), accuracy("none", 0.4, None, 0.05)]
    lines = printed(summary(accuracies=some, recovered_gaps=[], differences=[]))
    assert "full 50.0 ± 1.0 - 1,000" in lines
    assert not [line for line in lines if line.startswith("difference")]
