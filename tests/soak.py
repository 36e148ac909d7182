"""How often tests do what chance decides: a few times with `make test`, many times with `make soak`."""

from __future__ import annotations

import os

SOAK = os.environ.get("LIMBECK_SOAK") == "1"


def times(usually: int, soaking: int) -> int:
    """A count that is larger where `LIMBECK_SOAK` is 1."""
    return soaking if SOAK else usually
