"""What nothing needs goes; what a job, a run or the registry needs stays, whatever the moment."""

from __future__ import annotations

import os
import time
import uuid
from datetime import UTC, datetime, timedelta
from pathlib import Path

import pytest
from fsspec.implementations.memory import MemoryFileSystem
from typer.testing import CliRunner

from limbeck.cli import app
from limbeck.errors import InputError, WorkError
from limbeck.store import DamagedResultError, Identity, Store
from limbeck.store.collection import Garbage, delete, garbage_of
from limbeck.store.survey import survey
from limbeck.store.usage import CONDEMNED, USED
from tests.store.places import FILES, IDENTITY, KEY, MADE, Place, commit, watch

DAY = timedelta(days=1)
PLACE = f"teacher/{KEY}"


def identity(name: str) -> Identity:
    return Identity("teacher", 1, {"name": name}, {})


def place_of(name: str) -> str:
    return f"teacher/{identity(name).key}"


def make(store: Store, name: str, refers: tuple[str, ...] = ()) -> str:
    with store.scratch("teacher", identity(name).key) as scratch:
        (scratch / "data").write_text(name)
        return store.commit(identity(name), scratch, MADE, list(refers)).digest


def age(store: Store, days: float = 40.0, under: str = "") -> None:
    """Have all that lies in a store be some days old."""
    then = time.time() - days * 86400
    for name in store.objects.listing(under):
        path = store.objects.path(name)
        if store.objects.is_local:
            os.utime(path, (then, then))
        else:
            MemoryFileSystem.store[path].created = datetime.fromtimestamp(then, UTC)


@pytest.fixture(params=["file", "memory"])
def old(request, tmp_path) -> Place:
    """A place whose storage can be made to look old."""
    name = uuid.uuid4().hex
    return Place(request.param, str(tmp_path / name) if request.param == "file" else f"memory://{name}")


def collect(store: Store, registered: frozenset[str] = frozenset()) -> set[str]:
    found = garbage_of(survey(store.objects), 30 * DAY, registered)
    return {item.place for item in found if delete(store.objects, item, 30 * DAY)}


def test_old_results_go_and_what_is_recent_used_registered_or_referred_to_stays(old, tmp_path):
    store = old.store(tmp_path / "one")
    make(store, "referred")
    make(store, "old")
    make(store, "by the old", [place_of("old")])
    digest = make(store, "registered", [place_of("referred")])
    make(store, "used")
    age(store)
    make(store, "recent")
    assert old.store(tmp_path / "two").find(*place_of("used").split("/")) is not None
    assert collect(store, frozenset({digest})) == {place_of("old"), place_of("by the old")}
    left = survey(old.store(tmp_path / "three").objects).shelves
    assert set(left) == {place_of(name) for name in ("referred", "registered", "used", "recent")}
    assert old.store(tmp_path / "three").find(*place_of("old").split("/")) is None
    make(old.store(tmp_path / "three"), "old")  # and can be made again
    assert old.store(tmp_path / "four").find(*place_of("old").split("/")) is not None


def test_a_job_of_days_keeps_what_it_found_in_the_beginning(old, tmp_path):
    store = old.store(tmp_path)
    make(store, "input")
    age(store)
    job = old.store(tmp_path)
    assert job.find(*place_of("input").split("/")) is not None
    age(store)  # the job has been at work for so long
    job.usage._clock = lambda: time.monotonic() + 40 * 86400
    with job.scratch("teacher", "k") as scratch:
        (scratch / "checkpoint").write_text("x")
        job.keep(scratch / "checkpoint")
        assert collect(store) == set()


def test_data_of_writers_that_lost_and_abandoned_work_go_when_they_are_old(tmp_path):
    place = Place("memory", f"memory://{uuid.uuid4().hex}")
    store = place.store(tmp_path)
    make(store, "whole")
    loser, unfinished = f"{place_of('whole')}/{'0' * 16}/data", f"teacher/{'a' * 32}/{'0' * 16}/data"
    work = f"work/teacher/{'b' * 32}/checkpoint.safetensors"
    for name in (loser, unfinished, work):
        store.objects.write(name, b"x")
    store.objects.write("runs/x/summary.json", b"{}")
    store.objects.write("logs/x/worker.log", b"x")
    assert collect(store) == set()
    age(store)
    store.usage.forget(place_of("whole"))
    store.find(*place_of("whole").split("/"))
    assert collect(store) == {place_of("whole"), f"teacher/{'a' * 32}", f"work/teacher/{'b' * 32}"}
    assert not [name for name in (loser, unfinished, work) if store.objects.stat(name)]
    assert store.names("runs") == ["x"]
    assert store.names("logs") == ["x"]
    assert place.store(tmp_path / "two").find(*place_of("whole").split("/")) is not None


