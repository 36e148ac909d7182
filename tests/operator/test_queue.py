"""No key is lost, none is worked on twice at once, and a time that is set is kept."""

from __future__ import annotations

import asyncio
import random
import time

import pytest
from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, invariant, precondition, rule

from limbeck_operator.queue import Closed, WorkQueue
from tests.operator.virtual import VirtualLoop, now, run


class Highest(random.Random):
    """No jitter: a retry comes after all of its time."""

    def uniform(self, a: float, b: float) -> float:
        return b


def queue(**options) -> WorkQueue[str]:
    return WorkQueue(clock=now, rng=Highest(), **options)


async def settled() -> None:
    """Let every task go as far as it can."""
    for _ in range(5):
        await asyncio.sleep(0)


async def times(q: WorkQueue[str], until: float) -> list[tuple[str, float]]:
    """What comes when."""
    found = []
    try:
        async with asyncio.timeout(until - now()):
            while True:
                key, _ = await q.get()
                found.append((key, now()))
                q.done(key)
    except TimeoutError:
        return found


def test_keys_come_in_order_and_once_however_often_they_are_added():
    async def main():
        q = queue()
        for key in "abcabcaaa":
            q.add(key)
        assert q.depth == 3
        assert await times(q, 1) == [("a", 0), ("b", 0), ("c", 0)]
        assert q.depth == 0

    run(main())


def test_a_key_that_is_added_while_it_is_worked_on_comes_again_once_that_is_done():
    async def main():
        q = queue()
        q.add("a")
        await q.get()
        q.add("a")
        q.add("a")
        q.add("b")
        assert (await q.get())[0] == "b"
        assert (q.depth, q.working) == (0, 2)
        await asyncio.sleep(3)
        q.done("a")
        assert await q.get() == ("a", 0)
        q.done("a")
        assert (q.depth, q.working) == (0, 1)

    run(main())


def test_get_tells_how_long_a_key_was_ready():
    async def main():
        q = queue()
        assert q.oldest_waiting() is None
        q.add("a")
        await asyncio.sleep(2)
        q.add("b")
        q.add("a")
        await asyncio.sleep(1)
        assert q.oldest_waiting() == 3
        assert await q.get() == ("a", 3)
        assert q.oldest_waiting() == 1
        assert await q.get() == ("b", 1)
        q.add_after("c", 5)
        waiting = asyncio.create_task(q.get())
        assert (await waiting) == ("c", 0)

    run(main())


def test_the_earliest_of_several_times_is_kept():
    async def main():
        q = queue()
        q.add_after("a", 8)
        q.add_after("a", 4)
        q.add_after("a", 6)
        q.add_after("b", 2)
        q.add_after("c", 0)
        assert q.delayed == 2
        assert await times(q, 20) == [("c", 0), ("b", 2), ("a", 4)]
        assert q.delayed == 0

    run(main())


def test_a_key_that_is_added_now_comes_at_its_later_time_too():
    async def main():
        q = queue()
        q.add_after("a", 4)
        q.add("a")
        assert await times(q, 20) == [("a", 0), ("a", 4)]

    run(main())


def test_a_later_time_that_comes_while_the_key_is_worked_on_waits_for_that():
    async def main():
        q = queue()
        q.add("a")
        await q.get()
        q.add_after("a", 4)
        await asyncio.sleep(6)
        assert (q.depth, q.delayed) == (0, 0)
        q.done("a")
        assert await times(q, 20) == [("a", 6)]

    run(main())


def test_retries_come_ever_later_up_to_the_longest_until_the_key_is_forgotten():
    async def main():
        q = queue(first=1, factor=2, longest=10)
        waits = []
        for _ in range(6):
            q.add_rate_limited("a")
            begun = now()
            key, _ = await q.get()
            waits.append(now() - begun)
            q.done(key)
        assert waits == [1, 2, 4, 8, 10, 10]
        q.forget("a")
        assert q.add_rate_limited("a") == 1

    run(main())


def test_retries_are_between_half_and_all_of_their_time():
    async def main():
        q: WorkQueue[int] = WorkQueue(clock=now, rng=random.Random(1))
        waits = [q.add_rate_limited(key) for key in range(1000)]
        assert 0.5 <= min(waits) < 0.51
        assert 0.99 < max(waits) <= 1.0

    run(main())


def test_a_thousand_failures_in_a_row_are_no_longer_than_the_longest():
    async def main():
        q = queue()
        assert [q.add_rate_limited("a") for _ in range(2000)][-1] == 300

    run(main())


