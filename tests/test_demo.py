"""The demo shows what the README says that it shows. It takes as long as the demo: about two and a half minutes."""

from __future__ import annotations

import subprocess
import sys
from statistics import fmean

from limbeck.runs import read_summary
from limbeck.store import Store


def test_the_demo_s_distilled_set_pre_trains_better_than_a_random_subset(tmp_path):
    """At 1 % and at 5 % of the labels; and on average over all shares it recovers 0.3 of the gap or more."""
    command = [sys.executable, "-m", "limbeck.cli", "demo", "--output", str(tmp_path)]
    done = subprocess.run(command, capture_output=True, text=True, cwd=tmp_path)
    assert done.returncode == 0, done.stderr

    summary = read_summary(Store(str(tmp_path)), None)
    means = {(entry.method, entry.label_fraction): entry.mean for entry in summary.accuracies}
    for fraction in (0.01, 0.05):
        assert means["distilled", fraction] > means["random", fraction]
    assert all(len(entry.seeds) >= 5 for entry in summary.accuracies)
    gaps = [gap.value for gap in summary.recovered_gaps]
    assert len(gaps) == 4
    assert fmean(gaps) >= 0.3
    assert (tmp_path / "runs" / "digits" / "report.html").exists()
    assert "report" in done.stdout
