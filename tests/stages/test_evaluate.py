"""The evaluation's protocol on a tiny spec: who chooses what, what is kept, and what happens when training fails."""

from __future__ import annotations

import json

import pytest
import torch

from limbeck.data.budget import set_bytes
from limbeck.data.distilled import DistilledSet
from limbeck.errors import WorkError
from limbeck.evaluation import encoders
from limbeck.evaluation.scores import read_scores
from limbeck.failures import MachineError
from limbeck.interrupt import Stopped
from limbeck.nn.encoders import student_config
from limbeck.runner import Run
from limbeck.stages import evaluate, select
from limbeck.stages.evaluate import evaluate_part
from limbeck.stages.task import StageTask
from tests.stages.tiny import StopAt, distillation, run_tiny, workshop

NOT_DISTILLED = {"distill.pixelStep": 0.0, "distill.targetStep": 0.0, "distill.rateStep": 0.0}
ONE = {"evaluate.seeds": [0], "evaluate.baselines": []}


def manifests(output, stage):
    return [json.loads(path.read_text()) for path in output.glob(f"{stage}/*/manifest.json")]


def entries(summary):
    return {entry.method: entry for entry in summary.accuracies}


@pytest.fixture(scope="module", autouse=True)
def _one_thread():
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)


def test_another_share_of_labels_trains_no_encoder_again(tmp_path):
    run_tiny(tmp_path, ONE)
    encoders, probes = len(manifests(tmp_path, "encoder")), len(manifests(tmp_path, "probe"))
    summary = run_tiny(tmp_path, ONE | {"evaluate.labelFractions": [0.1, 0.5]})
    assert len(manifests(tmp_path, "encoder")) == encoders
    assert len(manifests(tmp_path, "probe")) == 2 * probes
    assert [entry.label_fraction for entry in summary.accuracies] == [0.1, 0.5]


def test_selection_seeds_never_look_at_test_images_and_reporting_seeds_choose_nothing(tmp_path):
    changes = {
        "evaluate.selectionSeeds": [77, 78],
        "evaluate.rateFactors": [0.5, 1.0],
        "evaluate.baselines": ["random"],
    }
    summary = run_tiny(tmp_path, changes)
    for manifest in manifests(tmp_path, "probe"):
        section = manifest["section"]
        assert section["report"] == (section["seed"] in (0, 1))
        assert ("test:digits" in manifest["inputs"]) == section["report"]
    (table,) = tmp_path.glob("evaluate/*/accuracies.parquet")
    scores = read_scores(table)
    assert {(score.split, score.seed) for score in scores} == {
        ("test", 0),
        ("test", 1),
        ("heldOut", 77),
        ("heldOut", 78),
    }
    others = run_tiny(tmp_path, changes | {"evaluate.seeds": [5, 6, 9]})
    for method, entry in entries(summary).items():
        assert entries(others)[method].rate == entry.rate
        assert entries(others)[method].held_out == entry.held_out


def test_every_method_has_the_same_number_of_steps_counted_across_epochs(tmp_path):
    summary = run_tiny(tmp_path, {"evaluate.steps": 7, "evaluate.baselines": ["random", "full"], "evaluate.seeds": [0]})
    assert {tuple(point.steps for point in entry.curve) for entry in summary.accuracies} == {(4, 7)}


def test_what_is_not_distilled_is_the_start(tmp_path):
    changes = NOT_DISTILLED | {"evaluate.baselines": ["start"], "distill.downsampling": 2, "distill.optimizer": "adam"}
    found = entries(run_tiny(tmp_path, changes))
    assert found["start"].values == found["distilled"].values
    assert found["start"].held_out == found["distilled"].held_out
    assert found["start"].bytes == found["distilled"].bytes


def test_rivals_take_as_many_bytes_as_the_set_targets_included(tmp_path):
    changes = {"distill.downsampling": 2, "distill.size": 40, "targets.components": 6}
    summary = run_tiny(tmp_path, changes | {"evaluate.baselines": ["random", "full"], "evaluate.seeds": [0]})
    found = entries(summary)
    assert summary.distilled.bytes == found["distilled"].bytes == set_bytes(40, 4, 6, 1) == 40 * (48 + 24) + 4
    each = 3 * 64 + 24
    assert found["random"].images == 40 * 72 // each
    assert found["random"].bytes == found["random"].images * each + 4
    assert found["full"].bytes == 200 * each + 4


def test_a_rate_that_diverges_is_left_out(tmp_path):
    changes = ONE | {"evaluate.rateFactors": [1.0, 1000.0], "evaluate.steps": 30, "student.norm": "none"}
    summary = run_tiny(tmp_path, changes | {"evaluate.baselineRate": 90.0, "distill.innerOptimizer": {"rate": 0.01}})
    (entry,) = summary.accuracies
    assert entry.rate == pytest.approx(summary.distilled.learning_rate)


def test_where_every_rate_diverges_the_stage_fails_and_says_what_to_change(tmp_path):
    changes = {"evaluate.baselines": ["random"], "evaluate.baselineRate": 90.0, "evaluate.rateFactors": [1000.0]}
    changes |= {"student.norm": "none", "evaluate.steps": 30, **NOT_DISTILLED}
    with pytest.raises(WorkError, match=r"evaluate: \w+, convnet, seed 77: .*; lower spec\.evaluate\.rateFactors"):
        run_tiny(tmp_path, changes)


