"""The process that talks to MLflow, here in this one: what it tries again, leaves out, or leaves for another time."""

from __future__ import annotations

import io
import queue
from pathlib import Path
from typing import Any

import pytest
from mlflow import MlflowClient

from limbeck.tracking import sender as sender_module
from limbeck.tracking.journal import Began, Document, Ended, Journal, Point, Points, StageBegan
from limbeck.tracking.messages import REPLIES, Kept, Refused
from limbeck.tracking.runs import Runs
from limbeck.tracking.sender import Sender


@pytest.fixture(autouse=True)
def quick(monkeypatch):
    monkeypatch.setattr(sender_module, "_FIRST_PAUSE", 0.01)
    monkeypatch.setattr(sender_module, "_LONGEST_PAUSE", 0.01)
    monkeypatch.setattr(sender_module, "_EARLIER_SECONDS", 0.3)
    monkeypatch.setattr(sender_module, "_NEIGHBOUR_SECONDS", 0.5)


@pytest.fixture
def uri(tmp_path: Path) -> str:
    return f"sqlite:///{tmp_path / 'mlflow.db'}"


def journal(folder: Path, key: str, *, ended: bool = True) -> Journal:
    made = Journal(folder)
    made.write(
        Began(
            key=key,
            name=key,
            experiment="sender",
            run_id=None,
            stage_alone=False,
            tags={},
            params={},
            system_metrics=False,
        )
    )
    made.write(StageBegan(stage="distill", key="k", tags={}, params={}))
    made.write(Document(name="a.txt", text="a"))
    made.write(Points(stage="distill", points=[Point(name="loss", step=0, milliseconds=1, value=1.0)]))
    if ended:
        made.write(Ended(status="FINISHED"))
    return made


def send(uri: str, own: Path) -> list[Any]:
    """Send a journal whose command waits no longer; what was replied."""
    out, requests = io.StringIO(), queue.Queue[Any]()
    requests.put(None)
    Sender(uri, own, out).run(requests)
    return [REPLIES.validate_json(line) for line in out.getvalue().splitlines()]


def runs(uri: str) -> dict[str, Any]:
    client = MlflowClient(uri)
    experiment = client.get_experiment_by_name("sender")
    return {run.info.run_name: run for run in client.search_runs([experiment.experiment_id])}


def failing_documents(monkeypatch: pytest.MonkeyPatch, error: Exception, of: Path | None = None) -> list[int]:
    """Documents are refused, while all else is taken."""
    take, tries = Runs.take, list[int]()

    def failing(self: Runs, event: Any) -> None:
        if isinstance(event, Document) and of in (None, self.journal):
            tries.append(1)
            raise error
        take(self, event)

    monkeypatch.setattr(Runs, "take", failing)
    return tries


def test_what_mlflow_never_takes_is_left_out_while_it_takes_the_rest(tmp_path, uri, monkeypatch):
    tries = failing_documents(monkeypatch, PermissionError("the store of artifacts"))
    own = journal(tmp_path / "journals", "own")
    replies = send(uri, own.path)
    assert [reply.error for reply in replies if isinstance(reply, Refused)] == ["the store of artifacts"]
    assert len(tries) == sender_module._REFUSALS
    found = runs(uri)
    assert found["own"].info.status == "FINISHED"
    assert found["distill"].data.metrics == {"loss": 1.0}
    assert not own.path.exists()


def test_what_an_earlier_command_has_left_does_not_stand_in_the_way(tmp_path, uri, monkeypatch):
    monkeypatch.setattr(sender_module, "_REFUSALS", 10**6)
    earlier = journal(tmp_path / "journals", "earlier")
    earlier.close()
    failing_documents(monkeypatch, OSError("no way"), earlier.path)
    own = journal(tmp_path / "journals", "own")
    replies = send(uri, own.path)
    assert [reply.error for reply in replies if isinstance(reply, Kept)] == ["no way"]
    assert runs(uri)["own"].info.status == "FINISHED"
    assert earlier.path.exists()
    assert not own.path.exists()


def test_a_killed_command_s_run_that_goes_on_is_not_called_failed(tmp_path, uri, monkeypatch):
    earlier = journal(tmp_path / "journals", "same", ended=False)
    own = journal(tmp_path / "journals", "same")
    said: list[str] = []
    end = Runs._end
    monkeypatch.setattr(Runs, "_end", lambda self, run_id, status: (said.append(status), end(self, run_id, status)))
    earlier.close()
    send(uri, own.path)
    assert set(said) == {"FINISHED"}
    assert runs(uri)["same"].info.status == "FINISHED"
    alone = journal(tmp_path / "others", "alone", ended=False)
    alone.close()
    send(uri, journal(tmp_path / "others", "own").path)
    assert runs(uri)["alone"].info.status == "FAILED"


def test_the_sender_of_a_killed_command_may_finish_first(tmp_path, uri):
    """As long as it holds the journal of the same run, for a while; other runs' journals are nobody's business."""
    busy = journal(tmp_path / "journals", "same")
    other = journal(tmp_path / "journals", "other")
    own = journal(tmp_path / "journals", "same")
    send(uri, own.path)
    assert not own.path.exists()
    assert busy.path.exists()
    assert other.path.exists()
    assert "other" not in runs(uri)
