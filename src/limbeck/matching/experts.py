"""Expert trajectories: how one is trained, and how trained ones are read.

An expert is a file with `theta` f32[epochs + 1, P], its parameters at the start and after every epoch, and `losses`
f32[epochs], the mean training loss of every epoch. All its randomness comes from (seed, index): it does not matter
which process trains it, or how many others there are.
"""

from __future__ import annotations

import json
import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

import torch
from safetensors import safe_open
from torch import Tensor

from limbeck.interrupt import StopRequest
from limbeck.matching.steps import Steps
from limbeck.matching.unroll import InnerLoop, next_velocity
from limbeck.nn.encoders import Student
from limbeck.nn.flat import flatten
from limbeck.nn.pretraining import Images
from limbeck.seeding import generator
from limbeck.spec import Sgd

FILE = "expert.safetensors"
LIST = "experts.json"


@dataclass(frozen=True)
class Expert:
    """One expert trajectory, on the CPU."""

    theta: Tensor  # f32[epochs + 1, P]
    losses: Tensor  # f32[epochs]


def train_experts(
    students: Sequence[Student],
    steps: Steps,
    images: Images,
    targets: Tensor,
    *,
    epochs: int,
    batch: int,
    optimizer: Sgd,
    seed: int,
    indices: Sequence[int],
    stop: StopRequest,
    step_done: Callable[[], None],
) -> list[Expert]:
    """Train students on the full data with mean squared error to the targets (section 4 of the paper), side by side.

    Each has its own parameters, its own order of the images and no part in the others: it equals the one trained
    alone to within rounding.

    Args:
        students: their initial parameters are theta_0; they are left as they are.
        steps: the derivatives of their loss.
        images: normalised images f32[n, 3, s, s], on the device of the targets.
        targets: f32[n, d].
        epochs: how many; a last batch shorter than the rest is left out of its epoch.
        batch: images a step.
        optimizer: SGD's rate, momentum and weight decay.
        seed: the spec's.
        indices: the experts' numbers; the order of an expert's images comes from (seed, index, epoch).
        stop: looked at between steps.
        step_done: called after every step of all of them.

    Raises:
        FloatingPointError: the loss of one is no longer finite.
    """
    device = targets.device
    inner = InnerLoop(optimizer.momentum, optimizer.weight_decay)
    theta = torch.stack([flatten(student) for student in students]).to(device)
    velocity = torch.zeros_like(theta)
    count, batch = len(images), min(batch, len(images))
    snapshots, losses = [theta.cpu()], []
    for epoch in range(epochs):
        shuffles = [torch.randperm(count, generator=generator(seed, "expert", k, "order", epoch)) for k in indices]
        order = torch.stack(shuffles).to(device)  # drawn on the CPU, so that every device sees the same
        total, count_steps = torch.zeros(len(theta), device=device), count // batch
        for step in range(count_steps):
            chosen = order[:, step * batch : (step + 1) * batch]
            gradient, values = steps.gradient(theta, images[chosen], targets[chosen])
            velocity = next_velocity(velocity, gradient, theta, inner)
            theta = theta - optimizer.rate * velocity
            total += values
            step_done()
            stop.check()
        for index, value in zip(indices, total.tolist(), strict=True):
            if not math.isfinite(value):
                raise FloatingPointError(f"the loss of expert {index} is not finite in epoch {epoch + 1}")
        snapshots.append(theta.cpu())
        losses.append(total.cpu() / count_steps)
    return [
        Expert(torch.stack([s[k] for s in snapshots]), torch.stack([loss[k] for loss in losses]))
        for k in range(len(indices))
    ]


def expert_steps(count: int, batch: int, epochs: int) -> int:
    """Steps that one expert takes."""
    return count // min(batch, count) * epochs


class Experts:
    """The finished experts of a `trajectories` result; snapshots are read from disk as they are asked for."""

    def __init__(self, files: list[Path]) -> None:
        self._files = files

    @classmethod
    def listed(cls, trajectories: Path, locate: Callable[[str, str, str], Path]) -> Experts:
        """Those that a trajectories folder lists; `locate(stage, key, digest)` gives a result's folder."""
        entries = json.loads((trajectories / LIST).read_text())["experts"]
        return cls([locate(entry["stage"], entry["key"], entry["digest"]) / FILE for entry in entries])

    def __len__(self) -> int:
        return len(self._files)

    def theta(self, index: int, epoch: int) -> Tensor:
        """Parameters f32[P] of expert `index` after `epoch` epochs, on the CPU."""
        with safe_open(self._files[index], framework="pt") as handle:
            snapshot: Tensor = handle.get_slice("theta")[epoch]
        return snapshot.clone()
