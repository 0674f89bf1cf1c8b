"""A line on stderr that says how far a command is: it moves on a terminal, elsewhere a new one comes now and then."""

import math
import shutil
import sys
import threading
import time
from types import TracebackType

from swift_edge.cli.output import escaped, say

REFRESH_S = 0.1
"""Seconds between two states of a line that moves."""
SOON_S = 0.5
"""Seconds after which a command that has not said anything says what it is at."""
LOG_S = 30.0
"""Seconds between two lines where nothing moves."""


class ProgressLine:
    """A context manager: on the way out, whatever the reason, the line is cleared."""

    def __init__(self, first: str | None = None, *, log: bool = True) -> None:
        """Look at stderr, once; without `log`, nothing is shown where that is no terminal.

        `first` is what the command begins with: it is written only if that takes a moment.
        """
        self._moves = sys.stderr is not None and sys.stderr.isatty()
        self._interval = REFRESH_S if self._moves else LOG_S if log else math.inf
        self._width = 0
        self._next = time.monotonic() + (0 if self._moves else self._interval)
        self._lock = threading.Lock()
        self._first = first
        self._soon = threading.Timer(SOON_S, self._say_first)
        self._soon.daemon = True

    def __enter__(self) -> "ProgressLine":
        """Nothing is shown before the first text."""
        if self._first is not None:
            self._soon.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        """Clear the line."""
        self._has_said()
        self._clear()

    def due(self) -> bool:
        """Whether a text would be shown now, so that none has to be made in vain."""
        return time.monotonic() >= self._next

    def show(self, text: str) -> None:
        """Show how far it is, if the last text is old enough."""
        if not self.due():
            return
        self._has_said()
        self._next = time.monotonic() + self._interval
        if not self._moves:
            say(text)
            return
        # Blanks instead of an escape sequence: any terminal knows them. The last column stays free, or the line wraps.
        text = escaped(text)[: shutil.get_terminal_size().columns - 1]
        say(text.ljust(self._width), before="\r", nl=False)
        self._width = len(text)

    def say(self, text: str) -> None:
        """Write a line that stays."""
        self._has_said()
        self._clear()
        say(text)

    def _say_first(self) -> None:
        with self._lock:
            if self._first is not None:
                say(self._first)
                self._first = None

    def _has_said(self) -> None:
        """Something else is about to be written, or nothing any more."""
        with self._lock:
            if self._first is not None:
                self._first = None
                self._soon.cancel()

    def _clear(self) -> None:
        if self._width:
            say("", before="\r" + " " * self._width + "\r", nl=False)
            self._width = 0


class PickProgress:
    """How far a pick is: rows alive, tokens and speed."""

    def __init__(self) -> None:
        """Begin without candidates."""
        self._alive: set[int] = set()
        self._ended = 0
        self._tokens = 0
        self._begin: float | None = None

    def token(self, index: int) -> None:
        """Count a token of a candidate; the clock runs from the first one, as the prompt was read before."""
        if self._begin is None:
            self._begin = time.monotonic()
        self._tokens += 1
        self._alive.add(index)

    def ended(self, index: int) -> None:
        """Count a candidate that has ended."""
        self._alive.discard(index)
        self._ended += 1

    @property
    def text(self) -> str:
        """What the line says."""
        if self._begin is None:
            return "reading the prompt"
        elapsed = time.monotonic() - self._begin
        speed = f", {self._tokens / elapsed:.0f} tok/s" if elapsed > 0 else ""
        return f"{len(self._alive)} of {len(self._alive) + self._ended} rows alive, {self._tokens} tokens{speed}"


def duration_text(seconds: float) -> str:
    """Write a duration for people: `duration_text(4000)` is `"1 h 7 min"`."""
    whole = round(seconds)
    if whole < 60:
        return f"{whole} s"
    minutes = round(seconds / 60)
    return f"{minutes} min" if minutes < 60 else f"{minutes // 60} h {minutes % 60} min"
