"""The pure reconcile of a schedule: each time once, whatever happens between."""

from __future__ import annotations

import itertools
import json
from datetime import UTC, datetime, timedelta
from typing import Any

import pytest

from limbeck_operator import api
from limbeck_operator.conditions import instant, timestamp
from limbeck_operator.plan import Delete, Plan
from limbeck_operator.schedule import ObservedSchedule, reconcile_schedule

MADE = datetime(2026, 11, 24, 0, 0, tzinfo=UTC)
HOUR, MINUTE = timedelta(hours=1), timedelta(minutes=1)
RESULT = {"digest": "d", "sourceFingerprint": "f", "model": "digits", "version": 1}


def schedule(status: dict[str, Any] | None = None, annotations: dict[str, str] | None = None, **spec: Any) -> dict:
    template = {"source": {"uri": "gs://b/in"}, "output": {"uri": "gs://b/out"}} | spec.pop("template", {})
    metadata = {"name": "n", "namespace": "ns", "uid": "s1", "generation": 1, "creationTimestamp": timestamp(MADE)}
    return {
        "apiVersion": api.API_VERSION,
        "kind": api.SCHEDULE,
        "metadata": metadata | {"annotations": annotations or {}},
        "spec": {"schedule": "0 * * * *", "template": {"spec": template}} | spec,
    } | ({"status": status} if status else {})


def made(manifest: dict[str, Any], at: datetime, **status: Any) -> dict[str, Any]:
    metadata = manifest["metadata"] | {"uid": manifest["metadata"]["name"], "creationTimestamp": timestamp(at)}
    return manifest | {"metadata": metadata, "status": status}


def complete(at: datetime) -> dict[str, Any]:
    return {
        "conditions": [{"type": "Complete", "status": "True"}],
        "completionTime": timestamp(at),
        "result": RESULT,
    }


def failed(at: datetime) -> dict[str, Any]:
    return {"conditions": [{"type": "Failed", "status": "True"}], "completionTime": timestamp(at)}


def names(plan: Plan) -> list[str]:
    return [manifest["metadata"]["name"] for manifest in plan.create]


def at(plan: Plan) -> list[str]:
    return [manifest["metadata"]["annotations"][api.SCHEDULED_AT] for manifest in plan.create]


class World:
    """A schedule, what it has made, and the time."""

    def __init__(self, document: dict[str, Any]) -> None:
        self.document = document
        self.now = MADE
        self.children: list[dict[str, Any]] = []
        self.jobs: list[dict[str, Any]] = []
        self.pods: dict[str, list[dict[str, Any]]] = {}

    def step(self, now: datetime | None = None) -> Plan:
        self.now = now or self.now
        seen = ObservedSchedule(self.document, self.children, self.jobs, self.pods)
        plan = reconcile_schedule(seen, self.now)
        gone = {entry.name for entry in plan.delete}
        self.children = [entry for entry in self.children if entry["metadata"]["name"] not in gone]
        self.jobs = [entry for entry in self.jobs if entry["metadata"]["name"] not in gone]
        for manifest in plan.create:
            (self.jobs if manifest["kind"] == "Job" else self.children).append(made(manifest, self.now))
        if plan.status is not None:
            self.document = self.document | {"status": plan.status}
        return plan

    def end(self, status: dict[str, Any]) -> None:
        self.children[-1] = self.children[-1] | {"status": status}

    def check(self, fingerprint: str) -> None:
        message = json.dumps({"sourceFingerprint": fingerprint})
        self.jobs[-1] = self.jobs[-1] | {"status": {"conditions": [{"type": "Complete", "status": "True"}]}}
        ended = {"terminated": {"exitCode": 0, "message": message}}
        pod = {"metadata": {"name": "p"}, "status": {"containerStatuses": [{"name": "limbeck", "state": ended}]}}
        self.pods = {self.jobs[-1]["metadata"]["name"]: [pod]}

    @property
    def status(self) -> dict[str, Any]:
        return self.document["status"]


def test_it_waits_for_its_time_and_then_makes_one():
    world = World(schedule())
    plan = world.step(MADE + MINUTE)
    assert (plan.create, plan.again) == ([], MADE + HOUR)
    assert world.status["nextScheduleTime"] == timestamp(MADE + HOUR)
    plan = world.step(MADE + HOUR)
    assert names(plan) == [f"n-{int((MADE + HOUR).timestamp()) // 60}"]
    (manifest,) = plan.create
    assert manifest["metadata"]["ownerReferences"][0]["uid"] == "s1"
    assert world.status["lastScheduleTime"] == timestamp(MADE + HOUR)
    assert world.step().create == []
    assert [entry["name"] for entry in world.status["active"]] == names(plan)


