# ruff: noqa: F811 -- a fixture that is imported is an argument too
"""What each stage writes is what the method says it is."""

from __future__ import annotations

import json
from pathlib import Path
from typing import get_args

import pyarrow.parquet as pq
import pytest
import torch

from limbeck.checkpoint import load_tensors
from limbeck.data.dataset import ImageDataset
from limbeck.data.distilled import DistilledSet
from limbeck.data.feed import Examples
from limbeck.evaluation.scores import read_scores
from limbeck.matching.experts import Experts
from limbeck.nn.encoders import build_student, student_config
from limbeck.nn.enlarging import Enlarging
from limbeck.runner import Run
from limbeck.spec import Baseline, Targets
from limbeck.ssl.teachers import load_teacher
from tests.stages.command import limbeck  # noqa: F401 - a fixture
from tests.stages.tiny import (
    distillation,
    finished,  # noqa: F401 - a fixture
    one_thread,  # noqa: F401 - a fixture
    run_tiny,
    workshop,
    write_tiny,
)

CPU = torch.device("cpu")


def folder(output: Path, stage: str) -> Path:
    summary = json.loads((output / "runs" / "tiny" / "summary.json").read_text())
    keys = {entry["name"]: entry["key"] for entry in summary["stages"]}
    return output / stage.split()[0] / keys[stage]


def tensors(output: Path, stage: str, name: str) -> dict[str, torch.Tensor]:
    return load_tensors(folder(output, stage) / name)[0]


def dataset(output: Path) -> ImageDataset:
    return ImageDataset.open(folder(output, "ingest source"))


def normalized(output: Path) -> torch.Tensor:
    data = dataset(output)
    return Examples.normalized(data.images, data.mean, data.std, CPU)[torch.arange(len(data))][0]


def experts(output: Path) -> Experts:
    return Experts.listed(folder(output, "trajectories"), lambda stage, key, _: output / stage / key)


def targets_of(output: Path) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    standardization = tensors(output, "targets", "standardization.safetensors")
    return (
        tensors(output, "targets", "targets.safetensors")["targets"],
        standardization["center"],
        standardization["scale"],
    )


def history(output: Path) -> dict[str, list[float]]:
    return pq.read_table(folder(output, "distill") / "history.parquet").to_pydict()


def test_targets_are_the_teacher_s_representations_standardised_by_one_factor(finished):
    teacher = load_teacher(folder(finished, "teacher"), CPU)
    data = dataset(finished)
    raw = teacher.represent(Examples.pixels(data.images, CPU)[torch.arange(len(data))][0])
    found, center, scale = targets_of(finished)
    torch.testing.assert_close(found * scale + center, raw)
    assert found.mean(0).abs().max() < 1e-4
    assert found.square().mean().item() == pytest.approx(1.0, abs=1e-2)


def test_by_default_targets_are_the_components_that_vary_most_half_white(finished, tmp_path):
    usual = Targets()
    assert (usual.standardize, usual.components, usual.whitening) == (True, 32, 0.5)
    changes = {"targets.components": usual.components, "targets.whitening": usual.whitening}
    run_tiny(tmp_path, changes | {"evaluate.tasks": [], "distill.iterations": 1})
    whole, found = targets_of(finished)[0].double(), targets_of(tmp_path)[0].double()
    first = torch.linalg.eigh(whole.T.cov())[1][:, -1]
    assert found.shape == (len(whole), 32)
    pair = torch.stack([found[:, 0], whole @ first])
    assert torch.corrcoef(pair)[0, 1].abs().item() == pytest.approx(1.0, abs=1e-4)
    assert (found.var(0).diff() <= 1e-6).all()
    assert found.var(0).mean().item() == pytest.approx(1.0, abs=1e-2)


def test_the_paper_s_raw_targets_are_one_setting_away(finished, tmp_path):
    raw = run_tiny(tmp_path, {"targets.standardize": False, "evaluate.tasks": [], "distill.iterations": 1})
    assert raw.succeeded
    found, center, scale = targets_of(finished)
    plain, zero, one = targets_of(tmp_path)
    torch.testing.assert_close(plain, found * scale + center)
    assert torch.equal(zero, torch.zeros_like(center))
    assert one == 1.0


