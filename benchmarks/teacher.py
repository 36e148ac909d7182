"""The teacher: self-supervised training, ours beside a plain loop of the same objective and views."""

from __future__ import annotations

import tempfile
from pathlib import Path
from typing import Annotated, get_args

import numpy as np
import torch
import typer
from feed import MEAN, STD, write_data
from side_by_side import Measured, chosen_ways, compare, device, exact_memory, work
from torch import Tensor

from limbeck.checkpoint import Checkpoint
from limbeck.data.dataset import ImageDataset
from limbeck.data.shards import ShardedImages
from limbeck.interrupt import StopRequest
from limbeck.matching.engine import GRADIENT_FORWARDS, Work
from limbeck.memory import keep_freed_memory
from limbeck.nn.encoders import ConvNet, EncoderConfig, ResNet, build_encoder
from limbeck.nn.flat import FlatNetwork
from limbeck.seeding import generator
from limbeck.spec import Architecture, Teacher
from limbeck.ssl.objectives import build_objective
from limbeck.ssl.training import train_ssl
from limbeck.ssl.views import Views

WAYS = {"plain": "plain loop", "float32": "limbeck", "bfloat16": "limbeck, bfloat16"}


class Problem:
    """Images in mapped files, and a freshly initialised encoder."""

    def __init__(self, architecture: Architecture, width: int, batch: int, images: int, image_size: int) -> None:
        self._folder = tempfile.TemporaryDirectory()
        path = Path(self._folder.name)
        write_data(path, images, image_size)
        self.dataset = ImageDataset(path, ShardedImages.open(path, images, image_size), None, (), MEAN, STD, {})
        self.config = EncoderConfig(architecture, image_size, width, "batch")
        self.batch, self.images = batch, images // batch * batch
        forward = Work(FlatNetwork(self.encoder()), 2 * batch, image_size, 0.0).forward_flops()  # both views
        self.flops = float(GRADIENT_FORWARDS * forward * self.images / batch)

    def settings(self, name: str) -> Teacher:
        """Of one epoch."""
        precision = "bfloat16" if name == "bfloat16" else "float32"
        return Teacher.model_validate({"epochs": 1, "batch": self.batch, "precision": precision})

    def encoder(self) -> ConvNet | ResNet:
        """On the CPU, always with the same weights."""
        return build_encoder(self.config, 0, "teacher")


def ours(problem: Problem, name: str) -> Tensor:
    """As the stage trains it; the loss that the ways must agree on."""
    encoder = problem.encoder()
    with tempfile.TemporaryDirectory() as folder:
        losses = train_ssl(
            encoder,
            problem.dataset,
            problem.settings(name),
            device=device(),
            seed=0,
            checkpoint=Checkpoint(Path(folder), every=1e9),
            stop=StopRequest(),
        )
    return torch.tensor(losses)


def plain(problem: Problem) -> Tensor:
    """As one writes it down: the images in memory, the same order, views, objective and rates."""
    settings = problem.settings("plain")
    encoder = problem.encoder().to(device()).train()
    objective = build_objective(settings, encoder.feature_dimension, 0)
    head, views = objective.head.to(device()).train(), Views(settings.augmentation, problem.config.image_size)
    images = torch.from_numpy(np.asarray(problem.dataset.images[:]))
    optimizer = torch.optim.AdamW(
        [*encoder.parameters(), *head.parameters()],
        lr=settings.optimizer.rate,
        weight_decay=settings.optimizer.weight_decay,
    )
    steps = problem.images // problem.batch
    schedule = torch.optim.lr_scheduler.CosineAnnealingLR(optimizer, steps)
    losses = []
    order = torch.randperm(len(images), generator=generator(0, "teacher", "order", 0))
    for step, chosen in enumerate(order[: problem.images].split(problem.batch)):
        pixels = images[chosen].to(device()).float() / 255
        one, two = (((view - MEAN[0].item()) / STD[0].item()) for view in views(pixels, 0, 0, step))
        loss = objective(*encoder(torch.cat([one, two])).chunk(2))
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        schedule.step()
        losses.append(loss.item())
    return torch.tensor(losses).mean()[None]


def way(name: str, problem: Problem) -> Measured:
    """What to repeat."""
    if name == "plain":
        return Measured(lambda: plain(problem), problem.flops, problem.images)
    if not exact_memory():
        keep_freed_memory()
    return Measured(lambda: ours(problem, name), problem.flops, problem.images)


def main(
    architecture: Annotated[str, typer.Option(help="The encoder.")] = "resnet10",
    width: Annotated[int, typer.Option(help="Channels of its first stage.")] = 32,
    batch: Annotated[int, typer.Option(help="Images a step; twice as many views.")] = 256,
    images: Annotated[int, typer.Option(help="Images of the epoch that is measured.")] = 2048,
    image_size: Annotated[int, typer.Option(help="Side of an image.")] = 16,
    repetitions: Annotated[int, typer.Option(help="Timed repetitions of each way.")] = 5,
    ways: Annotated[
        str | None, typer.Option(help=f"Of {', '.join(WAYS)}; the first is the reference. All that make sense here.")
    ] = None,
    worker: Annotated[str | None, typer.Option(hidden=True)] = None,
) -> None:
    """Images per second and memory of training a teacher by Barlow Twins."""
    known: dict[str, Architecture] = {name: name for name in get_args(Architecture)}
    if architecture not in known:
        raise typer.BadParameter(f"--architecture is one of {', '.join(known)}")
    if worker is not None:
        work(lambda: way(worker, Problem(known[architecture], width, batch, images, image_size)))
        return
    compare(
        f"One epoch of {images:,} images at {image_size}x{image_size}, {architecture}, width {width}, batch {batch}",
        __file__,
        [
            *(f"--architecture={architecture}", f"--width={width}", f"--batch={batch}"),
            *(f"--images={images}", f"--image-size={image_size}"),
        ],
        chosen_ways(WAYS, ways),
        unit="images",
        repetitions=repetitions,
        tolerance=5e-3,
        loose={"bfloat16": 0.02},
    )


if __name__ == "__main__":
    typer.run(main)