def test_a_user_s_own_files_are_no_garbage(tmp_path):
    (tmp_path / "photos" / "2020").mkdir(parents=True)
    (tmp_path / "photos" / "2020" / "a.jpg").write_bytes(b"x")
    store = Store(str(tmp_path))
    make(store, "result")
    age(store)
    assert collect(store) == {place_of("result")}
    assert (tmp_path / "photos" / "2020" / "a.jpg").exists()


def ready(tmp_path: Path) -> tuple[Place, Store, Garbage]:
    """An old result that a collector has found to be garbage."""
    place = Place("memory", f"memory://{uuid.uuid4().hex}")
    store = place.store(tmp_path / "collector")
    commit(store)
    age(store)
    (item,) = garbage_of(survey(store.objects), 30 * DAY, frozenset())
    return place, store, item


def whole_or_none(store: Store) -> bool:
    """Whether a result is found, whole."""
    found = store.find("teacher", KEY)
    return found is not None and {e.path: (found.path / e.path).read_bytes() for e in found.manifest.files} == FILES


def test_a_job_that_finds_a_result_at_any_moment_of_its_deletion_has_it_for_good_or_not_at_all(tmp_path):
    outcomes = set()
    for moment in range(100):
        place, store, item = ready(tmp_path / str(moment))
        calls, had = 0, None

        def find(call: str, path: str, moment=moment, place=place) -> None:
            nonlocal calls, had
            if calls == moment:
                had = whole_or_none(place.store(tmp_path / f"job-{moment}"))
            calls += 1

        gone = delete(watch(store, find).objects, item, 30 * DAY)
        if had is None:
            break
        assert not (had and gone)
        outcomes.add((had, gone))
        assert whole_or_none(place.store(tmp_path / f"later-{moment}")) is not gone
    assert moment > len(FILES) + 4
    assert outcomes == {(True, False), (False, True), (False, False)}


def test_a_deletion_at_any_moment_of_a_find_leaves_the_result_or_no_result(tmp_path):
    outcomes = set()
    for moment in range(100):
        place, store, item = ready(tmp_path / str(moment))
        calls, gone = 0, None

        def collected(call: str, path: str, moment=moment, store=store, item=item) -> None:
            nonlocal calls, gone
            if calls == moment:
                gone = delete(store.objects, item, 30 * DAY)
            calls += 1

        had = whole_or_none(watch(place.store(tmp_path / f"job-{moment}"), collected))
        if gone is None:
            break
        assert not (had and gone)
        outcomes.add((had, gone))
    assert (True, False) in outcomes
    assert (False, True) in outcomes


def test_a_result_is_made_again_at_any_moment_of_its_deletion(tmp_path):
    """Half-deleted data is neither trusted nor deleted again under the new result."""
    for moment in range(100):
        place, store, item = ready(tmp_path / str(moment))
        calls = 0

        class CutError(Exception):
            pass

        def cut(call: str, path: str, moment=moment, error=CutError) -> None:
            nonlocal calls
            if calls == moment:
                raise error
            calls += 1

        try:
            delete(watch(store, cut).objects, item, 30 * DAY)
        except CutError:
            age(place.store(tmp_path), 0.1, PLACE)  # the collector was killed hours ago
            commit(place.store(tmp_path / f"maker-{moment}"))
            assert whole_or_none(place.store(tmp_path / f"later-{moment}"))
            assert place.store(tmp_path).objects.stat(f"{PLACE}/{CONDEMNED}") is None
        else:
            break
    assert moment > len(FILES) + 4


def test_the_mark_of_a_collector_that_was_killed_does_not_block_for_ever(old, tmp_path):
    store = old.store(tmp_path / "one")
    commit(store)
    store.objects.mark(f"{PLACE}/{CONDEMNED}")
    age(store, 0.01)  # a quarter of an hour
    assert old.store(tmp_path / "two").find("teacher", KEY) is None
    age(store, 0.1)
    assert whole_or_none(old.store(tmp_path / "three"))
    assert store.objects.stat(f"{PLACE}/{CONDEMNED}") is None


