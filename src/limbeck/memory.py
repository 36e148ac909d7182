"""Memory of a process that trains: how freed memory is kept, and how much a step may hold."""

from __future__ import annotations

import torch

from limbeck import glibc

_CPU_BUDGET = 512 * 2**20


def keep_freed_memory() -> None:
    """Have glibc's malloc keep what is freed for the next tensor, instead of giving it back to the system.

    By default every tensor above 32 MiB is mapped afresh, and each of its pages faults in and is zeroed on first use:
    measured here, that was half of the time of a training step on the CPU. Elsewhere than on glibc, nothing happens.
    """
    glibc.keep_all()


def release_freed_memory() -> None:
    """Give what is freed and kept back to the system, so that what is measured next is its own."""
    glibc.give_back()


def automatic_budget(device: torch.device) -> int:
    """Bytes that held steps may take: half of what is free on an accelerator, 512 MiB on the CPU.

    On the CPU it is a constant, since which steps are held changes the rounding, and equal specs shall give equal
    bytes there.
    """
    if device.type == "cuda":
        return torch.cuda.mem_get_info(device)[0] // 2
    return _CPU_BUDGET


def quantity_bytes(quantity: str) -> int:
    """Bytes of a Kubernetes quantity such as 512Mi or 2G."""
    for unit, factor in _UNITS.items():
        if quantity.endswith(unit):
            return int(float(quantity.removesuffix(unit)) * factor)
    return int(float(quantity))


_UNITS = {
    **{f"{prefix}i": 1024**power for power, prefix in enumerate("KMGTPE", start=1)},
    **{prefix: 1000**power for power, prefix in enumerate("kMGTPE", start=1)},
    "K": 1000,
    "m": 1e-3,
    "u": 1e-6,
    "n": 1e-9,
}
