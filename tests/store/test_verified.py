"""What was verified once is not read again, unless it looks another than then."""

from __future__ import annotations

import json
import os
import shutil
from pathlib import Path

import pytest
from typer.testing import CliRunner

from limbeck.cli_store import store as command
from limbeck.errors import WorkError
from limbeck.store import DamagedResultError, Store, verified
from limbeck.store.files import file_digest
from tests.store.places import FILES, IDENTITY, KEY, MADE

SETTLED = -(10**18)  # nothing was changed too shortly before it was read


@pytest.fixture(params=["local", "memory"])
def url(request, tmp_path, monkeypatch) -> str:
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    return str(tmp_path / "store") if request.param == "local" else f"memory://{tmp_path.name}"


@pytest.fixture
def read(monkeypatch) -> list[str]:
    """The names of the files that are read."""
    names: list[str] = []

    def digest(path: Path) -> str:
        names.append(path.name)
        return file_digest(path)

    monkeypatch.setattr(verified, "file_digest", digest)
    monkeypatch.setattr("limbeck.store.transfer.file_digest", digest)
    monkeypatch.setattr(verified, "_RACY_NS", SETTLED)
    return names


def commit(url: str) -> None:
    store = Store(url)
    with store.scratch(IDENTITY.stage, KEY) as scratch:
        for name, content in FILES.items():
            (scratch / name).parent.mkdir(parents=True, exist_ok=True)
            (scratch / name).write_bytes(content)
        store.commit(IDENTITY, scratch, MADE, [])


def find(url: str) -> Path:
    """As another process finds it."""
    found = Store(url).find(IDENTITY.stage, KEY)
    assert found is not None
    return found.path


def everything() -> list[str]:
    return sorted(Path(name).name for name in FILES)


def test_files_are_read_once_by_all_processes(url, read):
    commit(url)
    find(url)
    assert sorted(read) == everything()
    read.clear()
    find(url)
    assert read == []


@pytest.mark.parametrize("change", ["content", "size", "mtime", "inode"])
def test_a_file_that_looks_another_is_read_again_and_no_other_one(url, read, change):
    commit(url)
    path = find(url) / "weights.bin"
    read.clear()
    before = path.stat()
    if change == "content":
        path.write_bytes(b"W" + path.read_bytes()[1:])
        os.utime(path, ns=(before.st_atime_ns, before.st_mtime_ns + 1))
    elif change == "size":
        path.write_bytes(path.read_bytes() + b"x")
        os.utime(path, ns=(before.st_atime_ns, before.st_mtime_ns))
    elif change == "mtime":
        os.utime(path, ns=(before.st_atime_ns, before.st_mtime_ns + 1))
    else:
        shutil.copy2(path, path.with_name("copy"))
        path.with_name("copy").replace(path)
    if Path(url).is_dir() and change in ("content", "size"):
        with pytest.raises(DamagedResultError, match=r"weights\.bin"):
            find(url)
    else:
        assert (find(url) / "weights.bin").read_bytes() == FILES["weights.bin"]
    assert set(read) <= {"weights.bin", "weights.bin.partial"}


def test_a_file_that_was_just_written_is_read_again(url, read, monkeypatch):
    """It may be changed again within the same tick of the file system's clock."""
    monkeypatch.setattr(verified, "_RACY_NS", 2 * 10**9)
    commit(url)
    for _ in range(2):
        read.clear()
        find(url)
        assert sorted(read) == everything()


@pytest.mark.parametrize("content", [b"", b"{", b"[]", b"null", b"\xff", b'{"weights.bin": 7}', b'{"weights.bin": []}'])
def test_a_damaged_record_is_none(url, read, content):
    commit(url)
    record = find(url) / ".verified"
    record.write_bytes(content)
    read.clear()
    find(url)
    assert sorted(read) == everything()
    read.clear()
    find(url)
    assert read == []


def test_the_record_of_another_copy_says_nothing(url, read, tmp_path):
    commit(url)
    shutil.copytree(find(url), tmp_path / "copy")  # with its times
    folder = find(url)
    shutil.rmtree(folder)
    shutil.copytree(tmp_path / "copy", folder)
    read.clear()
    find(url)
    assert sorted(read) == everything()


@pytest.mark.skipif(os.geteuid() == 0, reason="root may write everywhere")
def test_where_nothing_can_be_written_files_are_read(tmp_path, read):
    commit(str(tmp_path))
    (tmp_path / "teacher" / KEY).chmod(0o555)
    for _ in range(2):
        read.clear()
        find(str(tmp_path))
        assert sorted(read) == everything()


def test_a_record_that_cannot_be_written_is_no_error(tmp_path, read, monkeypatch):
    def refuse(*arguments, **settings):
        raise OSError(30, "Read-only file system")

    commit(str(tmp_path))
    monkeypatch.setattr(verified.tempfile, "mkstemp", refuse)
    for _ in range(2):
        read.clear()
        find(str(tmp_path))
        assert sorted(read) == everything()


def test_a_result_that_goes_meanwhile_is_not_put_back(tmp_path, read):
    commit(str(tmp_path))
    store = Store(str(tmp_path))
    found = store.find("teacher", KEY)
    seen = verified.Verified(found.manifest, found.path)
    seen._known = {}
    shutil.rmtree(found.path)
    seen.remember()
    assert not found.path.exists()


def test_verify_reads_everything_and_the_next_run_believes_it(tmp_path, read):
    """A change that leaves no trace, as a failing disk's does; here the record is made to fit."""
    commit(str(tmp_path))
    folder = find(str(tmp_path))
    path = folder / "weights.bin"
    path.write_bytes(b"W" + path.read_bytes()[1:])
    record = json.loads((folder / ".verified").read_text())
    now = path.stat()
    record["weights.bin"][1:] = [now.st_size, now.st_mtime_ns, now.st_ctime_ns, now.st_ino]
    (folder / ".verified").write_text(json.dumps(record))
    assert find(str(tmp_path)) == folder
    outcome = CliRunner().invoke(command, ["verify", str(tmp_path)])
    assert isinstance(outcome.exception, WorkError)
    assert "weights.bin is not what its manifest says" in outcome.output
    with pytest.raises(DamagedResultError, match=r"weights\.bin"):
        find(str(tmp_path))


def test_a_whole_result_keeps_its_record_when_it_is_verified(tmp_path, read):
    commit(str(tmp_path))
    find(str(tmp_path))
    assert CliRunner().invoke(command, ["verify", str(tmp_path)]).exit_code == 0
    read.clear()
    find(str(tmp_path))
    assert read == []