def test_what_is_discarded_does_not_come_later():
    async def main():
        q = queue()
        q.add_rate_limited("a")
        q.add_rate_limited("a")
        q.add_after("b", 5)
        q.add("c")
        q.add_after("c", 3)
        q.discard("a")
        q.discard("c")
        q.discard("never seen")
        assert q.delayed == 1
        assert await times(q, 20) == [("c", 0), ("b", 5)]
        assert q.add_rate_limited("a") == 1

    run(main())


def test_a_closed_queue_gives_nothing_and_every_worker_is_told():
    async def main():
        q = queue()
        q.add("a")
        await q.get()
        workers = [asyncio.create_task(q.get()) for _ in range(3)]
        await settled()
        q.add_after("b", 1)
        q.add("a")
        q.close()
        assert [type(answer) for answer in await asyncio.gather(*workers, return_exceptions=True)] == [Closed] * 3
        q.done("a")
        for add in (q.add, q.add_rate_limited, lambda key: q.add_after(key, 1)):
            add("c")
        await asyncio.sleep(10)
        assert (q.depth, q.delayed, q.working) == (0, 0, 0)
        with pytest.raises(Closed):
            await q.get()

    run(main())


def test_a_closed_queue_does_not_give_what_was_ready():
    async def main():
        q = queue()
        q.add("a")
        q.close()
        with pytest.raises(Closed):
            await q.get()

    run(main())


def test_a_worker_that_is_cancelled_takes_no_key_with_it():
    async def main():
        q = queue()
        first, second = asyncio.create_task(q.get()), asyncio.create_task(q.get())
        await settled()
        q.add("a")  # the first is told
        first.cancel()
        assert (await second)[0] == "a"
        third, fourth = asyncio.create_task(q.get()), asyncio.create_task(q.get())
        await settled()
        third.cancel()
        await settled()
        q.add("b")
        assert (await fourth)[0] == "b"
        assert first.cancelled()
        assert third.cancelled()

    run(main())


def test_a_key_that_is_not_worked_on_cannot_be_done():
    async def main():
        with pytest.raises(KeyError):
            queue().done("a")

    run(main())


def test_times_that_were_replaced_do_not_pile_up():
    async def main():
        q = queue()
        for n in range(20_000):
            q.add_after("a", 30_000 - n)
            q.add_after(f"deleted {n}", 50_000)
            q.discard(f"deleted {n}")
        assert q.delayed == 1
        assert len(q._heap) < 100
        assert await times(q, 40_000) == [("a", 10_001)]

    run(main())


@pytest.mark.parametrize("delayed", [False, True])
def test_ten_thousand_keys_are_handed_out_within_a_second_or_so(delayed):
    async def main():
        q: WorkQueue[int] = WorkQueue(clock=now)
        rng, found = random.Random(2), []

        async def work():
            while len(found) < 10_000:
                key, _ = await q.get()
                found.append(key)
                await asyncio.sleep(0)
                q.done(key)
            q.close()

        for key in range(10_000):
            q.add_after(key, rng.uniform(1, 600)) if delayed else q.add(key)
        assert q.delayed + q.depth == 10_000
        await asyncio.gather(*(work() for _ in range(8)), return_exceptions=True)
        assert sorted(found) == list(range(10_000))

    begun = time.perf_counter()
    run(main())
    assert time.perf_counter() - begun < 5


def test_the_machine_s_own_clock_is_kept_too():
    async def main():
        q: WorkQueue[str] = WorkQueue()
        begun = time.monotonic()
        q.add_after("a", 0.05)
        key, waited = await q.get()
        assert key == "a"
        assert 0.05 <= time.monotonic() - begun < 5
        assert 0 <= waited < 5

    asyncio.run(main())


