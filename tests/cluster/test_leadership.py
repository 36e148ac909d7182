"""Two replicas at work: whatever stops the one that acts, the two never write in the same time."""

from __future__ import annotations

import itertools
import random
import re
import signal
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from datetime import UTC, datetime

from limbeck.version import __version__
from limbeck_operator.fuse import STATUS
from tests.cluster.control_plane import Asked
from tests.cluster.kubelet import until
from tests.cluster.operating import ACCOUNT, Objects, Replica
from tests.soak import times

STOPS = times(5, 40)
LEASE = ("--lease-seconds", "6")  # short enough to wait for, long enough for a busy machine
AGENT = re.compile(rf"limbeck-operator/{re.escape(__version__)} \((operator-\d+)_[0-9a-f]{{8}}\)")


class Users(threading.Thread):
    """Suspends and resumes Distillations all the time, each of which the operator answers with a few writes."""

    def __init__(self, objects: Objects, number: int) -> None:
        super().__init__(daemon=True)
        self._objects, self._over = objects, threading.Event()
        self._names = [f"restless-{index}" for index in range(number)]

    def run(self) -> None:
        for name in self._names:
            self._objects.create(name)
        for suspend in itertools.cycle((True, False)):
            for name in self._names:
                self._objects.patch(name, {"spec": {"execution": {"suspend": suspend}}})
                if self._over.wait(0.02):
                    return

    def stop(self) -> None:
        self._over.set()
        self.join()


@contextmanager
def users(objects: Objects) -> Iterator[None]:
    found = Users(objects, 20)
    found.start()
    try:
        yield
    finally:
        found.stop()


def test_a_leader_that_is_stopped_and_goes_on_writes_nothing_more(objects, start, control_plane):
    def writes() -> list[Asked]:
        asked = control_plane.asked(f"{objects.namespace}:{ACCOUNT}")
        assert all(AGENT.fullmatch(entry.agent) for entry in asked)  # kopf's, too
        return [entry for entry in asked if entry.writes and not entry.resource.startswith("leases")]

    def until_one_writes(*candidates: Replica) -> Replica:
        """Return the first of these replicas that writes from now on."""
        begun, named = datetime.now(UTC), {replica.log.stem: replica for replica in candidates}

        def writer() -> Replica | None:
            return next((named[r] for e in writes() if e.received > begun and (r := replica_of(e)) in named), None)

        return until(writer, f"a write of {' or '.join(named)}")

    chance = random.Random(11)
    acting = start(*LEASE)
    until(acting.leads, "a leader")
    other, led = None, [acting]
    with users(objects):
        for _ in range(STOPS):
            if other is None or other.process.poll() is not None:  # a Deployment would start another, too
                other = start(*LEASE)
                until(lambda other=other: other.get("readyz")[0] == 200, "a warm standby")
            if until_one_writes(acting, other) is other:  # on a busy machine a leader may lose its lease by itself
                acting, other = other, acting
                until(acting.leads, "the lease of the one that writes")
                led.append(acting)
            time.sleep(chance.uniform(0.0, 0.5))  # at any moment
            acting.process.send_signal(signal.SIGSTOP)
            led.append(until_one_writes(other))
            acting.process.send_signal(signal.SIGCONT)
            until(lambda a=acting: a.process.poll() is not None or not a.leads(), "the end of the first one's time")
            assert acting.process.poll() in (None, STATUS)
            acting, other = other, acting
        until_one_writes(acting)
    turns = [(replica, list(turn)) for replica, turn in itertools.groupby(writes(), key=replica_of)]
    assert [replica for replica, _ in turns] == [replica.log.stem for replica in led]
    for (_, turn), (_, after) in itertools.pairwise(turns):
        assert all(entry.answered < after[0].received for entry in turn if entry.code < 300)


def replica_of(entry: Asked) -> str:
    """Which replica has asked for something."""
    return AGENT.sub(r"\1", entry.agent)