def test_a_plan_that_is_carried_out_twice_makes_nothing_twice():
    world = World(schedule())
    before = world.document
    plan = world.step(MADE + HOUR)
    world.document = before  # the status was not written
    assert names(reconcile_schedule(ObservedSchedule(before), world.now)) == names(plan)
    assert world.step().create == []
    assert world.status["lastScheduleTime"] == timestamp(MADE + HOUR)


def test_what_was_missed_is_counted_and_the_latest_made():
    world = World(schedule())
    plan = world.step(MADE + 5 * HOUR + MINUTE)
    assert at(plan) == [timestamp(MADE + 5 * HOUR)]
    assert world.status["missed"] == 4
    assert [event.reason for event in plan.events] == ["MissedSchedule", "Created"]
    world.step()
    assert world.status["missed"] == 4


@pytest.mark.parametrize(("late", "number"), [(20, 1), (40, 0)])
def test_the_starting_deadline(late, number):
    world = World(schedule(startingDeadlineSeconds=30))
    plan = world.step(MADE + HOUR + timedelta(seconds=late))
    assert len(plan.create) == number
    assert world.status.get("missed", 0) == 1 - number
    assert world.step().create == []
    assert world.status["lastScheduleTime"] == timestamp(MADE + HOUR)


@pytest.mark.parametrize(("policy", "created", "deleted"), [("Forbid", 0, 0), ("Allow", 1, 0), ("Replace", 1, 1)])
def test_concurrency(policy, created, deleted):
    world = World(schedule(concurrencyPolicy=policy))
    first = names(world.step(MADE + HOUR))[0]
    plan = world.step(MADE + 2 * HOUR)
    assert (len(plan.create), len(plan.delete)) == (created, deleted)
    if policy == "Forbid":
        assert world.status["lastSkip"]["reason"] == "StillRunning"
        world.end(complete(world.now))
        assert world.step(MADE + 2 * HOUR + MINUTE).create == []  # it is left out, not put off
    if policy == "Replace":
        assert plan.delete == [Delete(api.DISTILLATION, first, first)]


@pytest.mark.parametrize(("fingerprint", "created"), [("f", 0), ("other", 1)])
def test_only_if_the_source_has_changed(fingerprint, created):
    world = World(schedule())
    world.step(MADE + HOUR)
    world.end(complete(MADE + HOUR + MINUTE))
    world.step()
    plan = world.step(MADE + 2 * HOUR)
    (check,) = plan.create
    assert (check["kind"], check["metadata"]["name"][-6:]) == ("Job", "-check")
    assert world.step(MADE + 2 * HOUR + MINUTE).create == []
    world.check(fingerprint)
    plan = world.step(MADE + 2 * HOUR + 2 * MINUTE)
    assert len(plan.create) == created
    assert world.status["lastScheduleTime"] == timestamp(MADE + 2 * HOUR)
    if not created:
        assert world.status["lastSkip"]["reason"] == "Unchanged"
        assert [event.reason for event in plan.events] == ["Skipped"]
    world.step()
    assert world.jobs == []


def test_a_check_that_fails_does_not_hide_a_change():
    world = World(schedule())
    world.step(MADE + HOUR)
    world.end(complete(MADE + HOUR + MINUTE))
    world.step(MADE + 2 * HOUR)
    world.jobs[-1] = world.jobs[-1] | {"status": {"conditions": [{"type": "Failed", "status": "True"}]}}
    plan = world.step()
    assert [event.reason for event in plan.events] == ["CheckFailed", "Created"]


def test_other_settings_are_a_change_and_need_no_look_at_the_source():
    world = World(schedule())
    world.step(MADE + HOUR)
    world.end(complete(MADE + HOUR + MINUTE))
    world.step()
    world.document["spec"]["template"]["spec"]["seed"] = 1
    assert [manifest["kind"] for manifest in world.step(MADE + 2 * HOUR).create] == [api.DISTILLATION]