class Queue(RuleBasedStateMachine):
    """A queue beside what is said of it: keys that are to come now, and at what time."""

    keys = st.sampled_from("abcd")

    @initialize()
    def begin(self):
        self.runner = asyncio.Runner(loop_factory=VirtualLoop)
        self.loop = self.runner.get_loop()
        self.queue: WorkQueue[str] = WorkQueue(clock=self.loop.time, rng=Highest())
        self.ready: dict[str, float] = {}
        self.again: set[str] = set()
        self.working: set[str] = set()
        self.later: dict[str, float] = {}
        self.backoff: dict[str, float] = {}

    def teardown(self):
        self.runner.close()

    def do(self, method, *arguments):
        async def call():
            return method(*arguments)

        return self.runner.run(call())

    def comes(self, key, at):
        if key in self.working:
            self.again.add(key)
        else:
            self.ready.setdefault(key, at)

    @rule(key=keys)
    def add(self, key):
        self.do(self.queue.add, key)
        self.comes(key, self.loop.time())

    @rule(key=keys, seconds=st.integers(-1, 8))
    def add_after(self, key, seconds):
        self.do(self.queue.add_after, key, seconds)
        if seconds <= 0:
            self.comes(key, self.loop.time())
        else:
            self.later[key] = min(self.later.get(key, float("inf")), self.loop.time() + seconds)

    @rule(key=keys)
    def add_rate_limited(self, key):
        seconds = self.backoff[key] = min(300, 2 * self.backoff.get(key, 0.5))
        assert self.do(self.queue.add_rate_limited, key) == seconds
        self.later[key] = min(self.later.get(key, float("inf")), self.loop.time() + seconds)

    @rule(key=keys)
    def forget(self, key):
        self.do(self.queue.forget, key)
        self.backoff.pop(key, None)

    @rule(key=keys)
    def discard(self, key):
        self.do(self.queue.discard, key)
        self.backoff.pop(key, None)
        self.later.pop(key, None)

    @rule(seconds=st.integers(1, 6))
    def wait(self, seconds):
        until = self.loop.time() + seconds
        self.runner.run(asyncio.sleep(seconds))
        for key, time_ in sorted(self.later.items(), key=lambda entry: entry[1]):
            if time_ <= until:
                del self.later[key]
                self.comes(key, time_)

    @precondition(lambda self: self.ready)
    @rule()
    def get(self):
        key, waited = self.runner.run(self.queue.get())
        assert key not in self.working
        since = self.ready.pop(key)
        assert since == min([since, *self.ready.values()])
        assert waited == self.loop.time() - since
        self.working.add(key)

    @precondition(lambda self: self.working)
    @rule(data=st.data())
    def done(self, data):
        key = data.draw(st.sampled_from(sorted(self.working)))
        self.do(self.queue.done, key)
        self.working.remove(key)
        if key in self.again:
            self.again.remove(key)
            self.comes(key, self.loop.time())

    @invariant()
    def figures_are_right(self):
        assert self.queue.depth == len(self.ready)
        assert self.queue.working == len(self.working)
        assert self.queue.delayed == len(self.later)
        oldest = self.loop.time() - min(self.ready.values()) if self.ready else None
        assert self.queue.oldest_waiting() == oldest


Queue.TestCase.settings = settings(max_examples=100, stateful_step_count=40, deadline=None, derandomize=True)
test_a_queue_does_what_is_said_of_it = Queue.TestCase


@pytest.mark.parametrize("seed", range(20))
def test_every_key_is_worked_on_after_its_last_add_and_by_one_worker_at_a_time(seed):
    rng = random.Random(seed)

    async def main():
        q: WorkQueue[int] = WorkQueue(clock=now, rng=rng)
        added: dict[int, float] = {}
        worked: dict[int, float] = {}
        at_work: set[int] = set()

        async def work():
            while True:
                key, _ = await q.get()
                assert key not in at_work
                at_work.add(key)
                worked[key] = now()
                try:
                    await asyncio.sleep(rng.choice([0, 0.1, 3]))
                    if rng.random() < 0.3:
                        q.add_rate_limited(key)
                    else:
                        q.forget(key)
                finally:
                    at_work.remove(key)
                    q.done(key)

        async def disturb():
            while True:
                await asyncio.sleep(rng.uniform(0, 5))
                worker = rng.randrange(len(workers))
                workers[worker].cancel()
                await asyncio.gather(workers[worker], return_exceptions=True)
                workers[worker] = asyncio.create_task(work())

        workers = [asyncio.create_task(work()) for _ in range(3)]
        disturber = asyncio.create_task(disturb())
        for _ in range(300):
            key = rng.randrange(20)
            if rng.random() < 0.5:
                q.add(key)
                added[key] = max(added.get(key, 0), now())
            else:
                q.add_after(key, rng.uniform(0, 10))
            await asyncio.sleep(rng.choice([0, 0, 0.05, 1]))
        disturber.cancel()
        await asyncio.sleep(2000)
        assert all(worked[key] >= moment for key, moment in added.items())
        assert (q.depth, q.delayed, q.working) == (0, 0, 0)
        for worker in workers:
            worker.cancel()
        assert [type(end) for end in await asyncio.gather(*workers, return_exceptions=True)] == [
            asyncio.CancelledError
        ] * 3

    run(main())
