"""Local files are read once: their digests are remembered as long as they look as they did."""

import os
import time
from pathlib import Path

import pytest

from limbeck.data.sources import open_source
from tests.data.making import write_tree

FILES = {f"{i}.png": bytes([i]) * (33 * 2**20) for i in range(2)}  # together worth remembering
HOUR = 3600


@pytest.fixture
def tree(tmp_path, monkeypatch):
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    root = write_tree(tmp_path / "tree", FILES)
    for name in FILES:
        age(root / name, HOUR)
    return root


def age(path, seconds):
    then = time.time() - seconds
    os.utime(path, (then, then))


@pytest.fixture
def opened(monkeypatch):
    """The names of the images whose bytes were read."""
    from limbeck.data.sources import digests

    read, sha256 = [], digests._sha256
    monkeypatch.setattr(digests, "_sha256", lambda path: read.append(Path(os.fsdecode(path)).name) or sha256(path))
    return read


def cache(tree):
    [file] = (tree.parent / "cache" / "limbeck" / "digests").iterdir()
    return file


def fingerprint(tree):
    return open_source(str(tree)).fingerprint()


def test_an_untouched_tree_is_not_read_again(tree, opened):
    first = fingerprint(tree)
    assert sorted(opened) == sorted(FILES)
    opened.clear()
    assert fingerprint(tree) == first
    assert opened == []


def test_only_what_changed_is_read_again(tree, opened):
    first = fingerprint(tree)
    opened.clear()
    (tree / "1.png").write_bytes(b"another" + FILES["1.png"][7:])
    age(tree / "1.png", HOUR)  # of the same size and age: what its inode says of its change cannot be set back
    assert fingerprint(tree) != first
    assert opened == ["1.png"]


def test_a_file_that_changed_just_now_is_not_trusted(tree, opened):
    (tree / "0.png").write_bytes(FILES["0.png"])
    fingerprint(tree)
    opened.clear()
    fingerprint(tree)
    assert opened == ["0.png"]


@pytest.mark.parametrize("content", [b"", b"PAR1 and no more", os.urandom(1000)])
def test_a_damaged_memory_is_forgotten(tree, opened, content):
    first = fingerprint(tree)
    cache(tree).write_bytes(content)
    opened.clear()
    assert fingerprint(tree) == first
    assert sorted(opened) == sorted(FILES)
    opened.clear()
    assert fingerprint(tree) == first
    assert opened == []


def test_where_nothing_can_be_written_nothing_is_remembered(tree, monkeypatch, opened):
    monkeypatch.setenv("XDG_CACHE_HOME", "/dev/null/nowhere")
    assert fingerprint(tree) == fingerprint(tree)
    assert len(opened) == 4
