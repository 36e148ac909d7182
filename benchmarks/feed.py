"""Feeding: training experts from data on the device, streamed ahead, streamed naively, and with no data to feed."""

from __future__ import annotations

import json
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterable, Iterator
from contextlib import AbstractContextManager, nullcontext
from itertools import repeat
from pathlib import Path
from typing import Annotated

import numpy as np
import torch
import typer
from rich.console import Console
from rich.table import Table
from side_by_side import device, machine
from torch import Tensor

from limbeck.data.feed import Examples, Way
from limbeck.data.mapped import create_mapped
from limbeck.data.shards import TENSOR, ShardedImages, shard_file, shard_rows
from limbeck.data.targets import open_targets, write_targets
from limbeck.interrupt import StopRequest
from limbeck.matching.experts import train_experts
from limbeck.matching.steps import Steps, student_loss
from limbeck.memory import keep_freed_memory
from limbeck.nn.encoders import EncoderConfig, build_student
from limbeck.nn.flat import FlatNetwork
from limbeck.spec import Sgd

WAYS: dict[str, Way] = {"resident": "resident", "streamed by the ring": "streamed", "streamed naively": "direct"}
ARITHMETIC = "the same batch every step"
TARGETS = 512
MEAN, STD = np.full(3, 0.47, np.float32), np.full(3, 0.25, np.float32)
_BLOCK = 4096


class OneBatch:
    """A source that gives the batch at the first indices again and again: what a step costs without its data."""

    def __init__(self, examples: Examples) -> None:
        self._examples = examples
        self.index_device = examples.index_device

    def batch(self, indices: Tensor) -> tuple[Tensor, Tensor]:
        """See `limbeck.data.feed.Source`."""
        return self._examples[indices]

    def stream(self, batches: Iterable[Tensor]) -> AbstractContextManager[Iterator[tuple[Tensor, Tensor]]]:
        """See `limbeck.data.feed.Source`."""
        return nullcontext(repeat(self.batch(next(iter(batches)))))


class Problem:
    """Images and targets in mapped files, and freshly initialised students."""

    def __init__(self, folder: Path, width: int, batch: int, experts: int, image_size: int) -> None:
        self.targets = open_targets(folder)
        self.images = ShardedImages.open(folder, len(self.targets), image_size)
        config = EncoderConfig("convnet", image_size, width, "instance")
        self.students = [build_student(config, TARGETS, 0, "expert", index) for index in range(experts)]
        network = build_student(config, TARGETS, 0, "expert", 0).to(device())
        self.steps = Steps(student_loss(FlatNetwork(network)))
        self.batch = batch
        self.trained_images = len(self.images) // batch * batch * experts

    def examples(self, way: Way | None) -> Examples:
        """The data, fed in some way, or in the one that fits."""
        return Examples.normalized(self.images, MEAN, STD, device(), self.targets, way=way)

    def train(self, examples: Examples, steps_done: Callable[[int], None] = lambda count: None) -> Tensor:
        """One epoch; the final parameters f32[experts, P]."""
        experts = train_experts(
            self.students,
            self.steps,
            examples,
            epochs=1,
            batch=self.batch,
            optimizer=Sgd(rate=0.1, momentum=0.9, weight_decay=1e-4),
            seed=0,
            indices=range(len(self.students)),
            stop=StopRequest(),
            steps_done=steps_done,
        )
        return torch.stack([expert.theta[-1] for expert in experts])


def write_data(folder: Path, images: int, image_size: int) -> None:
    """Random images and targets, written block by block."""
    draws, rows = np.random.default_rng(0), shard_rows(image_size)
    for index, first in enumerate(range(0, images, rows)):
        shard = create_mapped(
            folder / shard_file(index), TENSOR, (min(rows, images - first), 3, image_size, image_size)
        )
        for start in range(0, len(shard), _BLOCK):
            block = shard[start : start + _BLOCK]
            block[:] = draws.integers(0, 256, block.shape, np.uint8)
        shard.flush()
    sizes = (min(_BLOCK, images - start) for start in range(0, images, _BLOCK))
    write_targets(
        folder, images, (draws.standard_normal((size, TARGETS), np.float32) for size in sizes), standardize=True
    )


