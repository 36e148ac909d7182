"""Processes that start with what they need imported already, in milliseconds, and share nothing with this one.

There is one server of forks for all tests of a process, whichever comes first: it imports for all of them, and knows
the environment of when it started, not that of a test.
"""

from __future__ import annotations

import multiprocessing
from typing import Any

_STAGES = ("distill", "evaluate", "register", "select", "targets", "teacher", "trajectories")
_IMPORTED = ["limbeck.runner", "limbeck.ssl.objectives", "lightly.loss", "kornia"]
_IMPORTED += [*(f"limbeck.stages.{stage}" for stage in _STAGES), "tests.store.test_contract", "tests.tracking.tracked"]


def processes() -> Any:
    """A context of `multiprocessing`."""
    context = multiprocessing.get_context("forkserver")
    context.set_forkserver_preload(_IMPORTED)
    return context
