"""The line that says how far a command is, on a terminal and elsewhere."""

import io
import sys
import threading
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from swift_edge.cli import progress
from swift_edge.cli.progress import ProgressLine, duration_text

ADDITION = Path(__file__).parents[1] / "data" / "addition-gpt2-h1_l1"


def test_elsewhere_than_on_a_terminal_a_line_comes_now_and_then(
    run: Callable[..., Any], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    sums = tmp_path / "sums.jsonl"
    sums.write_text(
        "".join(f'{{"prompt": "{k}{k}", "answer": "{2 * k}"}}\n' for k in range(331, 351)), encoding="utf-8"
    )
    monkeypatch.setattr(progress, "LOG_S", 0)
    outcome = run(
        *("collect", "-m", ADDITION, "--task", "number", "-n", "4", "--max-new-tokens", "4", "--threads", "1"),
        *("--data", sums, "--out", tmp_path / "store", "--rows", "1"),
    )
    lines = [line for line in outcome.err.splitlines() if " of 20 problems" in line]
    # Which problems are done when a line is due is up to the threads: the batch goes on while this one writes.
    counts = [int(line.split()[0]) for line in lines]
    assert counts == sorted(counts)
    assert counts[0] < counts[-1] <= 20
    assert any("% right" in line and line.endswith(" left") for line in lines)
    assert "\r" not in outcome.err


def test_on_a_terminal_the_line_moves_and_is_cleared(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    class Terminal(io.StringIO):
        def isatty(self) -> bool:
            return True

    terminal = Terminal()
    monkeypatch.setattr(sys, "stderr", terminal)
    monkeypatch.setattr(progress, "REFRESH_S", 0)
    with ProgressLine() as line:
        line.show("1 of 10")
        line.show("2")
        line.say("a note")
        line.show("3 of 10")
    assert terminal.getvalue() == "\r1 of 10\r2      \r \ra note\n\r3 of 10\r       \r"


def test_where_nothing_moves_a_line_comes_now_and_then_unless_it_is_not_wanted(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(progress, "LOG_S", 0)
    for log in (True, False):
        with ProgressLine(log=log) as line:
            assert line.due() is log
            line.show("1 of 10")
            line.say("a note")
    assert capsys.readouterr().err == "1 of 10\na note\na note\n"


@pytest.mark.parametrize(
    ("seconds", "text"), [(0, "0 s"), (59.4, "59 s"), (60, "1 min"), (4000, "1 h 7 min"), (90000, "25 h 0 min")]
)
def test_durations(seconds: float, text: str) -> None:
    assert duration_text(seconds) == text


def test_what_a_command_begins_with_is_said_where_it_takes_a_moment(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    said = threading.Event()
    monkeypatch.setattr(progress, "SOON_S", 0.0)
    monkeypatch.setattr(progress, "say", lambda text, **_: (lines.append(text), said.set()))
    lines: list[str] = []
    with ProgressLine("reading the store") as line:
        assert said.wait(60)
        line.say("3 problems")
    assert lines == ["reading the store", "3 problems"]
    lines.clear()
    monkeypatch.setattr(progress, "SOON_S", 3600.0)
    with ProgressLine("reading the store") as line:
        line.say("3 problems")
    with ProgressLine("reading the store"):
        pass
    assert lines == ["3 problems"]


@pytest.mark.parametrize("command", ["fit", "recalibrate", "collect", "eval"])
def test_commands_that_take_long_say_what_they_begin_with(
    run: Callable[..., Any], tmp_path: Path, monkeypatch: pytest.MonkeyPatch, command: str
) -> None:
    begun: list[str | None] = []
    monkeypatch.setattr(ProgressLine, "__enter__", lambda line: begun.append(line._first) or line)
    asked = ("-m", ADDITION, "--data", tmp_path / "data.jsonl", "--task", "number", "--out", tmp_path / "out")
    arguments = {
        "fit": ("fit", tmp_path / "store", "--out", tmp_path / "head.npz"),
        "recalibrate": ("recalibrate", tmp_path / "a.npz", tmp_path / "store", "--out", tmp_path / "head.npz"),
    }.get(command, (command, *asked))
    assert run(*arguments).status == 1
    (first,) = begun
    assert first is not None
    assert first.startswith(f"reading {tmp_path}")
