"""Ways to compute one thing, each in a process of its own, measured in turn.

A benchmark is a script that gives `compare` its ways: functions that set something up and return what to repeat. The
script starts itself once a way (`--worker`), so that every way has the memory allocator, the threads and the compiler
that its users have, and the parent has them take turns, so that noise on the machine meets all of them alike.
"""

from __future__ import annotations

import json
import os
import platform
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import torch
from rich.console import Console
from rich.table import Table
from safetensors.torch import load_file, save_file
from torch import Tensor

from limbeck.measure import MemoryPeak
from limbeck.nn.precision import has_bfloat16


@dataclass(frozen=True)
class Measured:
    """What a way is."""

    repeat: Callable[[], Tensor]  # does the work once; gives what all ways must agree on
    flops: float  # of one repetition
    units: float = 1.0  # images, or iterations, of one repetition


Way = Callable[[], Measured]

# every tensor of some size in pages of its own, so that resident memory is live memory and not the allocator's
_EXACT_MEMORY = {"MALLOC_MMAP_THRESHOLD_": "32768", "MALLOC_TRIM_THRESHOLD_": "32768"}


def device() -> torch.device:
    """CUDA where there is one, else the CPU."""
    return torch.device("cuda" if torch.cuda.is_available() else "cpu")


def peak_flops(dtype: torch.dtype = torch.float32) -> float:
    """FLOP/s that a matrix product reaches here: the arithmetic peak that shares refer to."""
    size = 8192 if device().type == "cuda" else 2048
    one = torch.randn(size, size, device=device(), dtype=dtype)
    times = []
    for _ in range(6):
        _synchronize()
        started = time.perf_counter()
        one @ one
        _synchronize()
        times.append(time.perf_counter() - started)
    return 2.0 * size**3 / statistics.median(times)


def say(line: str) -> None:
    """A line for the user; standard output is the worker's answers."""
    sys.stderr.write(line + "\n")


def work(way: Way) -> None:
    """A worker: a line on stdin, `run` or `save PATH`, is done and answered by a line of JSON."""
    measured, result = way(), None
    for line in sys.stdin:
        command, _, argument = line.strip().partition(" ")
        if command == "run":
            _synchronize()
            with MemoryPeak() as peak:
                result = measured.repeat()
                _synchronize()
            answer = {
                "seconds": peak.seconds,
                "growth": peak.device_bytes or peak.resident_bytes - peak.resident_before,
                "peak": peak.device_bytes or peak.resident_bytes,
                "flops": measured.flops,
                "units": measured.units,
            }
        else:
            assert result is not None
            save_file({"result": result.detach().cpu().contiguous()}, argument)
            answer = {}
        sys.stdout.write(json.dumps(answer) + "\n")
        sys.stdout.flush()


class _Worker:
    def __init__(self, script: str, arguments: Sequence[str], way: str, exact_memory: bool = False) -> None:
        environment = {**os.environ, **(_EXACT_MEMORY if exact_memory else {})}
        if exact_memory:
            environment["LIMBECK_BENCHMARK_EXACT_MEMORY"] = "1"
        self._process = subprocess.Popen(  # noqa: S603 - this script itself
            [sys.executable, script, *arguments, "--worker", way],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
            env=environment,
        )

    def ask(self, line: str) -> dict[str, float]:
        assert self._process.stdin is not None
        assert self._process.stdout is not None
        self._process.stdin.write(line + "\n")
        self._process.stdin.flush()
        answer = self._process.stdout.readline()
        if not answer:
            raise SystemExit(f"a worker ended with {self._process.wait()}")
        found: dict[str, float] = json.loads(answer)
        return found

    def close(self) -> None:
        assert self._process.stdin is not None
        self._process.stdin.close()
        self._process.wait()


def chosen_ways(ways: Mapping[str, str], chosen: str | None) -> dict[str, str]:
    """The ways that a user names, or all; bfloat16 only where the hardware computes it."""
    if chosen is None:
        emulated = not has_bfloat16(device())
        if emulated:
            sys.stdout.write("bfloat16: not measured, this machine computes it by emulation\n")
        return {name: text for name, text in ways.items() if not (emulated and name == "bfloat16")}
    unknown = [name for name in chosen.split(",") if name not in ways]
    if unknown:
        raise SystemExit(f"--ways: found {', '.join(unknown)}; allowed: {', '.join(ways)}")
    return {name: ways[name] for name in chosen.split(",")}


