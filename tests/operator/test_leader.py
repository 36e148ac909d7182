"""One replica leads, never two; and when it is gone, another does."""

from __future__ import annotations

import asyncio
import copy
import json
import logging
import random
import re
import threading
import time
from collections.abc import Callable, Mapping
from contextlib import suppress
from datetime import UTC, datetime, timedelta
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any

import pytest

from limbeck_operator.leader import Conflict, KubernetesLease, LeaderElector, NotLeadingError, Terms
from tests.operator.virtual import jump, now, run

NOON = datetime(2026, 3, 4, 12, tzinfo=UTC)
MICRO_TIME = re.compile(r"\d{4}-\d\d-\d\dT\d\d:\d\d:\d\d\.\d{6}Z")


class StrictLease:
    """A Lease as an API server keeps it: it refuses stale writes and wrong fields; one that changes nothing is none."""

    def __init__(self, spec: Mapping[str, Any] | None = None) -> None:
        self.version = 7
        self.writes = 0
        self.lease = None if spec is None else {"metadata": {"resourceVersion": "7"}, "spec": dict(spec)}

    @property
    def spec(self) -> dict[str, Any]:
        assert self.lease is not None
        return self.lease["spec"]

    def read(self) -> dict[str, Any] | None:
        return copy.deepcopy(self.lease)

    def create(self, spec: Mapping[str, Any]) -> dict[str, Any]:
        if self.lease is not None:
            raise Conflict
        return self._write({"metadata": {}}, spec)

    def replace(self, lease: Mapping[str, Any]) -> dict[str, Any]:
        if self.lease is None or lease["metadata"]["resourceVersion"] != self.lease["metadata"]["resourceVersion"]:
            raise Conflict
        if lease == self.lease:
            return copy.deepcopy(self.lease)
        return self._write(self.lease, lease["spec"])

    def delete(self) -> None:
        self.lease = None

    def _write(self, lease: dict[str, Any], spec: Mapping[str, Any]) -> dict[str, Any]:
        assert set(spec) == {
            "holderIdentity",
            "leaseDurationSeconds",
            "acquireTime",
            "renewTime",
            "leaseTransitions",
        }
        assert isinstance(spec["holderIdentity"], str)
        assert isinstance(spec["leaseDurationSeconds"], int)
        assert spec["leaseDurationSeconds"] > 0
        assert spec["leaseTransitions"] >= 0
        assert MICRO_TIME.fullmatch(spec["acquireTime"])
        assert MICRO_TIME.fullmatch(spec["renewTime"])
        self.version += 1
        self.writes += 1
        metadata = {**lease["metadata"], "resourceVersion": str(self.version)}
        self.lease = copy.deepcopy({"metadata": metadata, "spec": dict(spec)})
        return copy.deepcopy(self.lease)


class Line:
    """What a replica reaches a lease by. A call goes on when nobody waits for it any more, as a thread's does."""

    def __init__(self, lease: StrictLease) -> None:
        self.lease = lease
        self.down = False  # refused at once
        self.silent = False  # never answered
        self.forgets = False  # done, and the answer is lost
        self.takes: Callable[[], float] = lambda: 0.0  # seconds there, and seconds back
        self._calls: set[asyncio.Task[Any]] = set()

    async def read(self, timeout: float) -> dict[str, Any] | None:
        return await self._call(timeout, self.lease.read)

    async def create(self, spec: Mapping[str, Any], timeout: float) -> dict[str, Any]:
        return await self._call(timeout, self.lease.create, spec)

    async def replace(self, lease: Mapping[str, Any], timeout: float) -> dict[str, Any]:
        return await self._call(timeout, self.lease.replace, lease)

    async def _call(self, timeout: float, method: Callable[..., Any], *arguments: Any) -> Any:
        assert 0 < timeout <= 5
        if self.down:
            raise ConnectionError("connection refused")
        call = asyncio.create_task(self._carry(method, *arguments))
        self._calls.add(call)
        call.add_done_callback(lambda done: (self._calls.discard(done), done.cancelled() or done.exception()))
        return await asyncio.shield(call)

    async def _carry(self, method: Callable[..., Any], *arguments: Any) -> Any:
        if self.silent:
            await asyncio.Event().wait()
        await asyncio.sleep(self.takes())
        answer = method(*arguments)
        await asyncio.sleep(self.takes())
        if self.forgets:
            await asyncio.Event().wait()
        return answer


