"""Whole runs on a real server: what is there to be browsed, resumed runs, servers that go, and credentials."""

from __future__ import annotations

import base64
import json
import subprocess
import sys
import threading
import time
import uuid
from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from http.server import BaseHTTPRequestHandler, HTTPServer, SimpleHTTPRequestHandler
from pathlib import Path
from typing import Any

import psutil
import pytest

from limbeck.errors import WorkError
from limbeck.interrupt import Stopped
from limbeck.progress import Bar
from limbeck.runs import read_history
from limbeck.store import Store, json_digest
from limbeck.tracking import outbox
from limbeck.tracking.journal import Began, Document, Event, Journal, Point, Points, key_of
from limbeck.tracking.process import SenderProcess
from limbeck.tracking.recorder import Recording
from tests.stages.tiny import AT_EVERY_CHANCE, Lines, StopAt, distillation, workshop, write_tiny
from tests.tracking.conftest import MlflowServer
from tests.tracking.tracked import copy_of, run_tracked, stage_tracked

STAGES = ["ingest source", "ingest digits/train", "ingest digits/test", "teacher", "targets", "trajectories", "select"]
STAGES += ["distill", "evaluate", "register"]


@pytest.fixture
def experiment() -> str:
    return f"runs-{uuid.uuid4().hex[:8]}"


def runs_in(server: MlflowServer, experiment: str) -> tuple[Any, dict[str, Any]]:
    """The one parent, and its nested runs by name."""
    found = server.client.search_runs([server.client.get_experiment_by_name(experiment).experiment_id])
    (parent,) = [run for run in found if "mlflow.parentRunId" not in run.data.tags]
    children = [run for run in found if run.data.tags.get("mlflow.parentRunId") == parent.info.run_id]
    assert len(children) == len(found) - 1
    names = Counter(run.info.run_name for run in children)
    assert set(names.values()) <= {1}, names
    return parent, {run.info.run_name: run for run in children}


def steps(server: MlflowServer, run: Any, metric: str) -> list[int]:
    return sorted(entry.step for entry in server.client.get_metric_history(run.info.run_id, metric))


def test_everything_of_a_run_is_there(server, tmp_path, experiment):
    changes = {"tracking.experiment": experiment, "registry.name": experiment, "tracking.systemMetrics": True}
    summary = run_tracked(tmp_path / "out", server.uri, changes)
    assert summary.registered is not None
    assert summary.registered.champion
    parent, stages = runs_in(server, experiment)
    assert list(stages)[::-1] == STAGES
    assert all(run.info.status == "FINISHED" for run in [parent, *stages.values()])
    place = f"experiments/{parent.info.experiment_id}/runs/{parent.info.run_id}"
    assert summary.links["mlflow"] == f"{server.uri}/#/{place}?workflowType=machine_learning"

    assert parent.data.params["distill.innerSteps"] == "3"
    assert json.loads(parent.data.params["evaluate.tasks"])[0]["name"] == "digits"
    for tag in ("spec_digest", "source_fingerprint", "version", "host", "output"):
        assert parent.data.tags[f"limbeck.{tag}"]
    assert parent.data.tags["limbeck.source_fingerprint"] == summary.source.fingerprint

    history = read_history(tmp_path / "out" / "distill" / summary.stages[7].key)
    logged = server.client.get_metric_history(stages["distill"].info.run_id, "matching_loss")
    assert {e.step: e.value for e in logged} == dict(enumerate(history["matchingLoss"].to_pylist()))
    assert len(logged) == 8
    assert steps(server, stages["distill"], "learning_rate") == list(range(8))
    assert steps(server, stages["teacher"], "teacher_loss") == [0]
    assert steps(server, stages["trajectories"], "expert_loss") == [0, 1, 2]
    for name in ("seconds", "peak_memory_mib"):
        assert all(name in run.data.metrics for run in stages.values())
    for name in ("teacher", "distill", "trajectories"):
        assert stages[name].data.metrics["images_per_second"] > 0
    version = server.client.get_model_version_by_alias(experiment, "champion")
    model = server.client.get_logged_model(version.source.removeprefix("models:/"))
    for accuracy in summary.accuracies:
        metric = f"accuracy/digits/{accuracy.architecture}/{accuracy.method}/0.1"
        assert parent.data.metrics[metric] == pytest.approx(accuracy.mean)
        (linked,) = [entry for entry in model.metrics if entry.key == metric]
        assert (linked.dataset_name, linked.run_id) == ("test digits", parent.info.run_id)

    inputs = {(i.dataset.name, tag.value): i.dataset for i in parent.inputs.dataset_inputs for tag in i.tags}
    expected = {("source", "real"), ("train digits", "evaluation"), ("test digits", "evaluation")}
    assert inputs.keys() == expected | {("distilled set", "synthetic")}
    real = inputs["source", "real"]
    assert json.loads(real.source) == {"uri": "sklearn:digits#train"}
    assert summary.source.fingerprint.endswith(real.digest) or real.digest in summary.source.fingerprint
    assert json.loads(real.profile) == {"num_rows": 200}

    documents = {entry.path for entry in server.client.list_artifacts(parent.info.run_id)}
    assert {"report.html", "summary.json", "spec.yaml"} <= documents
    pictures = [e.path for e in server.client.list_artifacts(stages["distill"].info.run_id, "images")]
    shown = sorted({int(path.split("+step+")[1].split("+")[0]) for path in pictures})
    assert shown == list(range(9))
    assert len(pictures) == 2 * 9
    assert list((tmp_path / "out" / "work" / "tracking").rglob("*.jsonl")) == []


