"""The processes that work on one thing together, through torch.distributed; alone, all of this is a formality."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch
from safetensors.torch import load, save
from torch import Tensor, distributed


def place() -> tuple[int, int]:
    """This process's rank, and how many there are."""
    if distributed.is_available() and distributed.is_initialized():
        return distributed.get_rank(), distributed.get_world_size()
    return 0, 1


def anyone(flag: bool, device: torch.device) -> bool:
    """Whether the flag is set on any rank; all ranks call it, and all get the same answer."""
    if place()[1] == 1:
        return flag
    tensor = torch.tensor(int(flag), device=device)
    distributed.all_reduce(tensor, distributed.ReduceOp.MAX)
    return bool(tensor.item())


def from_first(
    state: tuple[Mapping[str, Tensor], Mapping[str, Any]] | None, device: torch.device
) -> tuple[dict[str, Tensor], dict[str, Any]] | None:
    """The training state of the first rank, on all; what the others pass is not looked at.

    Args:
        state: tensors, and integers.
        device: where the backend of torch.distributed sends from.
    """
    rank, ranks = place()
    if ranks == 1:
        return None if state is None else (dict(state[0]), dict(state[1]))
    packed = b""
    if rank == 0 and state is not None:
        numbers = {f"value:{name}": torch.tensor(value) for name, value in state[1].items()}
        packed = save({f"tensor:{name}": t.contiguous() for name, t in state[0].items()} | numbers)
    size = torch.tensor(len(packed), device=device)
    distributed.broadcast(size, 0)
    if not size.item():
        return None
    content = torch.frombuffer(bytearray(packed), dtype=torch.uint8) if packed else torch.empty(0, dtype=torch.uint8)
    buffer = content.to(device) if rank == 0 else torch.empty(int(size), dtype=torch.uint8, device=device)
    distributed.broadcast(buffer, 0)
    entries = load(buffer.cpu().numpy().tobytes())
    tensors = {name.removeprefix("tensor:"): t for name, t in entries.items() if name.startswith("tensor:")}
    values = {name.removeprefix("value:"): t.item() for name, t in entries.items() if name.startswith("value:")}
    return tensors, values
