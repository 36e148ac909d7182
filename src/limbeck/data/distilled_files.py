"""A distilled set's files by name, and its learning rate, for those who handle them without reading tensors."""

from __future__ import annotations

import math

from limbeck.errors import InputError

TENSORS, RECORD, PREVIEW = "distilled.safetensors", "distilled.json", "preview.png"


def check_rate(rate: object, where: str) -> None:
    """Raise InputError, which names `where`, unless a set's learning rate is a positive, finite number."""
    if isinstance(rate, bool) or not isinstance(rate, int | float) or not 0.0 < rate < math.inf:
        found = f"{rate:g}" if isinstance(rate, float) else repr(rate)
        raise InputError(where, f"the learning rate is {found}", "allowed: a positive number")
