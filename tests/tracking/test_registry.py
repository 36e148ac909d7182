"""The registry on a real server: versions, champions, roll-backs, copies, and many at once."""

from __future__ import annotations

import json
import os
import sqlite3
import tempfile
import uuid
from concurrent.futures import ProcessPoolExecutor
from contextlib import closing
from pathlib import Path
from typing import Any
from unittest.mock import Mock

import pytest
import sqlalchemy
from mlflow.exceptions import MlflowException
from mlflow.protos.databricks_pb2 import RESOURCE_DOES_NOT_EXIST

import limbeck
from limbeck.data.distilled import DistilledSet
from limbeck.errors import InputError, WorkError
from limbeck.evaluation.comparison import Champion
from limbeck.summary import Registered
from limbeck.tracking import registry as registry_module
from limbeck.tracking.registry import Registry
from limbeck.tracking.runs import open_experiment
from tests.forks import processes
from tests.tracking.conftest import MlflowServer
from tests.tracking.tracked import as_champion, numbers, publishable


@pytest.fixture
def name() -> str:
    return f"digits-{uuid.uuid4().hex[:8]}"


def register(uri: str, folder: Path, name: str, **settings: Any) -> Registered:
    """As a run and its sender do it."""
    request = publishable(folder, name, **settings)
    registry = Registry(uri)
    client = registry._client
    experiment = open_experiment(client, "registry").experiment_id
    run = client.create_run(experiment)
    model = registry.log(request, run.info.run_id, experiment)
    while True:
        registered, first = registry.register(name, request, model, run.info.run_id)
        if first is None:
            return registered
        request = request.model_copy(update={"champion": with_its_own_figures(registry, name, first)})


def with_its_own_figures(registry: Registry, name: str, number: int) -> Champion:
    """A stand-in for evaluating a champion again: all sets of this module come with figures of the same settings."""
    with tempfile.TemporaryDirectory() as temporary:
        try:
            folder = registry.pull(registry.resolve(f"models:/{name}/{number}"), Path(temporary) / "set")
        except InputError as error:
            return Champion(version=number, refusal=f"it cannot be used: {error}")
        record = json.loads((folder / "distilled.json").read_text())
    return as_champion(number, record["evaluation"], record["lineage"]["targets"])


def aliases(server: MlflowServer, name: str) -> dict[str, int]:
    return {alias: int(number) for alias, number in server.client.get_registered_model(name).aliases.items()}


def test_versions_champions_and_rollback(server, tmp_path, name):
    registry = Registry(server.uri)
    first = register(server.uri, tmp_path / "1", name, number=1)
    assert (first.version, first.champion) == (1, True)
    worse = register(server.uri, tmp_path / "2", name, number=2, shift=-0.05)
    assert (worse.version, worse.champion) == (2, False)
    assert aliases(server, name) == {"champion": 1}
    better = register(server.uri, tmp_path / "3", name, number=3, shift=0.05)
    assert better.champion
    assert "5.0 points above version 1 (95 % one-sided bound +4." in better.decision
    assert aliases(server, name) == {"champion": 3, "previous": 1}
    other = register(server.uri, tmp_path / "4", name, number=4, shift=0.2, seeds=2)
    assert not other.champion
    assert "evaluate.selectionSeeds" in other.decision

    assert registry.rollback(name) == (1, 3)
    assert aliases(server, name) == {"champion": 1, "previous": 3}
    registry.promote(name, 4)
    assert aliases(server, name) == {"champion": 4, "previous": 1}
    versions = registry.versions(name)
    assert numbers(versions) == [4, 3, 2, 1]
    assert versions[0].tags["limbeck.decision"] == "promoted by hand"
    assert versions[1].tags["limbeck.decision"] == "rolled back by hand"


def test_the_same_set_is_one_version_and_is_not_promoted_again(server, tmp_path, name):
    register(server.uri, tmp_path / "1", name, number=1)
    register(server.uri, tmp_path / "2", name, number=2, shift=0.05)
    Registry(server.uri).rollback(name)
    again = register(server.uri, tmp_path / "again", name, number=2, shift=0.05)
    assert (again.version, again.champion) == (2, False)
    assert aliases(server, name) == {"champion": 1, "previous": 2}