class Replica:
    """An elector, and what it leads: it notes when it begins and ends, and takes a while to end."""

    def __init__(
        self, name: str, lease: StrictLease, *, ends_in: float = 0.0, skew: timedelta = timedelta(), seed: int = 0
    ) -> None:
        self.line = Line(lease)
        self.ends_in = ends_in
        self.spans: list[list[float]] = []
        self.elector = LeaderElector(
            self.line,
            name,
            clock=now,
            calendar=lambda: NOON + skew + timedelta(seconds=now()),
            chance=random.Random(f"{name} {seed}"),
        )
        self.task = asyncio.create_task(self.elector.run(self.lead))

    @property
    def active(self) -> bool:
        return bool(self.spans) and len(self.spans[-1]) == 1

    async def lead(self) -> None:
        assert self.elector.leads
        self.spans.append([now()])
        try:
            await asyncio.Event().wait()
        finally:
            try:
                await asyncio.sleep(self.ends_in)
            finally:
                self.spans[-1].append(now())

    async def stop(self) -> None:
        self.task.cancel()
        await asyncio.gather(self.task, return_exceptions=True)

    async def crash(self) -> None:
        """End without a word to anyone."""
        self.line.silent = True
        await self.stop()


async def pass_time(seconds: float, replicas: list[Replica]) -> None:
    """Let time pass, and look all the while whether two lead."""
    end = now() + seconds
    while now() < end:
        await asyncio.sleep(0.1)
        assert sum(replica.elector.leads for replica in replicas) <= 1


def test_the_first_one_takes_a_new_lease():
    async def main():
        lease = StrictLease()
        first = Replica("first", lease)
        await asyncio.sleep(0.1)
        assert first.elector.leads
        assert first.active
        assert lease.spec == {
            "holderIdentity": "first",
            "leaseDurationSeconds": 15,
            "acquireTime": "2026-03-04T12:00:00.000000Z",
            "renewTime": "2026-03-04T12:00:00.000000Z",
            "leaseTransitions": 0,
        }
        await first.stop()

    run(main())


@pytest.mark.parametrize("spec", [{}, {"holderIdentity": "", "leaseTransitions": 4}, {"holderIdentity": None}])
def test_a_lease_that_nobody_holds_is_taken_at_once(spec):
    async def main():
        lease = StrictLease(spec)
        first = Replica("first", lease)
        await asyncio.sleep(0.1)
        assert first.elector.leads
        assert lease.spec["leaseTransitions"] == (spec.get("leaseTransitions", 0) + 1 if spec else 0)
        await first.stop()

    run(main())


def test_it_renews_every_two_seconds_or_so_and_the_others_wait():
    async def main():
        lease = StrictLease()
        first = Replica("first", lease)
        await asyncio.sleep(0.1)
        second = Replica("second", lease)
        await pass_time(600, [first, second])
        assert len(first.spans) == 1
        assert first.active
        assert second.spans == []
        assert 600 / 2.4 <= lease.writes <= 600 / 2 + 1
        assert lease.spec["acquireTime"] == "2026-03-04T12:00:00.000000Z"
        assert lease.spec["leaseTransitions"] == 0
        await first.stop()
        await second.stop()

    run(main())


