"""What happens to the operator, and to what it stands on, at any moment: nothing is made twice, nothing forgotten."""

from __future__ import annotations

import random
import signal
import sys
import threading
import time
from collections import defaultdict
from collections.abc import Iterator
from contextlib import contextmanager

from kubernetes import client

from limbeck_operator import api
from tests.cluster.kubelet import play, succeed, until
from tests.cluster.operating import OUTCOME, Objects
from tests.soak import times

KILLS = times(20, 50)
SHORT_LEASE = ("--lease-seconds", "1")  # so that a new process need not wait long for the one that was killed


class Nodes(threading.Thread):
    """Plays the kubelets of a namespace, and keeps the uids that each name has had.

    Jobs called good- succeed, retry- fail once before, bad- fail for good.
    """

    def __init__(self, objects: Objects) -> None:
        super().__init__(daemon=True)
        self._objects, self._over = objects, threading.Event()
        self._played: set[str] = set()
        self.uids: defaultdict[str, set[str]] = defaultdict(set)

    def run(self) -> None:
        while not self._over.wait(0.2):
            try:
                self._look()
            except (client.ApiException, OSError) as error:
                sys.stderr.write(f"nodes: {error}\n")

    def stop(self) -> None:
        self._over.set()
        self.join()

    def _look(self) -> None:
        objects = self._objects
        for job in client.BatchV1Api(objects.admin).list_namespaced_job(objects.namespace, _request_timeout=10).items:
            self.uids[f"Job {job.metadata.name}"].add(job.metadata.uid)
        for entry in objects.all():
            self.uids[f"Distillation {entry['metadata']['name']}"].add(entry["metadata"]["uid"])
        pods = client.CoreV1Api(objects.admin).list_namespaced_pod(objects.namespace, _request_timeout=10).items
        for pod in pods:
            name = pod.metadata.name
            if name in self._played:
                continue
            job = pod.metadata.labels["batch.kubernetes.io/job-name"]
            first = sum(p.metadata.labels["batch.kubernetes.io/job-name"] == job for p in pods) == 1
            if job.startswith("bad"):
                play(objects.admin, objects.namespace, name, "Failed", exit_code=2, message="no such bucket")
            elif job.startswith("retry") and first:
                play(objects.admin, objects.namespace, name, "Failed", exit_code=1, message="out of memory")
            else:
                succeed(objects.admin, objects.namespace, name, OUTCOME)
            self._played.add(name)


@contextmanager
def nodes(objects: Objects) -> Iterator[Nodes]:
    found = Nodes(objects)
    found.start()
    try:
        yield found
    finally:
        found.stop()


def ended(objects: Objects) -> dict[str, str]:
    """How each Distillation has ended."""
    found = {}
    for entry in objects.all():
        for condition in (entry.get("status") or {}).get("conditions") or []:
            if condition["type"] in ("Complete", "Failed") and condition["status"] == "True":
                found[entry["metadata"]["name"]] = condition["reason"]
    return found


def test_killed_again_and_again_it_makes_nothing_twice_and_forgets_nothing(objects, start):
    chance = random.Random(9)
    expected = {}
    policy = {"concurrencyPolicy": "Allow", "onlyIfSourceChanged": False, "successfulRunsHistoryLimit": 100}
    with nodes(objects) as played:
        objects.schedule("good", "* * * * *", **policy)
        for kill in range(KILLS):
            replica = start(*SHORT_LEASE)
            if kill % 2 == 0:
                name, expected_reason = chance.choice(
                    [("good", "Complete"), ("retry", "Complete"), ("bad", "InvalidInput")]
                )
                objects.create(f"{name}-{kill}", {"backoffLimit": 3})
                expected[f"{name}-{kill}"] = expected_reason
            if kill % 10 == 5:
                objects.patch("good", {"metadata": {"annotations": {api.TRIGGER: f"t{kill}"}}}, api.SCHEDULES)
                until_triggered = kill
            time.sleep(chance.uniform(0.5, 6.0))
            replica.stop(signal.SIGKILL)
        start()  # with more patience than a second, which a busy machine takes now and then
        until(lambda: expected.items() <= ended(objects).items(), "all ended as they were played", 180)
        until(lambda: len(ended(objects)) == len(objects.all()), "those of the schedule ended, too", 180)
        triggered = [e for e in objects.all() if api.TRIGGERED_BY in (e["metadata"].get("annotations") or {})]
        values = [entry["metadata"]["annotations"][api.TRIGGERED_BY] for entry in triggered]
        assert len(values) == len(set(values))
        assert f"t{until_triggered}" in values
    twice = {name: uids for name, uids in played.uids.items() if len(uids) != 1}
    assert not twice
    due = sorted(
        entry["metadata"]["annotations"][api.SCHEDULED_AT]
        for entry in objects.all()
        if api.SCHEDULED_AT in (entry["metadata"].get("annotations") or {})
    )
    assert len(due) == len(set(due)) >= KILLS // 20
    assert set(ended(objects).values()) == {"Complete", "InvalidInput"}


def test_it_outlives_the_api_server_and_etcd(objects, start, control_plane):
    replica = start()
    objects.create("before")
    until(lambda: objects.job("before"), "a Job")
    control_plane.pause_etcd()
    try:
        time.sleep(30)
        assert replica.process.poll() is None
        assert not replica.leads()
    finally:
        control_plane.resume_etcd()
    until(lambda: objects.create("between") or True, "the API server", 90)
    until(lambda: objects.job("between"), "a Job after etcd's pause", 60)
    control_plane.restart_apiserver()
    until(lambda: objects.create("after") or True, "the API server", 90)
    until(lambda: objects.job("after"), "a Job after the API server's restart", 60)
    succeed(objects.admin, objects.namespace, objects.pod("after"), OUTCOME)
    until(lambda: objects.condition("after", "Complete") == ("True", "Complete"), "completion", 60)
    assert replica.process.poll() is None
    assert replica.get("healthz")[0] == 200
