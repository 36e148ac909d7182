"""Mapped images and targets for tests of what is fed from them."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch

from limbeck.data.feed import Examples, Way
from limbeck.data.mapped import Mapped, create_mapped, open_mapped
from limbeck.data.shards import ShardedImages

MEAN, STD = np.array([0.5, 0.4, 0.3], np.float32), np.array([0.2, 0.25, 0.3], np.float32)
WAYS: tuple[Way, ...] = ("resident", "streamed", "direct")
DEVICES = [
    "cpu",
    pytest.param("cuda", marks=pytest.mark.skipif(not torch.cuda.is_available(), reason="needs an accelerator")),
]


def mapped_images(folder: Path, rows: tuple[int, ...], size: int = 8) -> ShardedImages:
    draws, shards = np.random.default_rng(0), []
    for index, count in enumerate(rows):
        shard = create_mapped(folder / f"{index}.safetensors", "images", (count, 3, size, size))
        shard[:] = draws.integers(0, 256, shard.shape, np.uint8)
        shards.append(open_mapped(folder / f"{index}.safetensors", "images"))
    return ShardedImages(shards)


def mapped_targets(folder: Path, count: int, dimension: int = 5) -> Mapped:
    targets = create_mapped(folder / "targets.safetensors", "targets", (count, dimension), np.float32)
    targets[:] = np.random.default_rng(1).standard_normal(targets.shape)
    return open_mapped(folder / "targets.safetensors", "targets")


def examples(folder: Path, way: Way, device: str, rows: tuple[int, ...] = (40, 40, 13)) -> Examples:
    images, targets = mapped_images(folder, rows), mapped_targets(folder, sum(rows))
    return Examples.normalized(images, MEAN, STD, torch.device(device), targets, way=way)
