"""The pure reconcile of a schedule: each time once, whatever happens between."""

from __future__ import annotations

import itertools
import json
from datetime import UTC, datetime, timedelta
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

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

    def check(self, fingerprint: str, **found: Any) -> None:
        self.check_ends("Complete", 0, json.dumps({"sourceFingerprint": fingerprint} | found))

    def check_ends(self, how: str, code: int, message: str) -> None:
        """The check that was made last ends so."""
        condition = {"type": how, "status": "True", "lastTransitionTime": timestamp(self.now)}
        self.jobs[-1] = self.jobs[-1] | {"status": {"conditions": [condition]}}
        ended = {"terminated": {"exitCode": code, "message": message}}
        pod = {"metadata": {"name": "p"}, "status": {"containerStatuses": [{"name": "limbeck", "state": ended}]}}
        self.pods = {self.jobs[-1]["metadata"]["name"]: [pod]}

    def end_all(self) -> None:
        self.children = [child | {"status": child["status"] or complete(self.now)} for child in self.children]

    def running(self) -> list[dict[str, Any]]:
        return [child for child in self.children if not child["status"]]

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


def test_a_trigger_of_any_length_runs_once_and_its_status_has_room_for_it():
    world = World(schedule(annotations={api.TRIGGER: "x" * 300}, successfulRunsHistoryLimit=0))
    assert len(world.step(MADE + MINUTE).create) == 1
    api.ScheduledDistillationStatus.model_validate(world.status)
    world.end(complete(world.now))
    world.step()
    assert world.children == []
    assert world.step().create == []
    world.document["metadata"]["annotations"][api.TRIGGER] = "x" * 301
    assert len(world.step().create) == 1


def test_however_many_still_run_a_skip_can_be_written():
    world = World(schedule(concurrencyPolicy="Allow"))
    world.document["metadata"]["name"] = "n" * 52
    for hour in range(1, 30):
        world.step(MADE + hour * HOUR)
    world.document["spec"]["concurrencyPolicy"] = "Forbid"
    world.step(MADE + 30 * HOUR)
    assert world.status["lastSkip"]["reason"] == "StillRunning"
    api.ScheduledDistillationStatus.model_validate(world.status)


@pytest.mark.parametrize(
    ("template", "said"),
    [
        ({"labels": {"team": "a b"}}, "spec.template.labels.team"),
        ({"labels": {"-": "a"}}, "spec.template.labels"),
        ({"annotations": {"A/B/c": ""}}, "spec.template.annotations"),
    ],
)
def test_marks_that_the_api_server_would_refuse_are_told_before_anything_is_due(template, said):
    world = World(schedule())
    world.document["spec"]["template"] |= template
    world.step(MADE + MINUTE)
    (condition,) = world.status["conditions"]
    assert condition["reason"] == "InvalidSpec"
    assert condition["message"].startswith(said)
    good = {"labels": {"example.com/team": "a.b_C-1", "none": ""}, "annotations": {"note": "any text, at all"}}
    world.document["spec"]["template"] |= {"annotations": {}} | good
    world.step(MADE + 2 * MINUTE)
    assert world.status["conditions"][0]["status"] == "True"


def test_what_kubeflow_would_not_take_is_told_by_the_schedule():
    execution = {"backend": "kubeflow", "resources": {"teacher": {"memory": "1.5Gi"}}}
    world = World(schedule(template={"execution": execution}))
    assert world.step(MADE + HOUR).create == []
    assert "for Kubeflow" in world.status["conditions"][0]["message"]


# ---- starting from the champion

CHAMPION = {"model": "digits", "version": 3, "champion": True}


def warm(status: dict[str, Any] | None = None, annotations: dict[str, str] | None = None, **spec: Any) -> dict:
    template = {"registry": {"name": "digits"}, "distill": {"size": 10}}
    return schedule(status, annotations, warmStart="champion", template=template, **spec)


def kinds(plan: Plan) -> list[str]:
    return [manifest["kind"] for manifest in plan.create]


def start(plan: Plan) -> str | None:
    """What the one Distillation of a plan starts from."""
    (manifest,) = plan.create
    assert manifest["kind"] == api.DISTILLATION
    return manifest["spec"]["distill"].get("warmStart")


def arguments(check: dict[str, Any]) -> list[str]:
    return check["spec"]["template"]["spec"]["containers"][0]["args"]


