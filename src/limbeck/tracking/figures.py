"""What there is to see of a finished stage, read from its result: the same whether it was made now or found done."""

from __future__ import annotations

import json
from collections.abc import Iterator
from typing import Any

import numpy as np
import pyarrow.parquet as pq
from numpy.typing import NDArray
from safetensors import safe_open

from limbeck.checkpoint import load_tensors
from limbeck.data.dataset import ImageDataset
from limbeck.data.distilled import image_grid
from limbeck.data.pixels import viewable
from limbeck.evaluation.comparison import named_figures
from limbeck.evaluation.scores import FILE as SCORES
from limbeck.evaluation.scores import read_scores, recovered_gaps, summarize
from limbeck.matching.experts import FILE as EXPERT
from limbeck.matching.experts import listed_places, listed_snapshots
from limbeck.spec import DistillationSpec
from limbeck.store import Result, Store

MOST_SHOWN = 100  # synthetic images in one picture
Figure = tuple[str, int, float, str | None]  # name, step, value, the task that it was measured on


def figures_of(stage: str, result: Result, store: Store) -> Iterator[Figure]:
    """All figures of a stage's result."""
    made = result.manifest.made
    yield "seconds", 0, made.seconds, None
    yield "peak_memory_mib", 0, made.peak_memory_bytes / 2**20, None
    if made.peak_device_memory_bytes:
        yield "peak_device_memory_mib", 0, made.peak_device_memory_bytes / 2**20, None
    if stage == "teacher" and (result.path / "history.json").exists():
        for epoch, loss in enumerate(json.loads((result.path / "history.json").read_text())["losses"]):
            yield "teacher_loss", epoch, loss, None
    elif stage == "trajectories":
        yield from _of_experts(result, store)
    elif stage == "distill":
        table = pq.read_table(result.path / "history.parquet").to_pydict()
        for step, loss, rate in zip(table["iteration"], table["matchingLoss"], table["learningRate"], strict=True):
            yield "matching_loss", step, loss, None
            yield "learning_rate", step, rate, None
    elif stage == "evaluate":
        accuracies = summarize(read_scores(result.path / SCORES))
        for name, (value, task) in named_figures(accuracies, recovered_gaps(accuracies)).items():
            yield name, 0, value, task


def _of_experts(result: Result, store: Store) -> Iterator[Figure]:
    curves, snapshots = [], listed_snapshots(result.path)
    for index, entry in enumerate(listed_places(result.path)):
        expert = store.find(entry["stage"], entry["key"])
        if expert is None:
            continue
        with safe_open(expert.path / EXPERT, framework="np") as handle:
            curve: NDArray[np.float32] = handle.get_tensor("losses")[: len(snapshots[index]) - 1]  # it may be longer
        curves.append(curve)
        yield "expert_loss", index, float(curve[-1]), None
    if curves:
        for epoch, loss in enumerate(np.mean(curves, axis=0)):
            yield "mean_expert_loss", epoch, float(loss), None


def pictures_of(result: Result, dataset: Result, iterations: int) -> Iterator[tuple[int, NDArray[np.uint8]]]:
    """The synthetic images at the start and at the end of a distillation, uint8[height, width, 3]."""
    import torch

    tensors = load_tensors(result.path / "synthetic.safetensors")[0]
    data = ImageDataset.open(dataset.path)
    mean, std = torch.from_numpy(data.mean), torch.from_numpy(data.std)
    for step, name in ((0, "initial_images"), (iterations, "images")):
        yield step, np.asarray(image_grid(viewable(tensors[name][:MOST_SHOWN], mean, std)))


def flat(value: Any, prefix: str = "") -> dict[str, str]:
    """Nested settings as one level of dotted names; lists stay whole, as JSON."""
    if not isinstance(value, dict):
        return {prefix: value if isinstance(value, str) else json.dumps(value)}
    found: dict[str, str] = {}
    for name, inner in value.items():
        found |= flat(inner, f"{prefix}.{name}" if prefix else name)
    return found


def images_a_unit(spec: DistillationSpec, title: str, unit: str) -> float:
    """How many images one unit of a progress bar stands for; 0 where that says nothing."""
    if unit == "images":
        return 1.0
    settings = spec.distill
    per = {
        "teacher": spec.teacher.batch,
        "trajectories": spec.trajectories.batch,
        "distill": settings.pairs * settings.inner_steps * settings.inner_batch,
    }
    return float(per.get(title, 0))
