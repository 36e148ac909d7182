"""Who uses a result, told through the store itself: how `limbeck store gc` never deletes what a job has just found.

Beside a result's manifest lie two empty files. `.used` says when it was last used; whoever finds the result sees to it
that it is younger than half a day, and then looks for the other. `.condemned` says that a collector is about to delete
the result; whoever writes it looks at `.used` after, and goes on only where that is old.

    user:       touch .used       then look for .condemned: there? then the result counts as absent; else read it
    collector:  touch .condemned  then look at .used:       young? then the result stays; else delete it

Each writes before it looks, so at least one sees the other, and yields; where both do, the result stays, and the user,
who makes it anew, finds at its commit that it is there. A collector that was killed leaves `.condemned` behind. It
deletes the manifest first and goes on for minutes at most, so after an hour whoever comes upon it removes it: a result
whose manifest is there is whole, and one without is none.
"""

from __future__ import annotations

import errno
import time
from collections.abc import Callable
from datetime import UTC, datetime, timedelta

from limbeck.errors import WorkError
from limbeck.store.objects import DeniedError, Objects

USED, CONDEMNED = ".used", ".condemned"
FRESH = timedelta(hours=12)  # a marker that is younger is not written again
SHORTEST_KEEP = timedelta(days=1)  # twice that: a marker that is about to be written again is not old
_DEAD = timedelta(hours=1)  # a collector that has been at one result for so long is gone
_LONGEST = 600.0  # seconds that a collector may go on after it has looked
_LOOK, _PATIENCE = 0.5, 2 * 3600.0  # seconds


class Usage:
    """What one process uses in one store."""

    def __init__(self, objects: Objects, clock: Callable[[], float] = time.monotonic) -> None:
        self._objects, self._clock = objects, clock
        self._touched: dict[str, float] = {}

    def claim(self, place: str) -> bool:
        """Say that a result, stage/key, is used; False where it is being deleted, and counts as absent."""
        if self.is_claimed(place):
            return True
        try:
            age = self._age(place)
            if age is None or age > FRESH:
                age = timedelta(0)
                if not self._objects.mark(f"{place}/{USED}"):
                    return False
            if self._is_condemned(place):
                return False
        except (DeniedError, PermissionError):
            return True  # a store that this process may only read, and not mark
        except OSError as error:
            if error.errno != errno.EROFS:
                raise
            return True
        self._touched[place] = self._clock() - age.total_seconds()
        return True

    def is_claimed(self, place: str) -> bool:
        """Whether that was said not long ago, so that no collector can have taken the result since."""
        touched = self._touched.get(place)
        return touched is not None and self._clock() - touched < FRESH.total_seconds()

    def claim_place(self, place: str) -> None:
        """Say that a result is about to be there; a collector that is deleting what was there is waited for.

        Raises:
            WorkError: it does not end.
        """
        while not self.claim(place):
            self.wait(place)

    def wait(self, place: str) -> None:
        """Wait until no collector is deleting what is at a place.

        Raises:
            WorkError: it does not end.
        """
        deadline = self._clock() + _PATIENCE
        while self._is_condemned(place):
            if self._clock() > deadline:
                raise WorkError(f"{self._objects.url(place)}/{CONDEMNED}: it is being deleted, and does not go")
            time.sleep(_LOOK)

    def refresh(self) -> None:
        """Say again of everything claimed that it is used, where that was said long ago."""
        for place in list(self._touched):
            self.claim(place)

    def forget(self, place: str) -> None:
        """A result is no longer there."""
        self._touched.pop(place, None)

    def _age(self, place: str) -> timedelta | None:
        there = self._objects.stat(f"{place}/{USED}")
        return None if there is None else max(datetime.now(UTC) - there.modified, timedelta(0))

    def _is_condemned(self, place: str) -> bool:
        condemned = self._objects.stat(f"{place}/{CONDEMNED}")
        if condemned is None:
            return False
        self._objects.mark(f"{place}/{USED}")
        now = self._objects.stat(f"{place}/{USED}")  # by the same clock
        if now is None or now.modified - condemned.modified < _DEAD:
            return True
        self._objects.delete(f"{place}/{CONDEMNED}")
        return False


class Condemnation:
    """The right to delete what lies at a place, for some minutes.

    Args:
        objects: the store.
        place: stage/key.
        keep: what was used within this time stays.
    """

    def __init__(self, objects: Objects, place: str, keep: timedelta) -> None:
        self._objects, self._place, self._keep = objects, place, keep
        self._looked = 0.0

    def holds(self) -> bool:
        """Condemn what is there, and look whether anybody uses it; False where somebody does, and it stays."""
        if self._looked and time.monotonic() - self._looked < _LONGEST:
            return True
        self._objects.mark(f"{self._place}/{CONDEMNED}")
        self._looked = time.monotonic()
        used = self._objects.stat(f"{self._place}/{USED}")
        if used is None or datetime.now(UTC) - used.modified > self._keep:
            return True
        self.end()
        return False

    def end(self) -> None:
        """Nothing is being deleted any more."""
        self._objects.delete(f"{self._place}/{CONDEMNED}")
