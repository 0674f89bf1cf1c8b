"""A stage says how long it took, and how far it is while it lasts."""

from __future__ import annotations

import threading

import pytest

from swift_edge_export import progress as stage
from swift_edge_export.progress import stage as timed

PATIENCE = 60.0  # seconds; a busy machine may be late


def test_a_short_stage_is_one_line() -> None:
    lines: list[str] = []
    with timed("read weights", lines.append) as note:
        note(0.5)
    assert len(lines) == 1
    assert lines[0].startswith("read weights ")
    assert lines[0].endswith(" s")


def test_a_long_stage_says_how_far_it_is(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(stage, "SECONDS_BETWEEN_LINES", 0.01)
    lines: list[str] = []
    told = threading.Event()

    def report(line: str) -> None:
        lines.append(line)
        told.set()

    with timed("read weights", report) as note:
        assert told.wait(PATIENCE)
        assert lines[0].startswith("  read weights: ")
        assert "done" not in lines[0], "nobody has said anything yet"
        note(0.25)
        before = len(lines)
        while len(lines) < before + 2:  # the line that was being written when it was said, and one after it
            told.clear()
            assert told.wait(PATIENCE)
        assert lines[-1].endswith("25% done")
    ended = len(lines)
    assert lines[-1].startswith("read weights ")
    told.clear()
    assert not told.wait(0.1), "nothing comes after the stage's last line"
    assert len(lines) == ended


def test_a_stage_that_fails_ends_without_a_line_of_its_own() -> None:
    lines: list[str] = []
    with pytest.raises(ValueError, match="damaged"), timed("read weights", lines.append):
        raise ValueError("damaged")
    assert lines == []
    assert not [thread for thread in threading.enumerate() if "read weights" in thread.name]


def test_a_report_that_cannot_be_written_fails_in_the_stage_and_not_beside_it(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(stage, "SECONDS_BETWEEN_LINES", 0.01)
    tried = threading.Event()

    def report(_: str) -> None:
        tried.set()
        raise BrokenPipeError

    with pytest.raises(BrokenPipeError), timed("read weights", report):
        assert tried.wait(PATIENCE)
