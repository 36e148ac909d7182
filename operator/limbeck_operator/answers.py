"""What is slow to answer, a pod or Kubeflow, is asked in the background: no reconcile waits, or asks too often."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Awaitable, Callable, Hashable
from dataclasses import dataclass
from typing import Generic, TypeVar

K = TypeVar("K", bound=Hashable)
A = TypeVar("A")


@dataclass(frozen=True)
class _Answer(Generic[A]):
    about: Hashable
    when: float
    what: A


class Answers(Generic[K, A]):
    """The last answer by key.

    All methods are called from one event loop.

    Args:
        arrived: told of a key whose answer is another than before.
        failed: what stands for an answer where asking, or doing, has raised.
        at_once: how many are asked at the same time.
        pace: answers a second that are wanted at most, however many keys there are.
        least: seconds that an answer is good for, at least.
        clock: seconds that only grow.
    """

    def __init__(
        self,
        arrived: Callable[[K], None],
        failed: Callable[[Exception], A],
        *,
        at_once: int = 8,
        pace: float = 10.0,
        least: float = 10.0,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self._arrived, self._failed = arrived, failed
        self._pace, self._least, self._clock = pace, least, clock
        self._gate = asyncio.Semaphore(at_once)
        self._answers: dict[K, _Answer[A]] = {}
        self._under_way: dict[K, asyncio.Task[None]] = {}
        self._forgotten: set[K] = set()  # while something is under way

    @property
    def seconds(self) -> float:
        """How long an answer is good for: longer where many are asked."""
        return max(self._least, len(self._answers) / self._pace)

    def look(self, key: K, about: Hashable, ask: Callable[[], Awaitable[A]]) -> A | None:
        """The last answer to this question, which is asked again where that is old; None before the first.

        Args:
            key: whose question it is.
            about: what is asked; the answer to another question is none.
            ask: asks.
        """
        self._forgotten.discard(key)
        known = self._answers.get(key)
        if known is not None and known.about != about:
            known = None
        if key not in self._under_way and (known is None or self._clock() - known.when >= self.seconds):
            self._begin(key, lambda: self._ask(key, about, ask))
        return None if known is None else known.what

    def do(self, key: K, about: Hashable, action: Callable[[], Awaitable[None]]) -> None:
        """Have something done about a key, unless something is under way; its answer is not known until then.

        What goes wrong becomes the answer to the question `about`.
        """
        self._forgotten.discard(key)
        if key not in self._under_way:
            self._answers.pop(key, None)
            self._begin(key, lambda: self._act(key, about, action))

    def forget(self, key: K) -> None:
        """Nobody asks about a key any more."""
        self._answers.pop(key, None)
        if key in self._under_way:
            self._forgotten.add(key)

    async def close(self) -> None:
        """Forget everything, and wait until nothing is under way."""
        tasks = list(self._under_way.values())
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)
        self._answers.clear()
        self._forgotten.clear()

    def _begin(self, key: K, work: Callable[[], Awaitable[None]]) -> None:
        async def begun() -> None:
            try:
                async with self._gate:
                    await work()
            finally:
                del self._under_way[key]
                if key in self._forgotten:
                    self._forgotten.discard(key)
                    self._answers.pop(key, None)

        def ended(task: asyncio.Task[None]) -> None:  # cancelled before its first step, it has tidied nothing up
            if self._under_way.get(key) is task:
                del self._under_way[key]

        task = self._under_way[key] = asyncio.create_task(begun())
        task.add_done_callback(ended)

    async def _ask(self, key: K, about: Hashable, ask: Callable[[], Awaitable[A]]) -> None:
        try:
            what = await ask()
        except Exception as error:  # a pod's or Kubeflow's trouble is not the operator's
            what = self._failed(error)
        before = self._answers.get(key)
        self._answers[key] = _Answer(about, self._clock(), what)
        if before is None or (before.about, before.what) != (about, what):
            self._arrived(key)

    async def _act(self, key: K, about: Hashable, action: Callable[[], Awaitable[None]]) -> None:
        try:
            await action()
        except Exception as error:
            self._answers[key] = _Answer(about, self._clock(), self._failed(error))
        self._arrived(key)