def test_a_resumed_run_continues_with_no_duplicate_steps(server, tmp_path, experiment):
    changes = {"tracking.experiment": experiment, "distill.iterations": 12, **AT_EVERY_CHANCE}
    for title, count in (("teacher", 1), ("distill", 5), ("distill", 3)):
        progress = StopAt(title, count)
        with pytest.raises(Stopped):
            run_tracked(tmp_path / "out", server.uri, changes, progress, progress.stop)
        assert runs_in(server, experiment)[0].info.status == "KILLED"
    first = runs_in(server, experiment)[0].info.run_id
    run_tracked(tmp_path / "out", server.uri, changes)
    run_tracked(tmp_path / "out", server.uri, changes)  # all is there: nothing is added
    parent, stages = runs_in(server, experiment)
    assert parent.info.run_id == first
    assert parent.info.status == "FINISHED"
    assert steps(server, stages["distill"], "matching_loss") == list(range(12))
    assert steps(server, stages["teacher"], "teacher_loss") == [0]
    assert steps(server, stages["distill"], "seconds") == [0]
    pictures = [e.path for e in server.client.list_artifacts(stages["distill"].info.run_id, "images")]
    assert len(pictures) == len({(p.split("+step+")[1].split("+")[0], p.endswith(".webp")) for p in pictures})


def test_what_was_found_done_is_recorded_like_what_was_made(server, tmp_path, experiment, finished):
    run_tracked(copy_of(finished, tmp_path / "out"), server.uri, {"tracking.experiment": experiment})
    _, stages = runs_in(server, experiment)
    assert steps(server, stages["distill"], "matching_loss") == list(range(8))
    assert stages["distill"].data.tags["limbeck.reused"] == "true"


def test_another_spec_is_another_run_and_single_stages_are_of_one(server, tmp_path, experiment, finished):
    output = copy_of(finished, tmp_path / "out")
    for stage in ("ingest", "teacher", "register"):
        stage_tracked(stage, output, server.uri, {"tracking.experiment": experiment})
    _, stages = runs_in(server, experiment)
    assert {"ingest source", "teacher", "register"} <= stages.keys()
    stage_tracked("ingest", output, server.uri, {"tracking.experiment": experiment, "distill.iterations": 9})
    with pytest.raises(ValueError, match="too many values"):
        runs_in(server, experiment)


def test_a_run_that_somebody_has_opened_is_used(server, tmp_path, experiment, finished, monkeypatch):
    """As Kubeflow's plugin does: the run is another experiment's, and its end is not ours to say."""
    output = copy_of(finished, tmp_path / "out")
    theirs = server.client.create_experiment(experiment)
    given = server.client.create_run(theirs).info.run_id
    monkeypatch.setenv("MLFLOW_RUN_ID", given)
    run_tracked(output, server.uri, {"tracking.experiment": f"{experiment}-of-the-spec"})
    parent, stages = runs_in(server, experiment)
    assert parent.info.run_id == given
    assert parent.info.status == "RUNNING"
    assert len(stages) == len(STAGES)
    assert server.client.get_experiment_by_name(f"{experiment}-of-the-spec") is None
    alone = server.client.create_run(theirs, tags={"mlflow.parentRunId": given}).info.run_id
    monkeypatch.setenv("MLFLOW_RUN_ID", alone)
    stage_tracked("teacher", output, server.uri, {"tracking.experiment": experiment})
    run = server.client.get_run(alone)
    assert run.info.status == "RUNNING"
    assert run.data.metrics.keys() >= {"teacher_loss", "seconds"}
    assert {entry.dataset.name for entry in run.inputs.dataset_inputs} == {"source"}
    alone = server.client.create_run(theirs, tags={"mlflow.parentRunId": given}).info.run_id
    monkeypatch.setenv("MLFLOW_RUN_ID", alone)
    stage_tracked("ingest", output, server.uri, {"tracking.experiment": experiment})
    run = server.client.get_run(alone)  # of three datasets
    assert run.data.metrics.keys() >= {"source/seconds", "digits/train/seconds", "digits/test/seconds"}
    assert run.data.params["source/input.source"] != run.data.params["digits/test/input.source"]


