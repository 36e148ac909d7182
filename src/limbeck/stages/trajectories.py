"""Stage 4, trajectories: students trained on the full data towards the targets, their parameters kept every epoch.

Every expert is a result of its own, `expert/<key>/`, committed as soon as it is trained; the stage's result lists
them. So more experts, or a run after a cut, train only those that are not there yet.
"""

from __future__ import annotations

import json
from pathlib import Path

from limbeck.checkpoint import load_tensors, save_tensors
from limbeck.data.dataset import ImageDataset
from limbeck.data.resident import ResidentImages
from limbeck.errors import WorkError
from limbeck.matching.experts import FILE, LIST, expert_steps, train_expert
from limbeck.nn.encoders import build_student, student_config
from limbeck.spec import DistillationSpec
from limbeck.stages.graph import EXPERT_VERSION
from limbeck.stages.task import StageTask
from limbeck.store import Identity
from limbeck.threads import fitting_threads


def expert_identity(spec: DistillationSpec, index: int, dataset: str, targets: str) -> Identity:
    """What makes expert `index`: its settings, and the digests of the dataset and the targets."""
    section = {
        "index": index,
        "seed": spec.seed,
        "epochs": spec.expert_epochs,
        "batch": spec.trajectories.batch,
        "optimizer": spec.trajectories.optimizer.wire(),
        "student": spec.student.wire(),
        "imageSize": spec.source.image_size,
    }
    return Identity("expert", EXPERT_VERSION, section, {"dataset": dataset, "targets": targets})


def trajectories(task: StageTask) -> None:
    """Train the experts that are not there yet; write `experts.json`, where they are and their digests, in order."""
    spec, shop = task.spec, task.shop
    dataset = ImageDataset.open(task.inputs["dataset"].path)
    tensors, _ = load_tensors(task.inputs["targets"].path / "targets.safetensors")
    targets = tensors["targets"].to(shop.device)
    images = ResidentImages.normalized(dataset.images, dataset.mean, dataset.std, shop.device)
    config, settings = student_config(spec), spec.trajectories
    steps = expert_steps(len(dataset), settings.batch, spec.expert_epochs)
    entries = []
    bars = shop.progress.bar("trajectories", settings.experts * steps, "steps")
    with fitting_threads(config, settings.batch), bars as bar:
        for index in range(settings.experts):

            def train(folder: Path, index: int = index) -> list[str]:
                try:
                    expert = train_expert(
                        build_student(config, targets.shape[1], spec.seed, "expert", index),
                        images,
                        targets,
                        epochs=spec.expert_epochs,
                        batch=settings.batch,
                        optimizer=settings.optimizer,
                        seed=spec.seed,
                        index=index,
                        stop=shop.stop,
                        step_done=lambda: bar.advance(note=f"expert {index + 1} of {settings.experts}"),
                    )
                except FloatingPointError as error:
                    raise WorkError(
                        f"trajectories: {error}; lower spec.trajectories.optimizer.rate "
                        f"(now {settings.optimizer.rate:g})"
                    ) from None
                save_tensors(folder / FILE, {"theta": expert.theta, "losses": expert.losses})
                return []

            identity = expert_identity(spec, index, task.inputs["dataset"].digest, task.inputs["targets"].digest)
            result, found = shop.make(identity, train)
            if found:
                bar.advance(steps)
            entries.append({"stage": identity.stage, "key": identity.key, "digest": result.digest})
    (task.out / LIST).write_text(json.dumps({"experts": entries}, indent=2) + "\n")
    task.refers.extend(f"{entry['stage']}/{entry['key']}" for entry in entries)
