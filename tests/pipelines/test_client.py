# ruff: noqa: F811 -- a fixture that is imported is an argument too
"""Submitting and scheduling, against a stand-in that speaks Kubeflow's API and is strict about it."""

from __future__ import annotations

import re
import socket
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import yaml

from limbeck.errors import InputError
from limbeck.kubeflow import Access
from limbeck.specfile import read_spec
from limbeck_pipelines import client as client_module
from limbeck_pipelines.client import six_fields
from tests.pipelines.kubeflow import Kubeflow, Refused, checked, state, task
from tests.pipelines.specs import SPECS
from tests.stages.command import limbeck  # noqa: F401 - a fixture


@pytest.fixture
def kubeflow() -> Iterator[Kubeflow]:
    server = Kubeflow()
    yield server
    server.close()


@pytest.fixture(autouse=True)
def quick(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setattr(client_module, "_FIRST_PAUSE", 0.01)
    monkeypatch.setattr(client_module.Kubeflow.wait, "__kwdefaults__", {"timeout": None, "every": 0.05})
    monkeypatch.setenv("HOME", str(tmp_path))  # where the client looks for settings
    for name in ("HOST", "NAMESPACE", "TOKEN", "TOKEN_FILE", "COOKIES", "IAP_CLIENT", "CA_FILE"):
        monkeypatch.delenv(f"KUBEFLOW_{name}", raising=False)


@pytest.fixture
def photos(tmp_path: Path) -> Path:
    file = tmp_path / "photos.yaml"
    head: dict[str, Any] = {
        "apiVersion": "limbeck.dev/v1alpha1",
        "kind": "Distillation",
        "metadata": {"name": "photos"},
    }
    file.write_text(yaml.safe_dump({**head, "spec": SPECS["cpu"]}))
    return file


def test_a_run_is_submitted_and_its_link_printed(limbeck, kubeflow, photos):
    outcome = limbeck(
        "pipeline", "submit", photos, "--host", kubeflow.host, "--run-name", "first", "--service-account", "runner"
    )
    assert outcome.code == 0, outcome.err
    (run,) = kubeflow.runs.values()
    assert outcome.out == f"{kubeflow.host}/#/runs/details/{run['run_id']}\n"
    assert (run["display_name"], run["service_account"]) == ("first", "runner")
    (experiment,) = kubeflow.experiments.values()
    assert (experiment["display_name"], run["experiment_id"]) == ("limbeck", experiment["experiment_id"])
    (pipeline,) = kubeflow.pipelines.values()
    assert pipeline["display_name"] == "limbeck-photos"


def test_equal_specs_are_one_version_and_another_spec_is_another(limbeck, kubeflow, photos):
    for overrides in ([], [], ["--set", "distill.iterations=7"]):
        assert limbeck("pipeline", "submit", photos, "--host", kubeflow.host, *overrides).code == 0
    assert len(kubeflow.pipelines) == 1
    assert len(kubeflow.experiments) == 1
    versions = [run["pipeline_version_reference"]["pipeline_version_id"] for run in kubeflow.runs.values()]
    assert versions[0] == versions[1] != versions[2]


def test_a_namespace_has_pipelines_and_experiments_of_its_own(limbeck, kubeflow, photos):
    for _ in range(2):
        for space in ("team", "other"):
            done = limbeck("pipeline", "submit", photos, "--host", kubeflow.host, "--namespace", space)
            assert done.code == 0, done.err
    assert sorted(entry["namespace"] for entry in kubeflow.pipelines.values()) == ["other", "team"]
    assert sorted(entry["namespace"] for entry in kubeflow.experiments.values()) == ["other", "team"]


def test_waiting_tells_what_tasks_do_and_ends_with_the_run(limbeck, kubeflow, photos):
    kubeflow.script = [
        state("PENDING"),
        state("RUNNING", task("ingest", "RUNNING"), task("ingest-driver", "RUNNING", "p")),
        state("RUNNING", task("ingest", "SUCCEEDED"), task("teacher", "RUNNING")),
        state("SUCCEEDED", task("ingest", "SUCCEEDED"), task("teacher", "SUCCEEDED")),
    ]
    outcome = limbeck("pipeline", "submit", photos, "--host", kubeflow.host, "--wait")
    assert outcome.code == 0, outcome.err
    said = [" ".join(line.split()) for line in outcome.err.splitlines()]
    assert said == ["ingest running", "ingest succeeded", "teacher running", "teacher succeeded"]


LOG = """I1124 05:00:00.1 1 launcher.go:1] starting
teacher                        3.1 s     200 MiB  (ab12cd34)
limbeck failed: teacher: spec.teacher.checkpoint: no room
I1124 05:00:09.1 1 launcher.go:9] failed to execute component: exit status 2
"""


@pytest.mark.parametrize(
    ("last", "phrase"),
    [
        (
            state("FAILED", task("ingest", "SUCCEEDED"), task("teacher", "FAILED", "pod-7")),
            "failed: teacher: spec.teacher.checkpoint: no room",
        ),
        (state("FAILED", task("teacher", "FAILED", "pod-that-is-gone")), "failed: task teacher, whose log says why, "),
        (state("FAILED", task("teacher", "FAILED", "pod-of-another-image")), "failed: task teacher, whose log says wh"),
        ({**state("FAILED"), "error": {"code": 3, "message": "no such image"}}, "failed: no such image"),
        (state("CANCELED"), "canceled"),
    ],
)
def test_a_run_that_fails_says_why(limbeck, kubeflow, photos, last, phrase):
    kubeflow.logs = {"pod-7": LOG, "pod-of-another-image": "exec format error\n"}
    kubeflow.script = [state("RUNNING"), last]
    outcome = limbeck("pipeline", "submit", photos, "--host", kubeflow.host, "--wait", "--token", "hidden")
    assert outcome.code == 1
    assert phrase in outcome.problems[-1]
    assert "/#/runs/details/" in outcome.problems[-1]
    assert {headers.get("authorization") for headers in kubeflow.headers} == {"Bearer hidden"}


def test_a_run_is_watched_through_a_restart_of_kubeflow(limbeck, kubeflow, photos):
    kubeflow.script = [state("RUNNING"), state("SUCCEEDED")]
    looks = [lambda method, path: 503 if "/runs/" in path else None]
    kubeflow.fails = looks * 12  # more than one round of tries
    outcome = limbeck("pipeline", "submit", photos, "--host", kubeflow.host, "--wait")
    assert outcome.code == 0, outcome.err
    assert outcome.err.count("asked again for 15 minutes") == 1


@pytest.mark.parametrize(
    ("patience", "status", "phrase"), [(0.0, 503, "answers 503"), (900.0, 401, "who is asking (401)")]
)
def test_a_watch_that_is_given_up_names_the_run(limbeck, kubeflow, photos, monkeypatch, patience, status, phrase):
    monkeypatch.setattr(client_module, "_PATIENCE", patience)
    kubeflow.fails = [lambda method, path: status if "/runs/" in path else None] * 20
    outcome = limbeck("pipeline", "submit", photos, "--host", kubeflow.host, "--wait")
    assert outcome.code == 1
    assert re.search(rf"/#/runs/details/id-\d+ is no longer watched, and may go on: .*{re.escape(phrase)}", outcome.err)


def test_a_server_that_takes_a_request_and_never_answers_is_given_up(limbeck, kubeflow, photos, monkeypatch):
    monkeypatch.setattr(client_module, "_TIMEOUTS", (1.0, 0.2))
    kubeflow.slow = 1.0
    outcome = limbeck("pipeline", "schedules", "--host", kubeflow.host)
    assert outcome.code == 1
    assert f"Kubeflow at {kubeflow.host} does not answer" in outcome.problems[-1]


@pytest.mark.parametrize("command", [["submit", "photos.yaml"], ["schedules"], ["pause", "photos"]])
def test_a_login_page_is_not_taken_for_kubeflow(limbeck, kubeflow, photos, monkeypatch, command):
    monkeypatch.chdir(photos.parent)
    kubeflow.login_page = True
    outcome = limbeck("pipeline", *command, "--host", kubeflow.host)
    assert outcome.code == 2
    assert "something answers that is not Kubeflow, a login page say; other credentials" in outcome.problems[-1]


def test_a_proxy_of_google_s_without_credentials_of_google_s(limbeck, kubeflow, photos, monkeypatch, tmp_path):
    monkeypatch.setenv("GOOGLE_APPLICATION_CREDENTIALS", str(tmp_path / "none.json"))
    outcome = limbeck("pipeline", "submit", photos, "--host", kubeflow.host, "--iap-client", "an-id")
    assert outcome.code == 2
    assert "--iap-client: " in outcome.problems[-1]
    assert outcome.problems[-1].endswith("GOOGLE_APPLICATION_CREDENTIALS, a service account's")
    assert "Traceback" not in outcome.err


def test_a_run_that_takes_too_long_goes_on_without_us(limbeck, kubeflow, photos):
    kubeflow.script = [state("RUNNING")] * 1000
    outcome = limbeck("pipeline", "submit", photos, "--host", kubeflow.host, "--wait", "--timeout", "0.3")
    assert outcome.code == 1
    assert "still running after 0.3 s" in outcome.problems[-1]


@pytest.mark.parametrize(
    ("status", "code", "phrase"),
    [
        (401, 2, "does not know who is asking (401); --token"),
        (403, 2, "not allowed (403): injected 403; other credentials"),
        (404, 2, "not there (404)"),
        (400, 2, "injected 400"),
        (500, 1, "answers 500: injected 500"),
    ],
)
def test_what_kubeflow_refuses_is_one_line(limbeck, kubeflow, photos, status, code, phrase):
    kubeflow.fails = [status] * 50
    outcome = limbeck("pipeline", "submit", photos, "--host", kubeflow.host)
    assert outcome.code == code
    assert phrase in outcome.problems[-1]
    assert kubeflow.host in outcome.problems[-1]
    assert "Traceback" not in outcome.err
    assert not kubeflow.runs


def test_answers_of_a_server_in_trouble_are_asked_for_again(limbeck, kubeflow, photos):
    kubeflow.fails = [503, 502, 500]
    kubeflow.script = [state("RUNNING"), state("SUCCEEDED")]
    outcome = limbeck("pipeline", "submit", photos, "--host", kubeflow.host, "--wait")
    assert outcome.code == 0, outcome.err
    assert len(kubeflow.runs) == 1


def test_a_run_whose_start_was_not_answered_is_not_started_twice(limbeck, kubeflow, photos):
    kubeflow.fails = [lambda method, path: 500 if (method, path) == ("POST", "/apis/v2beta1/runs") else None]
    outcome = limbeck("pipeline", "submit", photos, "--host", kubeflow.host)
    assert outcome.code == 1
    assert kubeflow.asked.count(("POST", "/apis/v2beta1/runs")) == 1


def test_a_name_that_somebody_has_taken_meanwhile_is_used(limbeck, kubeflow, photos):
    """Kubeflow answers 409 to the second of two uploads; by then the first can be found."""

    def both(method: str, path: str) -> int | None:
        if path != "/apis/v2beta1/pipelines/upload":
            return None
        entry = {"pipeline_id": "theirs", "display_name": "limbeck-photos", "name": "limbeck-photos"}
        kubeflow.pipelines["theirs"] = entry
        return 409

    kubeflow.fails = [both]
    assert limbeck("pipeline", "submit", photos, "--host", kubeflow.host).code == 0
    (run,) = kubeflow.runs.values()
    assert run["pipeline_version_reference"]["pipeline_id"] == "theirs"


def test_a_host_where_nobody_listens(limbeck, photos):
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        host = f"http://127.0.0.1:{free.getsockname()[1]}"
    outcome = limbeck("pipeline", "submit", photos, "--host", host)
    assert outcome.code == 1
    assert f"Kubeflow at {host} does not answer" in outcome.problems[-1]


def test_a_spec_with_folders_of_this_machine_is_refused_before_anything(limbeck, kubeflow, photos):
    outcome = limbeck("pipeline", "submit", photos, "--host", kubeflow.host, "--set", "output.uri=out")
    assert outcome.code == 2
    assert "spec.output.uri: out is on this machine" in outcome.problems[-1]
    assert not kubeflow.pipelines


@pytest.mark.parametrize(
    ("flags", "header", "value"),
    [
        (["--token", "hidden"], "authorization", "Bearer hidden"),
        (["--token-file", "TOKEN"], "authorization", "Bearer of-the-file"),
        (["--cookies", "authservice_session=hidden"], "cookie", "authservice_session=hidden"),
    ],
)
def test_credentials_of_each_kind_go_with_every_request(limbeck, kubeflow, photos, tmp_path, flags, header, value):
    (tmp_path / "token").write_text("of-the-file\n")
    flags = [str(tmp_path / "token") if flag == "TOKEN" else flag for flag in flags]
    outcome = limbeck("pipeline", "submit", photos, "--host", kubeflow.host, *flags)
    assert outcome.code == 0, outcome.err
    assert {headers.get(header) for headers in kubeflow.headers} == {value}
    assert "hidden" not in outcome.out + outcome.err


def test_credentials_come_from_the_environment_too(limbeck, kubeflow, photos, monkeypatch):
    monkeypatch.setenv("KUBEFLOW_HOST", kubeflow.host)
    monkeypatch.setenv("KUBEFLOW_TOKEN", "hidden")
    assert limbeck("pipeline", "submit", photos).code == 0
    assert {headers.get("authorization") for headers in kubeflow.headers} == {"Bearer hidden"}


def test_two_ways_to_say_who_is_asking_are_refused(limbeck, kubeflow, photos):
    outcome = limbeck("pipeline", "submit", photos, "--host", kubeflow.host, "--token", "a", "--cookies", "b")
    assert outcome.code == 2
    assert "--token and --cookies are given" in outcome.problems[-1]


def test_a_schedule_is_made_replaced_listed_paused_resumed_and_deleted(limbeck, kubeflow, photos):
    def ask(*arguments: Any) -> Any:
        outcome = limbeck("pipeline", *arguments, "--host", kubeflow.host)
        assert outcome.code == 0, outcome.err
        return outcome.out

    shown = ask("schedule", photos, "--cron", "0 3 * * 1", "--time-zone", "Europe/Berlin")
    assert "limbeck-photos scheduled" in shown
    assert len(re.findall("03:00 CES?T", shown)) == 3
    (first,) = kubeflow.recurring.values()
    assert first["trigger"]["cron_schedule"]["cron"] == "0 0 3 * * 1"
    assert (int(first["max_concurrency"]), first["no_catchup"], first["mode"]) == (1, True, "ENABLE")
    assert "limbeck-photos  0 0 3 * * 1  enabled" in ask("schedules")
    ask("pause", "photos")
    assert "paused" in ask("schedules")
    assert "paused; would run" in ask("schedule", photos, "--cron", "30 4 * * *", "--set", "distill.iterations=7")
    (second,) = kubeflow.recurring.values()
    assert second["recurring_run_id"] != first["recurring_run_id"]
    assert second["trigger"]["cron_schedule"]["cron"] == "0 30 4 * * *"
    assert second["mode"] == "DISABLE"  # a pause outlives a change
    assert second["pipeline_version_reference"] != first["pipeline_version_reference"]
    ask("resume", "photos")
    assert "enabled" in ask("schedules")
    ask("unschedule", "limbeck-photos")
    assert ask("schedules") == ""


def test_a_schedule_that_could_not_be_replaced_is_still_there(limbeck, kubeflow, photos):
    assert limbeck("pipeline", "schedule", photos, "--host", kubeflow.host, "--cron", "0 3 * * *").code == 0
    kubeflow.fails = [lambda method, path: 500 if (method, path[-14:]) == ("POST", "/recurringruns") else None]
    assert limbeck("pipeline", "schedule", photos, "--host", kubeflow.host, "--cron", "0 4 * * *").code == 1
    (kept,) = kubeflow.recurring.values()
    assert kept["trigger"]["cron_schedule"]["cron"] == "0 0 3 * * *"


def test_many_schedules_are_all_found(limbeck, kubeflow, photos, monkeypatch):
    monkeypatch.setattr(client_module, "_PAGE", 2)
    for number in range(5):
        entry = {"recurring_run_id": f"r{number}", "display_name": f"limbeck-{number}", "status": "ENABLED"}
        kubeflow.recurring[f"r{number}"] = {**entry, "trigger": {"cron_schedule": {"cron": "0 0 3 * * *"}}}
    assert len(limbeck("pipeline", "schedules", "--host", kubeflow.host).out.splitlines()) == 5


def test_a_name_that_is_not_scheduled(limbeck, kubeflow):
    outcome = limbeck("pipeline", "pause", "nothing", "--host", kubeflow.host)
    assert outcome.code == 2
    assert "nothing: no such schedule" in outcome.problems[-1]


@pytest.mark.parametrize("cron", ["", "0 3 * *", "61 * * * *", "0 3 * * * * *", "*/5 0 3 * * *", "nonsense"])
def test_what_is_no_cron_expression_is_refused(cron):
    with pytest.raises(InputError, match="--cron"):
        six_fields(cron)


def test_seconds_are_put_before_the_five_fields():
    assert six_fields("0 3 * * 1") == "0 0 3 * * 1"
    assert six_fields("30 0 3 * * 1") == "30 0 3 * * 1"


def test_the_stand_in_is_strict(kubeflow):
    checked({"display_name": "a", "runtime_config": {"parameters": {}}}, "V2beta1Run")
    for document in ({"nmae": "a"}, {"runtime_config": {"paramters": {}}}):
        with pytest.raises(Refused, match="unknown field"):
            checked(document, "V2beta1Run")


def test_without_the_extra_all_else_works_and_a_pipeline_says_what_to_install(photos):
    """As after `pip install limbeck`: a process that cannot import what the extra brings."""
    code = """
import sys
sys.modules.update(dict.fromkeys(("kfp", "kfp_server_api", "kubernetes", "cronsim")))  # None: it cannot be imported
from limbeck.cli import main
main()
"""
    for arguments, exit_code, phrase in (
        (["validate", "--offline", photos], 0, "valid"),
        (["pipeline", "--help"], 0, "submit"),
        (["pipeline", "compile", photos, "-o", "x.yaml"], 2, "pip install 'limbeck[kubeflow]'"),
        (["pipeline", "submit", photos, "--host", "http://h"], 2, "pip install 'limbeck[kubeflow]'"),
    ):
        done = subprocess.run([sys.executable, "-c", code, *map(str, arguments)], capture_output=True, text=True)
        assert done.returncode == exit_code, done.stderr
        assert phrase in done.stdout + done.stderr
        assert "Traceback" not in done.stderr


@pytest.fixture
def client(kubeflow: Kubeflow) -> client_module.Kubeflow:
    return client_module.Kubeflow(Access(kubeflow.host), attempts=1)


def submitted(client: client_module.Kubeflow, photos: Path, name: str) -> str:
    return client.submit(read_spec(photos).distillation, experiment="limbeck", run_name=name)


def test_a_run_is_found_by_its_name_with_what_its_tasks_do(client, kubeflow, photos):
    assert client.named("one") is None
    first = submitted(client, photos, "one")
    submitted(client, photos, "other")
    kubeflow.runs[first] |= state("RUNNING", task("ingest", "SUCCEEDED"), task("teacher", "RUNNING"))
    found = client.named("one")
    assert (found.id, found.name, found.state, found.is_done) == (first, "one", "RUNNING", False)
    assert found.link == client.link(first)
    assert [(entry.name, entry.state) for entry in found.tasks] == [("ingest", "SUCCEEDED"), ("teacher", "RUNNING")]


def test_of_two_runs_of_one_name_the_first_is_meant_and_the_other_ended(client, kubeflow, photos):
    first, second = submitted(client, photos, "one"), submitted(client, photos, "one")
    assert client.named("one").id == first
    assert kubeflow.runs[second]["state"] == "CANCELING"
    assert "state" not in kubeflow.runs[first]


def test_what_came_of_a_run_is_in_the_log_of_its_last_task(client, kubeflow, photos):
    run = submitted(client, photos, "one")
    kubeflow.runs[run] |= state("SUCCEEDED", task("register", "SUCCEEDED", "pod-1"), task("outcome", "SUCCEEDED", "p2"))
    assert client.named("one").said == ""  # no log is there
    kubeflow.logs["pod-1"] = 'registering\nlimbeck outcome: {"digest": "d"}\n'
    assert client.named("one").said == '{"digest": "d"}'


def test_a_run_is_terminated(client, kubeflow, photos):
    run = submitted(client, photos, "one")
    client.terminate(run)
    assert client.named("one").state == "CANCELING"


def test_nothing_is_submitted_that_is_prevented_at_the_last_moment(client, kubeflow, photos):
    def prevented() -> None:
        raise PermissionError

    with pytest.raises(PermissionError):
        client.submit(read_spec(photos).distillation, experiment="limbeck", run_name="one", before=prevented)
    assert kubeflow.runs == {}


def test_an_installation_tells_whether_it_serves_several(client, kubeflow):
    assert not client.serves_several
    kubeflow.multi_user = True
    assert client.serves_several