def test_when_the_leader_is_gone_without_a_word_another_leads_once_the_lease_is_out():
    async def main():
        lease = StrictLease()
        first = Replica("first", lease)
        await asyncio.sleep(0.1)
        second = Replica("second", lease)
        await pass_time(60, [first, second])
        gone = now()
        await first.crash()
        await pass_time(30, [first, second])
        assert 15 - 2.4 <= second.spans[0][0] - gone <= 15 + 2.4
        assert lease.spec["holderIdentity"] == "second"
        assert lease.spec["leaseTransitions"] == 1
        await second.stop()

    run(main())


def test_a_leader_that_ends_gives_the_lease_up_after_its_work_has_ended():
    async def main():
        lease = StrictLease()
        first = Replica("first", lease, ends_in=40)
        await asyncio.sleep(0.1)
        second = Replica("second", lease)
        await pass_time(20, [first, second])
        stopping = asyncio.create_task(first.stop())
        await pass_time(39, [first, second])
        assert first.active
        assert first.elector.leads  # what it does to end is still its to do
        assert second.spans == []
        await stopping
        assert not first.elector.leads
        assert lease.spec["holderIdentity"] == ""
        assert lease.spec["leaseDurationSeconds"] == 1
        await pass_time(2.5, [first, second])
        assert second.spans[0][0] - first.spans[0][1] <= 2.4
        assert lease.spec["leaseTransitions"] == 1
        await second.stop()

    run(main())


def test_one_that_never_led_gives_nothing_up():
    async def main():
        lease = StrictLease()
        first = Replica("first", lease)
        await asyncio.sleep(0.1)
        second = Replica("second", lease)
        await asyncio.sleep(10)
        await second.stop()
        assert lease.spec["holderIdentity"] == "first"
        await first.stop()

    run(main())


def test_a_lease_that_cannot_be_given_up_does_not_keep_it_from_ending(caplog):
    async def main():
        first = Replica("first", StrictLease())
        await asyncio.sleep(3)
        first.line.silent = True
        begun = now()
        await first.stop()
        assert now() - begun == 5
        assert "the lease was not given up: TimeoutError" in caplog.text

    run(main())


def test_an_outage_shorter_than_the_deadline_changes_nothing(caplog):
    async def main():
        lease = StrictLease()
        first = Replica("first", lease)
        await asyncio.sleep(0.1)
        second = Replica("second", lease)
        await pass_time(20, [first, second])
        first.line.down = second.line.down = True
        await pass_time(5, [first, second])
        first.line.down = second.line.down = False
        await pass_time(60, [first, second])
        assert len(first.spans) == 1
        assert first.active
        assert second.spans == []
        assert caplog.text.count("the lease was not reached: connection refused") == 2  # once by each
        await first.stop()
        await second.stop()

    run(main())


@pytest.mark.parametrize("kind", ["down", "silent"])
def test_an_outage_longer_than_the_deadline_ends_the_work_at_the_deadline(kind):
    async def main():
        lease = StrictLease()
        first = Replica("first", lease)
        await asyncio.sleep(0.1)
        second = Replica("second", lease)
        await pass_time(20, [first, second])
        renewed = (datetime.fromisoformat(lease.spec["renewTime"]) - NOON).total_seconds()
        setattr(first.line, kind, True)
        await pass_time(60, [first, second])
        assert first.spans[0][1] - renewed == pytest.approx(10)
        assert 15 - 2.4 <= second.spans[0][0] - renewed <= 15 + 2.4
        setattr(first.line, kind, False)
        await pass_time(60, [first, second])
        assert len(first.spans) == len(second.spans) == 1
        await second.stop()
        await pass_time(3, [first, second])
        assert first.active  # again
        assert lease.spec["leaseTransitions"] == 2
        await first.stop()

    run(main())


def test_one_that_was_alone_leads_again_after_an_outage_without_a_transition():
    async def main():
        lease = StrictLease()
        first = Replica("first", lease)
        await asyncio.sleep(5)
        first.line.down = True
        await asyncio.sleep(60)
        assert not first.elector.leads
        first.line.down = False
        await asyncio.sleep(3)
        assert first.elector.leads
        assert len(first.spans) == 2
        assert lease.spec["leaseTransitions"] == 0
        assert lease.spec["acquireTime"] == "2026-03-04T12:00:00.000000Z"
        await first.stop()

    run(main())


