"""What a store promises, on a disk, in memory and on object stores alike."""

from __future__ import annotations

import os
import signal
import threading
from collections.abc import Mapping
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np
import pytest

from limbeck.errors import InputError, WorkError
from limbeck.patience import Retries
from limbeck.store import DamagedResultError, Identity, Store
from limbeck.store.transfer import PIECE
from tests.forks import processes
from tests.store.places import FILES, IDENTITY, KEY, MADE, Place, Storm, commit, watch


def contents(store: Store, identity: Identity = IDENTITY) -> dict[str, bytes] | None:
    found = store.find(identity.stage, identity.key)
    if found is None:
        return None
    return {entry.path: (found.path / entry.path).read_bytes() for entry in found.manifest.files}


def test_what_one_machine_commits_another_finds(place, tmp_path):
    digest = commit(place.store(tmp_path / "one"))
    other = place.store(tmp_path / "two")
    assert other.holds("teacher", KEY)
    assert contents(other) == FILES
    assert other.find("teacher", KEY).digest == digest
    assert other.find("teacher", "0" * 32) is None
    assert not other.holds("teacher", "0" * 32)


@pytest.mark.timeout(60)
def test_of_sixteen_writers_one_wins_and_all_use_its_result(place, tmp_path):
    writers, at_once = 16, threading.Barrier(16)
    stores = [place.store(tmp_path / f"machine-{index}") for index in range(writers)]

    def write(index: int) -> tuple[str, str]:
        scratch = stores[index].local_folder(f"work/other/{index}")
        scratch.mkdir(parents=True)
        for name in ("weights.bin", "deeper/history.json"):
            (scratch / name).parent.mkdir(exist_ok=True)
            (scratch / name).write_bytes(f"{name} of writer {index}".encode())
        at_once.wait()
        result = stores[index].commit(IDENTITY, scratch, MADE, [])
        return result.digest, (result.path / "weights.bin").read_text()

    with ThreadPoolExecutor(writers) as pool:
        answers = set(pool.map(write, range(writers)))
    assert len(answers) == 1
    ((digest, text),) = answers
    seen = place.store(tmp_path / "another machine").find("teacher", KEY)
    assert seen.digest == digest
    assert (seen.path / "weights.bin").read_text() == text


def object_of(store: Store, name: str) -> str:
    manifest = store.find("teacher", KEY).manifest
    return store.objects.path(manifest.place(name))


@pytest.mark.parametrize("harm", ["missing", "truncated", "longer", "flipped"])
def test_a_harmed_object_is_named_and_the_result_is_made_again(place, harm, tmp_path):
    maker = place.store(tmp_path / "one")
    digest = commit(maker)
    path, content = object_of(maker, "weights.bin"), FILES["weights.bin"]
    filesystem = maker.objects.filesystem
    if harm == "missing":
        filesystem.rm_file(path)
    else:
        filesystem.pipe_file(path, {"truncated": content[:-1], "longer": content + b"x"}.get(harm, b"W" + content[1:]))
    other = place.store(tmp_path / "two")
    with pytest.raises(DamagedResultError, match=r"weights\.bin") as caught:
        other.find("teacher", KEY)
    assert other.location("teacher", KEY) in str(caught.value)
    other.discard("teacher", KEY)
    assert other.find("teacher", KEY) is None
    assert commit(other) == digest
    assert contents(place.store(tmp_path / "three")) == FILES


def test_a_damaged_result_that_another_machine_has_made_again_is_not_discarded(place, tmp_path):
    maker = place.store(tmp_path / "one")
    commit(maker)
    maker.objects.filesystem.pipe_file(object_of(maker, "weights.bin"), b"harm")
    first, second = place.store(tmp_path / "two"), place.store(tmp_path / "three")
    for store in (first, second):
        with pytest.raises(DamagedResultError):
            store.find("teacher", KEY)
    first.discard("teacher", KEY)
    commit(first, FILES | {"weights.bin": b"made again"})
    second.discard("teacher", KEY)
    assert contents(second) == FILES | {"weights.bin": b"made again"}


