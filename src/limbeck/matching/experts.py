"""Expert trajectories: how one is trained, and how trained ones are read.

An expert is a file with `theta` f32[epochs + 1, P], its parameters at the start and after every epoch, and `losses`
f32[epochs], the mean training loss of every epoch. All its randomness comes from (seed, index): it does not matter
which process trains it, or how many others there are. How many networks are stacked does, for the last bits
(`limbeck.matching.groups`). A longer expert begins as a shorter one.
"""

from __future__ import annotations

import hashlib
import json
import logging
import math
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

import torch
from safetensors import safe_open
from torch import Tensor

from limbeck.checkpoint import Checkpoint
from limbeck.data.feed import Examples
from limbeck.interrupt import StopRequest
from limbeck.matching.steps import Steps
from limbeck.matching.unroll import InnerLoop, next_velocity
from limbeck.nn.augmentation import Moves
from limbeck.nn.encoders import Student
from limbeck.nn.flat import flatten
from limbeck.seeding import generator
from limbeck.spec import Jitter, Sgd
from limbeck.store import Result

FILE = "expert.safetensors"
LIST = "experts.json"
PLACES = "origin-experts.json"  # by its name no part of the digest: the same epochs of longer experts are the same

log = logging.getLogger(__name__)


@dataclass(frozen=True)
class Expert:
    """One expert trajectory, on the CPU."""

    theta: Tensor  # f32[epochs + 1, P]
    losses: Tensor  # f32[epochs]


def train_experts(
    students: Sequence[Student],
    steps: Steps,
    examples: Examples,
    *,
    epochs: int,
    batch: int,
    optimizer: Sgd,
    seed: int,
    indices: Sequence[int],
    stop: StopRequest,
    steps_done: Callable[[int], None],
    checkpoint: Checkpoint | None = None,
    sharpness_radius: float = 0.0,
    augmentation: Jitter = "none",
) -> list[Expert]:
    """Train students on the full data with mean squared error to the targets (section 4 of the paper), side by side.

    Each has its own parameters, its own order of the images and no part in the others: it equals the one trained
    alone to within rounding. One that diverges does not stop the others.

    Args:
        students: their initial parameters are theta_0; they are left as they are.
        steps: the derivatives of their loss.
        examples: normalised images f32[n, 3, s, s] and targets f32[n, d]; the work is done on their device.
        epochs: how many; a last batch shorter than the rest is left out of its epoch.
        batch: images a step.
        optimizer: SGD's rate, momentum and weight decay.
        seed: the spec's.
        indices: the experts' numbers; the order of an expert's images comes from (seed, index, epoch).
        stop: looked at between steps.
        steps_done: called after every step of all of them, with 1, and once with the steps of a run that was cut.
        checkpoint: where their state is saved from time to time and when a stop is asked for, and found again.
        sharpness_radius: where it is not 0, a step follows the gradient at theta + radius g / ||g||, g being that at
            theta (Foret et al., 2021).
        augmentation: how the images of every step are changed.

    Raises:
        FloatingPointError: the losses of all are no longer finite.
        Stopped: a stop was asked for.
    """
    device = examples.device
    inner = InnerLoop(optimizer.momentum, optimizer.weight_decay)
    count, batch = len(examples), min(batch, len(examples))
    count_steps = count // batch
    saved = checkpoint.load() if checkpoint is not None else None
    if saved is None or saved[1]["indices"] != list(indices):
        theta = torch.stack([flatten(student) for student in students]).to(device)
        velocity, total = torch.zeros_like(theta), torch.zeros(len(theta), device=device)
        snapshots, losses = [theta.cpu()], list[Tensor]()
        first_epoch = first_step = 0
    else:
        tensors, numbers = saved
        theta, velocity, total = [tensors[name].to(device) for name in ("theta", "velocity", "total")]
        snapshots, losses = list(tensors["snapshots"].unbind()), list(tensors["losses"].unbind())
        first_epoch, first_step = numbers["epoch"], numbers["step"]
        steps_done(first_epoch * count_steps + first_step)
    begun = first_epoch * count_steps + first_step
    log.info("experts %s start at step %d of %d", list(indices), begun, epochs * count_steps)

    def save(epoch: int, step: int) -> None:
        assert checkpoint is not None
        state = {"theta": theta, "velocity": velocity, "total": total, "snapshots": torch.stack(snapshots)}
        state["losses"] = torch.stack(losses) if losses else torch.zeros(0, len(theta))
        checkpoint.save(state, {"indices": list(indices), "epoch": epoch, "step": step})

    def batches() -> Iterator[Tensor]:
        first = first_step * batch
        for epoch in range(first_epoch, epochs):
            # drawn on the CPU, so that every device sees the same
            shuffles = [torch.randperm(count, generator=generator(seed, "expert", k, "order", epoch)) for k in indices]
            order = torch.stack(shuffles).to(examples.index_device)
            yield from order[:, first : count_steps * batch].split(batch, dim=1)
            first = 0

    with examples.feed(batches()) as fed:
        for epoch in range(first_epoch, epochs):
            for step in range(first_step, count_steps):
                if checkpoint is not None and (stop.requested or checkpoint.due()):
                    save(epoch, step)
                stop.check()
                images, targets = next(fed)
                if augmentation != "none":
                    images = _moved(images, seed, indices, epoch, step)
                gradient, values = steps.gradient(theta, images, targets)
                if sharpness_radius:
                    uphill = sharpness_radius * gradient / gradient.norm(dim=1, keepdim=True).clamp_min(1e-12)
                    gradient, _ = steps.gradient(theta + uphill, images, targets)
                velocity = next_velocity(velocity, gradient, theta, inner)
                theta = theta - optimizer.rate * velocity
                total += values
                steps_done(1)
            snapshots.append(theta.cpu())
            losses.append(total.cpu() / count_steps)
            faults = [*map(divergence, indices, torch.stack(losses, dim=1), theta)]
            if len(faults) > 1 and None not in faults:
                raise FloatingPointError(
                    f"experts {', '.join(map(str, indices))}: losses or parameters are not finite in epoch {epoch + 1}"
                )
            if len(faults) == 1 and faults[0] is not None:
                raise faults[0]
            total, first_step = torch.zeros_like(total), 0
    return [
        Expert(torch.stack([s[k] for s in snapshots]), torch.stack([loss[k] for loss in losses]))
        for k in range(len(indices))
    ]


