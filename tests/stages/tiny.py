"""A spec so small that all its stages take a second or two, and ways to run it, here and in processes that are killed.

Arithmetic is on one thread here and in the children: the number of threads may change the last bits of a sum.
"""

from __future__ import annotations

import copy
import hashlib
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest
import torch
import yaml

from limbeck.interrupt import StopRequest
from limbeck.progress import SILENT, Bar, Progress
from limbeck.runner import Run
from limbeck.spec import Distillation
from limbeck.stages.task import Workshop
from limbeck.store import Store
from limbeck.summary import Summary

_TINY: dict[str, Any] = {
    "source": {"uri": "sklearn:digits#train", "imageSize": 8, "limit": 200},
    "tracking": {"enabled": False},
    "teacher": {"architecture": "convnet", "width": 8, "depth": 1, "epochs": 1, "batch": 64, "projection": 16},
    "targets": {"components": 0, "whitening": 0.0},
    "student": {"width": 8, "depth": 1, "augmentation": "none"},
    "trajectories": {"experts": 3, "batch": 64},
    "distill": {
        "size": 10,
        "iterations": 8,
        "averageLast": 0.0,
        "innerSteps": 3,
        "downsampling": 1,
        "initialization": "random",
        "maxStartEpoch": 2,
        "expertGap": 2,
        "optimizer": "sgd",
        "schedule": "constant",
        "pixelStep": 10.0,
        "targetStep": 1.0,
        "rateStep": 1e-4,
        "momentum": 0.5,
        "innerOptimizer": {"rate": 0.05},
    },
    "evaluate": {
        "tasks": [
            {
                "name": "digits",
                "train": {"uri": "sklearn:digits#train", "limit": 200},
                "test": {"uri": "sklearn:digits#test", "limit": 100},
            }
        ],
        "labelFractions": [0.1],
        "seeds": [0, 1],
        "selectionSeeds": [77],
        "rateFactors": [1.0],
        "baselines": ["none", "random", "highLoss", "full"],
        "epochs": 2,
        "curvePoints": 2,
        "batch": 64,
        "probe": {"ridges": [0.01]},
    },
}


def tiny(output: Path | str, changes: dict[str, Any] | None = None) -> dict[str, Any]:
    """The tiny spec file as a document; `changes` are field paths below spec, dotted, and their values."""
    spec = copy.deepcopy(_TINY) | {"output": {"uri": str(output)}}
    for path, value in (changes or {}).items():
        *sections, field = path.split(".")
        place = spec
        for section in sections:
            place = place.setdefault(section, {})
        place[field] = value
    return {
        "apiVersion": "limbeck.dev/v1alpha1",
        "kind": "Distillation",
        "metadata": {"name": "tiny"},
        "spec": spec,
    }


def write_tiny(path: Path, output: Path | str, changes: dict[str, Any] | None = None) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(yaml.safe_dump(tiny(output, changes)))
    return path


def distillation(output: Path | str, changes: dict[str, Any] | None = None) -> Distillation:
    return Distillation.model_validate(tiny(output, changes))


def workshop(output: Path | str, progress: Progress = SILENT, stop: StopRequest | None = None) -> Workshop:
    return Workshop(Store(str(output)), torch.device("cpu"), progress, stop or StopRequest())


def run_tiny(output: Path | str, changes: dict[str, Any] | None = None, progress: Progress = SILENT) -> Summary:
    return Run(distillation(output, changes), workshop(output, progress)).all()


class Lines:
    """Progress that keeps the lines that are said."""

    def __init__(self) -> None:
        self.lines: list[str] = []

    @contextmanager
    def bar(self, title: str, total: int, unit: str, done: int = 0) -> Iterator[Bar]:
        with SILENT.bar(title, total, unit, done) as bar:
            yield bar

    def say(self, line: str) -> None:
        self.lines.append(line)


class StopAt(Lines):
    """Progress that asks to stop once the bar `title` has advanced by `steps` in this run."""

    def __init__(self, title: str, steps: int) -> None:
        super().__init__()
        self.stop = StopRequest()
        self.started_at: dict[str, int] = {}
        self._title, self._left = title, steps

    @contextmanager
    def bar(self, title: str, total: int, unit: str, done: int = 0) -> Iterator[Bar]:
        self.started_at[title] = done
        owner = self

        class _Bar:
            def advance(self, steps: int = 1, note: str = "") -> None:
                if title == owner._title:
                    owner._left -= steps
                    owner.stop.requested |= owner._left <= 0

        yield _Bar()


def result_files(output: Path) -> dict[str, str]:
    """sha256 of all files of results, but for manifests, which hold timings, and marks of use and verification."""
    return {
        path.relative_to(output).as_posix(): hashlib.sha256(path.read_bytes()).hexdigest()
        for path in sorted(output.rglob("*"))
        if path.is_file()
        and path.relative_to(output).parts[0] not in ("runs", "work")
        and path.name not in ("manifest.json", ".used", ".verified")
    }


def digests(summary: Summary) -> dict[str, tuple[str, str]]:
    return {stage.name: (stage.key, stage.digest) for stage in summary.stages}


AT_EVERY_CHANCE = {"execution.checkpointSeconds": 0.0}  # every loop saves its state whenever it asks whether it should


def run_in_child(output: str, changes: dict[str, Any]) -> None:
    """A whole run that saves its state at every chance: what the tests kill."""
    torch.set_num_threads(1)
    run_tiny(output, changes | AT_EVERY_CHANCE)


@pytest.fixture(autouse=True)
def one_thread() -> Iterator[None]:
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)


@pytest.fixture
def finished(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The output of a finished tiny run, made once a session; copy it before changing it."""
    output = tmp_path_factory.getbasetemp() / "finished"
    if not (output / "runs" / "tiny" / "summary.json").exists():
        run_tiny(output)
    return output