def test_a_run_that_is_killed_is_failed_and_goes_on(server, tmp_path, experiment):
    changes = {"tracking": {"uri": server.uri}, "tracking.experiment": experiment, "distill.iterations": 400}
    spec = write_tiny(tmp_path / "tiny.yaml", tmp_path / "out", {**changes, **AT_EVERY_CHANCE})
    command = [sys.executable, "-m", "limbeck.cli", "run", str(spec)]

    def wait_for(condition: Callable[[Any, dict[str, Any]], bool]) -> None:
        deadline = time.monotonic() + 90
        while time.monotonic() < deadline:
            if server.client.get_experiment_by_name(experiment) is not None:
                with suppress(ValueError):  # the parent is not there yet
                    if condition(*runs_in(server, experiment)):
                        return
            time.sleep(0.2)
        raise TimeoutError

    process = subprocess.Popen(command, stderr=subprocess.DEVNULL)
    wait_for(lambda parent, stages: "distill" in stages and "matching_loss" in stages["distill"].data.metrics)
    process.kill()
    process.wait()
    wait_for(lambda parent, stages: parent.info.status == "FAILED")
    assert runs_in(server, experiment)[1]["distill"].info.status == "FAILED"
    assert subprocess.run(command, capture_output=True).returncode == 0
    parent, stages = runs_in(server, experiment)
    assert parent.info.status == "FINISHED"
    assert steps(server, stages["distill"], "matching_loss") == list(range(400))


def test_what_an_address_that_is_no_mlflow_gets_is_kept(tmp_path, finished, monkeypatch):
    monkeypatch.setattr(outbox, "_TROUBLED_SECONDS", 1.0)
    monkeypatch.setattr(outbox, "_LOG_SECONDS", 2.0)
    other = HTTPServer(("127.0.0.1", 0), SimpleHTTPRequestHandler)  # 404 and 501, in HTML
    threading.Thread(target=other.serve_forever, daemon=True).start()
    output, lines = copy_of(finished, tmp_path / "out"), Lines()
    assert run_tracked(output, f"http://127.0.0.1:{other.server_port}", progress=lines).succeeded
    other.shutdown()
    assert any("work goes on meanwhile" in line for line in lines.lines)
    assert len(list(output.rglob("*.jsonl"))) == 1


def test_what_another_version_left_behind_does_not_stand_in_the_way(server, tmp_path, experiment, finished):
    output, lines = copy_of(finished, tmp_path / "out"), Lines()
    folder = output / "work" / "tracking" / json_digest(server.uri)[:16]
    folder.mkdir(parents=True)
    began = Began(
        key="k",
        name="n",
        experiment=experiment,
        run_id="no-such-run",
        stage_alone=False,
        tags={},
        params={},
        system_metrics=False,
    )
    point = Point(name="a", step=0, milliseconds=1, value=1.0)
    events = [began, Points(stage="never begun", points=[point]), Document(name="a.txt", text="a")]
    left = folder / "1-1.jsonl"
    left.write_text('{"event": "of the future"}\n' + "".join(e.model_dump_json() + "\n" for e in events))
    assert run_tracked(output, server.uri, {"tracking.experiment": experiment}, lines).succeeded
    assert not left.exists()
    assert sum("1-1.jsonl cannot be read" in line for line in lines.lines) == 1
    assert sum("no-such-run" in line for line in lines.lines) == 1
    assert runs_in(server, experiment)[0].info.status == "FINISHED"


class _SenderKilled(Lines):
    """Kills the process that talks to MLflow when distilling begins."""

    @contextmanager
    def bar(self, title: str, total: int, unit: str, done: int = 0) -> Iterator[Bar]:
        if title == "distill":
            (sender,) = [p for p in psutil.Process().children() if "limbeck.tracking.sender" in p.cmdline()]
            sender.kill()
            sender.wait(10)
        with super().bar(title, total, unit, done) as bar:
            yield bar