def test_what_is_logged_is_a_distilled_dataset_with_its_card(server, tmp_path, name):
    register(server.uri, tmp_path / "1", name, number=1)
    version = Registry(server.uri).resolve(f"models:/{name}@champion")
    model = server.client.get_logged_model(version.model_id)
    assert model.model_type == "distilled-dataset"
    assert model.params["images"] == "4"
    described = server.client.get_model_version(name, "1").description
    assert "4 synthetic images of 8x8 pixels, 12.5 kB with their targets, distilled from digits" in described
    folder = Registry(server.uri).pull(version, tmp_path / "pulled")
    files = {"README.md", "checksums.json", "distilled.json", "distilled.safetensors", "preview.png"}
    assert {path.name for path in folder.iterdir()} == files
    card = (folder / "README.md").read_text()
    for part in (
        f"# {name}",
        "preview.png",
        f"models:/{name}@champion",
        "| distilled | ",
        "recovered gap",
        "| 10 % of the labels |",
        "```yaml",
    ):
        assert part in card


def test_load_gives_the_very_set(server, tmp_path, name, monkeypatch):
    register(server.uri, tmp_path / "1", name, number=1)
    monkeypatch.setenv("MLFLOW_TRACKING_URI", server.uri)
    for uri in (f"models:/{name}@champion", f"models:/{name}/1"):
        loaded = limbeck.load(uri)
        assert loaded.images.equal(DistilledSet.load(tmp_path / "1").images)


@pytest.mark.parametrize("file", ["README.md", "distilled.safetensors", "distilled.json", "checksums.json"])
def test_an_altered_file_is_found_and_nothing_is_left(tmp_path, name, file):
    uri = f"sqlite:///{tmp_path / 'mlflow.db'}"
    register(uri, tmp_path / "1", name)
    (stored,) = tmp_path.joinpath("mlruns").rglob(file)
    stored.write_bytes(stored.read_bytes()[:-2] + b"x\n")
    registry = Registry(uri)
    with pytest.raises(InputError, match=f"{file} was altered"):
        registry.pull(registry.resolve(f"models:/{name}/1"), tmp_path / "to" / "pulled")
    assert list((tmp_path / "to").iterdir()) == []
    stored.unlink()
    with pytest.raises(InputError, match=r"missing|no checksums"):
        registry.load(f"models:/{name}@champion")


def test_a_store_that_is_not_mlflow_s_own_default_is_used_for_all(tmp_path, name):
    (tmp_path / "elsewhere").mkdir()
    uri = f"sqlite:///{tmp_path / 'elsewhere' / 'other.db'}"
    assert register(uri, tmp_path / "1", name).champion
    assert len(Registry(uri).load(f"models:/{name}@champion")) == 4
    assert not (tmp_path / "mlflow.db").exists()


@pytest.mark.parametrize(
    ("uri", "phrase"),
    [
        ("models:/nothing@champion", "no such distilled set"),
        ("models:/NAME@best", "no alias 'best'"),
        ("models:/NAME/99", "there is no such version"),
        ("models:/NAME", "neither an alias nor a version"),
    ],
)
def test_a_uri_that_means_nothing_is_one_line(server, tmp_path, name, uri, phrase):
    register(server.uri, tmp_path / "1", name)
    with pytest.raises(InputError, match=phrase):
        Registry(server.uri).resolve(uri.replace("NAME", name))


def test_a_folder_with_something_in_it_is_not_touched(server, tmp_path, name):
    register(server.uri, tmp_path / "1", name)
    (tmp_path / "mine").mkdir()
    (tmp_path / "mine" / "file").write_text("mine")
    registry = Registry(server.uri)
    with pytest.raises(InputError, match="something is there"):
        registry.pull(registry.resolve(f"models:/{name}/1"), tmp_path / "mine")
    assert [path.name for path in (tmp_path / "mine").iterdir()] == ["file"]


def _register_one(arguments: tuple[str, str, str, int, float]) -> tuple[int, bool]:
    uri, folder, name, number, shift = arguments
    os.environ["MLFLOW_HTTP_REQUEST_MAX_RETRIES"] = "5"  # SQLite refuses when many write at once
    done = register(uri, Path(folder), name, number=number, shift=shift)
    return done.version, done.champion