def divergence(index: int, losses: Tensor, theta: Tensor) -> FloatingPointError | None:
    """Return what is wrong with an expert whose losses f32[epochs] or last parameters f32[p] are not all finite.

    A step's loss is taken before the step, so the last one can break the parameters with every loss finite.
    """
    for epoch, loss in enumerate(losses.tolist(), 1):
        if not math.isfinite(loss):
            return FloatingPointError(f"the loss of expert {index} is not finite in epoch {epoch}")
    if not theta.isfinite().all():
        return FloatingPointError(f"the parameters of expert {index} are not finite after epoch {len(losses)}")
    return None


def _moved(images: Tensor, seed: int, indices: Sequence[int], epoch: int, step: int) -> Tensor:
    """Images f32[p, b, 3, s, s], augmented; each expert's draws are its own."""
    count, size = images.shape[1], images.shape[-1]
    draws = [Moves.draw((count,), size, generator(seed, "expert", k, "moves", epoch, step)) for k in indices]
    return Moves.stack(draws).to(images.device)(images)


def expert_steps(count: int, batch: int, epochs: int) -> int:
    """Steps that one expert takes."""
    return count // min(batch, count) * epochs


def write_list(folder: Path, experts: Sequence[Result], epochs: int) -> None:
    """List finished experts, in order: in `LIST` the sha256 of the snapshots to `epochs`, in `PLACES` where they are.

    The first is what a trajectories result consists of. The experts may be longer.
    """
    digests = [_snapshot_digests(expert.path / FILE, epochs) for expert in experts]
    (folder / LIST).write_text(json.dumps({"experts": [{"snapshots": each} for each in digests]}, indent=2) + "\n")
    places = [
        {"stage": expert.manifest.stage, "key": expert.manifest.key, "digest": expert.digest} for expert in experts
    ]
    (folder / PLACES).write_text(json.dumps({"experts": places}, indent=2) + "\n")


def listed_snapshots(trajectories: Path) -> list[list[str]]:
    """The sha256 of every expert's parameters at the start and after every epoch."""
    return [entry["snapshots"] for entry in json.loads((trajectories / LIST).read_text())["experts"]]


def listed_places(trajectories: Path) -> list[dict[str, str]]:
    """Every expert's stage, key and digest."""
    places: list[dict[str, str]] = json.loads((trajectories / PLACES).read_text())["experts"]
    return places


def _snapshot_digests(file: Path, epochs: int) -> list[str]:
    with safe_open(file, framework="np") as handle:
        theta = handle.get_slice("theta")
        return [hashlib.sha256(theta[epoch].tobytes()).hexdigest() for epoch in range(epochs + 1)]


class Experts:
    """The finished experts of a `trajectories` result; snapshots are read from disk as they are asked for."""

    def __init__(self, files: list[Path]) -> None:
        self._files = files

    @classmethod
    def listed(cls, trajectories: Path, locate: Callable[[str, str, str], Path]) -> Experts:
        """Those that a trajectories folder lists; `locate(stage, key, digest)` gives a result's folder."""
        entries = listed_places(trajectories)
        return cls([locate(entry["stage"], entry["key"], entry["digest"]) / FILE for entry in entries])

    def __len__(self) -> int:
        return len(self._files)

    def theta(self, index: int, epoch: int) -> Tensor:
        """Parameters f32[P] of expert `index` after `epoch` epochs, on the CPU."""
        with safe_open(self._files[index], framework="pt") as handle:
            snapshot: Tensor = handle.get_slice("theta")[epoch]
        return snapshot.clone()
