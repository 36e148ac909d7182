"""Training state on disk: tensors and a few JSON values in one safetensors file, replaced atomically."""

from __future__ import annotations

import json
import os
import re
import time
from collections.abc import Mapping
from contextlib import suppress
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file
from torch import Tensor, nn

from limbeck.copies import Copies


def save_tensors(path: Path, tensors: Mapping[str, Tensor], values: Mapping[str, Any] | None = None) -> None:
    """Write tensors (moved to the CPU) and JSON `values` to a safetensors file, atomically.

    Raises:
        OSError: the system refuses it, for a full disk say; nothing of the new file is left.
    """
    path.parent.mkdir(parents=True, exist_ok=True)
    partial = path.with_name(f".{path.name}.partial")
    metadata = {"values": json.dumps(dict(values), sort_keys=True)} if values is not None else None
    try:
        save_file({name: t.detach().cpu().contiguous().clone() for name, t in tensors.items()}, partial, metadata)
        with partial.open("rb") as handle:
            os.fsync(handle.fileno())
        partial.replace(path)
    except (SafetensorError, OSError) as error:
        with suppress(OSError):
            partial.unlink(missing_ok=True)
        number = re.search(r"\(os error ([0-9]+)\)", str(error))
        if isinstance(error, OSError) or number is None:
            raise
        raise OSError(int(number[1]), os.strerror(int(number[1])), str(path)) from error


def load_tensors(path: Path) -> tuple[dict[str, Tensor], dict[str, Any]]:
    """The tensors, on the CPU in memory of their own, and the values of such a file."""
    with safe_open(path, framework="pt") as handle:
        tensors = {name: handle.get_tensor(name).clone() for name in handle.keys()}  # noqa: SIM118 - not a dict
        metadata = handle.metadata() or {}
    return tensors, json.loads(metadata.get("values", "{}"))


class Checkpoint:
    """The state of one long loop: saved at most every `every` seconds, and whenever it is told to."""

    def __init__(self, folder: Path, every: float, copies: Copies | None = None) -> None:
        self._path = folder / "checkpoint.safetensors"
        self.every = every
        self._copies = copies
        self._saved = time.monotonic()

    def load(self) -> tuple[dict[str, Tensor], dict[str, Any]] | None:
        """The last saved state; None where there is none or it cannot be read."""
        if self._copies is not None and not self._path.exists():
            self._copies.fetch(self._path)
        try:
            return load_tensors(self._path)
        except (FileNotFoundError, SafetensorError, json.JSONDecodeError):
            return None

    def due(self) -> bool:
        """Whether the last save is long enough ago."""
        return time.monotonic() - self._saved >= self.every

    def save(self, tensors: Mapping[str, Tensor], values: Mapping[str, Any]) -> None:
        """Save the state."""
        save_tensors(self._path, tensors, values)
        if self._copies is not None:
            self._copies.keep(self._path)
        self._saved = time.monotonic()


def pack(module: nn.Module, prefix: str) -> dict[str, Tensor]:
    """A module's parameters and buffers under `prefix.`."""
    return {f"{prefix}.{name}": tensor for name, tensor in module.state_dict().items()}


def unpack(module: nn.Module, tensors: Mapping[str, Tensor], prefix: str) -> None:
    """The inverse of `pack`."""
    start = f"{prefix}."
    module.load_state_dict({n.removeprefix(start): t for n, t in tensors.items() if n.startswith(start)})


def pack_optimizer(optimizer: torch.optim.Optimizer, prefix: str) -> dict[str, Tensor]:
    """An optimiser's per-parameter tensors under `prefix.INDEX.NAME`; its settings come from the spec."""
    state = optimizer.state_dict()["state"]
    return {
        f"{prefix}.{index}.{name}": torch.as_tensor(value)
        for index, entry in state.items()
        for name, value in entry.items()
        if value is not None
    }


def unpack_optimizer(optimizer: torch.optim.Optimizer, tensors: Mapping[str, Tensor], prefix: str) -> None:
    """The inverse of `pack_optimizer`."""
    state: dict[int, dict[str, Tensor]] = {}
    for name, tensor in tensors.items():
        head, _, rest = name.partition(".")
        if head == prefix:
            index, _, field = rest.partition(".")
            state.setdefault(int(index), {})[field] = tensor
    whole = optimizer.state_dict()
    optimizer.load_state_dict({"state": state, "param_groups": whole["param_groups"]})
