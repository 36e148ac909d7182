"""Making experts: their bytes follow from the spec alone, and enough failures in a row are enough."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import pytest
import torch

from limbeck.errors import WorkError
from limbeck.matching import engine
from limbeck.matching import experts as training
from limbeck.matching.groups import share
from limbeck.runner import Run
from limbeck.stages import select, trajectories
from limbeck.stages.task import StageTask
from limbeck.tracking.figures import figures_of
from tests.stages.tiny import digests, distillation, result_files, run_tiny, workshop

SIX = {"trajectories.experts": 6, "evaluate.tasks": []}
IN_THREES = SIX | {"trajectories.together": 3}


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


def index_of(manifest: Path) -> int:
    return json.loads(manifest.read_text())["section"]["index"]


def made(output: Path) -> set[int]:
    return {index_of(path) for path in output.glob("expert/*/manifest.json")}


def experts_of(output: Path) -> dict[str, str]:
    return {name: digest for name, digest in result_files(output).items() if name.startswith("expert/")}


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


def test_a_group_that_fails_is_not_tried_in_parts_for_those_would_be_other_experts(tmp_path, monkeypatch):
    tried = failing(monkeypatch, 4)
    with pytest.raises(WorkError, match=r"3 of 6 experts failed(.|\n)*expert 3 of seed 0(.|\n)*expert 5 of seed 0"):
        run(tmp_path, IN_THREES)
    assert tried == [[0, 1, 2], [3, 4, 5]]
    assert made(tmp_path) == {0, 1, 2}


def test_one_of_a_group_that_diverges_leaves_its_neighbours_alone(tmp_path, monkeypatch):
    build = trajectories.build_student

    def broken(config, dimension, seed, *names):
        student = build(config, dimension, seed, *names)
        if names == ("expert", 4):
            torch.nn.init.constant_(student.head.bias, 1e30)
        return student

    monkeypatch.setattr(trajectories, "build_student", broken)
    with pytest.raises(WorkError, match=r"1 of 6 experts failed(.|\n)*expert 4 of seed 0: .* lower spec\.traj"):
        run(tmp_path, IN_THREES)
    assert made(tmp_path) == {0, 1, 2, 3, 5}


def test_memory_that_is_too_small_for_a_group_is_a_line_that_names_the_setting(tmp_path, monkeypatch):
    def train(*arguments, **settings):
        raise torch.cuda.OutOfMemoryError("CUDA out of memory")

    monkeypatch.setattr(trajectories, "train_experts", train)
    with pytest.raises(WorkError, match=r"lower spec\.trajectories\.batch or spec\.trajectories\.together"):
        run(tmp_path, IN_THREES)


def test_an_expert_does_not_depend_on_which_others_are_missing(tmp_path, monkeypatch):
    run(tmp_path, IN_THREES)
    before = result_files(tmp_path)
    for index in (1, 5):
        (folder,) = (path.parent for path in tmp_path.glob("expert/*/manifest.json") if index_of(path) == index)
        shutil.rmtree(folder)
    tried = failing(monkeypatch)
    run(tmp_path, IN_THREES)
    assert tried == [[0, 1, 2], [3, 4, 5]]
    assert result_files(tmp_path) == before


def test_an_expert_does_not_depend_on_how_many_there_are(tmp_path):
    run(tmp_path / "six", IN_THREES)
    run(tmp_path / "four", IN_THREES | {"trajectories.experts": 4})
    assert made(tmp_path / "four") == {0, 1, 2, 3}
    assert experts_of(tmp_path / "four").items() <= experts_of(tmp_path / "six").items()


@pytest.mark.parametrize("workers", [2, 3])
def test_an_expert_does_not_depend_on_how_many_workers_there_are(tmp_path, workers):
    run(tmp_path / "one", IN_THREES)
    shutil.copytree(tmp_path / "one", tmp_path / "many")
    shutil.rmtree(tmp_path / "many" / "expert")
    shutil.rmtree(tmp_path / "many" / "trajectories")
    shop, there = workshop(tmp_path / "many"), tmp_path / "many"
    done = Run(distillation(there, IN_THREES), shop)
    done.stage("targets")
    for missing in ([0, 2, 3, 5], [1, 4]):  # the second time as after a cut
        for rank in range(workers):
            maker = trajectories.ExpertMaker(StageTask(distillation(there, IN_THREES).spec, shop, done.results, there))
            assert maker.make(share(missing, 3, rank, workers)) == []
    assert experts_of(there) == experts_of(tmp_path / "one")


LONGER = {"evaluate.tasks": [], "distill.maxStartEpoch": 3}


def test_fewer_epochs_are_those_of_longer_experts(tmp_path, monkeypatch):
    """Nothing is trained, and what is made of them is what is made of experts that are as long as needed."""
    run_tiny(tmp_path / "both", LONGER)
    tried = failing(monkeypatch)
    shorter = run_tiny(tmp_path / "both", {"evaluate.tasks": []})
    assert tried == []
    assert len(made(tmp_path / "both")) == len(list(tmp_path.glob("both/expert/*"))) == 3
    alone = run_tiny(tmp_path / "alone", {"evaluate.tasks": []})
    assert digests(shorter) == digests(alone)
    run_tiny(tmp_path / "alone", LONGER)
    assert len(list(tmp_path.glob("alone/expert/*"))) == 6


def test_of_longer_experts_the_figures_are_those_of_the_epochs_that_count(tmp_path):
    found = []
    for name, changes in (("both", LONGER), ("both", {}), ("alone", {})):
        run(tmp_path / name, {"evaluate.tasks": []} | changes)
        shop = workshop(tmp_path / name)
        result = Run(distillation(tmp_path / name, {"evaluate.tasks": []} | changes), shop).stage("trajectories")
        found.append([figure for figure in figures_of("trajectories", result, shop.store) if "loss" in figure[0]])
    assert found[1] == found[2] != found[0]


@pytest.mark.parametrize("changes", [{"trajectories.experts": 2}, {"trajectories.epochs": 9}])
def test_whether_steps_are_compiled_does_not_depend_on_how_much_is_trained(tmp_path, monkeypatch, changes):
    work = []

    def choose(found, *arguments):
        work.append(found.forwards)
        return engine.choose_steps(found, *arguments)

    monkeypatch.setattr(trajectories, "choose_steps", choose)
    run(tmp_path / "usual", {})
    run(tmp_path / "other", changes)
    assert len(set(work)) == 1


def test_another_size_or_way_to_choose_scores_nothing_anew(tmp_path, monkeypatch):
    few = {"evaluate.tasks": [], "distill.iterations": 1}
    run_tiny(tmp_path, few)
    monkeypatch.setattr(select, "loss_scores", None)
    run_tiny(tmp_path, few | {"distill.size": 12, "distill.initialization": "highLoss"})
    run_tiny(tmp_path, few | {"distill.expertGap": 3})
    assert len(list(tmp_path.glob("scores/*/manifest.json"))) == 1


def test_checkpoints_of_experts_change_nothing(tmp_path):
    run_tiny(tmp_path / "often", SIX | {"execution.checkpointSeconds": 0.0})
    run_tiny(tmp_path / "never", SIX)
    assert result_files(tmp_path / "often") == result_files(tmp_path / "never")