def test_nothing_is_contended_for_while_the_work_still_ends():
    async def main():
        lease = StrictLease()
        first = Replica("first", lease, ends_in=100)
        await asyncio.sleep(5)
        first.line.down = True
        await asyncio.sleep(20)
        first.line.down = False
        writes = lease.writes
        await asyncio.sleep(60)
        assert first.active
        assert not first.elector.leads
        assert lease.writes == writes
        await asyncio.sleep(60)
        assert len(first.spans) == 2
        await first.stop()

    run(main())


def test_when_all_was_stopped_it_does_not_lead_from_the_first_moment_on():
    async def main():
        lease = StrictLease()
        first = Replica("first", lease)
        await asyncio.sleep(5)
        assert first.elector.leads
        jump(10)
        assert not first.elector.leads
        await asyncio.sleep(0.1)
        assert len(first.spans[0]) == 2
        await asyncio.sleep(3)
        assert first.active  # nobody else has taken it
        await first.stop()

    run(main())


def test_an_answer_that_comes_after_the_deadline_does_not_make_it_lead():
    async def main():
        lease = StrictLease()
        first = Replica("first", lease)
        await asyncio.sleep(3)
        first.line.takes = lambda: 0.5
        while lease.writes < 3:
            await asyncio.sleep(0.01)
        jump(12)  # the answer is on its way
        for _ in range(10):
            await asyncio.sleep(0)
            assert not first.elector.leads
        await first.stop()

    run(main())


def test_one_who_sees_another_hold_the_lease_stops_at_once(caplog):
    async def main():
        lease = StrictLease()
        first = Replica("first", lease)
        await asyncio.sleep(5)
        lease.replace({**lease.lease, "spec": {**lease.spec, "holderIdentity": "thief"}})
        await asyncio.sleep(2 * 2.4)  # one renewal conflicts, the next one looks
        assert not first.elector.leads
        assert not first.active
        assert lease.spec["holderIdentity"] == "thief"
        await first.stop()
        assert lease.spec["holderIdentity"] == "thief"

    run(main())


def test_a_conflict_with_an_own_write_whose_answer_was_lost_costs_nothing():
    async def main():
        lease = StrictLease()
        first = Replica("first", lease)
        await asyncio.sleep(3)
        first.line.forgets = True
        await asyncio.sleep(3)
        first.line.forgets = False
        await asyncio.sleep(60)
        assert len(first.spans) == 1
        assert first.active
        await first.stop()

    run(main())


def test_what_others_write_into_the_metadata_does_not_end_leadership():
    async def main():
        lease = StrictLease()
        first = Replica("first", lease)
        for _ in range(20):
            await asyncio.sleep(5)
            lease.version += 1
            lease.lease["metadata"] |= {"resourceVersion": str(lease.version), "labels": {"a": "b"}}
        assert len(first.spans) == 1
        assert first.active
        assert lease.lease["metadata"]["labels"] == {"a": "b"}
        await first.stop()

    run(main())


def test_of_two_who_write_at_the_same_time_one_loses_its_turn():
    async def main():
        lease = StrictLease()
        replicas = [Replica(name, lease) for name in ("first", "second", "third")]
        for replica in replicas:
            replica.line.takes = lambda: 0.25
        await pass_time(60, replicas)
        assert sorted(len(replica.spans) for replica in replicas) == [0, 0, 1]
        for replica in replicas:
            await replica.stop()

    run(main())


def test_a_lease_that_is_deleted_is_made_anew_by_its_leader_first():
    async def main():
        lease = StrictLease()
        first = Replica("first", lease)
        await asyncio.sleep(0.1)
        second = Replica("second", lease)
        await pass_time(20, [first, second])
        lease.delete()
        await pass_time(60, [first, second])
        assert len(first.spans) == 1
        assert first.active
        assert second.spans == []
        lease.delete()
        await first.crash()
        lease.delete()
        await pass_time(20, [first, second])
        assert second.active
        await second.stop()

    run(main())


