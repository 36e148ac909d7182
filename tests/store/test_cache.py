"""Copies of remote results take no more of a disk than they may, and what is used stays."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
import uuid
from pathlib import Path

import numpy as np
import pytest

from limbeck.store import Identity
from limbeck.store.cache import Cache
from limbeck.store.files import take_away
from tests.store.places import Place, commit

SIZE = 100_000
NAMES = ["a", "b", "c", "d"]


def identity(name: str) -> Identity:
    return Identity("teacher", 1, {"name": name}, {})


@pytest.fixture
def place(tmp_path) -> Place:
    """With four results of 100 kB each."""
    place = Place("memory", f"memory://{uuid.uuid4().hex}")
    maker = place.store(tmp_path / "maker")
    for name in NAMES:
        commit(maker, {"data": name.encode() * SIZE}, identity(name))
    return place


def here(store) -> set[str]:
    return {
        name
        for name in NAMES
        if (store.local_folder(f"teacher/{identity(name).key}/data")).exists()
    }  # fmt: skip


def test_the_least_recently_used_go_first(place, tmp_path):
    for position, name in enumerate("abc"):
        store = place.store(tmp_path, cache_size=3 * SIZE)
        store.find("teacher", identity(name).key)
        os.utime(store.local_folder(f"teacher/{identity(name).key}"), (position, position))
    assert here(store) == {"a", "b", "c"}
    del store  # which used c
    place.store(tmp_path, cache_size=3 * SIZE).find("teacher", identity("a").key)  # used again
    store = place.store(tmp_path, cache_size=3 * SIZE)
    store.find("teacher", identity("d").key)
    assert here(store) == {"a", "c", "d"}


def test_what_another_store_uses_stays_though_the_bound_is_broken(place, tmp_path):
    user = place.store(tmp_path, cache_size=2 * SIZE)
    used = [user.find("teacher", identity(name).key) for name in "ab"]
    other = place.store(tmp_path, cache_size=2 * SIZE)
    for name in "cd":
        other.find("teacher", identity(name).key)
    assert here(other) == {"a", "b", "c", "d"}
    assert all((result.path / "data").stat().st_size == SIZE for result in used)
    del user, other
    store = place.store(tmp_path, cache_size=2 * SIZE)
    store.find("teacher", identity("a").key)
    assert here(store) == {"a", "d"}  # the bound holds again
    commit(store, {"data": bytes(SIZE)}, identity("new"))
    assert here(store) == {"a"}


HOLD = """
import sys
from pathlib import Path
from limbeck.store.cache import Cache
from limbeck.store.files import take_away
cache = Cache(Path(sys.argv[1]), 0)
cache.use(sys.argv[2], 1)
print("held", flush=True)
sys.stdin.read()
"""


def test_what_a_process_uses_stays_as_long_as_it_lives(tmp_path):
    used, other = (f"teacher/{digit * 32}" for digit in "ab")
    for name in (used, other):
        (tmp_path / name).mkdir(parents=True)
        (tmp_path / name / "data").write_bytes(bytes(SIZE))
    command = [sys.executable, "-c", HOLD, str(tmp_path), used]
    with subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True) as process:
        assert process.stdout.readline() == "held\n"
        Cache(tmp_path, 0).use(f"teacher/{'c' * 32}", 1)
        assert (tmp_path / used).exists()
        assert not (tmp_path / other).exists()
        process.kill()
        process.wait()
        Cache(tmp_path, 0).use(f"teacher/{'d' * 32}", 1)
        assert not (tmp_path / used).exists()


def test_a_mapped_file_stays_valid_when_its_result_goes(place, tmp_path):
    store = place.store(tmp_path, cache_size=SIZE)
    mapped = np.memmap(store.find("teacher", identity("a").key).path / "data", mode="r")
    del store
    store = place.store(tmp_path, cache_size=SIZE)
    store.find("teacher", identity("b").key)
    assert here(store) == {"b"}
    assert bytes(mapped) == b"a" * SIZE


def test_results_that_others_take_away_meanwhile_are_passed_over(place, tmp_path, monkeypatch):
    found = Cache._results

    def before_some_went(cache: Cache) -> list[Path]:
        lying = list(found(cache))
        shutil.rmtree(lying[0])
        return lying

    for name in "ab":
        place.store(tmp_path).find("teacher", identity(name).key)
    monkeypatch.setattr(Cache, "_results", before_some_went)
    store = place.store(tmp_path, cache_size=SIZE)
    store.find("teacher", identity("c").key)
    assert here(store) == {"c"}


def test_a_folder_is_taken_away_though_another_process_removes_the_trash(tmp_path, monkeypatch):
    folder, trash = tmp_path / "folder", tmp_path / "trash"
    folder.mkdir()
    rename, tries = Path.rename, []

    def after_the_trash_went(path: Path, target: Path) -> Path:
        tries.append(path)
        if len(tries) == 1:
            trash.rmdir()
        return rename(path, target)

    monkeypatch.setattr(Path, "rename", after_the_trash_went)
    take_away(folder, trash)
    assert len(tries) == 2
    assert not folder.exists()