@pytest.mark.parametrize("only_if_changed", [True, False])
def test_the_first_time_asks_for_a_champion_and_starts_from_it_by_its_version(only_if_changed):
    world = World(warm(onlyIfSourceChanged=only_if_changed))
    (check,) = world.step(MADE + HOUR).create
    assert (check["kind"], arguments(check)[-1]) == ("Job", "--champion")
    assert world.step(MADE + HOUR + MINUTE).create == []
    world.check("f", **CHAMPION)
    plan = world.step()
    assert start(plan) == "models:/digits/3"
    assert "which starts from models:/digits/3" in plan.events[-1].message
    assert world.status["lastScheduleTime"] == timestamp(MADE + HOUR)
    assert world.step().create == []
    assert (world.jobs, len(world.children)) == ([], 1)


@pytest.mark.parametrize(
    "found",
    [
        {},
        {"model": "other", "version": 3, "champion": True},
        {"model": "digits", "version": 0, "champion": True},
        {"model": "digits", "version": 3, "champion": False},
        {"model": "digits", "champion": True},
    ],
)
def test_without_a_champion_that_fits_it_starts_from_real_images(found):
    world = World(warm())
    world.step(MADE + HOUR)
    world.check("f", **found)
    plan = world.step()
    assert start(plan) is None
    assert [event.reason for event in plan.events] == ["Created"]
    assert "which starts from real images: digits has no champion that fits" in plan.events[0].message


@pytest.mark.parametrize(
    ("how", "code", "message", "said"),
    [
        ("Failed", 1, "note: x\nspec.registry.name: MLflow at http://m: refused\n", "MLflow at http://m: refused"),
        ("Failed", 137, "", "see Job n-"),
        ("Complete", 0, "not JSON", "has left no outcome"),
        ("Complete", 0, "", "has left no outcome"),
    ],
)
def test_a_check_that_fails_costs_the_warm_start_and_is_told(how, code, message, said):
    world = World(warm())
    world.step(MADE + HOUR)
    world.check_ends(how, code, message)
    plan = world.step()
    assert start(plan) is None
    assert [(event.reason, event.type) for event in plan.events] == [("CheckFailed", "Warning"), ("Created", "Normal")]
    assert said in plan.events[0].message
    assert plan.events[1].message.endswith("which starts from real images")
    world.step()
    assert world.jobs == []


def test_a_new_champion_alone_is_no_change():
    world = World(warm())
    world.step(MADE + HOUR)
    world.check("f", **CHAMPION)
    world.step()
    world.end(complete(MADE + HOUR + MINUTE))
    world.step()
    assert kinds(world.step(MADE + 2 * HOUR)) == ["Job"]
    world.check("f", **CHAMPION | {"version": 4})
    assert world.step().create == []
    assert world.status["lastSkip"]["reason"] == "Unchanged"
    world.step()
    assert kinds(world.step(MADE + 3 * HOUR)) == ["Job"]
    world.check("other", **CHAMPION | {"version": 4})
    assert start(world.step()) == "models:/digits/4"


def test_the_digest_of_the_settings_does_not_know_of_the_champion():
    contents = set()
    for version in (3, 4):
        world = World(warm())
        world.step(MADE + HOUR)
        world.check("f", **CHAMPION | {"version": version})
        (child,) = world.step().create
        contents.add(child["metadata"]["annotations"][api.CONTENT])
    assert len(contents) == 1


@pytest.mark.parametrize("suspend", [True, False])
def test_a_trigger_asks_for_the_champion_in_a_check_of_its_own(suspend):
    world = World(warm(annotations={api.TRIGGER: "a"}, suspend=suspend))
    (check,) = world.step(MADE + MINUTE).create
    assert check["metadata"]["annotations"][api.TRIGGERED_BY] == "a"
    assert "lastTrigger" not in world.status
    plan = world.step()
    assert plan.create == []
    assert plan.again is not None
    assert plan.again <= world.now + MINUTE
    world.check("f", **CHAMPION)
    assert start(world.step()) == "models:/digits/3"
    assert world.status["lastTrigger"] == "a"
    assert check["metadata"]["name"] == f"{world.children[0]['metadata']['name']}-check"
    assert world.step().create == []
    assert world.jobs == []


def test_a_trigger_that_waits_for_its_turn_asks_for_the_champion_when_it_comes():
    world = World(warm(annotations={api.TRIGGER: "a"}))
    world.step(MADE + HOUR)  # a check for the trigger, and one for the time
    assert len(world.jobs) == 2
    world.jobs.reverse()
    world.check("f", **CHAMPION)  # the trigger's
    assert start(world.step()) == "models:/digits/3"
    assert world.step().create == []
    assert world.status["lastSkip"]["reason"] == "StillRunning"
    world.document["metadata"]["annotations"][api.TRIGGER] = "b"
    assert world.step().create == []
    world.end(complete(world.now))
    assert kinds(world.step()) == ["Job"]
    world.children[-1]["status"] = {}  # as if another one had begun meanwhile
    assert world.step().create == []
    assert world.jobs == []
    world.end(complete(world.now))
    assert kinds(world.step()) == ["Job"]
    world.check("f", **CHAMPION | {"version": 9})
    assert start(world.step()) == "models:/digits/9"


