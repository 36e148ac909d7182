"""Stage 5, select: which real images the synthetic set starts from."""

from __future__ import annotations

import torch

from limbeck.checkpoint import save_tensors
from limbeck.data.targets import open_targets
from limbeck.matching.experts import Experts
from limbeck.matching.selection import choose, loss_scores
from limbeck.nn.encoders import build_student, student_config
from limbeck.nn.flat import FlatNetwork
from limbeck.stages.task import StageTask


def select(task: StageTask) -> None:
    """Write `selection.safetensors`: `indices` i64[m] of the chosen images, `scores` f32[n], each image's loss.

    The score is the paper's: the student's loss on the image, averaged over the experts after their first epoch.
    The scores are there whatever the initialization is, for the high-loss baseline of evaluate.
    """
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
    size = spec.distill.count(len(examples), spec.source.image_size)
    indices = choose(spec.distill.initialization, targets, scores, size, spec.seed, shop.stop.check)
    save_tensors(task.out / "selection.safetensors", {"indices": indices, "scores": scores})
