"""Stage 4, trajectories: students trained on the full data towards the targets, their parameters kept every epoch.

Every expert is a result of its own, `expert/<key>/`, committed as soon as it is trained; the stage's result lists
them. So more experts, or a run after a cut, train only those that are not there yet. They are trained in this process,
or by the workers of `task.shop.fanout`; the bytes are the same.
"""

from __future__ import annotations

import logging
import traceback
from collections.abc import Sequence
from functools import partial
from pathlib import Path

from limbeck.checkpoint import Checkpoint, save_tensors
from limbeck.errors import WorkError
from limbeck.interrupt import Stopped
from limbeck.matching.engine import GRADIENT_FORWARDS, Work, choose_steps
from limbeck.matching.experts import FILE, Expert, divergence, expert_steps, train_experts, write_list
from limbeck.matching.groups import group_of, group_size, grouped
from limbeck.matching.steps import Steps
from limbeck.nn.encoders import Student, build_student, student_config
from limbeck.nn.flat import FlatNetwork
from limbeck.progress import Bar
from limbeck.spec import DistillationSpec
from limbeck.stages.graph import EXPERT_VERSION
from limbeck.stages.task import StageTask, Untrained
from limbeck.store import Identity, Result
from limbeck.threads import expert_threads, threads

_PATIENCE = 3  # failures in a row after which a worker tries no more
_USUAL_EPOCHS = 100  # of all experts, by which it is decided whether compiling pays: whatever their number, alike

log = logging.getLogger(__name__)


def expert_identity(spec: DistillationSpec, index: int, dataset: str, targets: str) -> Identity:
    """What makes expert `index`: its settings, and the digests of the dataset and the targets."""
    section = {
        "index": index,
        "seed": spec.seed,
        "batch": spec.trajectories.batch,
        "threads": expert_threads(spec),
        "together": spec.trajectories.together,
        "precision": spec.trajectories.precision,
        "sharpnessRadius": spec.trajectories.sharpness_radius,
        "optimizer": spec.trajectories.optimizer.wire(),
        "student": spec.student.wire(),
        "imageSize": spec.source.image_size,
    }
    inputs = {"dataset": dataset, "targets": targets}
    return Identity("expert", EXPERT_VERSION, section, inputs, length=spec.expert_epochs)


def trajectories(task: StageTask) -> None:
    """Train the experts that are not there yet; write their list, as `limbeck.matching.experts.write_list` says.

    Raises:
        WorkError: some experts failed; all of them are named, and the others are kept.
    """
    count, fanout = task.spec.trajectories.experts, task.shop.fanout
    missing = [index for index, result in enumerate(find_experts(task, range(count))) if result is None]
    if missing:
        make = ExpertMaker(task).make if fanout is None else partial(fanout.experts, task)
        untrained = make(missing)
        if untrained:
            raise WorkError(_failures(untrained, task.spec))
    results = find_experts(task, range(count))
    lost = [str(index) for index, result in enumerate(results) if result is None]
    if lost:
        where = task.shop.store.url
        raise WorkError(
            f"trajectories: experts {', '.join(lost)} were trained but are not in {where}; do the workers see it?"
        )
    found = [result for result in results if result is not None]
    write_list(task.out, found, task.spec.expert_epochs)
    task.refers.extend(f"{result.manifest.stage}/{result.manifest.key}" for result in found)


def find_experts(task: StageTask, indices: Sequence[int]) -> list[Result | None]:
    """Finished experts, None for each that is not there; one with more epochs than wanted is as good."""
    there = task.shop.store.names("expert")

    def find(index: int) -> Result | None:
        identity = _identity(task, index)
        found = (task.shop.find(wanted) for wanted in (identity, *identity.longer(there)))
        return next((result for result in found if result is not None), None)

    return [find(index) for index in indices]


def _identity(task: StageTask, index: int) -> Identity:
    return expert_identity(task.spec, index, task.inputs["dataset"].digest, task.inputs["targets"].digest)


def _failures(untrained: Sequence[Untrained], spec: DistillationSpec) -> str:
    tried = [entry for entry in untrained if entry.cause is not None]
    lines = [
        f"trajectories: {len(tried)} of {spec.trajectories.experts} experts failed; "
        "those that are done are kept, and another run tries the rest",
        *(f"  expert {entry.index} of seed {spec.seed}: {entry.cause}" for entry in tried),
    ]
    if len(untrained) > len(tried):
        lines.append(f"  {len(untrained) - len(tried)} more were not tried, after {_PATIENCE} failures in a row")
    return "\n".join(lines)