def test_scores_are_losses_after_the_first_epoch_averaged_over_the_experts(finished):
    images, targets = normalized(finished), tensors(finished, "targets", "targets.safetensors")["targets"]
    spec, listed = distillation(finished).spec, experts(finished)
    student = build_student(student_config(spec), targets.shape[1], 0)
    losses = []
    for index in range(3):
        torch.nn.utils.vector_to_parameters(listed.theta(index, 1), student.parameters())
        with torch.no_grad():
            losses.append((student(images) - targets).square().mean(1))
    scores = tensors(finished, "select", "selection.safetensors")["scores"]
    torch.testing.assert_close(scores, torch.stack(losses).mean(0), rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("initialization", ["random", "highLoss", "kCenter", "facilityLocation"])
def test_the_synthetic_set_starts_from_the_selected_images_and_moves_away(tmp_path, initialization):
    run_tiny(tmp_path, {"distill.initialization": initialization, "evaluate.tasks": []})
    selection = tensors(tmp_path, "select", "selection.safetensors")
    indices = selection["indices"]
    assert len(set(indices.tolist())) == 10
    if initialization == "highLoss":
        assert selection["scores"][indices].tolist() == sorted(selection["scores"].tolist(), reverse=True)[:10]
    synthetic = tensors(tmp_path, "distill", "synthetic.safetensors")
    assert torch.equal(synthetic["initial_images"], normalized(tmp_path)[indices])
    assert not torch.equal(synthetic["images"], synthetic["initial_images"])
    targets = tensors(tmp_path, "targets", "targets.safetensors")["targets"][indices]
    assert not torch.equal(synthetic["targets"], targets)
    torch.testing.assert_close(synthetic["targets"], targets, atol=1.0, rtol=0)


def test_without_steps_the_synthetic_set_stays_what_it_was(tmp_path):
    still = {"distill.pixelStep": 0.0, "distill.targetStep": 0.0, "distill.rateStep": 0.0, "evaluate.tasks": []}
    run_tiny(tmp_path, still)
    indices = tensors(tmp_path, "select", "selection.safetensors")["indices"]
    synthetic = tensors(tmp_path, "distill", "synthetic.safetensors")
    assert torch.equal(synthetic["images"], normalized(tmp_path)[indices])
    assert torch.equal(synthetic["targets"], tensors(tmp_path, "targets", "targets.safetensors")["targets"][indices])
    assert synthetic["rate"].item() == pytest.approx(0.05)


def test_the_history_tells_every_iteration(finished):
    told = history(finished)
    assert told["iteration"] == list(range(8))
    assert set(told["expert"]) <= {0, 1, 2}
    assert set(told["startEpoch"]) <= {0, 1}
    assert all(0.0 < loss < 10.0 for loss in told["matchingLoss"])
    assert told["learningRate"][0] == pytest.approx(0.05)


def test_all_experts_and_start_epochs_are_used_and_the_matching_loss_falls(tmp_path):
    run_tiny(tmp_path, {"distill.iterations": 150, "distill.pixelStep": 30.0, "evaluate.tasks": []})
    told = history(tmp_path)
    assert set(zip(told["expert"], told["startEpoch"], strict=True)) == {(e, s) for e in range(3) for s in range(2)}
    losses = torch.tensor(told["matchingLoss"])
    assert losses[-30:].mean() < 0.9 * losses[:30].mean()


def test_the_learned_rate_stays_positive_however_it_is_stepped(tmp_path):
    """Ten such steps of the rate itself would take it below zero."""
    run_tiny(tmp_path, {"distill.rateStep": 0.002, "distill.iterations": 30, "evaluate.tasks": []})
    rates = history(tmp_path)["learningRate"]
    assert min(rates) > 0.0
    assert len(set(rates)) > 20


@pytest.mark.parametrize(
    ("changes", "phrase"),
    [
        (
            {"distill.innerOptimizer": {"rate": 100.0}, "distill.innerSteps": 20, "student.norm": "none"},
            "innerOptimizer.rate",
        ),
        (
            {"trajectories": {"experts": 1, "epochs": 9, "optimizer": {"rate": 100.0}}},
            "lower spec.trajectories.optimizer.rate",
        ),
        (
            {"student.norm": "none", "evaluate.baselineRate": 100.0, "evaluate.epochs": 20},
            "lower spec.evaluate.rateFactors or baselineRate",
        ),
    ],
    ids=["distill", "trajectories", "evaluate"],
)
def test_work_that_diverges_is_one_line_that_names_the_setting_and_code_1(limbeck, tmp_path, changes, phrase):
    outcome = limbeck("run", write_tiny(tmp_path / "tiny.yaml", tmp_path / "out", changes))
    assert outcome.code == 1
    assert phrase in outcome.problems[-1]
    assert "Traceback" not in outcome.err


@pytest.mark.parametrize("algorithm", ["barlowTwins", "simclr"])
def test_a_teacher_is_trained_by_either_objective_and_its_losses_are_kept(tmp_path, algorithm):
    changes = {"teacher.algorithm": algorithm, "teacher.epochs": 6}
    Run(distillation(tmp_path, changes), workshop(tmp_path)).stage("ingest")
    result = Run(distillation(tmp_path, changes), workshop(tmp_path)).stage("teacher")
    losses = json.loads((result.path / "history.json").read_text())["losses"]
    assert len(losses) == 6
    assert losses[-1] < losses[0]


def test_a_teacher_in_bfloat16_learns_what_one_in_float32_does(tmp_path):
    losses, teachers = {}, {}
    for precision in ("float32", "bfloat16"):
        changes = {"teacher.precision": precision, "teacher.epochs": 6}
        Run(distillation(tmp_path, changes), workshop(tmp_path)).stage("ingest")
        result = Run(distillation(tmp_path, changes), workshop(tmp_path)).stage("teacher")
        losses[precision] = json.loads((result.path / "history.json").read_text())["losses"]
        teachers[precision] = load_teacher(result.path, CPU).module
    assert losses["bfloat16"] != losses["float32"]
    assert losses["bfloat16"] == pytest.approx(losses["float32"], rel=0.05)
    assert all(p.dtype == torch.float32 and p.is_contiguous() for p in teachers["bfloat16"].parameters())


def test_another_architecture_is_evaluated_beside_the_student_s(finished, tmp_path):
    changes = {"evaluate.architectures": ["convnet", "resnet10"], "evaluate.epochs": 1, "evaluate.seeds": [0]}
    changes |= {"evaluate.baselines": ["none"], "evaluate.labelFractions": [0.1, 0.5]}
    summary = run_tiny(tmp_path, changes)
    found = [(entry.architecture, entry.method, entry.label_fraction) for entry in summary.accuracies]
    expected = [(a, m, f) for a in ("convnet", "resnet10") for m in ("distilled", "none") for f in (0.1, 0.5)]
    assert sorted(found) == sorted(expected)
    assert summary.recovered_gaps == []


def test_every_probe_is_a_row_and_sees_the_labels_that_it_says(finished):
    scores = read_scores(folder(finished, "evaluate") / "accuracies.parquet")
    found = sorted((score.method, score.steps or 0, score.split, score.seed) for score in scores)
    whole = {"distilled": 2, "random": 2, "highLoss": 2, "full": 8}  # steps of two epochs in batches of at most 64
    seeds = (("test", 0), ("test", 1))
    curves = [
        (m, steps, *s) for m, last in whole.items() for steps in (last // 2, last) for s in (*seeds, ("heldOut", 77))
    ]
    assert found == sorted([("none", 0, *s) for s in seeds] + curves)
    train = ImageDataset.open(folder(finished, "ingest digits/train"))
    counts = torch.tensor(train.labels).bincount()
    assert {score.labels for score in scores} == {sum(max(1, round(0.1 * int(count))) for count in counts)}


def test_all_baselines_stand_beside_the_distilled_set(tmp_path):
    baselines = list(get_args(Baseline))
    changes = {"evaluate.baselines": baselines, "evaluate.seeds": [0, 1], "evaluate.labelFractions": [0.5]}
    summary = run_tiny(tmp_path, changes | {"source.limit": 100, "distill.iterations": 1})
    found = {entry.method: entry.values for entry in summary.accuracies}
    assert list(found) == ["distilled", *baselines]
    paths = sorted(tmp_path.glob("encoder/*/manifest.json"))
    diets = {json.dumps(json.loads(path.read_text())["section"]["diet"], sort_keys=True) for path in paths}
    assert len(diets) == 7 + 3  # one for each method that trains, but for random one for each seed
    assert len(paths) == 7 * 3 + 2  # of two reporting seeds and one selection seed; fullSsl chooses nothing
    encoders = {path.read_bytes() for path in tmp_path.glob("encoder/*/steps-*.safetensors")}
    assert len(encoders) == 7 * 3 * 2 + 2  # at two points; they are not the same thing
    again = run_tiny(tmp_path, changes | {"source.limit": 100, "distill.iterations": 1, "evaluate.seeds": [1]})
    assert {entry.method: entry.values for entry in again.accuracies} == {m: v[1:] for m, v in found.items()}


def test_all_ways_to_distil_leave_a_set_that_their_recipe_pretrains_from(tmp_path):
    changes = {
        "student.augmentation": "flipShift",
        "targets.components": 5,
        "targets.whitening": 0.5,
        "trajectories.sharpnessRadius": 0.1,
        "trajectories.epochs": 3,
        "distill.startGrowth": 0.5,
        "distill.lossNormalization": "layer",
        "distill.targetRank": 3,
        "distill.averageLast": 0.5,
    }
    assert run_tiny(tmp_path, changes).succeeded
    synthetic = tensors(tmp_path, "distill", "synthetic.safetensors")
    assert torch.linalg.matrix_rank(synthetic["targets"], rtol=1e-4) <= 6  # the mean of some of rank 3
    distilled = DistilledSet.load(folder(tmp_path, "register"))
    assert distilled.recipe.augmentation == "flipShift"


def test_a_set_of_small_images_has_more_of_them_and_rivals_have_as_many_bytes(tmp_path):
    changes = {"distill.downsampling": 2, "distill.size": 40, "evaluate.steps": 6, "evaluate.seeds": [0]}
    summary = run_tiny(tmp_path, changes | {"evaluate.baselines": ["random"]})
    assert summary.distilled.images == 40
    distilled = DistilledSet.load(folder(tmp_path, "register"))
    assert (distilled.images.shape, distilled.stored.shape) == ((40, 3, 8, 8), (40, 3, 4, 4))
    synthetic = tensors(tmp_path, "distill", "synthetic.safetensors")
    torch.testing.assert_close(distilled.images, synthetic["images"])
    assert not torch.equal(synthetic["images"], synthetic["initial_images"])
    own, rival = ({entry.method: entry for entry in summary.accuracies}[method] for method in ("distilled", "random"))
    assert (own.images, own.bytes, own.steps) == (40, distilled.nbytes, distilled.recipe.steps)
    assert rival.bytes <= own.bytes < rival.bytes + rival.bytes / rival.images  # one more image would be too many
    encoders = [json.loads(path.read_text())["section"] for path in tmp_path.glob("encoder/*/manifest.json")]
    assert {entry["recipe"]["steps"] for entry in encoders} == {6}
    assert {tuple(entry["points"]) for entry in encoders} == {(3, 6)}
    assert distilled.recipe.steps in (3, 6)
    again = {"distill.downsampling": 2, "distill.size": 40, "distill.warmStart": str(folder(tmp_path, "register"))}
    assert run_tiny(tmp_path / "again", again | {"evaluate.tasks": []}).succeeded
    onward = tensors(tmp_path / "again", "distill", "synthetic.safetensors")
    mean, std = distilled.mean[:, None, None], distilled.std[:, None, None]
    kept = (distilled.pixels(distilled.stored) - mean) / std  # as one would look at them, and not blurred again
    torch.testing.assert_close(onward["initial_images"], Enlarging(4, 8, CPU)(kept))


def test_without_tasks_nothing_is_evaluated(limbeck, tmp_path):
    spec = write_tiny(tmp_path / "tiny.yaml", tmp_path / "out", {"evaluate.tasks": []})
    outcome = limbeck("run", spec)
    assert outcome.code == 0
    assert "Nothing was evaluated: the spec has no evaluate.tasks." in outcome.out
    assert not (tmp_path / "out" / "encoder").exists()


def test_a_resnet_is_a_student_too(tmp_path):
    """At 16 pixels with instance norm, at 8 with batch norm."""
    for size, norm in ((16, "instance"), (8, "batch")):
        changes = {"source.imageSize": size, "student": {"architecture": "resnet10", "width": 4, "norm": norm}}
        changes |= {"trajectories.experts": 1, "distill.iterations": 2, "evaluate.seeds": [0], "evaluate.epochs": 1}
        summary = run_tiny(tmp_path / norm, changes)
        assert summary.succeeded
        assert summary.accuracies[0].architecture == "convnet"
