# ruff: noqa: F811 -- a fixture that is imported is an argument too
"""A result is there when its manifest is, and is what its manifest says."""

from __future__ import annotations

import itertools
import os
import signal
import threading
import uuid
from contextlib import suppress
from pathlib import Path

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from limbeck.checkpoint import Checkpoint
from limbeck.errors import InputError, WorkError
from limbeck.stages.task import Workshop
from limbeck.store import DamagedResultError, Identity, Store
from tests.forks import processes
from tests.stages.tiny import (
    digests,
    finished,  # noqa: F401 - a fixture
    one_thread,  # noqa: F401 - a fixture
    run_tiny,
)
from tests.store.places import FILES, IDENTITY, MADE


def commit(store: Store, files: dict[str, bytes] = FILES, identity: Identity = IDENTITY) -> str:
    with store.scratch(identity.stage, identity.key) as scratch:
        for name, content in files.items():
            (scratch / name).parent.mkdir(parents=True, exist_ok=True)
            (scratch / name).write_bytes(content)
        return store.commit(identity, scratch, MADE, ["expert/k"]).digest


@pytest.fixture(params=["local", "memory"])
def url(request, tmp_path, monkeypatch) -> str:
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    return str(tmp_path / "store") if request.param == "local" else f"memory://{tmp_path.name}"


def test_what_is_committed_is_found_by_another_process_s_store(url):
    digest = commit(Store(url))
    found = Store(url).find("teacher", IDENTITY.key)
    assert found is not None
    assert found.digest == digest
    assert {entry.path: (found.path / entry.path).read_bytes() for entry in found.manifest.files} == FILES
    assert found.manifest.section == {"width": 8}
    assert found.manifest.inputs == {"dataset": "d"}
    assert found.manifest.refers == ["expert/k"]
    assert Store(url).find("teacher", "0" * 32) is None
    assert Store(url).find("distill", IDENTITY.key) is None


def test_nothing_of_the_work_is_left_after_a_commit(tmp_path):
    commit(Store(str(tmp_path)))
    assert not [path for path in (tmp_path / "work").rglob("*") if path.is_file()]


def test_checkpoints_are_no_part_of_a_result(url):
    store = Store(url)
    alone = commit(store)
    store.discard("teacher", IDENTITY.key)
    extra = {"checkpoint.safetensors": b"x", "checkpoint-imported.pt": b"x", ".checkpoint.safetensors.partial": b"x"}
    assert commit(store, FILES | extra) == alone


def test_a_digest_is_of_the_content_alone(tmp_path):
    first = commit(Store(str(tmp_path / "a")))
    assert commit(Store(str(tmp_path / "b")), dict(reversed(FILES.items()))) == first
    assert commit(Store(str(tmp_path / "c")), FILES | {"weights.bin": b"other"}) != first
    renamed = {("w.bin" if name == "weights.bin" else name): content for name, content in FILES.items()}
    assert commit(Store(str(tmp_path / "d")), renamed) != first


def test_without_its_manifest_a_result_is_none(tmp_path):
    commit(Store(str(tmp_path)))
    (tmp_path / "teacher" / IDENTITY.key / "manifest.json").unlink()
    assert Store(str(tmp_path)).find("teacher", IDENTITY.key) is None


def harmed(path: Path, harm: str) -> None:
    content = path.read_bytes()
    if harm == "missing":
        path.unlink()
    elif harm == "a folder":
        path.unlink()
        path.mkdir()
    else:
        path.write_bytes({"truncated": content[:-1], "longer": content + b"x", "altered": b"W" + content[1:]}[harm])


@pytest.mark.parametrize("harm", ["missing", "a folder", "truncated", "longer", "altered"])
def test_a_damaged_file_is_named(tmp_path, harm):
    commit(Store(str(tmp_path)))
    path = tmp_path / "teacher" / IDENTITY.key / "weights.bin"
    harmed(path, harm)
    with pytest.raises(DamagedResultError, match=r"weights\.bin"):
        Store(str(tmp_path)).find("teacher", IDENTITY.key)


def test_a_manifest_of_another_result_is_not_taken_for_this_one(tmp_path):
    commit(Store(str(tmp_path)))
    (tmp_path / "teacher" / IDENTITY.key).rename(tmp_path / "teacher" / "0000")
    with pytest.raises(DamagedResultError, match="another result"):
        Store(str(tmp_path)).find("teacher", "0000")


