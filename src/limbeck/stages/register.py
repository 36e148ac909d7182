"""Stage 8, register: the self-contained distilled set, which `limbeck.load` reads."""

from __future__ import annotations

import torch

from limbeck.checkpoint import load_tensors
from limbeck.data.dataset import ImageDataset
from limbeck.data.distilled import DistilledSet
from limbeck.nn.pretraining import recipe_of
from limbeck.redact import redact_strings
from limbeck.scores import FILE, read_scores, recovered_gaps, summarize
from limbeck.stages.task import StageTask


def register(task: StageTask) -> None:
    """Write the distilled set: tensors, recipe, normalisation, spec, lineage, evaluation, and a picture."""
    spec = task.spec
    dataset = ImageDataset.open(task.inputs["dataset"].path)
    synthetic = load_tensors(task.input_file("distill", "synthetic.safetensors"))[0]
    accuracies = summarize(read_scores(task.input_file("evaluate", FILE)))
    DistilledSet(
        images=synthetic["images"],
        stored=synthetic["stored"],
        pixel_type=spec.distill.pixels,
        targets=synthetic["targets"],
        mean=torch.from_numpy(dataset.mean),
        std=torch.from_numpy(dataset.std),
        recipe=recipe_of(spec, synthetic["rate"].item(), len(synthetic["images"])),
        spec=redact_strings(spec.content()),
        lineage={
            "source": task.inputs["dataset"].manifest.inputs["source"],
            **{name: result.digest for name, result in task.inputs.items()},
        },
        evaluation={
            "accuracies": [entry.model_dump(mode="json", by_alias=True) for entry in accuracies],
            "recoveredGaps": [gap.model_dump(mode="json", by_alias=True) for gap in recovered_gaps(accuracies)],
        },
    ).save(task.out)