def exact_memory() -> bool:
    """Whether this worker measures memory, and so must leave the allocator as it is."""
    return "LIMBECK_BENCHMARK_EXACT_MEMORY" in os.environ


def compare(
    title: str,
    script: str,
    arguments: Sequence[str],
    ways: Mapping[str, str],
    *,
    unit: str,
    repetitions: int,
    tolerance: float,
    loose: Mapping[str, float] | None = None,
) -> None:
    """Measure the ways in turn, check that they agree, print a table.

    Args:
        title: of the table.
        script: the benchmark's own file, which with `--worker WAY` calls `work`.
        arguments: of the script.
        ways: name and description; the first is what the others are compared with.
        unit: what a way's `units` count.
        repetitions: timed ones, after one that is not.
        tolerance: largest relative difference, in norm, from the first way's result.
        loose: other tolerances, by way.
    """
    console = Console(width=140, highlight=False)
    growth = {}
    for way in ways:  # one after another: each has the machine's memory to itself
        alone = _Worker(script, arguments, way, exact_memory=device().type == "cpu")
        alone.ask("run")  # compiles
        growth[way] = alone.ask("run")["growth"]
        alone.close()
    workers = {way: _Worker(script, arguments, way) for way in ways}
    answers: dict[str, list[dict[str, float]]] = {way: [] for way in ways}
    for repetition in range(repetitions + 1):
        for way, worker in workers.items():
            answer = worker.ask("run")
            if repetition:
                answers[way].append(answer)
    results = {}
    with tempfile.TemporaryDirectory() as folder:
        for way, worker in workers.items():
            path = Path(folder) / f"{len(results)}.safetensors"
            worker.ask(f"save {path}")
            results[way] = load_file(path)["result"].double()
            worker.close()
    peak = peak_flops()
    first = next(iter(ways))
    seconds = {way: statistics.median(a["seconds"] for a in answers[way]) for way in ways}
    table = Table(title=title)
    headings = ("way", "seconds", f"{unit}/s", "time", "memory", "memory", "process", "of peak", "difference")
    under = ("", "median", "", "ratio", "growth", "ratio", "peak", "float32", "relative")
    for heading, second in zip(headings, under, strict=True):
        table.add_column(f"{heading}\n{second}", justify="left" if heading == "way" else "right")
    failed = []
    for way in ways:
        last = answers[way][-1]
        difference = ((results[way] - results[first]).norm() / results[first].norm()).item()
        if not difference <= (loose or {}).get(way, tolerance):
            failed.append(f"{way} differs from {first} by {difference:.2g}")
        table.add_row(
            ways[way],
            f"{seconds[way]:.3f}",
            f"{last['units'] / seconds[way]:.3g}",
            f"{seconds[way] / seconds[first]:.2f}",
            f"{growth[way] / 2**20:,.0f} MiB",
            f"{growth[way] / max(1, growth[first]):.2f}",
            f"{max(a['peak'] for a in answers[way]) / 2**20:,.0f} MiB",
            f"{last['flops'] / seconds[way] / peak:.0%}",
            f"{difference:.1e}",
        )
    console.print(table)
    console.print(
        f"{machine()}; matrix products in float32: {peak / 1e9:,.0f} GFLOP/s; {repetitions} repetitions in turn"
    )
    if failed:
        raise SystemExit("; ".join(failed))


def machine() -> str:
    """What it was measured on, in words."""
    if device().type == "cuda":
        where = torch.cuda.get_device_name()
    else:
        names = [s.split(":")[1].strip() for s in _lines("/proc/cpuinfo") if s.startswith("model name")]
        where = f"{names[0] if names else platform.processor()}, {torch.get_num_threads()} threads"
    return f"{where}; torch {torch.__version__}; Python {platform.python_version()}"


def _lines(path: str) -> list[str]:
    try:
        return Path(path).read_text().splitlines()
    except OSError:
        return []


def _synchronize() -> None:
    if torch.cuda.is_available():
        torch.cuda.synchronize()
