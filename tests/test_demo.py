"""The demo shows what the README says that it shows. It takes as long as the demo: about three minutes."""

from __future__ import annotations

import subprocess
import sys
from statistics import fmean

from limbeck.runs import read_summary
from limbeck.store import Store


def test_the_demo_s_distilled_set_is_above_its_start_and_above_a_random_subset(tmp_path):
    """At 1 % of the labels and on average; on average it recovers 0.2 of the gap or more."""
    command = [sys.executable, "-m", "limbeck.cli", "demo", "--output", str(tmp_path)]
    done = subprocess.run(command, capture_output=True, text=True, cwd=tmp_path)
    assert done.returncode == 0, done.stderr

    summary = read_summary(Store(str(tmp_path)), None)
    means = {(entry.method, entry.label_fraction): entry.mean for entry in summary.accuracies}
    differences = {entry.against: entry.mean for entry in summary.differences if entry.task is None}
    for rival in ("random", "start"):
        assert means["distilled", 0.01] > means[rival, 0.01]
        assert differences[rival] > 0
    assert all(len(entry.seeds) == 8 for entry in summary.accuracies)
    gaps = [gap.value for gap in summary.recovered_gaps]
    assert len(gaps) == 2
    assert fmean(gaps) >= 0.2
    assert (tmp_path / "runs" / "digits" / "report.html").exists()
    assert "report" in done.stdout
