"""A source of drawn images that other processes can read, and a program that ingests it: to be killed."""

import os
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field, replace
from pathlib import Path

import numpy as np
import pyarrow as pa

from limbeck.data.decode import BadImage
from limbeck.data.ingest import write_dataset
from limbeck.data.sources.listing import Content, Listing, Names, digest_of_entries
from limbeck.errors import InputError


@dataclass(frozen=True)
class DrawnSource:
    """`count` images of `size`; a `version` other than 0 changes that image, and `failing` says how reading one fails.

    What is read is noted in the file `log`, a line an image, whichever process reads it.
    """

    count: int
    size: int = 64
    bad: frozenset[int] = frozenset()
    versions: dict[int, int] = field(default_factory=dict)
    failing: dict[int, str] = field(default_factory=dict)
    log: Path | None = None
    single_pass: bool = False
    shuffled: bool = False
    summed: bool = True
    uri: str = "drawn"
    format: str = "images"

    def listing(self) -> Listing:
        names = Names([f"{index:06d}" for index in range(self.count)])
        return Listing(self.count, names, np.arange(self.count) % 3, ("a", "b", "c"), 0)

    def checksums(self) -> pa.Array | None:
        return pa.array([self._sum(index) for index in range(self.count)], pa.binary()) if self.summed else None

    def fingerprint(self) -> str:
        return digest_of_entries((str(index), self._sum(index)) for index in range(self.count))

    def _sum(self, index: int) -> bytes:
        return f"{index} {self.versions.get(index, 0)} {index in self.bad}".encode()

    def reader(self, wanted) -> "DrawnReader":
        return DrawnReader(replace(self, versions=dict(self.versions)), np.array(wanted, np.int64))

    def image(self, index: int) -> Content:
        if index in self.bad:
            return BadImage("is bad")
        start = (index + 1_000_003 * self.versions.get(index, 0)) * 2_654_435_761 % 2**32
        return (
            (np.arange(start, start + 3 * self.size**2) * 40_503 >> 8).astype(np.uint8).reshape(self.size, self.size, 3)
        )


@dataclass(frozen=True)
class DrawnReader:
    source: DrawnSource
    wanted: np.ndarray

    def __iter__(self) -> Iterator[tuple[int, Content]]:
        order = self.wanted
        if self.source.shuffled:
            order = np.random.default_rng(0).permutation(order)
        for index in order.tolist():
            match self.source.failing.get(index):
                case "corrupt":
                    raise InputError("drawn", "is corrupt", "mend it")
                case "fault":
                    raise RuntimeError("no such luck")
                case "death":
                    os.kill(os.getpid(), 9)
                case "exit":
                    os._exit(3)
            if self.source.log is not None:
                with self.source.log.open("a") as log:
                    log.write(f"{index}\n")
            yield index, self.source.image(index)


def read_so_far(log: Path) -> list[int]:
    return [int(line) for line in log.read_text().splitlines()] if log.exists() else []


class Telling:
    """A `Progress` that calls `each` whenever images were counted, and keeps what is said."""

    def __init__(self, each=lambda done: None) -> None:
        self.lines: list[str] = []
        self.done, self._each = 0, each

    def say(self, line: str) -> None:
        self.lines.append(line)

    @contextmanager
    def bar(self, title: str, total: int, unit: str, done: int = 0) -> Iterator["Telling"]:
        self.done, self.total = done, total
        yield self

    def advance(self, steps: int = 1, note: str = "") -> None:
        self.done += steps
        self._each(self.done)


def main() -> None:
    """Ingest in processes, and say on standard output how far it is."""
    import limbeck.data.ingest

    count, out, log, single_pass = int(sys.argv[1]), Path(sys.argv[2]), Path(sys.argv[3]), sys.argv[4] == "single"
    limbeck.data.ingest._FEW_IMAGES = 0
    limbeck.data.ingest.available_cores = lambda: 2
    source = DrawnSource(count, log=log, single_pass=single_pass, shuffled=single_pass)
    telling = Telling(lambda done: say(str(done)))
    write_dataset(source, out, image_size=64, limit=None, seed=0, on_bad_image="fail", progress=telling)
    say("ready")
    sys.stdin.read()


def say(line: str) -> None:
    sys.stdout.write(line + "\n")
    sys.stdout.flush()
