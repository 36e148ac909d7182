"""The journal: what is written is read, a half line waits, and what a live command writes is left alone."""

from __future__ import annotations

import pytest
from pydantic import ValidationError

from limbeck.tracking.journal import Document, Ended, Journal, Point, Points, Reader, abandoned, claimed


def test_events_come_back_as_they_are_written(tmp_path):
    journal = Journal(tmp_path)
    reader = Reader(journal.path)
    assert reader.next() is None
    events = [
        Points(stage="distill", points=[Point(name="a", step=1, milliseconds=2, value=0.1 + 0.2)]),
        Document(name="a.txt", text="two\nlines \N{LATIN SMALL LETTER E WITH ACUTE}"),
        Ended(status="FINISHED"),
    ]
    for event in events:
        journal.write(event)
        assert reader.next() == event
        assert reader.next() is None


def test_half_a_line_waits_for_the_rest(tmp_path):
    path = tmp_path / "journal.jsonl"
    line = Ended(status="FAILED").model_dump_json() + "\n"
    path.write_text(line[:10])
    reader = Reader(path)
    assert reader.next() is None
    with path.open("a") as handle:
        handle.write(line[10:])
    assert reader.next() == Ended(status="FAILED")


def test_a_line_that_nobody_understands_is_not_read_twice(tmp_path):
    path = tmp_path / "journal.jsonl"
    path.write_text('{"event": "unknown"}\n' + Ended(status="FAILED").model_dump_json() + "\n")
    reader = Reader(path)
    with pytest.raises(ValidationError):
        reader.next()
    assert reader.next() == Ended(status="FAILED")


def test_journals_of_live_commands_are_left_alone(tmp_path):
    first, second = Journal(tmp_path), Journal(tmp_path)
    assert abandoned(tmp_path, second.path) == [first.path]
    with claimed(first.path) as free:
        assert not free
    first.close()
    with claimed(first.path) as free:
        assert free
        with claimed(first.path) as twice:
            assert not twice
    with claimed(tmp_path / "gone.jsonl") as free:
        assert not free


def test_a_journal_goes_with_its_pictures_and_no_others(tmp_path):
    first, second = Journal(tmp_path), Journal(tmp_path)
    for journal in (first, second):
        journal.picture_file("grid-1").write_bytes(b"png")
    Reader(first.path).remove()
    assert sorted(tmp_path.iterdir()) == sorted([second.path, second.picture_file("grid-1")])