def test_a_trigger_and_a_time_together_make_one_where_two_are_forbidden():
    world = World(warm(annotations={api.TRIGGER: "a"}))
    world.step(MADE + HOUR)
    for _ in range(2):
        world.check("f", **CHAMPION)
        world.jobs.reverse()
    done = world.pods
    world.pods = {job["metadata"]["name"]: next(iter(done.values())) for job in world.jobs}
    plan = world.step()
    assert start(plan) == "models:/digits/3"
    assert plan.again == world.now
    assert world.step().create == []
    assert world.status["lastSkip"]["reason"] == "StillRunning"
    world.step()
    assert (len(world.children), world.jobs) == (1, [])


def test_another_trigger_takes_the_place_of_one_that_is_still_checked():
    world = World(warm(annotations={api.TRIGGER: "a"}))
    (first,) = names(world.step(MADE + MINUTE))
    world.document["metadata"]["annotations"][api.TRIGGER] = "b"
    (second,) = names(world.step())
    assert first != second
    assert [job["metadata"]["name"] for job in world.jobs] == [second]
    del world.document["metadata"]["annotations"][api.TRIGGER]
    world.step()
    assert (world.jobs, world.children) == ([], [])


def test_a_check_that_was_deleted_by_hand_is_made_again():
    world = World(warm())
    (check,) = names(world.step(MADE + HOUR))
    world.jobs[-1]["metadata"]["deletionTimestamp"] = timestamp(world.now)
    world.check("f", **CHAMPION)
    assert world.step().create == []  # while it goes, its word counts no more
    world.jobs = []
    assert names(world.step()) == [check]


def test_an_operator_that_is_killed_after_any_write_makes_nothing_twice():
    world = World(warm(annotations={api.TRIGGER: "a"}, concurrencyPolicy="Allow"))
    made: list[str] = []

    def killed_once() -> None:
        """The plan is carried out, but for its status."""
        before = world.document
        made.extend(names(world.step()))
        world.document = before

    world.now = MADE + HOUR
    for _ in range(6):
        killed_once()
        made.extend(names(world.step()))
        for job in list(world.jobs):
            world.jobs.remove(job)
            world.jobs.append(job)
            pods = world.pods
            world.check("f", **CHAMPION)
            world.pods = pods | world.pods
    assert len(made) == len(set(made)) == 4
    assert len(world.children) == 2
    assert {child["spec"]["distill"]["warmStart"] for child in world.children} == {"models:/digits/3"}
    assert world.jobs == []


@pytest.mark.parametrize(
    "edit",
    [
        {"template": {"spec": {"distill": {"size": 20}}}},
        {"template": {"spec": {"tracking": {"uri": "http://other"}}}},
        {"template": {"spec": {"execution": {"image": "mended"}}}},
    ],
)
def test_a_check_of_other_settings_counts_no_more(edit):
    world = World(warm())
    (check,) = names(world.step(MADE + HOUR))
    world.check("f", **CHAMPION)
    world.document["spec"]["template"]["spec"] |= edit["template"]["spec"]
    assert [entry.name for entry in world.step().delete] == [check]
    assert names(world.step()) == [check]
    world.check("f", **CHAMPION | {"version": 5})
    assert start(world.step()) == "models:/digits/5"


def test_a_schedule_that_is_edited_or_suspended_while_a_check_runs_drops_it():
    for edit in ({"schedule": "30 * * * *"}, {"suspend": True}):
        world = World(warm())
        world.step(MADE + HOUR)
        world.document["spec"] |= edit
        assert len(world.step().delete) == 1
        assert (world.jobs, world.step().create) == ([], [])
        world.document["spec"]["suspend"] = False
        assert kinds(world.step(MADE + 3 * HOUR)) == ["Job"] * ("schedule" in edit)


def test_a_warm_start_that_is_given_up_while_a_check_runs_is_not_waited_for():
    world = World(warm(annotations={api.TRIGGER: "a"}))
    world.step(MADE + MINUTE)
    world.document["spec"]["warmStart"] = "never"
    assert start(world.step()) is None
    world.step()
    assert world.jobs == []