def test_a_file_cannot_be_named_outside_of_its_result(bucket, tmp_path):
    maker = bucket.store(tmp_path / "one")
    commit(maker)
    manifest = maker.objects.path(f"teacher/{KEY}/manifest.json")
    text = maker.objects.filesystem.cat_file(manifest).replace(b'"weights.bin",', b'"../../weights.bin",')
    maker.objects.filesystem.pipe_file(manifest, text)
    with pytest.raises(DamagedResultError, match="is not a manifest"):
        bucket.store(tmp_path / "two").find("teacher", KEY)


def test_nothing_is_decided_by_a_listing(bucket, tmp_path):
    """Listings that show nothing at all: objects are found, replaced and used just the same."""

    def blind(store: Store) -> Store:
        def refuse(call: str, path: str) -> None:
            if call in ("find", "ls"):
                raise FileNotFoundError(path)

        return watch(store, refuse)

    maker = blind(bucket.store(tmp_path / "one"))
    digest = commit(maker)
    other = blind(bucket.store(tmp_path / "two"))
    assert other.holds("teacher", KEY)
    assert contents(other) == FILES
    assert commit(other, FILES | {"weights.bin": b"late"}) == digest
    other.discard("teacher", KEY)
    assert blind(bucket.store(tmp_path / "three")).find("teacher", KEY) is None


def commit_and_die(place: Place, machine: Path, calls: int, identity: Identity, environment: Mapping[str, str]) -> None:
    """Commit, and be killed right before the given call to the storage."""
    os.environ.update(environment)
    count, lock = 0, threading.Lock()

    def before(call: str, path: str) -> None:
        nonlocal count
        with lock:
            count += 1
            if count == calls:
                os.kill(os.getpid(), signal.SIGKILL)

    commit(watch(place.store(machine), before), identity=identity)


@pytest.mark.timeout(240)
def test_a_kill_at_any_request_of_a_commit_leaves_a_whole_result_or_none(bucket, tmp_path):
    context, environment = processes(), dict(os.environ)
    for calls in range(1, 100, 1 if bucket.kind == "gs" else 3):  # the requests are the same on both
        identity = Identity("teacher", 1, {"killed at": calls}, {})
        child = context.Process(target=commit_and_die, args=(bucket, tmp_path / "one", calls, identity, environment))
        child.start()
        child.join()
        found = contents(bucket.store(tmp_path / f"two-{calls}"), identity)
        assert found in (None, FILES)
        commit(bucket.store(tmp_path / "one"), identity=identity)
        assert contents(bucket.store(tmp_path / f"three-{calls}"), identity) == FILES
        if child.exitcode == 0:
            break
        assert child.exitcode == -signal.SIGKILL
    assert calls > 3 * len(FILES)


@pytest.mark.timeout(240)
@pytest.mark.parametrize("kind", ["gs", "s3"])
def test_in_a_storm_of_refusals_and_lost_answers_nothing_is_lost_or_half_trusted(servers, kind, tmp_path):
    storm = Storm(servers.google if kind == "gs" else servers.amazon, share=0.2)
    try:
        place = servers.place(kind, tmp_path, lambda address: storm.address)
        stores = [place.store(tmp_path / f"machine-{index}") for index in range(4)]
        files = [{"weights.bin": bytes([index]) * 1000, "more.bin": b"more"} for index in range(4)]
        with ThreadPoolExecutor(4) as pool:
            digests = set(pool.map(commit, stores, files))
        assert len(digests) == 1
        found = contents(place.store(tmp_path / "another"))
        assert found in files
    finally:
        storm.close()
    assert storm.refused >= 5


def test_when_the_storage_never_answers_one_line_says_so(servers, tmp_path):
    place = servers.place("memory", tmp_path)

    def refuse(call: str, path: str) -> None:
        raise ConnectionResetError("reset by peer")

    store = watch(place.store(tmp_path, retries=Retries(3, 0.0)), refuse)
    with pytest.raises(WorkError, match=r"reading memory://.*manifest\.json \(tried 3 times\): ConnectionResetError"):
        store.find("teacher", KEY)