@pytest.mark.parametrize("skew", [timedelta(days=-400), timedelta(hours=-1), timedelta(hours=1), timedelta(days=400)])
def test_clocks_that_disagree_change_nothing(skew):
    async def main():
        lease = StrictLease()
        first = Replica("first", lease)
        await asyncio.sleep(0.1)
        second = Replica("second", lease, skew=skew)
        await pass_time(60, [first, second])
        assert second.spans == []
        await first.crash()
        await pass_time(20, [first, second])
        assert second.active
        await second.stop()

    run(main())


def test_a_time_of_day_that_stands_still_changes_nothing():
    async def main():
        lease = StrictLease()
        first = Replica("first", lease)
        first.elector._calendar = lambda: NOON
        await asyncio.sleep(0.1)
        second = Replica("second", lease)
        await pass_time(120, [first, second])
        assert len(first.spans) == 1
        assert second.spans == []
        await first.stop()
        await second.stop()

    run(main())


def test_what_ends_by_itself_is_begun_again():
    async def main():
        times = []

        async def lead() -> None:
            times.append(now())

        elector = LeaderElector(Line(StrictLease()), "first", clock=now)
        task = asyncio.create_task(elector.run(lead))
        await asyncio.sleep(20)
        task.cancel()
        assert 8 <= len(times) <= 11

    run(main())


def test_others_wait_no_less_than_the_leader_counts_on():
    async def main():
        lease, written = StrictLease(), []

        async def lead() -> None:
            written.append(lease.spec["leaseDurationSeconds"])
            await asyncio.Event().wait()

        task = asyncio.create_task(LeaderElector(Line(lease), "first", Terms(2.4, 1.6, 0.3), clock=now).run(lead))
        await asyncio.sleep(1)
        task.cancel()
        assert written == [3]

    run(main())


def test_a_write_has_until_another_one_may_lead_and_the_fuse_burns_as_long():
    class Seen(list):
        def light(self, seconds: float) -> None:
            self.append(seconds)

        def put_out(self) -> None:
            self.append(None)

    async def main():
        line, fuse = Line(StrictLease()), Seen()
        elector = LeaderElector(line, "first", clock=now, fuse=fuse)
        with pytest.raises(NotLeadingError), elector.acting():
            pass
        task = asyncio.create_task(elector.run(asyncio.Event().wait))
        await asyncio.sleep(0.5)
        assert fuse == []
        line.down = True
        with elector.acting() as seconds:
            assert fuse == [seconds]
            assert 14 < now() + seconds <= 15.5
        assert fuse == [seconds, None]
        await asyncio.sleep(seconds - 4)  # it could not be renewed
        with pytest.raises(NotLeadingError), elector.acting():
            pass
        assert len(fuse) % 2 == 0
        assert fuse[-1] is None
        task.cancel()

    run(main())


def test_an_error_of_what_it_leads_ends_it_and_gives_the_lease_up():
    async def main():
        lease = StrictLease()

        async def lead() -> None:
            await asyncio.sleep(30)
            raise RuntimeError("a bug")

        elector = LeaderElector(Line(lease), "first", clock=now)
        with pytest.raises(RuntimeError, match="a bug"):
            await elector.run(lead)
        assert now() == pytest.approx(30)
        assert not elector.leads
        assert lease.spec["holderIdentity"] == ""

    run(main())


