"""Distill: the gradient of one matching iteration, ours beside the plain way, which keeps the whole unrolled graph."""

from __future__ import annotations

from typing import Annotated

import torch
import typer
from plain import unrolled
from side_by_side import Measured, chosen_ways, compare, device, exact_memory, say, work
from torch import Tensor
from torch.func import functional_call
from torch.nn import functional

from limbeck.matching.engine import GRADIENT_FORWARDS, PRODUCT_FORWARDS, Work
from limbeck.matching.match import match
from limbeck.matching.steps import CompiledSteps, Steps, student_loss
from limbeck.matching.unroll import InnerLoop, SyntheticGradient
from limbeck.memory import keep_freed_memory
from limbeck.nn.encoders import EncoderConfig, build_student
from limbeck.nn.flat import FlatNetwork, flatten
from limbeck.spec import Precision

WAYS = {
    "plain": "plain unroll",
    "plain-kept": "plain unroll, freed memory kept",
    "eager": "limbeck, eager",
    "hold": "limbeck, eager, 2 steps held",
    "compiled": "limbeck, compiled",
    "bfloat16": "limbeck, compiled, bfloat16",
}
TARGETS = 512
PLAIN_FORWARDS = 9.0  # of a step, in forward passes: one forward, two backward, six to differentiate both


class Problem:
    """A student, a start, a goal and a synthetic set of one inner batch."""

    def __init__(self, width: int, batch: int, steps: int, image_size: int) -> None:
        torch.manual_seed(0)
        self.student = build_student(EncoderConfig("convnet", image_size, width, "instance"), TARGETS, 0).to(device())
        self.start = flatten(self.student)
        self.goal = self.start + 0.01 * torch.randn_like(self.start)
        images = torch.randn(batch, 3, image_size, image_size, device=device())
        targets, rate = torch.randn(batch, TARGETS, device=device()), torch.tensor(0.05, device=device())
        self.inner_loop = (images, targets, rate, [None] * steps, InnerLoop(0.9))
        self.steps = steps
        self.forward_flops = Work(FlatNetwork(self.student), batch, image_size, 0.0).forward_flops()


def plain(problem: Problem) -> Tensor:
    """As published."""
    shapes = {name: p.shape for name, p in problem.student.named_parameters()}
    sizes = [shape.numel() for shape in shapes.values()]

    def loss(theta: Tensor, images: Tensor, targets: Tensor) -> Tensor:
        views = {name: p.view(shape) for (name, shape), p in zip(shapes.items(), theta.split(sizes), strict=True)}
        return functional.mse_loss(functional_call(problem.student, views, (images,)), targets)

    return _result(*unrolled(loss, problem.start, problem.goal, *problem.inner_loop))


def ours(problem: Problem, steps: Steps, hold: int) -> Tensor:
    """The adjoint replay."""
    found = match(steps, problem.start[None], problem.goal[None], *problem.inner_loop, hold)
    return _result(found.losses[0], found.gradient)


def _result(value: Tensor, gradient: SyntheticGradient) -> Tensor:
    """The loss and the three gradients, each brought to norm one so that none hides another's error."""
    gradients = (gradient.images, gradient.targets, gradient.rate)
    norms = torch.stack([g.norm() for g in gradients])
    return torch.cat([value[None], norms / norms.norm(), *(g.flatten() / g.norm() for g in gradients)])


def way(name: str, problem: Problem) -> Measured:
    """What to repeat."""
    if name != "plain" and not exact_memory():
        keep_freed_memory()
    if name in ("plain", "plain-kept"):
        return Measured(lambda: plain(problem), problem.forward_flops * problem.steps * PLAIN_FORWARDS)
    precision: Precision = "bfloat16" if name == "bfloat16" else "float32"
    loss = student_loss(FlatNetwork(problem.student), precision)
    steps = Steps(loss) if name in ("eager", "hold") else CompiledSteps(loss, say)
    hold = min(2, problem.steps) if name == "hold" else 0
    flops = problem.forward_flops * problem.steps * float(GRADIENT_FORWARDS + PRODUCT_FORWARDS)
    return Measured(lambda: ours(problem, steps, hold), flops)


def main(
    size: Annotated[str, typer.Option(help="laptop, or paper: batch 256, 40 steps, width 128.")] = "laptop",
    width: Annotated[int | None, typer.Option(help="Channels of the ConvNet.")] = None,
    batch: Annotated[int | None, typer.Option(help="Synthetic images an inner step.")] = None,
    steps: Annotated[int | None, typer.Option(help="Inner steps.")] = None,
    image_size: Annotated[int, typer.Option(help="Side of an image.")] = 32,
    repetitions: Annotated[int, typer.Option(help="Timed repetitions of each way.")] = 5,
    ways: Annotated[
        str | None, typer.Option(help=f"Of {', '.join(WAYS)}; the first is the reference. All that make sense here.")
    ] = None,
    worker: Annotated[str | None, typer.Option(hidden=True)] = None,
) -> None:
    """Time and memory of one matching iteration: loss and gradients for images, targets and learning rate."""
    usual = {"laptop": (128, 64, 20), "paper": (128, 256, 40)}
    if size not in usual:
        raise typer.BadParameter(f"--size is one of {', '.join(usual)}")
    width, batch, steps = (given or default for given, default in zip((width, batch, steps), usual[size], strict=True))
    if worker is not None:
        work(lambda: way(worker, Problem(width, batch, steps, image_size)))
        return
    compare(
        f"one matching iteration: width {width}, batch {batch}, {steps} steps, {image_size}x{image_size}",
        __file__,
        [f"--width={width}", f"--batch={batch}", f"--steps={steps}", f"--image-size={image_size}"],
        chosen_ways(WAYS, ways),
        unit="iterations",
        repetitions=repetitions,
        tolerance=5e-3,
        loose={"bfloat16": 0.2},
    )


if __name__ == "__main__":
    typer.run(main)
