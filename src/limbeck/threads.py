"""How many CPU threads a training step is worth, and how many an expert gets.

A step of a very small network is dozens of operations of some microseconds; dividing each among threads costs more
than it saves, and many times more where other programs keep a core busy and every operation waits for the slower one.

The number of threads changes the order of sums, and so the last bits of a result. An expert shall be the same whoever
trains it, so its threads are a setting that no machine changes; the other stages take what the process has.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

import torch

from limbeck.nn.encoders import EncoderConfig, student_config
from limbeck.spec import DistillationSpec

# Measured on two cores (28 images of 8x8, width 32): one thread 0.4 s, two threads 0.4 s alone and 1.5 to 3 s beside
# another program. At 256 images of 16x16, two threads are 1.7 times as fast.
_SMALL = 2**20
_USUAL = 2


@contextmanager
def fitting_threads(config: EncoderConfig, batch: int) -> Iterator[None]:
    """Inside the block, torch uses one thread when the first layer's activations of a batch are few."""
    with threads(1 if _is_small(config, batch) else torch.get_num_threads()):
        yield


def expert_threads(spec: DistillationSpec) -> int:
    """CPU threads that an expert of this spec is trained with, on whatever machine."""
    if spec.trajectories.threads is not None:
        return spec.trajectories.threads
    return 1 if _is_small(student_config(spec), spec.trajectories.batch) else _USUAL


@contextmanager
def threads(count: int) -> Iterator[None]:
    """Inside the block, torch uses this many threads."""
    before = torch.get_num_threads()
    torch.set_num_threads(count)
    try:
        yield
    finally:
        torch.set_num_threads(before)


def _is_small(config: EncoderConfig, batch: int) -> bool:
    return batch * config.image_size**2 * config.width < _SMALL