def test_a_sender_that_dies_costs_nothing_and_the_next_command_sends_the_rest(server, tmp_path, experiment):
    progress, changes = _SenderKilled(), {"tracking.experiment": experiment}
    assert run_tracked(tmp_path / "out", server.uri, changes, progress).succeeded
    assert any("not all of this run is in MLflow" in line for line in progress.lines)
    run_tracked(tmp_path / "out", server.uri, changes)
    parent, stages = runs_in(server, experiment)
    assert parent.info.status == "FINISHED"
    assert steps(server, stages["distill"], "matching_loss") == list(range(8))
    assert list(tmp_path.rglob("*.jsonl")) == []


def test_a_disk_that_is_full_stops_the_tracking_and_not_the_work(server, tmp_path, experiment, finished, monkeypatch):
    def full(journal: Journal, event: Event) -> None:
        raise OSError(28, "No space left on device")

    write, lines = Journal.write, Lines()
    monkeypatch.setattr(Journal, "write", lambda j, e: full(j, e) if isinstance(e, Points) else write(j, e))
    assert run_tracked(copy_of(finished, tmp_path / "out"), server.uri, {"tracking.experiment": experiment}, lines)
    assert sum("is not tracked: [Errno 28] No space left" in line for line in lines.lines) == 1


def test_changed_data_of_a_task_is_another_run(tmp_path, monkeypatch):
    monkeypatch.setattr(outbox, "_TROUBLED_SECONDS", 0.0)
    output, nobody = tmp_path / "out", "http://127.0.0.1:9"
    for test in ("one", "two", "one"):
        recording = Recording(SenderProcess(nobody), workshop(output), "limbeck run", stage_alone=False)
        sources = {"dataset": "same", "train:digits": "same", "test:digits": test}
        with recording.run(distillation(output, {"tracking.uri": nobody}), sources):
            pass
    keys = {key_of(path) for path in output.rglob("*.jsonl")}
    assert len(keys) == 2


class _Outage(Lines):
    """Kills the server when distilling begins, and starts it again after a while."""

    def __init__(self, server: MlflowServer, seconds: float) -> None:
        super().__init__()
        self._server, self._seconds = server, seconds
        self.back: threading.Timer | None = None

    @contextmanager
    def bar(self, title: str, total: int, unit: str, done: int = 0) -> Iterator[Bar]:
        if title == "distill":
            self._server.kill()
            self.back = threading.Timer(self._seconds, self._server.start)
            self.back.start()
        with super().bar(title, total, unit, done) as bar:
            yield bar


def test_an_outage_of_thirty_seconds_costs_nothing(tmp_path, experiment):
    """Work goes on, what is measured meanwhile arrives, and registering waits for the server."""
    server = MlflowServer(tmp_path)
    server.start()
    try:
        progress = _Outage(server, 30.0)
        before = time.monotonic()
        summary = run_tracked(
            tmp_path / "out", server.uri, {"tracking.experiment": experiment, "registry.name": experiment}, progress
        )
        assert progress.back is not None
        progress.back.join()
        assert time.monotonic() - before > 30
        assert sum(stage.seconds for stage in summary.stages) < 20  # the work itself did not wait
        assert summary.registered is not None
        assert summary.registered.champion
        said = "\n".join(progress.lines)
        assert "MLflow does not take what it is sent; work goes on meanwhile" in said
        assert "MLflow takes what it is sent again" in said
        parent, stages = runs_in(server, experiment)
        assert parent.info.status == "FINISHED"
        assert steps(server, stages["distill"], "matching_loss") == list(range(8))
        assert list(stages)[::-1] == STAGES
    finally:
        server.kill()