def test_history_limits():
    world = World(schedule(onlyIfSourceChanged=False, successfulRunsHistoryLimit=2, failedRunsHistoryLimit=1))
    for hour in range(1, 10):
        world.step(MADE + hour * HOUR)
        world.end((complete if hour % 2 else failed)(world.now + MINUTE))
    world.step()
    world.step()
    kinds = [entry["status"]["conditions"][0]["type"] for entry in world.children]
    assert sorted(kinds) == ["Complete", "Complete", "Failed"]
    assert world.status["lastDone"]["completionTime"] == timestamp(MADE + 9 * HOUR + MINUTE)


def test_suspended_times_are_not_made_up_for():
    world = World(schedule(suspend=True))
    assert world.step(MADE + 3 * HOUR).create == []
    assert world.step(MADE + 4 * HOUR).status is None
    world.document["spec"]["suspend"] = False
    assert world.step(MADE + 4 * HOUR + MINUTE).create == []
    assert len(world.step(MADE + 5 * HOUR).create) == 1
    assert "missed" not in world.status


def test_an_edited_schedule_takes_effect_at_once():
    world = World(schedule(schedule="0 0 1 * *"))
    world.step(MADE + HOUR)
    world.document["spec"]["schedule"] = "*/10 * * * *"
    plan = world.step(MADE + HOUR + MINUTE)
    assert (plan.create, plan.again) == ([], MADE + HOUR + 10 * MINUTE)
    assert len(world.step(MADE + HOUR + 10 * MINUTE).create) == 1


@pytest.mark.parametrize("wrong", [{"timeZone": "Mars/Base"}, {"schedule": "0 0 31 2 *"}, {"schedule": "61 * * * *"}])
def test_an_invalid_one_recovers_when_it_is_mended(wrong):
    right = schedule()
    world = World(schedule(**wrong))
    plan = world.step(MADE + 3 * HOUR)
    assert world.status["conditions"][0]["reason"] == "InvalidSpec"
    assert plan.again is None
    world.document = right | {"status": world.status}
    assert world.step(MADE + 4 * HOUR + MINUTE).create == []
    assert world.status["conditions"][0]["status"] == "True"
    assert len(world.step(MADE + 5 * HOUR).create) == 1


def test_a_trigger_runs_once():
    world = World(schedule(annotations={api.TRIGGER: "a"}))
    plan = world.step(MADE + MINUTE)
    assert len(plan.create) == 1
    assert world.status["lastTrigger"] == "a"
    assert world.step().create == []
    world.document["metadata"]["annotations"][api.TRIGGER] = "b"
    assert world.step().create == []  # one still runs, and two at once are forbidden
    world.end(complete(world.now))
    assert len(world.step().create) == 1
    assert len(world.children) == 2


def test_a_trigger_works_while_suspended_and_does_not_ask_the_source():
    world = World(schedule(annotations={api.TRIGGER: "a"}, suspend=True))
    assert [manifest["kind"] for manifest in world.step(MADE + MINUTE).create] == [api.DISTILLATION]


def test_a_warm_start_is_refused_until_it_can_be_had():
    template = {"registry": {"name": "digits"}, "distill": {"size": 10}}
    world = World(schedule(warmStart="champion", template=template))
    assert world.step(MADE + HOUR).create == []
    assert "spec.warmStart" in world.status["conditions"][0]["message"]


@pytest.mark.parametrize("zone", ["Europe/Berlin", "America/New_York", "Australia/Lord_Howe"])
def test_every_day_of_years_is_dealt_with_once(zone):
    """Half past two exists twice on one day of the year, and not on another."""
    world = World(schedule(schedule="30 2 * * *", timeZone=zone, onlyIfSourceChanged=False))
    times: list[str] = []
    world.now = MADE
    plan = world.step()
    for _ in range(3 * 365):
        assert plan.again is not None
        plan = world.step(plan.again)
        times += at(plan)
        world.end(complete(world.now))
        plan = world.step()
    days = [instant(text) for text in times]
    assert len(days) == len(set(times)) == 3 * 365
    assert all(
        timedelta(hours=22) < later - earlier < timedelta(hours=26) for earlier, later in itertools.pairwise(days)
    )


def test_it_settles():
    world = World(schedule())
    world.step(MADE + HOUR)
    world.step()
    plan = world.step()
    assert (plan.status, plan.events, plan.create, plan.delete) == (None, [], [], [])
