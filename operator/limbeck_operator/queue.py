"""What is to be reconciled: keys, each at most once, never two workers on one, now or after a while."""

from __future__ import annotations

import asyncio
import heapq
import random
import time
from collections import OrderedDict, deque
from collections.abc import Callable, Hashable
from typing import Generic, TypeVar

K = TypeVar("K", bound=Hashable)

_STALE = 64  # entries of the heap that may be of no use before it is made anew, beside as many as are of use


class Closed(Exception):  # noqa: N818 - not an error: the queue was closed
    """The queue gives nothing any more."""


class WorkQueue(Generic[K]):
    """A queue of keys for the workers of one event loop; all methods are called from there.

    A worker awaits `get`, does its work and calls `done`. A key that is added meanwhile is given again, after `done`.
    Work that succeeded is followed by `forget`, and by `add_after` if it is to be looked at again; work that failed by
    `add_rate_limited`.

    Args:
        first: seconds until the first retry, at most.
        factor: by which each further retry is later.
        longest: seconds until any retry, at most.
        clock: seconds that only grow.
        rng: makes a retry come after half to all of its time, so that what failed together is not retried together.
    """

    def __init__(
        self,
        *,
        first: float = 1.0,
        factor: float = 2.0,
        longest: float = 300.0,
        clock: Callable[[], float] = time.monotonic,
        rng: random.Random | None = None,
    ) -> None:
        self._first, self._factor, self._longest = first, factor, longest
        self._clock, self._rng = clock, rng or random.Random()  # noqa: S311 - no secret
        self._ready: OrderedDict[K, float] = OrderedDict()  # since when, oldest first
        self._working: set[K] = set()
        self._again: set[K] = set()  # added while it was worked on
        self._delayed: dict[K, tuple[float, int]] = {}  # until when, and which entry of the heap says so
        self._heap: list[tuple[float, int, K]] = []
        self._entries = 0
        self._backoff: dict[K, float] = {}  # seconds of the last retry
        self._timer: asyncio.TimerHandle | None = None
        self._waiters: deque[asyncio.Future[None]] = deque()
        self._closed = False

    def add(self, key: K) -> None:
        """Have a key worked on now; if it is delayed too, then once more at that time."""
        if self._closed:
            return
        if key in self._working:
            self._again.add(key)
        elif key not in self._ready:
            self._ready[key] = self._clock()
            self._wake()

    def add_after(self, key: K, seconds: float) -> None:
        """Have a key worked on after a while, or earlier, if an earlier time is already set."""
        if seconds <= 0:
            self.add(key)
            return
        until = self._clock() + seconds
        if self._closed or (key in self._delayed and self._delayed[key][0] <= until):
            return
        self._entries += 1
        self._delayed[key] = until, self._entries
        heapq.heappush(self._heap, (until, self._entries, key))
        self._schedule()

    def add_rate_limited(self, key: K) -> float:
        """Have a key worked on again after its back-off, which grows each time; the seconds until then."""
        last = self._backoff.get(key)
        backoff = min(self._longest, self._first if last is None else last * self._factor)
        self._backoff[key] = backoff
        seconds = backoff * self._rng.uniform(0.5, 1.0)
        self.add_after(key, seconds)
        return seconds

    def forget(self, key: K) -> None:
        """Begin a key's back-off anew."""
        self._backoff.pop(key, None)

    def discard(self, key: K) -> None:
        """Nothing is to be done about a key later: its object is gone. If it is to be worked on now, it still is."""
        self._backoff.pop(key, None)
        if self._delayed.pop(key, None) is not None:
            self._schedule()

    async def get(self) -> tuple[K, float]:
        """The key that has been ready the longest, and for how many seconds; waits for one.

        Raises:
            Closed: the queue is closed.
        """
        while not self._ready:
            if self._closed:
                raise Closed
            waiter: asyncio.Future[None] = asyncio.get_running_loop().create_future()
            self._waiters.append(waiter)
            try:
                await waiter
            except asyncio.CancelledError:
                if waiter.cancelled():
                    self._waiters.remove(waiter)
                elif self._ready:
                    self._wake()  # another, in its place
                raise
        key, since = self._ready.popitem(last=False)
        self._working.add(key)
        return key, self._clock() - since

    def done(self, key: K) -> None:
        """The work on a key has ended, one way or another."""
        self._working.remove(key)
        if key in self._again:
            self._again.remove(key)
            self.add(key)

    def close(self) -> None:
        """Give nothing any more, not even what is ready; what is worked on may still be done."""
        self._closed = True
        self._ready.clear()
        self._again.clear()
        self._delayed.clear()
        self._backoff.clear()
        self._schedule()
        while self._waiters:
            self._wake()

    @property
    def depth(self) -> int:
        """How many keys are ready and not yet worked on."""
        return len(self._ready)

    @property
    def working(self) -> int:
        """How many keys are worked on."""
        return len(self._working)

    @property
    def delayed(self) -> int:
        """How many keys have a later time."""
        return len(self._delayed)

    def oldest_waiting(self) -> float | None:
        """For how many seconds the key that has been ready the longest is; None when none is."""
        return self._clock() - next(iter(self._ready.values())) if self._ready else None

    def _wake(self) -> None:
        """Have one worker look."""
        while self._waiters:
            waiter = self._waiters.popleft()
            if not waiter.done():
                waiter.set_result(None)
                return

    def _schedule(self) -> None:
        """Have the timer be for the earliest delayed key."""
        if len(self._heap) > 2 * len(self._delayed) + _STALE:
            self._heap = [(until, entry, key) for key, (until, entry) in self._delayed.items()]
            heapq.heapify(self._heap)
        while self._heap and not self._is_valid(self._heap[0]):
            heapq.heappop(self._heap)
        if self._timer is not None:
            self._timer.cancel()
            self._timer = None
        if self._heap:
            seconds = max(0.0, self._heap[0][0] - self._clock())
            self._timer = asyncio.get_running_loop().call_later(seconds, self._due)

    def _is_valid(self, entry: tuple[float, int, K]) -> bool:
        until, number, key = entry
        return self._delayed.get(key) == (until, number)

    def _due(self) -> None:
        """Make ready what is due."""
        now = self._clock()
        while self._heap and self._heap[0][0] <= now:
            entry = heapq.heappop(self._heap)
            if self._is_valid(entry):
                key = entry[2]
                del self._delayed[key]
                self.add(key)
        self._schedule()
