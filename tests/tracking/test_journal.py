"""The journal: what is written is read, a half line waits, and what a live command writes is left alone."""

from __future__ import annotations

import pytest
from pydantic import ValidationError

from limbeck.tracking.journal import Document, Ended, Journal, Point, Points, Reader, claimed, key_of, others


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
    assert others(tmp_path, second.path) == [first.path]
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


def test_a_journal_belongs_to_its_sender_too(tmp_path):
    """Whose command was killed: nobody else sends it beside that process."""
    journal = Journal(tmp_path)
    sender = Reader(journal.path, hold=True)
    journal.close()
    with claimed(journal.path) as free:
        assert not free
    del sender
    with claimed(journal.path) as free:
        assert free


def test_letters_that_are_cut_in_two_are_read_whole(tmp_path):
    path = tmp_path / "journal.jsonl"
    event = Document(name="a.txt", text="\N{LATIN SMALL LETTER E WITH ACUTE}")
    line = (event.model_dump_json() + "\n").encode()
    cut = line.index("\N{LATIN SMALL LETTER E WITH ACUTE}".encode()) + 1
    path.write_bytes(line[:cut])
    reader = Reader(path)
    assert reader.next() is None
    with path.open("ab") as handle:
        handle.write(line[cut:])
    assert reader.next() == event


def test_a_journal_that_does_not_say_whose_it_is_has_no_key(tmp_path):
    path = tmp_path / "journal.jsonl"
    assert key_of(path) is None
    for text in ("", '{"event": "unknown"}\n', Ended(status="FAILED").model_dump_json() + "\n"):
        path.write_text(text)
        assert key_of(path) is None