class ExpertMaker:
    """Makes experts by number, each a result of its own, from one set of examples."""

    def __init__(self, task: StageTask) -> None:
        spec, self._task = task.spec, task
        self._examples = task.source_examples()
        self._batch = min(spec.trajectories.batch, len(self._examples))
        self._together = group_size(spec, accelerated=task.shop.device.type == "cuda")
        self._steps_each = expert_steps(len(self._examples), spec.trajectories.batch, spec.expert_epochs)

    def make(self, indices: Sequence[int]) -> list[Untrained]:
        """Have these experts made, in order; those that are there are not trained again.

        Returns:
            Those that failed, and those that were not tried after three failures in a row. The failure of one does
            not touch the others.

        Raises:
            Stopped: a stop was asked for.
        """
        shop, failed, row = self._task.shop, list[Untrained](), 0
        found = find_experts(self._task, indices)
        missing = [index for index, result in zip(indices, found, strict=True) if result is None]
        if not missing:
            return []
        total, done = len(indices) * self._steps_each, (len(indices) - len(missing)) * self._steps_each
        with threads(expert_threads(self._task.spec)), shop.progress.bar("trajectories", total, "steps", done) as bar:
            steps, groups = self._engine(), grouped(missing, self._together)
            for position, group in enumerate(groups, 1):
                for index, cause in self._make_group(group, steps, bar):
                    row = 0 if cause is None else row + 1
                    if cause is not None:
                        failed.append(Untrained(index, cause))
                if row >= _PATIENCE:
                    failed += [Untrained(index, None) for rest in groups[position:] for index in rest]
                    break
        return failed

    def _make_group(self, missing: list[int], steps: Steps, bar: Bar) -> list[tuple[int, str | None]]:
        """Train the group that these are of, whole, and commit these; what went wrong with each, if so."""
        group = group_of(missing[0], self._together)
        trained: list[Expert] = []

        def work(folder: Path, index: int) -> list[str]:
            if not trained:
                trained.extend(self._train(group, len(missing), steps, bar, folder))
            expert = trained[index - group.start]
            fault = divergence(index, expert.losses, expert.theta[-1])
            if fault is not None:
                raise fault
            save_tensors(folder / FILE, {"theta": expert.theta, "losses": expert.losses})
            self._task.shop.live.figures(index, {"expert_loss": expert.losses[-1].item()})
            return []

        outcomes: list[tuple[int, str | None]] = []
        for position, index in enumerate(missing):
            try:
                self._task.shop.make(_identity(self._task, index), partial(work, index=index))
            except Stopped:
                raise
            except Exception as error:
                cause = self._cause(error)
                if not trained:  # alone they would be other experts
                    log.exception("experts %s failed", missing[position:])
                    return [*outcomes, *((rest, cause) for rest in missing[position:])]
                log.exception("expert %d failed", index)
                outcomes.append((index, cause))
            else:
                log.info("expert %d is done", index)
                outcomes.append((index, None))
        return outcomes

    def _train(self, group: range, missing: int, steps: Steps, bar: Bar, folder: Path) -> list[Expert]:
        spec, shop = self._task.spec, self._task.shop
        settings = spec.trajectories
        names = f"expert {group[0] + 1}" if len(group) == 1 else f"experts {group[0] + 1} to {group[-1] + 1}"
        return train_experts(
            [self._student(index) for index in group],
            steps,
            self._examples,
            epochs=spec.expert_epochs,
            batch=settings.batch,
            optimizer=settings.optimizer,
            seed=spec.seed,
            indices=group,
            stop=shop.stop,
            steps_done=lambda count: bar.advance(count * missing, note=f"{names} of {settings.experts}"),
            checkpoint=Checkpoint(folder, spec.execution.checkpoint_seconds, shop.store),
            sharpness_radius=settings.sharpness_radius,
            augmentation=spec.student.augmentation,
        )

    def _cause(self, error: Exception) -> str:
        """One line for the user."""
        if isinstance(error, FloatingPointError):
            rate = self._task.spec.trajectories.optimizer.rate
            return f"{error}; lower spec.trajectories.optimizer.rate (now {rate:g})"
        if isinstance(error, WorkError | OSError):
            return " ".join(str(error).split())
        frame = traceback.extract_tb(error.__traceback__)[-1]
        return f"{type(error).__name__}: {' '.join(str(error).split())} ({Path(frame.filename).name}:{frame.lineno})"

    def _student(self, index: int) -> Student:
        spec = self._task.spec
        return build_student(student_config(spec), self._examples.target_dimension, spec.seed, "expert", index)

    def _engine(self) -> Steps:
        spec, shop = self._task.spec, self._task.shop
        network = FlatNetwork(self._student(0).to(shop.device))
        epoch = expert_steps(len(self._examples), spec.trajectories.batch, 1)
        forwards = float(GRADIENT_FORWARDS * epoch * _USUAL_EPOCHS)
        work = Work(network, self._batch, spec.source.image_size, forwards)
        engine = spec.execution.engine
        return choose_steps(work, spec.trajectories.precision, engine, shop.device, shop.progress.say)
