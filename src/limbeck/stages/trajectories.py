"""Stage 4, trajectories: students trained on the full data towards the targets, their parameters kept every epoch.

Every expert is a result of its own, `expert/<key>/`, committed as soon as it is trained; the stage's result lists
them. So more experts, or a run after a cut, train only those that are not there yet.
"""

from __future__ import annotations

import json
from collections.abc import Sequence
from functools import partial
from pathlib import Path

import torch

from limbeck.checkpoint import load_tensors, save_tensors
from limbeck.data.dataset import ImageDataset
from limbeck.data.resident import ResidentImages
from limbeck.errors import WorkError
from limbeck.matching.engine import GRADIENT_FORWARDS, Work, choose_steps, choose_together
from limbeck.matching.experts import FILE, LIST, Expert, expert_steps, train_experts
from limbeck.matching.steps import Steps
from limbeck.nn.encoders import Student, build_student, student_config
from limbeck.nn.flat import FlatNetwork
from limbeck.progress import Bar
from limbeck.spec import DistillationSpec
from limbeck.stages.graph import EXPERT_VERSION
from limbeck.stages.task import StageTask
from limbeck.store import Identity, Result
from limbeck.threads import fitting_threads


def expert_identity(spec: DistillationSpec, index: int, dataset: str, targets: str) -> Identity:
    """What makes expert `index`: its settings, and the digests of the dataset and the targets."""
    section = {
        "index": index,
        "seed": spec.seed,
        "epochs": spec.expert_epochs,
        "batch": spec.trajectories.batch,
        "precision": spec.trajectories.precision,
        "optimizer": spec.trajectories.optimizer.wire(),
        "student": spec.student.wire(),
        "imageSize": spec.source.image_size,
    }
    return Identity("expert", EXPERT_VERSION, section, {"dataset": dataset, "targets": targets})


def trajectories(task: StageTask) -> None:
    """Train the experts that are not there yet; write `experts.json`, where they are and their digests, in order."""
    count = task.spec.trajectories.experts
    with fitting_threads(student_config(task.spec), task.spec.trajectories.batch):
        entries = [
            {"stage": result.manifest.stage, "key": result.manifest.key, "digest": result.digest}
            for result in ExpertMaker(task).make(range(count))
        ]
    (task.out / LIST).write_text(json.dumps({"experts": entries}, indent=2) + "\n")
    task.refers.extend(f"{entry['stage']}/{entry['key']}" for entry in entries)


class ExpertMaker:
    """Makes experts by number, each a result of its own, from one copy of the data on the device."""

    def __init__(self, task: StageTask) -> None:
        spec, self._task = task.spec, task
        dataset = ImageDataset.open(task.inputs["dataset"].path)
        targets = load_tensors(task.inputs["targets"].path / "targets.safetensors")[0]["targets"]
        self._targets = targets.to(task.shop.device)
        self._images = ResidentImages.normalized(dataset.images, dataset.mean, dataset.std, task.shop.device)
        self._batch = min(spec.trajectories.batch, len(dataset))
        self._steps_each = expert_steps(len(dataset), spec.trajectories.batch, spec.expert_epochs)

    def make(self, indices: Sequence[int]) -> list[Result]:
        """These experts, in order; those that are there are not trained again."""
        shop, results = self._task.shop, {}
        for index in indices:
            found = shop.find(self._identity(index))
            if found is not None:
                results[index] = found
        missing = [index for index in indices if index not in results]
        if missing:
            steps, together = self._engine(len(missing))
            total, done = len(indices) * self._steps_each, len(results) * self._steps_each
            with shop.progress.bar("trajectories", total, "steps", done) as bar:
                for first in range(0, len(missing), together):
                    group = missing[first : first + together]
                    results.update(zip(group, self._make_group(group, steps, bar), strict=True))
        return [results[index] for index in indices]

    def _make_group(self, group: list[int], steps: Steps, bar: Bar) -> list[Result]:
        """Train a group side by side when the first of it is made, and commit each."""
        trained: dict[int, Expert] = {}

        def work(folder: Path, index: int) -> list[str]:
            if index not in trained:
                trained.update(zip(group, self._train(group, steps, bar), strict=True))
            save_tensors(folder / FILE, {"theta": trained[index].theta, "losses": trained[index].losses})
            return []

        return [self._task.shop.make(self._identity(index), partial(work, index=index))[0] for index in group]

    def _train(self, group: list[int], steps: Steps, bar: Bar) -> list[Expert]:
        spec, shop = self._task.spec, self._task.shop
        settings = spec.trajectories
        names = f"expert {group[0] + 1}" if len(group) == 1 else f"experts {group[0] + 1} to {group[-1] + 1}"
        try:
            return train_experts(
                [self._student(index) for index in group],
                steps,
                self._images,
                self._targets,
                epochs=spec.expert_epochs,
                batch=settings.batch,
                optimizer=settings.optimizer,
                seed=spec.seed,
                indices=group,
                stop=shop.stop,
                step_done=lambda: bar.advance(len(group), note=f"{names} of {settings.experts}"),
            )
        except FloatingPointError as error:
            raise WorkError(
                f"trajectories: {error}; lower spec.trajectories.optimizer.rate (now {settings.optimizer.rate:g})"
            ) from None

    def _student(self, index: int) -> Student:
        spec = self._task.spec
        return build_student(student_config(spec), self._targets.shape[1], spec.seed, "expert", index)

    def _identity(self, index: int) -> Identity:
        inputs = self._task.inputs
        return expert_identity(self._task.spec, index, inputs["dataset"].digest, inputs["targets"].digest)

    def _engine(self, count: int) -> tuple[Steps, int]:
        """The steps, and how many experts to train at once."""
        spec, shop = self._task.spec, self._task.shop
        network = FlatNetwork(self._student(0).to(shop.device))
        # all experts, not only the missing ones: a resumed run chooses as the cut one did
        forwards = float(GRADIENT_FORWARDS * self._steps_each * spec.trajectories.experts)
        work = Work(network, self._batch, spec.source.image_size, forwards)
        engine = spec.execution.engine
        steps = choose_steps(work, spec.trajectories.precision, engine, shop.device, shop.progress.say)
        theta = torch.zeros(1, network.parameter_count, device=shop.device)
        batch = torch.arange(self._batch, device=shop.device)[None]
        x, y = self._images[batch], self._targets[batch]
        return steps, choose_together(steps, theta, x, y, count, engine, shop.device)
