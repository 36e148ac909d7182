"""The arithmetic that networks are trained in."""

from __future__ import annotations

from collections.abc import Callable

import torch

from limbeck.spec import Precision


def has_bfloat16(device: torch.device) -> bool:
    """Whether bfloat16 arithmetic is the hardware's own."""
    if device.type == "cuda":
        return bool(torch.cuda.is_bf16_supported(including_emulation=False))
    supported: bool = torch.ops.mkldnn._is_mkldnn_bf16_supported()
    return supported


def tell_emulation(precision: Precision, device: torch.device, say: Callable[[str], None]) -> None:
    """Say so where the precision that is asked for makes work slower."""
    if precision == "bfloat16" and not has_bfloat16(device):
        say("this machine computes bfloat16 by emulation: slower than float32")