def test_an_error_while_it_stops_is_logged_and_it_goes_on(caplog):
    async def main():
        lease, begun = StrictLease(), []
        line = Line(lease)

        async def lead() -> None:
            begun.append(now())
            try:
                await asyncio.sleep(1000)
            finally:
                raise RuntimeError("a bug")

        task = asyncio.create_task(LeaderElector(line, "first", clock=now).run(lead))
        await asyncio.sleep(3)
        line.down = True
        await asyncio.sleep(20)
        line.down = False
        await asyncio.sleep(5)
        assert len(begun) == 2
        assert "an error after it was told to stop" in caplog.text
        task.cancel()
        with pytest.raises(asyncio.CancelledError):
            await task
        assert lease.spec["holderIdentity"] == ""

    run(main())


def test_one_that_is_told_to_stop_twice_still_waits_for_its_work_to_end():
    async def main():
        lease = StrictLease()
        first = Replica("first", lease, ends_in=20)
        await asyncio.sleep(3)
        first.task.cancel()
        await asyncio.sleep(5)
        assert first.active
        first.task.cancel()  # its work may end sooner for that
        await asyncio.gather(first.task, return_exceptions=True)
        assert first.task.cancelled()
        assert not first.active
        assert not first.elector.leads
        assert lease.spec["holderIdentity"] == ""

    run(main())


@pytest.mark.parametrize("terms", [(15, 15, 2), (15, 10, 9), (15, 10, 0), (10, 15, 2)])
def test_terms_that_promise_nothing_are_refused(terms):
    with pytest.raises(ValueError, match="lease must be longer than renew"):
        Terms(*terms)


@pytest.mark.parametrize("stops", [False, True])  # whether all of it is stopped for a while now and then
@pytest.mark.parametrize("seed", range(40))
def test_never_do_two_lead_whatever_happens(seed, stops, caplog):
    caplog.set_level(logging.CRITICAL)
    rng = random.Random(seed)

    async def main():
        lease = StrictLease()
        replicas: list[Replica] = []

        def start() -> Replica:
            skew = timedelta(seconds=rng.uniform(-1e6, 1e6))
            replica = Replica(f"r{len(replicas)}", lease, ends_in=rng.uniform(0, 4), skew=skew, seed=seed)
            replica.line.takes = lambda: rng.choice([0, 0.01, 0.3, rng.expovariate(0.5)])
            replicas.append(replica)
            return replica

        def check() -> None:
            assert sum(replica.elector.leads for replica in replicas) <= 1
            # what was stopped for longer than a lease holds can only begin to end when it goes on
            assert stops or sum(replica.active for replica in replicas) <= 1

        running = [start() for _ in range(3)]
        end = now() + 400
        while now() < end:
            await asyncio.sleep(0.2)
            check()
            if rng.random() > 0.03:
                continue
            line = rng.choice(running).line
            fate = rng.randrange(6)
            if fate == 0:
                line.down = not line.down
            elif fate == 1:
                line.silent = not line.silent
            elif fate == 2:
                line.forgets = not line.forgets
            elif fate == 3 and stops:
                jump(rng.uniform(0, 20))
                assert sum(replica.elector.leads for replica in replicas) <= 1
            elif fate > 3:
                replica = running.pop(rng.randrange(len(running)))
                replica.line.silent |= fate == 4
                asyncio.get_running_loop().create_task(replica.stop())
                running.append(start())
        for replica in running:
            replica.line.down = replica.line.silent = replica.line.forgets = False
            replica.line.takes = lambda: 0.01
        await pass_time(40, replicas)
        assert sum(replica.active for replica in running) == 1
        await asyncio.gather(*(replica.stop() for replica in replicas))

    run(main())


# over HTTP


