"""Fixtures of the fan-out's tests."""

from tests.stages.command import limbeck
from tests.stages.tiny import one_thread

__all__ = ["limbeck", "one_thread"]
