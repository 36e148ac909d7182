"""How many CPU threads a training step is worth.

A step of a very small network is dozens of operations of some microseconds; dividing each among threads costs more
than it saves, and many times more where other programs keep a core busy and every operation waits for the slower one.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

import torch

from limbeck.nn.encoders import EncoderConfig

# Measured on two cores (28 images of 8x8, width 32): one thread 0.4 s, two threads 0.4 s alone and 1.5 to 3 s beside
# another program. At 256 images of 16x16, two threads are 1.7 times as fast.
_SMALL = 2**20


@contextmanager
def fitting_threads(config: EncoderConfig, batch: int) -> Iterator[None]:
    """Inside the block, torch uses one thread when the first layer's activations of a batch are few."""
    before = torch.get_num_threads()
    if batch * config.image_size**2 * config.width < _SMALL:
        torch.set_num_threads(1)
    try:
        yield
    finally:
        torch.set_num_threads(before)