class Server(BaseHTTPRequestHandler):
    """Answers as an API server does, of one StrictLease."""

    lease: StrictLease
    asked: list[str]
    waits = 0.0

    def _answer(self, status: int, document: Any) -> None:
        content = json.dumps(document).encode()
        with suppress(BrokenPipeError):  # nobody waits for it any more
            self.send_response(status)
            self.send_header("Content-Type", "application/json")
            self.send_header("Content-Length", str(len(content)))
            self.end_headers()
            self.wfile.write(content)

    def _do(self) -> None:
        self.asked.append(f"{self.command} {self.path}")
        time.sleep(self.waits)
        length = int(self.headers.get("Content-Length") or 0)
        body = json.loads(self.rfile.read(length)) if length else None
        try:
            if self.command == "GET":
                found = self.lease.read()
                self._answer(*((404, {"message": "not found"}) if found is None else (200, found)))
            elif self.command == "POST":
                assert body["metadata"] == {"name": "limbeck", "namespace": "system"}
                self._answer(201, self.lease.create(body["spec"]))
            else:
                self._answer(200, self.lease.replace(body))
        except Conflict:
            self._answer(409, {"message": "conflict"})

    do_GET = do_POST = do_PUT = _do  # noqa: N815 - names that the standard library asks for

    def log_message(self, *_: Any) -> None:
        pass


@pytest.fixture
def server():
    class Mine(Server):
        pass

    Mine.lease, Mine.asked = StrictLease(), []
    listener = ThreadingHTTPServer(("127.0.0.1", 0), Mine)
    thread = threading.Thread(target=listener.serve_forever, kwargs={"poll_interval": 0.01})
    thread.start()
    Mine.port = listener.server_port
    yield Mine
    listener.shutdown()
    thread.join()
    listener.server_close()


def reached(server) -> KubernetesLease:
    client = pytest.importorskip("kubernetes.client")
    settings = client.Configuration()
    settings.host = f"http://127.0.0.1:{server.port}"
    settings.retries = False
    return KubernetesLease(client.ApiClient(settings), "system", "limbeck")


def test_a_lease_is_read_made_and_written_over_http(server):
    async def main():
        lease = reached(server)
        assert await lease.read(5) is None
        spec = {
            "holderIdentity": "first",
            "leaseDurationSeconds": 15,
            "acquireTime": "2026-03-04T12:00:00.000000Z",
            "renewTime": "2026-03-04T12:00:00.000000Z",
            "leaseTransitions": 0,
        }
        made = await lease.create(spec, 5)
        assert made["spec"] == spec
        with pytest.raises(Conflict):
            await lease.create(spec, 5)
        changed = {**made, "spec": {**spec, "leaseTransitions": 1}}
        assert (await lease.replace(changed, 5))["spec"]["leaseTransitions"] == 1
        with pytest.raises(Conflict):
            await lease.replace(changed, 5)
        assert (await lease.read(5)) == server.lease.lease
        place = "/apis/coordination.k8s.io/v1/namespaces/system/leases"
        assert server.asked[:2] == [f"GET {place}/limbeck", f"POST {place}"]
        assert server.asked[3] == f"PUT {place}/limbeck"

    asyncio.run(main())


def test_a_server_that_does_not_answer_is_not_waited_for(server):
    server.waits = 1.0

    async def main():
        lease = reached(server)
        begun = time.monotonic()
        with pytest.raises(Exception, match="timed out"):
            await lease.read(0.2)
        assert time.monotonic() - begun < 0.9

    asyncio.run(main())


def test_electors_hand_over_over_http(server):
    async def main():
        leading = asyncio.Queue[str]()
        tasks = {}
        for name in ("first", "second"):

            async def lead(name: str = name) -> None:
                leading.put_nowait(name)
                await asyncio.Event().wait()

            elector = LeaderElector(reached(server), name, Terms(1.0, 0.6, 0.05))
            tasks[name] = asyncio.create_task(elector.run(lead))
        async with asyncio.timeout(20):
            now_leads = await leading.get()
            tasks[now_leads].cancel()
            other = await leading.get()
        assert {now_leads, other} == set(tasks)
        assert server.lease.spec["holderIdentity"] == other
        tasks[other].cancel()
        await asyncio.gather(*tasks.values(), return_exceptions=True)
        assert server.lease.spec["holderIdentity"] == ""
        assert server.lease.spec["leaseTransitions"] == 1

    asyncio.run(main())
