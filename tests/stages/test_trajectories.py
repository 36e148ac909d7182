"""Making experts: the failure of one is its own, and enough failures in a row are enough."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from limbeck.errors import WorkError
from limbeck.matching import experts as training
from limbeck.runner import Run
from limbeck.stages import trajectories
from tests.stages.tiny import distillation, result_files, run_tiny, workshop

SIX = {"trajectories.experts": 6, "evaluate.tasks": []}


def failing(monkeypatch: pytest.MonkeyPatch, *bad: int) -> list[list[int]]:
    """Training fails whenever one of these experts is part of it; the groups that were tried."""
    tried = []

    def train(students, *arguments, indices, **settings):
        tried.append(list(indices))
        if set(indices) & set(bad):
            raise ValueError(f"expert {min(set(indices) & set(bad))}\nis injected")
        return training.train_experts(students, *arguments, indices=indices, **settings)

    monkeypatch.setattr(trajectories, "train_experts", train)
    return tried


def run(output: Path, changes: dict) -> None:
    for name in ("ingest", "teacher", "targets", "trajectories"):
        Run(distillation(output, changes), workshop(output)).stage(name)


def made(output: Path) -> set[int]:
    return {json.loads(path.read_text())["section"]["index"] for path in output.glob("expert/*/manifest.json")}


def test_others_are_kept_and_all_failures_are_listed(tmp_path, monkeypatch):
    tried = failing(monkeypatch, 1, 4)
    with pytest.raises(WorkError) as raised:
        run(tmp_path, SIX)
    first, *lines = str(raised.value).splitlines()
    assert first == "trajectories: 2 of 6 experts failed; those that are done are kept, and another run tries the rest"
    assert [line.split(" (")[0] for line in lines] == [
        f"  expert {index} of seed 0: ValueError: expert {index} is injected" for index in (1, 4)
    ]
    assert all("test_trajectories.py:" in line for line in lines)
    assert made(tmp_path) == {0, 2, 3, 5}
    assert not list(tmp_path.glob("trajectories/*"))
    monkeypatch.undo()
    again = failing(monkeypatch)
    Run(distillation(tmp_path, SIX), workshop(tmp_path)).stage("trajectories")
    assert again == [[1], [4]]
    assert tried == [[index] for index in range(6)]


def test_three_failures_in_a_row_are_enough(tmp_path, monkeypatch):
    tried = failing(monkeypatch, 1, 2, 3)
    with pytest.raises(WorkError, match=r"3 of 6 experts failed(.|\n)*  2 more were not tried, after 3 failures"):
        run(tmp_path, SIX)
    assert tried == [[0], [1], [2], [3]]


def test_one_of_a_group_that_fails_leaves_its_neighbours_alone(tmp_path, monkeypatch):
    together = {**SIX, "execution.engine.expertsTogether": 3}
    tried = failing(monkeypatch, 4)
    with pytest.raises(WorkError, match=r"1 of 6 experts failed(.|\n)*expert 4 of seed 0"):
        run(tmp_path, together)
    assert tried == [[0, 1, 2], [3, 4, 5], [3], [4], [5]]
    assert made(tmp_path) == {0, 1, 2, 3, 5}


def test_checkpoints_of_experts_change_nothing(tmp_path):
    run_tiny(tmp_path / "often", SIX | {"execution.checkpointSeconds": 0.0})
    run_tiny(tmp_path / "never", SIX)
    assert result_files(tmp_path / "often") == result_files(tmp_path / "never")