def test_a_server_that_is_gone_does_not_stop_a_run_and_gets_it_later(tmp_path, experiment, finished, monkeypatch):
    monkeypatch.setattr(outbox, "_REGISTER_SECONDS", 4.0)
    monkeypatch.setattr(outbox, "_LOG_SECONDS", 2.0)
    monkeypatch.setattr(outbox, "_TROUBLED_SECONDS", 1.0)
    server, output = MlflowServer(tmp_path), copy_of(finished, tmp_path / "out")
    lines, changes = Lines(), {"tracking.experiment": experiment}
    summary = run_tracked(output, server.uri, changes, lines)
    assert summary.succeeded
    assert any("the rest is kept, and the next command on this output sends it" in line for line in lines.lines)
    with pytest.raises(WorkError, match="was not registered as digits") as failure:
        run_tracked(output, server.uri, {**changes, "registry.name": "digits"})
    assert "limbeck stage register" in str(failure.value)
    assert str(output / "register") in str(failure.value)
    server.start()
    try:
        stage_tracked("register", output, server.uri, {**changes, "registry.name": "digits"})
        assert server.client.get_model_version_by_alias("digits", "champion").version == "1"
        experiment_id = server.client.get_experiment_by_name(experiment).experiment_id
        runs = server.client.search_runs([experiment_id], "tags.mlflow.parentRunId = ''")
        runs = [run for run in server.client.search_runs([experiment_id]) if run.info.run_name == "distill"]
        assert [steps(server, run, "matching_loss") for run in runs] == [list(range(8))] * 2  # of both specs
        assert list(output.rglob("*.jsonl")) == []
    finally:
        server.kill()


@pytest.mark.parametrize("code", [500, 503])
def test_a_server_that_answers_with_errors_does_not_stop_a_run(tmp_path, finished, monkeypatch, code):
    monkeypatch.setattr(outbox, "_TROUBLED_SECONDS", 1.0)
    monkeypatch.setattr(outbox, "_REGISTER_SECONDS", 4.0)
    monkeypatch.setattr(outbox, "_LOG_SECONDS", 2.0)
    asked: list[str] = []

    class Failing(BaseHTTPRequestHandler):
        """Not MLflow, but what stands before one that is down: every answer is an error."""

        def do_POST(self) -> None:
            asked.append(self.path)
            self.send_response(code)
            self.end_headers()
            self.wfile.write(b"<html>upstream is down</html>")

        do_GET = do_POST  # noqa: N815

        def log_message(self, *arguments: object) -> None:
            pass

    failing = HTTPServer(("127.0.0.1", 0), Failing)
    threading.Thread(target=failing.serve_forever, daemon=True).start()
    lines, output = Lines(), copy_of(finished, tmp_path / "out")
    assert run_tracked(output, f"http://127.0.0.1:{failing.server_port}", progress=lines).succeeded
    failing.shutdown()
    assert asked
    assert any(str(code) in line for line in lines.lines)
    assert len(list(output.rglob("*.jsonl"))) == 1


def test_credentials_are_nowhere(server, tmp_path, experiment, finished, monkeypatch):
    """Of the server, in its URI and in MLflow's variables; and those in the spec's own URIs."""
    monkeypatch.setenv("MLFLOW_TRACKING_USERNAME", "ana")
    monkeypatch.setenv("MLFLOW_TRACKING_PASSWORD", "hidden-1")
    output, lines = copy_of(finished, tmp_path / "out"), Lines()
    uri = server.uri.replace("http://", "http://bob:hidden-2@")
    changes = {"tracking.experiment": experiment, "registry.name": experiment, "tracking.uri": uri}
    summary = run_tracked(output, uri, changes, lines)
    parent, stages = runs_in(server, experiment)
    secrets = ["hidden-1", "hidden-2", base64.b64encode(b"ana:hidden-1").decode()]
    texts = [*lines.lines, json.dumps(summary.links)]
    texts += [str(run.to_dictionary()) for run in [parent, *stages.values()]]
    (tmp_path / "downloads").mkdir()
    for run in [parent, *stages.values()]:
        local = server.client.download_artifacts(run.info.run_id, "", str(tmp_path / "downloads"))
        texts += [path.read_text(errors="replace") for path in Path(local).rglob("*") if path.is_file()]
    kept = [path for path in output.rglob("*") if path.is_file()]
    texts += [path.read_text(errors="replace") for path in kept]
    assert not [(secret, text[:200]) for secret in secrets for text in texts if secret in text]


def test_two_specs_of_one_output_do_not_disturb_each_other(server, tmp_path, experiment, finished):
    output = copy_of(finished, tmp_path / "out")
    Store(str(output))
    failures: list[BaseException] = []

    def one(iterations: int) -> None:
        try:
            changes = {"tracking.experiment": experiment, "distill.iterations": iterations}
            stage_tracked("teacher", output, server.uri, changes)
        except BaseException as failure:
            failures.append(failure)

    threads = [threading.Thread(target=one, args=(n,)) for n in (8, 9)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert failures == []
    found = server.client.search_runs([server.client.get_experiment_by_name(experiment).experiment_id])
    assert Counter(run.info.run_name for run in found) == {"tiny": 2, "teacher": 2}