@pytest.mark.parametrize("content", [b"", b"[]", b"{}", b"\xff\xfe\x00", b'{"format": 1, "stage": "tea'])
def test_a_manifest_that_is_none_is_damage(url, content):
    store = Store(url)
    commit(store)
    store._fs.pipe_file(f"{store.root}/teacher/{IDENTITY.key}/manifest.json", content)
    with pytest.raises(DamagedResultError, match=r"manifest\.json"):
        Store(url).find("teacher", IDENTITY.key)


def test_a_result_can_be_made_again_where_one_was_discarded(url):
    store = Store(url)
    first = commit(store)
    store.discard("teacher", IDENTITY.key)
    assert store.find("teacher", IDENTITY.key) is None
    assert commit(store) == first
    assert store.find("teacher", IDENTITY.key) is not None


def test_a_remote_result_is_fetched_where_its_copy_is_lost(tmp_path, monkeypatch):
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "one"))
    digest = commit(Store("memory://fetched"))
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "two"))
    found = Store("memory://fetched").find("teacher", IDENTITY.key)
    assert found is not None
    assert found.digest == digest
    assert found.path.is_relative_to(tmp_path / "two")
    assert (found.path / "weights.bin").read_bytes() == FILES["weights.bin"]


def test_a_stale_copy_of_a_remote_result_is_fetched_again_and_the_result_stays(tmp_path, monkeypatch):
    """Another machine made the result again, and the new file is as long as the one in this machine's cache."""
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "this"))
    commit(Store("memory://stale"))
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "that"))
    other = Store("memory://stale")
    other.discard("teacher", IDENTITY.key)
    new = b"WEIGHTS" * 100
    commit(other, FILES | {"weights.bin": new})
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "this"))
    found = Store("memory://stale").find("teacher", IDENTITY.key)
    assert found is not None
    assert (found.path / "weights.bin").read_bytes() == new


def test_a_store_of_an_unknown_kind_is_the_user_s_mistake():
    with pytest.raises(InputError, match=r"spec\.output\.uri: nonsense://x"):
        Store("nonsense://x")


def test_text_beside_the_results_is_written_and_read(url):
    store = Store(url)
    assert store.read_text("runs/a/summary.json") is None
    assert store.names("runs") == []
    store.write_text("runs/a/summary.json", "one")
    store.write_text("runs/a/summary.json", "two")
    assert Store(url).read_text("runs/a/summary.json") == "two"
    assert Store(url).names("runs") == ["a"]


def make_and_hold(url: str, entered: object, leave: object) -> None:
    def work(folder: Path) -> list[str]:
        (folder / "weights.bin").write_bytes(b"theirs")
        entered.set()
        assert leave.wait(60)
        return []

    Workshop(Store(url), torch.device("cpu")).make(IDENTITY, work)


def test_of_two_processes_one_makes_a_result_and_the_other_refuses_and_later_uses_it(tmp_path):
    context = processes()
    entered, leave = context.Event(), context.Event()
    child = context.Process(target=make_and_hold, args=(str(tmp_path), entered, leave))
    child.start()
    assert entered.wait(60)
    shop = Workshop(Store(str(tmp_path)), torch.device("cpu"))
    with pytest.raises(WorkError, match="another limbeck is working on it"):
        shop.make(IDENTITY, lambda folder: [])
    leave.set()
    child.join()
    assert child.exitcode == 0
    result, reused = shop.make(IDENTITY, lambda folder: [])
    assert reused
    assert (result.path / "weights.bin").read_bytes() == b"theirs"


def die_at_flush(url: str, flushes: int) -> None:
    """Commit over what an earlier kill left, and be killed at the given flush to disk."""
    store, flush, count = Store(url), os.fsync, itertools.count(1)

    def fsync(handle: int) -> None:
        if next(count) == flushes:
            os.kill(os.getpid(), signal.SIGKILL)
        flush(handle)

    os.fsync = fsync
    commit(store)


def test_a_kill_at_any_moment_of_a_commit_leaves_a_whole_result_or_none(tmp_path):
    for flushes in itertools.count(1):
        child = processes().Process(target=die_at_flush, args=(str(tmp_path), flushes))
        child.start()
        child.join()
        found = Store(str(tmp_path)).find("teacher", IDENTITY.key)
        if child.exitcode == 0:
            break
        assert child.exitcode == -signal.SIGKILL
        if found is not None:  # killed after the manifest was in its place
            Store(str(tmp_path)).discard("teacher", IDENTITY.key)
    assert flushes > 2 * len(FILES)
    assert found is not None
    assert {entry.path for entry in found.manifest.files} == set(FILES)


