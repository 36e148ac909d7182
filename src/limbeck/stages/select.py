"""Stage 5, select: which real images the synthetic set starts from.

The scores of all images are a result of their own, `scores/<key>/`: another size or way to choose does not need others.
"""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import torch
from torch import Tensor

from limbeck.checkpoint import load_tensors, save_tensors
from limbeck.data.targets import open_targets
from limbeck.errors import WorkError
from limbeck.matching.experts import Experts, listed_snapshots
from limbeck.matching.selection import choose, loss_scores
from limbeck.nn.encoders import build_student, student_config
from limbeck.nn.flat import FlatNetwork
from limbeck.stages.graph import SCORES_VERSION
from limbeck.stages.task import StageTask
from limbeck.store import Identity, json_digest

_FILE = "scores.safetensors"
_PATIENCE = 600.0  # seconds; a run of another spec, which shares the scores, may just be making them


def select(task: StageTask) -> None:
    """Write `selection.safetensors`: `indices` i64[m] of the chosen images, `scores` f32[n], each image's loss.

    The score is the paper's: the student's loss on the image, averaged over the experts after their first epoch.
    The scores are there whatever the initialization is, for the high-loss baseline of evaluate.
    """
    spec, shop = task.spec, task.shop
    targets = open_targets(task.inputs["targets"].path)
    patient = replace(shop, patience=max(shop.patience, _PATIENCE))
    scored, _ = patient.make(_scores_identity(task), lambda folder: _score(task, folder))
    scores: Tensor = load_tensors(scored.path / _FILE)[0]["scores"]
    size = spec.distill.count(len(scores), spec.source.image_size)
    indices = choose(spec.distill.initialization, targets, scores, size, spec.distillation_seed, shop.stop.check)
    save_tensors(task.out / "selection.safetensors", {"indices": indices, "scores": scores})


def _scores_identity(task: StageTask) -> Identity:
    """What makes the scores: of the experts it is the parameters after the first epoch, however long they are."""
    firsts = [snapshots[1] for snapshots in listed_snapshots(task.inputs["trajectories"].path)]
    inputs = {name: task.inputs[name].digest for name in ("dataset", "targets")}
    section = {"student": task.spec.student.wire()}
    return Identity("scores", SCORES_VERSION, section, inputs | {"experts": json_digest(firsts)})


def _score(task: StageTask, folder: Path) -> list[str]:
    spec, shop = task.spec, task.shop
    targets = open_targets(task.inputs["targets"].path)
    experts = Experts.listed(task.inputs["trajectories"].path, task.locate)
    examples = task.source_examples()
    network = FlatNetwork(build_student(student_config(spec), targets.shape[1], spec.seed).to(shop.device))
    scores = torch.zeros(len(examples))
    with shop.progress.bar("select", len(experts), "experts") as bar:
        for index in range(len(experts)):
            theta = experts.theta(index, 1).to(shop.device)
            scores += loss_scores(network, theta, examples, shop.stop.check).cpu() / len(experts)
            bar.advance()
            shop.stop.check()
    broken = int((~scores.isfinite()).sum())
    if broken:
        raise WorkError(
            f"select: the experts' loss of {broken:,} of {len(scores):,} images is not finite; lower "
            f"spec.trajectories.optimizer.rate (now {spec.trajectories.optimizer.rate:g})"
        )
    save_tensors(folder / _FILE, {"scores": scores})
    return []