@pytest.mark.parametrize(("policy", "deleted"), [("Forbid", 0), ("Allow", 0), ("Replace", 1)])
def test_what_runs_is_replaced_when_the_check_is_done_and_not_before(policy, deleted):
    world = World(warm(concurrencyPolicy=policy))
    world.step(MADE + HOUR)
    world.check("f", **CHAMPION)
    world.step()
    plan = world.step(MADE + 2 * HOUR)
    assert [entry.kind for entry in plan.delete] == ["Job"]  # the first time's
    assert kinds(plan) == ([] if policy == "Forbid" else ["Job"])
    if policy == "Forbid":
        assert world.status["lastSkip"]["reason"] == "StillRunning"
        return
    world.check("f", **CHAMPION | {"version": 4})
    plan = world.step()
    assert start(plan) == "models:/digits/4"
    assert len(plan.delete) == deleted


def test_a_check_that_was_begun_in_time_does_not_make_its_time_too_late():
    world = World(warm(startingDeadlineSeconds=30))
    world.step(MADE + HOUR)
    world.step(MADE + HOUR + 10 * MINUTE)
    assert len(world.jobs) == 1
    world.check("f", **CHAMPION)
    assert start(world.step(MADE + HOUR + 10 * MINUTE + timedelta(seconds=20))) == "models:/digits/3"
    world.end(complete(world.now))
    world.step()
    world.step(MADE + 2 * HOUR)
    world.check("other", **CHAMPION)
    assert world.step(MADE + 2 * HOUR + 10 * MINUTE).create == []  # the operator was away
    assert world.status["lastSkip"]["reason"] == "TooLate"
    world.step()
    assert world.jobs == []


@pytest.mark.parametrize("marks", [{}, {api.TRIGGER: "a"}])
def test_the_longest_name_has_room_for_a_check(marks):
    world = World(warm(annotations=marks, suspend=bool(marks)))
    world.document["metadata"]["name"] = "n" * 52
    found = names(world.step(MADE + HOUR))
    world.check("f", **CHAMPION)
    found += names(world.step())
    assert len(found) == 2
    assert max(len(name) for name in found) <= 63


@settings(max_examples=300, deadline=None)
@given(
    policy=st.sampled_from(["Forbid", "Allow", "Replace"]),
    steps=st.lists(
        st.sampled_from(
            [
                "hour",
                "minute",
                "minute",
                "check",
                "check",
                "fail",
                "lose",
                "trigger",
                "end",
                "suspend",
                "edit",
                "killed",
            ]
        ),
        max_size=40,
    ),
)
def test_whatever_happens_each_time_and_trigger_is_one_at_most_and_no_check_is_left(policy, steps):
    world = World(warm(annotations={}, concurrencyPolicy=policy))
    world.now = MADE + MINUTE
    pods: dict[str, list[dict[str, Any]]] = {}
    created: list[str] = []
    for number, step in enumerate([*steps, "resume"]):
        before = world.document
        match step:
            case "hour" | "minute":
                world.now += HOUR if step == "hour" else MINUTE
            case "check" | "fail" if world.jobs:
                if step == "check":
                    world.check(f"f{number}", **CHAMPION | {"version": number + 1})
                else:
                    world.check_ends("Failed", 1, "no")
                pods |= world.pods
                world.jobs.insert(0, world.jobs.pop())
            case "lose":
                world.jobs = world.jobs[1:]
            case "trigger":
                world.document["metadata"]["annotations"][api.TRIGGER] = str(number)
            case "end" if world.children:
                world.children = [
                    child | {"status": child["status"] or complete(world.now)} for child in world.children
                ]
            case "suspend" | "resume":
                world.document["spec"]["suspend"] = step == "suspend"
            case "edit":
                world.document["spec"]["template"]["spec"]["seed"] = number
        world.pods = pods
        running = len(world.running())
        plan = world.step()
        created += [m["metadata"]["name"] for m in plan.create if m["kind"] == api.DISTILLATION]
        if step == "killed":
            world.document = before
        if policy != "Allow":
            assert len(world.running()) <= max(1, running)
        for manifest in plan.create:
            if manifest["kind"] == api.DISTILLATION:
                assert manifest["spec"]["distill"].get("warmStart", "models:/digits/1").startswith("models:/digits/")
    assert len(created) == len(set(created))
    for _ in range(8):  # everything ends well, and nothing is left
        for _ in list(world.jobs):
            world.check("f", **CHAMPION)
            pods |= world.pods
            world.jobs.insert(0, world.jobs.pop())
        world.pods = pods
        world.step()
        world.end_all()
    assert world.jobs == []
    assert world.document["metadata"]["annotations"].get(api.TRIGGER) == world.status.get("lastTrigger")
    assert world.step().status is None


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
