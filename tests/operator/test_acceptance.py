"""What `helm test` says of a distillation, and how it ends."""

from __future__ import annotations

import json
from collections.abc import Iterator
from typing import Any

import pytest
import yaml
from kubernetes import client

from limbeck.errors import InputError, WorkError
from limbeck_operator import acceptance
from limbeck_operator.acceptance import Cluster, accept

DOCUMENT = {
    "apiVersion": "limbeck.dev/v1alpha1",
    "kind": "Distillation",
    "metadata": {"name": "tiny"},
    "spec": {"source": {"uri": "sklearn:digits#train"}},
}
OURS = {"labels": {"limbeck.dev/acceptance": "true"}}
MISSING = 'distillations.limbeck.dev "tiny" not found'


def said(kind: str, status: str, reason: str, message: str) -> dict[str, str]:
    return {"type": kind, "status": status, "reason": reason, "message": message}


RUNNING = {
    "conditions": [said("Progressing", "True", "Running", "pod tiny-x runs")],
    "stages": [{"name": "ingest", "state": "Complete"}, {"name": "teacher", "state": "Running"}],
}
DONE = {
    "conditions": [
        said("Progressing", "False", "Complete", "28 synthetic images"),
        said("Complete", "True", "Complete", "28 synthetic images"),
    ],
    "stages": [{"name": "ingest", "state": "Complete"}, {"name": "teacher", "state": "Complete"}],
    "result": {"recoveredGap": 0.614},
}


class Server:
    """An API server that has these answers to looking, one after the other; the last again and again."""

    def __init__(self, *answers: Any) -> None:
        self.made: dict[str, Any] | None = None
        self.deleted: list[str] = []
        self._answers = list(answers)

    def get_namespaced_custom_object(self, *place: str, **_: Any) -> Any:
        answer = self._answers.pop(0) if len(self._answers) > 1 else self._answers[0]
        if isinstance(answer, Exception):
            raise answer
        if answer is None:
            raise refused(404, MISSING)
        return {"metadata": OURS, "status": answer}

    def create_namespaced_custom_object(self, *place: Any, **_: Any) -> Any:
        self.made = place[-1]
        return self.made

    def delete_namespaced_custom_object(self, *place: str, **_: Any) -> None:
        self.deleted.append(place[-1])


def refused(status: int, message: str) -> client.ApiException:
    error = client.ApiException(status=status, reason="No")
    error.body = json.dumps({"message": message})
    return error


@pytest.fixture
def run(monkeypatch):
    def ran(server: Server, timeout: float = 60.0) -> Iterator[str]:
        monkeypatch.setattr(client, "CustomObjectsApi", lambda _: server)
        lines: list[str] = []
        now = [0.0]

        def pause(seconds: float) -> None:
            now[0] += seconds

        cluster = Cluster(None, "lab")
        try:
            accept(cluster, DOCUMENT, timeout=timeout, say=lines.append, clock=lambda: now[0], pause=pause)
        finally:
            ran.lines = lines  # type: ignore[attr-defined]
        return lines

    return ran


def test_every_change_is_a_line_and_what_was_complete_is_deleted(run):
    server = Server(None, {}, RUNNING, RUNNING, DONE)
    assert run(server) == [
        "lab/tiny: created",
        "lab/tiny: stage ingest: complete",
        "lab/tiny: stage teacher: running",
        "lab/tiny: Running: pod tiny-x runs",
        "lab/tiny: stage teacher: complete",
        "lab/tiny: Complete: 28 synthetic images",
        "lab/tiny: recovered gap 0.61",
        "lab/tiny: deleted",
    ]
    assert server.made == DOCUMENT | {"metadata": {"name": "tiny", **OURS}}
    assert server.deleted == ["tiny"]


def test_one_of_an_earlier_try_goes_first(run):
    server = Server(DONE, DONE, None, DONE)
    assert "lab/tiny: there is one of an earlier try, which goes first" in run(server)
    assert server.deleted == ["tiny", "tiny"]


def test_one_that_somebody_else_made_stays(run, monkeypatch):
    server = Server(RUNNING)
    monkeypatch.setitem(OURS, "labels", {})
    with pytest.raises(InputError, match="made otherwise"):
        run(server)
    assert server.deleted == []


@pytest.mark.parametrize(
    ("condition", "error", "message"),
    [
        (said("Failed", "True", "BackoffLimitExceeded", "the disk is full"), WorkError, "Exceeded: the disk is full"),
        (said("Failed", "True", "InvalidInput", "no such bucket"), InputError, "lab/tiny: no such bucket"),
        (said("Progressing", "False", "InvalidSpec", "spec.output.uri: no"), InputError, "lab/tiny: spec.output.uri"),
    ],
)
def test_what_cannot_go_on_ends_it_and_stays_to_be_looked_at(run, condition, error, message):
    server = Server(None, {"conditions": [condition]})
    with pytest.raises(error, match=message):
        run(server)
    assert server.deleted == []


@pytest.mark.parametrize(
    ("status", "message"),
    [
        ({}, "no operator has looked at it after 10 s"),
        (RUNNING, r"not complete \(Running: pod tiny-x runs\) after 10 s"),
    ],
)
def test_it_takes_no_longer_than_it_may(run, status, message):
    with pytest.raises(WorkError, match=message):
        run(Server(None, status), timeout=10)


def test_an_api_server_that_fails_for_a_moment_is_asked_again(run):
    assert run(Server(None, RUNNING, refused(503, "overloaded"), DONE))[-1] == "lab/tiny: deleted"
    with pytest.raises(WorkError, match="overloaded"):
        run(Server(None, refused(503, "overloaded")), timeout=10)


@pytest.mark.parametrize(
    ("answer", "message"),
    [
        (refused(403, "distillations is forbidden"), "lab: get: distillations is forbidden"),
        (client.ApiException(status=404, reason="Not Found"), "the cluster knows none; kubectl apply"),
    ],
)
def test_what_the_cluster_does_not_allow_is_input(run, answer, message):
    with pytest.raises(InputError, match=message):
        run(Server(answer))


def test_one_that_is_deleted_meanwhile_is_told(run):
    with pytest.raises(WorkError, match="somebody has deleted it"):
        run(Server(None, RUNNING, None))


def test_the_command_says_in_one_line_what_is_wrong(tmp_path, capsys):
    spec = tmp_path / "spec.yaml"
    spec.write_text(yaml.safe_dump(DOCUMENT))
    nowhere = str(tmp_path / "nowhere")
    assert acceptance.main([str(spec), "--namespace", "lab", "--kubeconfig", nowhere]) == 2
    assert capsys.readouterr().err.count("\n") == 1
    spec.write_text(yaml.safe_dump(DOCUMENT | {"kind": "Pod"}))
    assert acceptance.main([str(spec), "--namespace", "lab"]) == 2
    assert "kind" in capsys.readouterr().err