def test_work_that_fails_leaves_no_result_and_does_not_block_the_next(tmp_path):
    shop = Workshop(Store(str(tmp_path)), torch.device("cpu"))

    def fail(folder: Path) -> list[str]:
        (folder / "checkpoint.safetensors").write_bytes(b"half")
        raise WorkError("no luck")

    with pytest.raises(WorkError):
        shop.make(IDENTITY, fail)
    assert shop.find(IDENTITY) is None
    seen = []
    shop.make(IDENTITY, lambda folder: seen.extend(path.name for path in folder.iterdir()) or [])
    assert seen == ["checkpoint.safetensors"]


def test_a_whole_run_in_a_remote_store_gives_the_same_digests(tmp_path, monkeypatch, finished):
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "one"))
    remote = run_tiny("memory://whole-run")
    assert digests(remote) == digests(run_tiny(finished))
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "two"))
    again = run_tiny("memory://whole-run")
    assert all(stage.reused for stage in again.stages)
    assert "<html" in (Store("memory://whole-run").read_text("runs/tiny/report.html") or "")


JSON = st.recursive(
    st.none() | st.booleans() | st.integers(-9, 9) | st.floats(allow_nan=False, allow_infinity=False) | st.text(),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(), inner, max_size=3),
    max_leaves=8,
)
SECTION = st.dictionaries(st.text(), JSON, max_size=5)
INPUTS = st.dictionaries(st.text(), st.text(), max_size=4)


def backwards(value: object) -> object:
    if isinstance(value, dict):
        return {name: backwards(value[name]) for name in reversed(value)}
    return [backwards(item) for item in value] if isinstance(value, list) else value


@settings(deadline=None)
@given(st.text(), st.integers(0, 9), SECTION, INPUTS)
def test_a_key_does_not_depend_on_the_order_of_fields(stage, version, section, inputs):
    one = Identity(stage, version, section, inputs)
    other = Identity(stage, version, backwards(section), backwards(inputs))
    assert one.key == other.key
    assert len(one.key) == 32


IDENTITIES = st.tuples(
    st.sampled_from(["teacher", "targets"]), st.integers(1, 3), st.sampled_from([{}, {"a": 1}, {"a": "1"}, {"a": [1]}]),
    st.sampled_from([{}, {"d": "x"}, {"d": "y"}, {"e": "x"}]),
)  # fmt: skip


@settings(deadline=None)
@given(IDENTITIES, IDENTITIES)
def test_keys_are_equal_exactly_when_every_ingredient_is(one, other):
    assert (Identity(*one).key == Identity(*other).key) == (one == other)


def test_a_lock_is_waited_for_as_long_as_one_has_patience(tmp_path):
    store = Store(str(tmp_path))
    held, free = threading.Event(), threading.Event()

    def hold() -> None:
        with Store(str(tmp_path)).scratch("stage", "key"):
            held.set()
            free.wait(10)

    thread = threading.Thread(target=hold)
    thread.start()
    held.wait(10)
    with pytest.raises(WorkError, match="another limbeck is working on it"), store.scratch("stage", "key", 0.3):
        pass
    threading.Timer(0.5, free.set).start()
    with store.scratch("stage", "key", 10.0) as folder:
        assert folder.is_dir()
    thread.join()


def test_working_state_of_a_remote_store_is_there_for_another_machine(tmp_path, monkeypatch):
    url = f"memory://{uuid.uuid4().hex}"
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "one"))
    with suppress(KeyboardInterrupt), Store(url).scratch("stage", "key") as folder:
        checkpoint = Checkpoint(folder, 0.0, Store(url))
        assert checkpoint.load() is None
        checkpoint.save({"state": torch.ones(3)}, {"step": 7})
        raise KeyboardInterrupt
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "two"))
    other = Store(url)
    with other.scratch("stage", "key") as folder:
        assert not list(folder.iterdir())
        tensors, values = Checkpoint(folder, 0.0, other).load()
        assert values == {"step": 7}
        assert torch.equal(tensors["state"], torch.ones(3))
    assert other.names("work/stage") == []  # gone with the work


def test_a_log_is_appended_to_and_lies_in_the_store(tmp_path, monkeypatch):
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    for url in (str(tmp_path / "local"), f"memory://{uuid.uuid4().hex}"):
        store = Store(url)
        for line in ("one\n", "two\n"):
            with store.appended("logs/x.log") as path, path.open("a") as log:
                log.write(line)
        assert store.read_text("logs/x.log") == "one\ntwo\n"
        store.remove("logs")
        store.remove("logs")
        assert store.read_text("logs/x.log") is None
