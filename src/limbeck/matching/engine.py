"""How steps are taken here: compiled or not, how many are held, how many pairs at once.

None of it changes a result beyond rounding, so it stands in `execution` and in no stage's key. On the CPU every choice
depends on the spec and the number of threads alone, so that a resumed run chooses as the cut one did.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor
from torch.utils.flop_counter import FlopCounterMode

from limbeck.matching.steps import CompiledSteps, Say, Steps, held_bytes, student_loss
from limbeck.memory import automatic_budget, quantity_bytes
from limbeck.nn.flat import FlatNetwork
from limbeck.nn.precision import tell_emulation
from limbeck.spec import Engine, Precision

# Operations of a step in forward passes: the gradient is one forward and two backward, the replay's products eight.
GRADIENT_FORWARDS, PRODUCT_FORWARDS = 3, 8

# Eager rate in FLOP/s a CPU thread, and the work in seconds from which a minute of compiling is worth a fifth of it.
_THREAD_RATE, _WORTH = 3.5e10, 600.0


@dataclass(frozen=True)
class Work:
    """Size of a training loop: networks of one shape, stepped again and again."""

    network: FlatNetwork
    batch: int
    image_size: int
    forwards: float  # all of them, a network each: 3 for a gradient, 8 for a replayed step

    def forward_flops(self) -> int:
        """Floating-point operations of one forward pass of a batch."""
        theta = torch.empty(self.network.parameter_count, device="meta")
        images = torch.empty(self.batch, 3, self.image_size, self.image_size, device="meta")
        with FlopCounterMode(display=False) as counter, torch.no_grad():
            self.network(theta, images)
        return int(counter.get_total_flops())

    def seconds(self) -> float:
        """A rough estimate of the time on the CPU, taken eagerly."""
        return self.forwards * self.forward_flops() / (_THREAD_RATE * torch.get_num_threads())


def choose_steps(work: Work, precision: Precision, engine: Engine, device: torch.device, say: Say) -> Steps:
    """Compiled steps where the work is long enough to repay compiling, or as the spec says; else eager ones.

    On an accelerator only where the spec says so: at the paper's size a compiled second derivative has read memory that
    is not its own there, after which nothing more can be computed in the process.
    """
    tell_emulation(precision, device, say)
    loss = student_loss(work.network, precision)
    worth = device.type == "cpu" and work.seconds() >= _WORTH
    if engine.compile == "always" or (engine.compile == "auto" and worth):
        say("the training step is compiled first: about a minute, less where the compiler's cache has it")
        return CompiledSteps(loss, say)
    return Steps(loss)


@dataclass(frozen=True)
class Layout:
    """How the pairs of an iteration are computed."""

    stacked: int  # pairs that are unrolled together
    hold: int  # inner steps whose graphs are held for the replay


def choose_layout(
    steps: Steps, theta: Tensor, x: Tensor, y: Tensor, *, pairs: int, inner_steps: int, engine: Engine
) -> Layout:
    """On an accelerator as many pairs together as fit, one on the CPU; then as many held steps as the budget allows.

    Args:
        steps: the derivatives of the student's loss.
        theta: of one student, f[1, P].
        x: one batch, f[1, b, 3, s, s].
        y: its targets, f[1, b, d].
        pairs: how many there are to match an iteration.
        inner_steps: N.
        engine: the memory budget.
    """
    device, stacked = theta.device, 1
    if device.type == "cuda" and pairs > 1:  # a network of a stack keeps more than one alone: measure two
        two = max(1, stack_bytes(steps, theta, x, y, 2))
        stacked = max(1, min(pairs, 2 * automatic_budget(device) // two))
    budget = quantity_bytes(engine.memory_budget) if engine.memory_budget else automatic_budget(device)
    return Layout(stacked, min(inner_steps, budget // max(1, stack_bytes(steps, theta, x, y, stacked))))


def stack_bytes(steps: Steps, theta: Tensor, x: Tensor, y: Tensor, networks: int) -> int:
    """Bytes that a held step of a stack of such networks keeps, beside its arguments; from two on in proportion."""
    few = min(networks, 2)
    stack = (tensor.expand(few, *tensor.shape[1:]).contiguous() for tensor in (theta, x, y))
    return held_bytes(steps, *stack) * networks // few