def test_on_a_bucket_a_deleted_result_leaves_nothing(bucket, tmp_path):
    store = bucket.store(tmp_path)
    commit(store)
    files = survey(store.objects).shelves[PLACE].files
    assert f"{PLACE}/{USED}" in files
    assert delete(store.objects, Garbage("result", PLACE, 0, tuple(files)), timedelta(days=-1))
    assert store.objects.listing("") == {}
    assert store.find("teacher", KEY) is None


def limbeck(*arguments: str) -> str:
    """What the command prints."""
    done = CliRunner().invoke(app, list(arguments), catch_exceptions=True)
    if done.exception is not None and not isinstance(done.exception, SystemExit):
        raise done.exception
    return done.output


def test_the_command_lists_verifies_and_deletes(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    store = Store("out")
    commit(store)
    make(store, "other")
    assert "2 results" in limbeck("store", "ls", "out")
    assert KEY in limbeck("store", "ls", "out", "--json")
    assert "2 results: 4 files read" in limbeck("store", "verify", "out")
    age(store)
    would = limbeck("store", "gc", "out", "--no-registry")
    assert f"would delete: {PLACE}" in would
    assert store.holds("teacher", KEY)
    assert "2 items deleted" in limbeck("store", "gc", "out", "--no-registry", "--delete")
    assert not store.holds("teacher", KEY)


def test_verify_names_what_is_damaged_where_it_lies(bucket, tmp_path, monkeypatch):
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    store = bucket.store(tmp_path)
    commit(store)
    manifest = store.find("teacher", KEY).manifest
    verdicts = [verify(store, PLACE)]
    assert verdicts[0].faults == ()
    assert (verdicts[0].vouched, verdicts[0].read) == (3, 0)
    path = store.objects.path(manifest.place("weights.bin"))
    store.objects.filesystem.pipe_file(path, b"W" + FILES["weights.bin"][1:])
    (fault,) = verify(store, PLACE).faults
    assert fault.endswith("weights.bin is not what its manifest says (sha256 differs)")
    store.objects.filesystem.rm_file(path)
    (fault,) = verify(store, PLACE).faults
    assert fault.endswith("weights.bin is missing")


def verify(store: Store, place: str):
    from limbeck.store.survey import verify

    return verify(store.objects, survey(store.objects).shelves[place])


def test_the_command_fails_when_a_result_is_damaged(tmp_path):
    store = Store(str(tmp_path))
    commit(store)
    (tmp_path / PLACE / "weights.bin").write_bytes(b"harm")
    with pytest.raises(WorkError, match="1 result damaged"):
        limbeck("store", "verify", str(tmp_path))


@pytest.mark.parametrize("keep", ["12h", "0d", "soon", "1m"])
def test_less_than_a_day_is_not_kept(keep, tmp_path):
    with pytest.raises(InputError, match="--keep"):
        limbeck("store", "gc", str(tmp_path), "--keep", keep, "--no-registry")


def test_when_mlflow_cannot_be_asked_nothing_is_deleted(tmp_path):
    store = Store(str(tmp_path / "out"))
    commit(store)
    age(store)
    with pytest.raises(WorkError, match="nothing is deleted"):
        limbeck("store", "gc", store.root, "--delete", "--tracking-uri", f"sqlite:///{tmp_path}/none.db")
    assert store.holds("teacher", KEY)


def test_what_mlflow_s_registry_knows_is_not_deleted(tmp_path):
    from mlflow import MlflowClient

    uri = f"sqlite:///{tmp_path}/mlflow.db"
    store = Store(str(tmp_path / "out"))
    digest = make(store, "registered")
    commit(store)
    age(store)
    client = MlflowClient(tracking_uri=uri, registry_uri=uri)
    client.create_registered_model("sets", tags={"limbeck.type": "distilled-dataset"})
    client.create_model_version("sets", source=str(tmp_path), tags={"limbeck.digest": digest})
    said = limbeck("store", "gc", store.root, "--delete", "--tracking-uri", uri)
    assert "1 item deleted" in said
    assert store.find(*place_of("registered").split("/")) is not None
    assert not store.holds("teacher", IDENTITY.key)


def test_what_another_machine_has_found_damaged_is_said_with_its_url(bucket, tmp_path):
    store = bucket.store(tmp_path)
    commit(store)
    store.objects.filesystem.rm_file(store.objects.path(store.find("teacher", KEY).manifest.place("empty")))
    with pytest.raises(DamagedResultError, match=f"{bucket.url}/teacher/{KEY}/.*empty is missing"):
        bucket.store(tmp_path / "other").find("teacher", KEY)