@pytest.mark.parametrize("denied", [PermissionError("AccessDenied"), OSError("Forbidden: b/o")])
def test_a_store_that_may_only_be_read_is_read_and_a_refusal_to_write_is_one_line(servers, denied, tmp_path):
    place = servers.place("memory", tmp_path)
    commit(place.store(tmp_path / "one"))
    path = place.store(tmp_path / "one").objects.path(f"teacher/{KEY}/.used")
    place.store(tmp_path / "one").objects.filesystem.rm_file(path)

    def refuse(call: str, path: str) -> None:
        if call in ("pipe_file", "put_file", "rm_file"):
            raise denied

    reader = watch(place.store(tmp_path / "two"), refuse)
    assert contents(reader) == FILES
    with pytest.raises(WorkError, match=r"writing memory://.*: not allowed; "):
        commit(reader, identity=Identity("teacher", 1, {"other": 1}, {}))


BIG = {"a.bin": np.random.default_rng(0).bytes(3 * PIECE + 5), "b.bin": b"small", "c.bin": bytes(PIECE)}


class CutError(Exception):
    """The machine is gone."""


@pytest.mark.parametrize("kind", ["memory", "gs"])
def test_a_download_goes_on_where_an_earlier_one_was_cut(servers, kind, tmp_path):
    place = servers.place(kind, tmp_path)
    commit(place.store(tmp_path / "one"), BIG)
    reads = []

    def cut(call: str, path: str) -> None:
        if call == "cat_file" and not path.endswith("manifest.json"):
            reads.append(path)
            if len(reads) == 3:
                raise CutError

    with pytest.raises(CutError):
        watch(place.store(tmp_path / "two"), cut).find("teacher", KEY)
    pieces, reads = len(reads), []
    store = watch(place.store(tmp_path / "two"), lambda call, path: reads.append(path) if call == "cat_file" else None)
    assert contents(store) == BIG
    fetched = [path for path in reads if not path.endswith("manifest.json")]
    assert pieces >= 3
    assert len(fetched) < 6  # of six pieces
    assert not list((tmp_path / "two").rglob("*.partial"))


def test_an_upload_goes_on_where_an_earlier_one_was_cut(bucket, tmp_path):
    sent: list[str] = []

    def cut(call: str, path: str) -> None:
        if call == "put_file":
            if len(sent) == 2:
                raise CutError
            sent.append(path)

    files = {f"{index}.bin": bytes([index]) * 100 for index in range(9)}
    with pytest.raises(CutError):
        commit(watch(bucket.store(tmp_path / "one"), cut), files)
    first, sent = len(sent), []
    again = watch(bucket.store(tmp_path / "one"), lambda call, path: sent.append(path) if call == "put_file" else None)
    commit(again, files)
    assert first == 2
    assert len(sent) == 7
    assert contents(bucket.store(tmp_path / "two")) == files


def test_what_was_half_here_and_wrong_is_fetched_anew(servers, tmp_path):
    place = servers.place("memory", tmp_path)
    commit(place.store(tmp_path / "one"), BIG)
    other = place.store(tmp_path / "two")
    folder = other.local_folder(f"teacher/{KEY}")
    folder.mkdir(parents=True)
    (folder / "a.bin.partial").write_bytes(b"wrong" * PIECE)
    assert contents(other) == BIG


def test_a_distilled_set_is_loaded_from_where_the_store_says_it_is(bucket, tmp_path):
    import torch

    from limbeck.data.distilled import DistilledSet
    from limbeck.nn.pretraining import Recipe

    made = DistilledSet(
        images=torch.zeros(2, 3, 4, 4),
        targets=torch.ones(2, 5),
        mean=torch.full((3,), 0.5),
        std=torch.ones(3),
        recipe=Recipe(0.1, 1, 2, 0.9, 0.0),
        spec={},
        lineage={},
        evaluation={},
    )
    store = bucket.store(tmp_path)
    with store.scratch("teacher", KEY) as scratch:
        made.save(scratch)
        store.commit(IDENTITY, scratch, MADE, [])
    loaded = DistilledSet.load(store.location("teacher", KEY), bucket.access)
    assert torch.equal(loaded.targets, made.targets)
    with pytest.raises(InputError, match="no distilled set is there"):
        DistilledSet.load(store.location("teacher", "0" * 32), bucket.access)


def test_a_bucket_that_is_not_there_is_the_user_s_mistake(bucket, tmp_path):
    nowhere = Place(bucket.kind, f"{bucket.kind}://limbeck-nowhere/x", bucket.access)
    with pytest.raises(InputError, match="no such bucket"):
        commit(nowhere.store(tmp_path))
