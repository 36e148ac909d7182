"""Trajectories: training experts, ours beside the plain way: one module, one optimiser, one DataLoader, one expert."""

from __future__ import annotations

from typing import Annotated

import numpy as np
import torch
import typer
from numpy.typing import NDArray
from side_by_side import Measured, chosen_ways, compare, device, exact_memory, say, work
from torch import Tensor
from torch.nn import functional
from torch.utils.data import DataLoader, Dataset
from torchvision import transforms

from limbeck.data.feed import Examples
from limbeck.interrupt import StopRequest
from limbeck.matching.engine import GRADIENT_FORWARDS, Work
from limbeck.matching.experts import train_experts
from limbeck.matching.steps import CompiledSteps, Steps, student_loss
from limbeck.memory import keep_freed_memory
from limbeck.nn.encoders import EncoderConfig, Student, build_student
from limbeck.nn.flat import FlatNetwork, flatten
from limbeck.seeding import generator
from limbeck.spec import Precision, Sgd

WAYS = {
    "plain": "plain loop, DataLoader",
    "plain-workers": "plain loop, DataLoader, 2 processes",
    "plain-kept": "plain loop, freed memory kept",
    "eager": "limbeck, eager",
    "compiled": "limbeck, compiled",
    "bfloat16": "limbeck, compiled, bfloat16",
}
TARGETS = 512
ACCELERATED = 5  # experts side by side: what a spec of the paper's size has by default on a GPU
OPTIMIZER = Sgd(rate=0.1, momentum=0.9, weight_decay=1e-4)
MEAN, STD = np.full(3, 0.47, np.float32), np.full(3, 0.25, np.float32)


class Pictures(Dataset[tuple[Tensor, Tensor]]):
    """uint8 pictures as a transform turns them into normalised tensors, one by one."""

    def __init__(self, images: NDArray[np.uint8], targets: Tensor) -> None:
        self._images, self._targets = images.transpose(0, 2, 3, 1), targets
        self._transform = transforms.Compose([transforms.ToTensor(), transforms.Normalize(MEAN.tolist(), STD.tolist())])

    def __len__(self) -> int:
        return len(self._images)

    def __getitem__(self, index: int) -> tuple[Tensor, Tensor]:
        image: Tensor = self._transform(self._images[index])
        return image, self._targets[index]


class Problem:
    """Images, targets, and freshly initialised students."""

    def __init__(self, width: int, batch: int, images: int, epochs: int, experts: int, image_size: int) -> None:
        draws = np.random.default_rng(0)
        self.images = draws.integers(0, 256, (images, 3, image_size, image_size), np.uint8)
        self.targets = torch.randn(images, TARGETS, generator=torch.Generator().manual_seed(0))
        self.config = EncoderConfig("convnet", image_size, width, "instance")
        self.batch, self.epochs, self.experts, self.image_size = batch, epochs, experts, image_size
        forward = Work(FlatNetwork(self.student(0)), batch, image_size, 0.0).forward_flops()
        self.trained_images = images // batch * batch * epochs * experts
        self.flops = float(GRADIENT_FORWARDS * forward * self.trained_images / batch)

    def student(self, index: int) -> Student:
        """A student on the CPU."""
        return build_student(self.config, TARGETS, 0, "expert", index)

    def order(self, index: int, epoch: int) -> list[int]:
        """The order that limbeck uses, so that both ways can be compared."""
        drawn: list[int] = torch.randperm(
            len(self.images), generator=generator(0, "expert", index, "order", epoch)
        ).tolist()
        return drawn


def plain(problem: Problem, workers: int) -> Tensor:
    """As published: experts one after another."""
    finals, order = [], list[int]()
    data = Pictures(problem.images, problem.targets)
    loader = DataLoader(
        data, problem.batch, sampler=order, drop_last=True, num_workers=workers, pin_memory=device().type == "cuda"
    )
    for index in range(problem.experts):
        student = problem.student(index).to(device())
        optimizer = torch.optim.SGD(student.parameters(), OPTIMIZER.rate, OPTIMIZER.momentum, weight_decay=1e-4)
        for epoch in range(problem.epochs):
            order[:] = problem.order(index, epoch)
            for images, targets in loader:
                loss = functional.mse_loss(student(images.to(device())), targets.to(device()))
                optimizer.zero_grad()
                loss.backward()
                optimizer.step()
        finals.append(flatten(student).cpu())
    return torch.stack(finals)