@pytest.mark.parametrize("equal", [True, False])
def test_sets_that_finish_together_agree_on_one_champion(server, tmp_path, name, equal):
    """Of equal ones exactly one is promoted; of unequal ones the best is the champion in the end."""
    work = [(server.uri, str(tmp_path / str(k)), name, k, 0.0 if equal else 0.02 * k) for k in range(5)]
    with ProcessPoolExecutor(5, processes()) as pool:
        outcomes = list(pool.map(_register_one, work))
    now = aliases(server, name)
    assert sorted(version for version, _ in outcomes) == [1, 2, 3, 4, 5]
    if equal:
        assert [version for version, champion in outcomes if champion] == [now["champion"]]
        assert "previous" not in now
    else:
        assert now["champion"] == outcomes[-1][0]
    assert not [m.name for m in server.client.search_registered_models() if m.name.endswith("--promoting")]


def test_the_lock_of_a_process_that_is_gone_is_given_up(server, tmp_path, name, monkeypatch):
    register(server.uri, tmp_path / "1", name)
    server.client.create_registered_model(f"{name}--promoting", tags={"limbeck.owner": "somebody"})
    monkeypatch.setattr(registry_module, "_LOCK_STALE", 1.0)
    assert register(server.uri, tmp_path / "2", name, number=2, promote="always").champion


def test_a_lock_that_goes_while_mlflow_looks_is_taken_after_all(server, tmp_path, name, monkeypatch):
    """Of two that are created at once MLflow refuses one, by a look at the other, which may be gone by then."""
    register(server.uri, tmp_path / "1", name)
    registry, asked = Registry(server.uri), []
    create = registry._client.create_registered_model

    def gone(*arguments: Any, **settings: Any) -> Any:
        asked.append(arguments)
        if len(asked) == 1:
            raise MlflowException("Registered Model not found", RESOURCE_DOES_NOT_EXIST)
        return create(*arguments, **settings)

    monkeypatch.setattr(registry._client, "create_registered_model", gone)
    registry.promote(name, 1)
    request = publishable(tmp_path / "2", name, number=2, promote="always")
    run = server.client.get_run(registry.versions(name)[0].run_id).info
    model = registry.log(request, run.run_id, run.experiment_id)
    assert registry.register(name, request, model, run.run_id)[0].champion
    assert len(asked) == 4  # two for the lock of promote, one for the name, one for the other lock


def test_a_lock_that_goes_between_its_row_and_its_tags_is_nobody_s_model(tmp_path, name, monkeypatch):
    """MLflow reads a model, then its tags; one that is deleted in between seems to have none."""
    uri, lock = f"sqlite:///{tmp_path / 'mlflow.db'}", f"{name}--promoting"
    register(uri, tmp_path / "1", name)
    registry, deletions, seen = Registry(uri), list[str](), list[dict[str, str]]()
    registry._client.create_registered_model(lock, tags={"limbeck.owner": "somebody"})
    look = registry._client.get_registered_model

    def between(connection: Any, cursor: Any, statement: str, *_: Any) -> None:
        if "JOIN registered_model_tags" in statement and not deletions:
            deletions.append(statement)
            with closing(sqlite3.connect(tmp_path / "mlflow.db")) as other, other:
                for table in ("registered_model_tags", "registered_models"):
                    other.execute(f"DELETE FROM {table} WHERE name = ?", [lock])

    def looked(model: str) -> Any:
        if model != lock:
            return look(model)
        sqlalchemy.event.listen(sqlalchemy.Engine, "before_cursor_execute", between)
        try:
            found = look(model)
        finally:
            sqlalchemy.event.remove(sqlalchemy.Engine, "before_cursor_execute", between)
        seen.append(found.tags)
        return found

    monkeypatch.setattr(registry._client, "get_registered_model", looked)
    registry.promote(name, 1)
    assert seen[0] == {}
    assert seen[1]["limbeck.owner"] == registry._owner  # by when it is ours