def compare_ways(problem: Problem, repetitions: int, title: str) -> None:
    """Print a table; the ways take turns after a first one that is not timed.

    Raises:
        SystemExit: they do not give the same parameters.
    """
    sources = {name: problem.examples(way) for name, way in WAYS.items()}
    resident = sources["resident"]
    sources[ARITHMETIC] = Examples(OneBatch(resident), len(resident), TARGETS, device())
    seconds: dict[str, list[float]] = {name: [] for name in sources}
    finals: dict[str, Tensor] = {}
    for repetition in range(repetitions + 1):
        for name, examples in sources.items():
            started = time.perf_counter()
            finals[name] = problem.train(examples)  # gives tensors on the CPU, so the device is done
            if repetition:
                seconds[name].append(time.perf_counter() - started)
    medians = {name: statistics.median(taken) for name, taken in seconds.items()}
    table = Table("way", "seconds", "images/s", "of the arithmetic's rate", "difference", title=title)
    differences = {name: (finals[name] - finals["resident"]).abs().max().item() for name in WAYS}
    for name, median in medians.items():
        table.add_row(
            name,
            f"{median:.3f}",
            f"{problem.trained_images / median:,.0f}",
            f"{medians[ARITHMETIC] / median:.1%}",
            f"{differences[name]:.1e}" if name in differences else "",
        )
    console = Console(width=140, highlight=False)
    console.print(table)
    console.print(f"{machine()}; {repetitions} repetitions in turn")
    if any(differences.values()):
        raise SystemExit("the ways do not give the same parameters")


def resident_bytes(field: str) -> int:
    """A size of this process as Linux tells it: RssAnon is memory of its own, VmHWM the most so far, maps included."""
    for line in Path("/proc/self/status").read_text().splitlines():
        if line.startswith(f"{field}:"):
            return int(line.split()[1]) * 1024
    raise SystemExit(f"--memory needs Linux: /proc/self/status has no {field}")


def measure_memory(problem: Problem) -> None:
    """Train, and print as JSON the most anonymous and resident memory, and the anonymous before."""
    before, most = resident_bytes("RssAnon"), 0

    def look(count: int) -> None:
        nonlocal most
        most = max(most, resident_bytes("RssAnon"))

    problem.train(problem.examples(None), look)
    found = {"data": problem.images.nbytes + problem.targets.nbytes, "before": before, "anonymous": most}
    sys.stdout.write(json.dumps({**found, "resident": resident_bytes("VmHWM")}) + "\n")


def compare_memory(counts: Iterable[int], arguments: list[str], title: str) -> None:
    """Print a table of the memory that training takes with so many images, each in a process of its own."""
    table = Table("images", "data", "anonymous before", "anonymous, most", "resident, most", title=title)
    for count in counts:
        command = [sys.executable, __file__, *arguments, f"--images={count}", "--memory-worker"]
        answer = json.loads(subprocess.run(command, stdout=subprocess.PIPE, check=True).stdout)  # noqa: S603 - itself
        sizes = [answer[name] for name in ("data", "before", "anonymous", "resident")]
        table.add_row(f"{count:,}", *(f"{size / 2**20:,.1f} MiB" for size in sizes))
    Console(width=140, highlight=False).print(table)


def main(
    images: Annotated[int, typer.Option(help="Images an epoch.")] = 20_000,
    experts_together: Annotated[int, typer.Option(help="Experts trained side by side.")] = 4,
    width: Annotated[int, typer.Option(help="Channels of the ConvNet.")] = 128,
    batch: Annotated[int, typer.Option(help="Images a step.")] = 256,
    image_size: Annotated[int, typer.Option(help="Side of an image.")] = 32,
    repetitions: Annotated[int, typer.Option(help="Timed repetitions of each way.")] = 3,
    memory: Annotated[str | None, typer.Option(help="Measure memory instead, at these numbers of images.")] = None,
    memory_worker: Annotated[bool, typer.Option(hidden=True)] = False,
) -> None:
    """Images per second of training experts, by where their data lies; or the memory that it takes."""
    if memory is not None:
        arguments = [f"--experts-together={experts_together}", f"--width={width}", f"--batch={batch}"]
        title = f"{experts_together} experts, width {width}, batch {batch}, {image_size}x{image_size}"
        compare_memory(map(int, memory.split(",")), [*arguments, f"--image-size={image_size}"], title)
        return
    torch.backends.cudnn.deterministic = True
    with tempfile.TemporaryDirectory() as folder:
        write_data(Path(folder), images, image_size)
        problem = Problem(Path(folder), width, batch, experts_together, image_size)
        if memory_worker:
            measure_memory(problem)
            return
        keep_freed_memory()
        compare_ways(
            problem,
            repetitions,
            f"{experts_together} experts, {images:,} images at {image_size}x{image_size}, width {width}, batch {batch}",
        )


if __name__ == "__main__":
    typer.run(main)