def ours(problem: Problem, steps: Steps, examples: Examples, together: int) -> Tensor:
    """As the stage trains them."""
    finals: list[Tensor] = []
    for first in range(0, problem.experts, together):
        group = range(first, min(first + together, problem.experts))
        experts = train_experts(
            [problem.student(index) for index in group],
            steps,
            examples,
            epochs=problem.epochs,
            batch=problem.batch,
            optimizer=OPTIMIZER,
            seed=0,
            indices=group,
            stop=StopRequest(),
            steps_done=lambda count: None,
        )
        finals += [expert.theta[-1] for expert in experts]
    return torch.stack(finals)


def way(name: str, problem: Problem) -> Measured:
    """What to repeat."""
    if name not in ("plain", "plain-workers") and not exact_memory():
        keep_freed_memory()
    if name.startswith("plain"):
        workers = 2 if name == "plain-workers" else 0
        return Measured(lambda: plain(problem, workers), problem.flops, problem.trained_images)
    precision: Precision = "bfloat16" if name == "bfloat16" else "float32"
    network = FlatNetwork(problem.student(0).to(device()))
    loss = student_loss(network, precision)
    steps = Steps(loss) if name == "eager" else CompiledSteps(loss, say)
    examples = Examples.normalized(problem.images, MEAN, STD, device(), problem.targets.numpy())
    together = 1 if device().type == "cpu" else ACCELERATED
    return Measured(lambda: ours(problem, steps, examples, together), problem.flops, problem.trained_images)


def main(
    size: Annotated[str, typer.Option(help="laptop, or paper: 100 experts, 4 epochs of 50,000 images.")] = "laptop",
    width: Annotated[int, typer.Option(help="Channels of the ConvNet.")] = 128,
    batch: Annotated[int, typer.Option(help="Images a step.")] = 256,
    images: Annotated[int | None, typer.Option(help="Images an epoch.")] = None,
    epochs: Annotated[int | None, typer.Option(help="Epochs an expert.")] = None,
    experts: Annotated[int | None, typer.Option(help="Experts.")] = None,
    image_size: Annotated[int, typer.Option(help="Side of an image.")] = 32,
    repetitions: Annotated[int, typer.Option(help="Timed repetitions of each way.")] = 3,
    ways: Annotated[
        str | None, typer.Option(help=f"Of {', '.join(WAYS)}; the first is the reference. All that make sense here.")
    ] = None,
    worker: Annotated[str | None, typer.Option(hidden=True)] = None,
) -> None:
    """Images per second and memory of training expert trajectories."""
    usual = {"laptop": (1024, 1, 1), "paper": (50_000, 4, 100)}
    if size not in usual:
        raise typer.BadParameter(f"--size is one of {', '.join(usual)}")
    given = zip((images, epochs, experts), usual[size], strict=True)
    images, epochs, experts = (value or default for value, default in given)
    if worker is not None:
        work(lambda: way(worker, Problem(width, batch, images, epochs, experts, image_size)))
        return
    compare(
        f"{experts} experts, {epochs} epochs of {images:,} images at {image_size}x{image_size}, "
        f"width {width}, batch {batch}",
        __file__,
        [
            *(f"--width={width}", f"--batch={batch}", f"--images={images}", f"--epochs={epochs}"),
            *(f"--experts={experts}", f"--image-size={image_size}"),
        ],
        chosen_ways(WAYS, ways),
        unit="images",
        repetitions=repetitions,
        tolerance=1e-3,
        loose={"bfloat16": 0.05},
    )


if __name__ == "__main__":
    typer.run(main)
