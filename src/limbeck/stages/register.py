"""Stage 8, register: the self-contained distilled set, which `limbeck.load` reads."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace

import torch

from limbeck.checkpoint import load_tensors
from limbeck.data.dataset import ImageDataset
from limbeck.data.distilled import DistilledSet
from limbeck.evaluation.scores import FILE, differences, read_scores, recovered_gaps, summarize
from limbeck.nn.pretraining import Recipe, recipe_of
from limbeck.redact import redact_strings
from limbeck.spec import DistillationSpec
from limbeck.stages.task import StageTask
from limbeck.summary import Accuracy


def register(task: StageTask) -> None:
    """Write the distilled set: tensors, recipe, normalisation, spec, lineage, evaluation, and a picture."""
    spec = task.spec
    dataset = ImageDataset.open(task.inputs["dataset"].path)
    synthetic = load_tensors(task.input_file("distill", "synthetic.safetensors"))[0]
    rate = synthetic["rate"].item()
    accuracies = summarize(read_scores(task.input_file("evaluate", FILE)))
    DistilledSet(
        images=synthetic["images"],
        stored=synthetic["stored"],
        pixel_type=spec.distill.pixels,
        targets=synthetic["targets"],
        mean=torch.from_numpy(dataset.mean),
        std=torch.from_numpy(dataset.std),
        recipe=best_recipe(spec, rate, len(synthetic["images"]), accuracies),
        learned_rate=rate,
        spec=redact_strings(spec.content()),
        lineage={
            "source": task.inputs["dataset"].manifest.inputs["source"],
            **{name: result.digest for name, result in task.inputs.items()},
        },
        evaluation={
            "accuracies": [entry.model_dump(mode="json", by_alias=True) for entry in accuracies],
            "recoveredGaps": [gap.model_dump(mode="json", by_alias=True) for gap in recovered_gaps(accuracies)],
            "differences": [entry.model_dump(mode="json", by_alias=True) for entry in differences(accuracies)],
        },
    ).save(task.out)


def best_recipe(spec: DistillationSpec, learned_rate: float, count: int, accuracies: Sequence[Accuracy]) -> Recipe:
    """Return how to pre-train on a distilled set of `count` images.

    The rate and the steps are those chosen on held-out labels for the student's architecture, else for the first that
    was evaluated; of the steps of several tasks and shares of labels, the most. Without an evaluation they are the
    learned rate and the spec's steps.
    """
    recipe = recipe_of(spec, learned_rate, count)
    own = [entry for entry in accuracies if entry.method == "distilled"]
    architecture: str = spec.student.architecture
    if own and architecture not in {entry.architecture for entry in own}:
        architecture = own[0].architecture
    chosen = [entry for entry in own if entry.architecture == architecture]
    rates = [entry.rate for entry in chosen if entry.rate is not None]
    steps = [entry.steps for entry in chosen if entry.steps is not None]
    return replace(recipe, rate=rates[0], steps=max(steps)) if rates and steps else recipe
