# ruff: noqa: F811 -- a fixture that is imported is an argument too
"""What a pod says when it ends is all that the operator learns of a run."""

from __future__ import annotations

import json

from limbeck.outcome import LARGEST, Outcome, StageOutcome
from tests.stages.command import limbeck  # noqa: F401 - a fixture
from tests.stages.tiny import write_tiny


def test_a_run_says_what_came_of_it_and_a_look_at_its_sources_the_same_fingerprint(limbeck, tmp_path):
    spec = write_tiny(tmp_path / "tiny.yaml", tmp_path / "out")
    done = limbeck("run", str(spec), "--json", "--outcome", str(tmp_path / "outcome"))
    assert done.code == 0, done.err
    outcome = Outcome.model_validate_json((tmp_path / "outcome").read_text())
    summary = json.loads(done.out)
    assert outcome.images == summary["distilled"]["images"]
    assert outcome.digest == next(s["digest"] for s in summary["stages"] if s["name"] == "register")
    assert [stage.name for stage in outcome.stages] == [stage["name"] for stage in summary["stages"]]
    assert outcome.links["distilledSet"] == summary["distilled"]["path"]
    looked = limbeck("fingerprint", str(spec), "--outcome", str(tmp_path / "look"))
    assert looked.out.strip() == outcome.source_fingerprint
    assert json.loads((tmp_path / "look").read_text()) == {"sourceFingerprint": outcome.source_fingerprint}


def test_what_is_too_long_for_kubernetes_loses_its_stages_first(tmp_path):
    stages = [StageOutcome(name=f"ingest {number}", seconds=1.0, reused=False) for number in range(200)]
    whole = Outcome(source_fingerprint="f" * 64, digest="d" * 64, links={"mlflow": "m"}, stages=stages)
    whole.write(tmp_path / "outcome")
    text = (tmp_path / "outcome").read_text()
    assert len(text.encode()) <= LARGEST
    assert Outcome.model_validate_json(text) == whole.model_copy(update={"stages": []})