def test_somebody_s_model_with_the_lock_s_name_is_left_alone(server, tmp_path, name, monkeypatch):
    monkeypatch.setattr(registry_module, "_LOCK_LOOK", 0.05)
    register(server.uri, tmp_path / "1", name)
    server.client.create_registered_model(f"{name}--promoting")
    with pytest.raises(WorkError, match="is a registered model of somebody's"):
        Registry(server.uri).promote(name, 1)
    server.client.delete_registered_model(f"{name}--promoting")  # it is still there


def test_what_fails_half_way_is_finished_by_the_next_call(server, tmp_path, name, monkeypatch):
    """The same LoggedModel, the same version, and the promotion is not forgotten: each call fails one step later."""
    registry, client = Registry(server.uri), server.client
    experiment = open_experiment(client, "registry").experiment_id
    run_id = client.create_run(experiment).info.run_id
    request = publishable(tmp_path / "1", name)
    steps = ["set_logged_model_tags", "log_model_artifacts", "log_outputs", "finalize_logged_model"]
    steps += ["create_model_version", "set_registered_model_alias", "set_model_version_tag"]

    def whole() -> tuple[str, Registered]:
        model = registry.log(request, run_id, experiment)
        return model.model_id, registry.register(name, request, model, run_id)[0]

    for step in steps:
        with monkeypatch.context() as broken:
            broken.setattr(registry._client, step, Mock(side_effect=OSError(step)))
            with pytest.raises(OSError, match=step):
                whole()
    model_id, done = whole()
    assert (done.version, done.champion, done.decision) == (1, True, "promoted")
    assert aliases(server, name) == {"champion": 1}
    assert [output.model_id for output in client.get_run(run_id).outputs.model_outputs] == [model_id]
    assert len(registry.load(f"models:/{name}@champion")) == 4


def test_a_champion_is_evaluated_again_before_anything_is_decided(tmp_path, name):
    """Until it was, the version is there, undecided; another champion meanwhile is another one to evaluate."""
    uri = f"sqlite:///{tmp_path / 'mlflow.db'}"
    register(uri, tmp_path / "1", name, number=1)
    registry, request = Registry(uri), publishable(tmp_path / "2", name, number=2, shift=0.05)
    run = registry._client.get_run(registry.versions(name)[0].run_id).info
    model = registry.log(request, run.run_id, run.experiment_id)

    def attempt(champion: Champion | None) -> tuple[int, bool, int | None]:
        asked = request.model_copy(update={"champion": champion})
        registered, first = registry.register(name, asked, model, run.run_id)
        return registered.version, registered.champion, first

    assert attempt(None) == (2, False, 1)
    assert "limbeck.decision" not in registry.resolve(f"models:/{name}/2").tags
    first = with_its_own_figures(registry, name, 1)
    register(uri, tmp_path / "3", name, number=3, shift=0.01)
    assert attempt(first) == (2, False, 3)
    assert attempt(with_its_own_figures(registry, name, 3)) == (2, True, None)
    assert "above version 3" in registry.resolve(f"models:/{name}@champion").tags["limbeck.decision"]


def test_a_damaged_champion_is_neither_compared_nor_replaced(tmp_path, name):
    uri = f"sqlite:///{tmp_path / 'mlflow.db'}"
    register(uri, tmp_path / "1", name)
    (stored,) = tmp_path.joinpath("mlruns").rglob("distilled.json")
    stored.write_text("{}")
    second = register(uri, tmp_path / "2", name, number=2, shift=0.3)
    assert not second.champion
    assert "not compared with version 1: it cannot be used" in second.decision
    assert "distilled.json was altered" in second.decision
    assert register(uri, tmp_path / "3", name, number=3, promote="always").champion


def test_a_lock_that_is_held_is_waited_for(server, tmp_path, name, monkeypatch):
    register(server.uri, tmp_path / "1", name)
    server.client.create_registered_model(f"{name}--promoting", tags={"limbeck.owner": "somebody"})
    monkeypatch.setattr(registry_module, "_LOCK_PATIENCE", 1.0)
    with pytest.raises(Exception, match="another process is moving its aliases"):
        Registry(server.uri).promote(name, 1)
    assert aliases(server, name) == {"champion": 1}
    server.client.delete_registered_model(f"{name}--promoting")