def test_a_stopped_evaluation_resumes_to_the_same_figures(tmp_path):
    changes = {"evaluate.baselines": ["random"], "evaluate.steps": 40}
    whole = run_tiny(tmp_path / "whole", changes)
    stopping = StopAt("evaluate", 3)
    cut = Run(distillation(tmp_path / "cut", changes), workshop(tmp_path / "cut", stopping, stopping.stop))
    with pytest.raises(Stopped):
        cut.all()
    again = run_tiny(tmp_path / "cut", changes)
    assert [entry.values for entry in again.accuracies] == [entry.values for entry in whole.accuracies]


def test_a_champion_is_judged_on_held_out_labels_as_the_set_that_it_is(tmp_path):
    """The registered set itself, evaluated as champion, has the held-out figures of its own evaluation."""
    run = Run(distillation(tmp_path, ONE), workshop(tmp_path))
    summary = run.all()
    inputs = {**run.results, "champion": run.results["register"]}
    task = StageTask(distillation(tmp_path, ONE).spec, workshop(tmp_path), inputs, tmp_path)
    scores = evaluate_part(task, ["convnet"], ["champion"], selection_only=True)
    assert {(score.method, score.split) for score in scores} == {("champion", "heldOut")}
    assert len(manifests(tmp_path, "probe")) == len({m["key"] for m in manifests(tmp_path, "probe")})
    (ours,) = summary.accuracies
    assert [score.accuracy for score in scores if score.steps == ours.steps] == pytest.approx(ours.held_out, abs=0.05)


def test_a_champion_chooses_among_the_same_rates_as_the_set_did_whatever_was_chosen_for_it(tmp_path):
    changes = ONE | {"evaluate.rateFactors": [3.0]}
    run = Run(distillation(tmp_path, changes), workshop(tmp_path))
    (ours,) = run.all().accuracies
    registered = DistilledSet.load(run.results["register"].path)
    assert registered.learned_rate is not None
    assert registered.recipe.rate == ours.rate == pytest.approx(3 * registered.learned_rate)
    inputs = {**run.results, "champion": run.results["register"]}
    task = StageTask(distillation(tmp_path, changes).spec, workshop(tmp_path), inputs, tmp_path)
    scores = evaluate_part(task, ["convnet"], ["champion"], selection_only=True)
    assert {score.rate for score in scores} == {ours.rate}
    assert [score.accuracy for score in scores if score.steps == ours.steps] == pytest.approx(ours.held_out, abs=0.05)


def test_an_encoder_by_self_supervision_that_half_precision_cannot_hold_is_one_line(tmp_path, monkeypatch):
    def explode(encoder, *_, **__):
        next(encoder.parameters()).data.fill_(1e6)

    monkeypatch.setattr(encoders, "train_ssl", explode)
    with pytest.raises(
        WorkError,
        match=r"^evaluate: fullSsl, seed 0: \S+ of the encoder is too large for half precision; lower "
        r"spec\.teacher\.optimizer\.rate",
    ):
        run_tiny(tmp_path, ONE | {"evaluate.baselines": ["fullSsl"]})


def test_images_that_the_accelerator_cannot_hold_are_one_line_for_a_champion_too(tmp_path, monkeypatch):
    run = Run(distillation(tmp_path, ONE), workshop(tmp_path))
    run.all()

    def full(*_):
        raise torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 20.00 MiB.")

    monkeypatch.setattr(evaluate, "TaskImages", full)
    inputs = {**run.results, "champion": run.results["register"]}
    task = StageTask(distillation(tmp_path, ONE).spec, workshop(tmp_path), inputs, tmp_path)
    with pytest.raises(
        MachineError, match=r"^evaluate: the accelerator's memory does not suffice .*spec\.evaluate\.batch"
    ):
        evaluate_part(task, ["convnet"], ["champion"], selection_only=True)


def test_scores_that_are_not_finite_choose_no_images(tmp_path, monkeypatch):
    def broken(network, theta, examples, between):
        return torch.full((len(examples),), torch.nan).index_fill(0, torch.tensor([3]), 1.0)

    monkeypatch.setattr(select, "loss_scores", broken)
    with pytest.raises(
        WorkError, match=r"^select: the experts' loss of 199 of 200 images is not finite; lower spec\.traj"
    ):
        run_tiny(tmp_path, ONE | {"distill.initialization": "highLoss"})


def test_encoders_are_kept_at_every_point_of_the_curve(tmp_path):
    run_tiny(tmp_path, ONE | {"evaluate.steps": 8})
    config = student_config(distillation(tmp_path, ONE).spec)
    for manifest in manifests(tmp_path, "encoder"):
        assert manifest["section"]["points"] == [4, 8]
        assert manifest["section"]["encoder"] == config.wire()
        names = {entry["path"] for entry in manifest["files"]}
        assert names == {"encoder.json", "steps-4.safetensors", "steps-8.safetensors"}


def test_a_probe_that_does_not_reach_its_optimum_fails_the_stage_and_says_what_to_change(tmp_path):
    with pytest.raises(
        WorkError, match=r"evaluate: distilled, seed 77: after \d+ iterations .* leave out small ridges$"
    ):
        run_tiny(tmp_path, ONE | {"evaluate.probe": {"iterations": 1, "ridges": [0.01]}})
