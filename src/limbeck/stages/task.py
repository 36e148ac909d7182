"""What a stage is given, and how any result is made: found if it is there, else computed, measured, committed."""

from __future__ import annotations

import os
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Protocol

import torch

from limbeck.checkpoint import Checkpoint
from limbeck.data.dataset import ImageDataset
from limbeck.data.feed import Examples
from limbeck.data.targets import open_targets
from limbeck.errors import WorkError
from limbeck.failures import explained
from limbeck.interrupt import StopRequest
from limbeck.live import UNSEEN, Live
from limbeck.measure import MemoryPeak
from limbeck.progress import SILENT, Progress
from limbeck.spec import DistillationSpec
from limbeck.store import DamagedResultError, Identity, Made, Result, Store
from limbeck.version import __version__

if TYPE_CHECKING:  # the stages after ingest do without it
    from limbeck.data.plan import Plan


@dataclass(frozen=True)
class Untrained:
    """An expert that is not there."""

    index: int
    cause: str | None  # None: it was not tried


class Fanout(Protocol):
    """Workers in other processes, perhaps on other machines, that see the same store."""

    def parts(self, task: StageTask, plan: Plan, missing: Sequence[int], earlier: Result | None) -> None:
        """Have parts of a dataset made where that pays; those that are not in the task's folder after are left.

        Args:
            task: of the stage ingest.
            plan: the parts.
            missing: which of them.
            earlier: the plan's earlier dataset, if it has one.
        """

    def experts(self, task: StageTask, indices: Sequence[int]) -> list[Untrained]:
        """Have these experts of `trajectories` made; those that failed or were not tried."""

    def distill(self, task: StageTask, identity: Identity) -> None:
        """Have the result of `distill` made, several pairs an iteration at once."""


@dataclass(frozen=True)
class Workshop:
    """Where and on what the work is done."""

    store: Store
    device: torch.device
    progress: Progress = SILENT
    stop: StopRequest = field(default_factory=StopRequest)
    fanout: Fanout | None = None
    live: Live = UNSEEN
    patience: float = 0.0  # how long to wait for another process that is making the same result, in seconds

    def find(self, identity: Identity, *, whole: bool = True) -> Result | None:
        """The finished result, or None; a damaged one is named and removed, so that it is made again.

        Args:
            identity: of the result.
            whole: whether all files of the results that it refers to are verified, and damaged ones removed, too; else
                those are just there, and whoever reads one verifies it.
        """
        found = self._find(identity.stage, identity.key)
        if found is None:
            return None
        there = self._find if whole else self.store.holds
        missing = [place for place in found.manifest.refers if not there(*place.split("/"))]
        if not missing:
            return found
        self.progress.say(f"{identity.stage}: {missing[0]}, which it refers to, is gone; it is made again")
        self.store.discard(identity.stage, identity.key)
        return None

    def _find(self, stage: str, key: str) -> Result | None:
        try:
            return self.store.find(stage, key)
        except DamagedResultError as damage:
            self.progress.say(f"{stage}: {damage}; it is made again")
            self.store.discard(stage, key)
            return None

    def make(self, identity: Identity, work: Callable[[Path], list[str]]) -> tuple[Result, bool]:
        """The result and whether it was found rather than made.

        `work` fills the folder that it is given (in which a killed run's checkpoints may lie) and returns the other
        results, as stage/key, that its files point to.

        Raises:
            MachineError: the disk is full, or memory does not suffice; the line says what to do.
        """
        found = self.find(identity)
        if found is not None:
            return found, True
        self.stop.check()
        with self.store.scratch(identity.stage, identity.key, self.patience) as scratch:
            found = self.find(identity)  # another process may have finished it meanwhile
            if found is not None:
                return found, True
            with explained(identity.stage, scratch):
                with MemoryPeak() as peak:
                    refers = work(scratch)
                made = Made(
                    seconds=round(peak.seconds, 3),
                    peak_memory_bytes=peak.resident_bytes,
                    peak_device_memory_bytes=peak.device_bytes,
                    device=device_name(self.device),
                    limbeck_version=__version__,
                    torch_version=torch.__version__,
                )
                return self.store.commit(identity, scratch, made, refers), False


@dataclass(frozen=True)
class StageTask:
    """One stage's work: settings, finished inputs, and the folder to fill."""

    spec: DistillationSpec
    shop: Workshop
    inputs: Mapping[str, Result]
    out: Path
    refers: list[str] = field(default_factory=list)  # other results that this one's files point to, as stage/key

    def source_examples(self) -> Examples:
        """The source's images, normalised, with their targets, on the device."""
        dataset = ImageDataset.open(self.inputs["dataset"].path)
        targets = open_targets(self.inputs["targets"].path)
        shop = self.shop
        return Examples.normalized(
            dataset.images, dataset.mean, dataset.std, shop.device, targets, say=shop.progress.say
        )

    def input_file(self, name: str, file: str) -> Path:
        """A file of one of the inputs."""
        return self.inputs[name].path / file

    def checkpoint(self) -> Checkpoint:
        """Where this stage's state is saved, and found again."""
        return Checkpoint(self.out, self.spec.execution.checkpoint_seconds, self.shop.store)

    def locate(self, stage: str, key: str, digest: str) -> Path:
        """The folder of a result that an input refers to.

        Raises:
            WorkError: it is no longer what it was when it was referred to.
        """
        try:
            result = self.shop.store.find(stage, key)
        except DamagedResultError as damage:
            raise WorkError(f"{damage}; the stage that refers to it makes it again when it is run") from None
        if result is None or result.digest != digest:
            where = self.shop.store.location(stage, key)
            raise WorkError(f"{where} has changed since it was referred to; remove the result of trajectories")
        return result.path


def device_name(device: torch.device) -> str:
    """The device in words, for manifests and summaries."""
    if device.type == "cuda":
        return torch.cuda.get_device_name(device)
    return f"{device.type} ({torch.get_num_threads()} threads)"


def pick_device() -> torch.device:
    """CUDA where there is one, else the CPU."""
    return torch.device("cuda" if torch.cuda.is_available() else "cpu")


def make_deterministic() -> None:
    """Have this process use kernels that give the same bits every time; before CUDA is first used."""
    os.environ.setdefault("CUBLAS_WORKSPACE_CONFIG", ":4096:8")
    torch.backends.cudnn.benchmark = False
    torch.backends.cudnn.deterministic = True
    torch.use_deterministic_algorithms(True, warn_only=True)
