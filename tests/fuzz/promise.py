"""What every door promises to whoever hands it something odd: a result, or a `SwiftEdgeError` that is one line.

Anything else that leaves a target, an exception of another kind or a `BrokenPromiseError`, is a finding.
"""

import contextlib
import io
import sys
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Final, TypeVar

from swift_edge.errors import LONGEST_MESSAGE, SwiftEdgeError

Result = TypeVar("Result")

LEFTOVERS: Final = (".partial", ".tmp", ".old")
"""Endings of files that are not complete."""


class BrokenPromiseError(AssertionError):
    """A door gave something else than a result or a line."""


class TooSlowError(BaseException):
    """An input took more processor time than any may; not an `Exception`, so that nobody catches it on the way."""


def require(condition: bool, message: str) -> None:
    """Raise `BrokenPromiseError` unless the condition holds."""
    if not condition:
        raise BrokenPromiseError(message)


def kept(call: Callable[[], Result]) -> Result | None:
    """The result of a call; None where it refused in one line."""
    try:
        return call()
    except SwiftEdgeError as error:
        check_line(str(error))
        return None


def check_line(line: str) -> None:
    """Check that an error is told in one line."""
    require(bool(line.strip()), "the error says nothing")
    require("\n" not in line and "\r" not in line, f"the error has more than one line: {line!r:.300}")
    require(len(line) <= LONGEST_MESSAGE, f"the error is {len(line)} characters long: {line!r:.300}")


def check_no_leftovers(folder: Path) -> None:
    """Check that nothing half-written lies in a folder."""
    left = [path.name for path in folder.rglob("*") if path.name.endswith(LEFTOVERS)]
    require(not left, f"left behind: {', '.join(left)}")


@dataclass(frozen=True)
class Outcome:
    """What a command left behind."""

    status: int
    out: str
    err: str


def command(*arguments: str, stdin: bytes = b"") -> Outcome:
    """Run a command in this process, and check its exit status and its complaint."""
    from swift_edge.cli import commands

    with _streams(stdin) as (out, err):
        status = 0
        try:
            commands.main(list(arguments), prog_name="swift-edge", windows_expand_args=False)
        except SystemExit as leaving:
            status = leaving.code if isinstance(leaving.code, int) else 1
    outcome = Outcome(status, out.getvalue().decode(), err.getvalue().decode())
    require(status in (0, 1, 2, 3), f"exit status {status}: {outcome.err!r:.300}")
    require("Traceback" not in outcome.err, outcome.err[-2000:])
    if status in (1, 2):
        lines = outcome.err.splitlines()
        complaints = [line for line in lines if line.lower().startswith("error: ")]
        require(len(complaints) == 1, f"{len(complaints)} complaints instead of one: {outcome.err!r:.600}")
        require(lines[-1] == complaints[0] or status == 2, f"lines after the complaint: {outcome.err!r:.600}")
        if status == 1 or complaints[0].startswith("error: "):  # else it is click's, which shows arguments as they are
            check_line(complaints[0].removeprefix("error: "))
    return outcome


@contextlib.contextmanager
def _streams(stdin: bytes) -> Iterator[tuple[io.BytesIO, io.BytesIO]]:
    """Stand-ins for the streams of a process, as `main` sets them up."""
    out, err = io.BytesIO(), io.BytesIO()
    before = sys.stdin, sys.stdout, sys.stderr
    sys.stdin = io.TextIOWrapper(io.BytesIO(stdin), encoding="utf-8")
    sys.stdout = io.TextIOWrapper(out, encoding="utf-8", errors="backslashreplace", write_through=True)
    sys.stderr = io.TextIOWrapper(err, encoding="utf-8", errors="backslashreplace", write_through=True)
    try:
        yield out, err
    finally:
        for stream in (sys.stdout, sys.stderr):
            with contextlib.suppress(ValueError):  # a command may have closed it
                stream.detach()
        sys.stdin, sys.stdout, sys.stderr = before
